"""Images of random overlapping shapes, for who has no images at hand.

Occlusion of things of all sizes is what gives photographs their statistics: the "dead leaves"
model (Lee, Mumford and Huang 2001) has their power spectrum and their edges. Networks see enough
in it that loss curves measured on such images plan about as well as those measured on photographs.
Half of the images are sharp and grainy; the other half are out of focus and have a texture of the
same spectrum, since what a network was trained on may be either (`scripts/bench made_up`).
"""

from __future__ import annotations

import numpy as np

from rlprune.runtime.base import Array

SMALLEST = 1.5
"""Radius in pixels of the smallest shapes."""
GRAIN = 6.0
"""Deviation of the sharp images' noise; pixels are 0..255."""
TEXTURE = 25.0
"""Of how strong the texture of a soft image is."""
MAX_BLUR = 1.5
"""Deviation in pixels of the strongest blur."""
SLOPE = 1.2
"""Amplitude falls with the frequency to this power."""
_MARGIN = 4
_COLOURS = np.linalg.cholesky(np.array([[1, 0.92, 0.85], [0.92, 1, 0.93], [0.85, 0.93, 1]]))
"""Mixes independent channels to such as are correlated as in nature."""


def random_shapes(count: int, height: int, width: int, rng: np.random.Generator) -> Array:
    """RGB images [count, height, width, 3] of discs and rectangles, uint8."""
    images = np.zeros((count, height, width, 3), dtype=np.uint8)
    for index in range(count):
        image = _leaves(height, width, rng)
        if index % 2:
            image = image + rng.normal(0, TEXTURE) * _texture(height, width, rng)
            image = _blurred(image, rng.uniform(0, MAX_BLUR)) + rng.normal(0, 3, image.shape)
        else:
            image = image + rng.normal(0, GRAIN, image.shape)
        images[index] = np.clip(image, 0, 255)
    return images


def _leaves(height: int, width: int, rng: np.random.Generator) -> Array:
    """Shapes over one another [height, width, 3], float32."""
    image = np.empty((height, width, 3), dtype=np.float32)
    image[:] = _colour(rng)
    side = min(height, width)
    scale = max(1.0, side / 32)
    # As many shapes to the area as 6 to 30 on 32x32, so that long images are covered as well.
    count = int(rng.integers(6, 30) * scale * max(1.0, height * width / side**2))
    # From a pixel's size to the image's, whatever its resolution.
    radii = (2 * rng.pareto(1.5, count) + SMALLEST) * scale ** rng.uniform(0, 1, count)
    for radius in np.clip(radii, SMALLEST, max(side / 2, SMALLEST)):
        _draw(image, float(radius), rng)
    return image


def _draw(image: Array, radius: float, rng: np.random.Generator) -> None:
    """One shape [h, w, 3], of one colour that fades to one side, over what is there."""
    height, width, _ = image.shape
    y, x = rng.uniform(0, height), rng.uniform(0, width)
    round_shape = rng.random() < 0.5
    across = radius if round_shape else radius * rng.uniform(0.3, 2)
    top, bottom = max(0, int(y - radius)), min(height, int(y + radius) + 2)
    left, right = max(0, int(x - across)), min(width, int(x + across) + 2)
    rows = np.arange(top, bottom, dtype=np.float32)[:, None] - y  # [h, 1]
    columns = np.arange(left, right, dtype=np.float32)[None] - x  # [1, w]
    if round_shape:
        inside = rows**2 + columns**2 < radius**2
    else:
        inside = (abs(rows) < radius) & (abs(columns) < across)
    shade = np.broadcast_to(rng.normal(0, 12) * columns / radius, inside.shape)
    part = image[top:bottom, left:right]
    part[inside] = _colour(rng) + shade[inside][:, None]


def _colour(rng: np.random.Generator) -> Array:
    """One brightness and a little of each channel's own [3]: colours in nature are correlated."""
    return np.clip(rng.uniform(0, 255) + rng.normal(0, 25, 3), 0, 255)


def _texture(height: int, width: int, rng: np.random.Generator) -> Array:
    """Noise of deviation 1 with the spectrum of photographs [height, width, 3]."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    frequency[0, 0] = 1 / max(height, width)
    parts = rng.standard_normal((2, 3, height, width))
    spectrum = (parts[0] + 1j * parts[1]) / frequency**SLOPE
    noise = np.fft.ifft2(spectrum).real
    noise /= noise.std((1, 2), keepdims=True)
    return np.asarray(np.einsum("ij,jhw->hwi", _COLOURS, noise))


def _blurred(image: Array, deviation: float) -> Array:
    """A Gaussian blur of so many pixels, edges continued."""
    padded = np.pad(image, ((_MARGIN, _MARGIN), (_MARGIN, _MARGIN), (0, 0)), mode="edge")
    height, width, _ = padded.shape
    squared = np.fft.fftfreq(height)[:, None] ** 2 + np.fft.rfftfreq(width)[None] ** 2
    passed = np.exp(-2 * (np.pi * deviation) ** 2 * squared)[..., None]  # [h, w / 2 + 1, 1]
    spectrum = np.fft.rfft2(padded, axes=(0, 1)) * passed
    soft = np.fft.irfft2(spectrum, s=(height, width), axes=(0, 1))
    return np.asarray(soft[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN])
