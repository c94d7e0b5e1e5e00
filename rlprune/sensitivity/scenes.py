"""Images of made-up scenes, for who has no images at hand.

Things of all sizes that cover one another give photographs their statistics: the "dead leaves"
model (Lee, Mumford and Huang 2001). Here every thing has a surface of its own, a colour of the
scene's few with a shade and a texture; most things lie near one another, and half of the scenes
have a horizon. Layers solved on such images answer on real ones a quarter to a third nearer to the
unpruned network than those solved on bare leaves (`scripts/bench made_up`); crops of four
photographs did no better than bare leaves, and images of untrained networks worse.
"""

from __future__ import annotations

import json
from functools import lru_cache

import numpy as np

from rlprune.graph.types import FloatArray
from rlprune.runtime.base import Array

TEXTURES = 256
"""Different ones, each of which many surfaces have, at another place."""
STRIPED = 0.3
"""Share of them that have one frequency; of others the amplitude falls with the frequency."""
COLOURS = 5
"""Of a scene."""
HUE, OWN_HUE = 16.0, 15.0
"""Deviation of each channel of a colour about its brightness, and of a surface about its colour;
pixels are 0..255. With strong colours (35) losses were a tenth larger."""
SHADE = (40.0, 15.0)
"""Deviation of how much brighter one end of the image is, from top to bottom and across."""
TEXTURE = 26.0
"""Deviation of how strong a surface's texture is. With half of it losses were a tenth larger."""
SHAPES = (1, 16)
"""On a square image, from and below."""
SIZES = (0.05, 0.6)
"""Half an extent of a shape by the image's smaller side; all logarithms are as likely."""
NEAR = 0.7
"""Share of shapes that lie near a scene's centre."""
MAX_BLUR = 0.7
"""Deviation in pixels of the strongest blur. Without blur losses were a fifth larger."""
MAX_GRAIN = 2.0
_MARGIN = 4
_MIXED = np.linalg.cholesky(np.array([[1, 0.92, 0.85], [0.92, 1, 0.93], [0.85, 0.93, 1]]))
"""Mixes independent channels to such as are correlated as in nature."""


def random_scenes(count: int, height: int, width: int, rng: np.random.Generator) -> Array:
    """RGB images [count, height, width, 3], uint8. Those drawn last are kept: what plans and then
    applies draws the same twice, at a millisecond and more each."""
    images, after = _drawn(count, height, width, json.dumps(rng.bit_generator.state))
    rng.bit_generator.state = json.loads(after)
    return images.copy()


@lru_cache(maxsize=2)
def _drawn(count: int, height: int, width: int, state: str) -> tuple[Array, str]:
    """The images, and the generator's state after them, from its state before."""
    rng = np.random.default_rng()
    rng.bit_generator.state = json.loads(state)
    textures = _textures(min(TEXTURES, count), height, width, rng)
    images = np.zeros((count, height, width, 3), dtype=np.uint8)
    for image in images:
        image[:] = np.clip(_Scene(textures, rng).drawn(), 0, 255)
    return images, json.dumps(rng.bit_generator.state)


class _Scene:
    """One image in the making."""

    def __init__(self, textures: Array, rng: np.random.Generator) -> None:
        self._textures, self._rng = textures, rng
        _, self._height, self._width, _ = textures.shape
        brightness = rng.uniform(0, 255, (COLOURS, 1))
        self._colours = np.clip(brightness + rng.normal(0, HUE, (COLOURS, 3)), 0, 255)
        self._image = self._surface(np.arange(self._height), np.arange(self._width)).astype(
            np.float32
        )

    def drawn(self) -> FloatArray:
        """The finished image [h, w, 3]; values may lie beyond 0..255."""
        rng, height, width = self._rng, self._height, self._width
        rows, columns = np.arange(height)[:, None], np.arange(width)[None]
        if rng.random() < 0.5:
            horizon = rng.uniform(0.2, 0.8) * height + rng.normal(0, 0.1) * columns
            self._cover(np.arange(height), np.arange(width), rows > horizon)
        side = min(height, width)
        squares = max(1, round(height * width / side**2))
        centres = rng.normal(0.5, 0.25, (squares, 2)) * (height, width)
        low, high = np.log(SIZES)
        radii = side * np.exp(rng.uniform(low, high, squares * int(rng.integers(*SHAPES))))
        for radius in np.sort(radii)[::-1]:  # what is small lies on top
            place = rng.uniform(0, 1, 2) * (height, width)
            if rng.random() < NEAR:
                place = rng.choice(centres) + rng.normal(0, (0.15, 0.2)) * side
            self._shape(place, float(radius))
        light = rng.normal(0, 0.15, 2)
        image = (
            self._image
            * (1 + light[0] * (columns / width - 0.5) + light[1] * (rows / height - 0.5))[..., None]
        )
        grain = rng.normal(0, rng.uniform(0, MAX_GRAIN), image.shape)
        return np.asarray(_blurred(image, rng.uniform(0, MAX_BLUR)) + grain)

    def _shape(self, place: FloatArray, radius: float) -> None:
        """A diamond, an ellipse or a box, or what a straight cut leaves of it, over what is
        there."""
        rng = self._rng
        angle = rng.choice([0, np.pi / 2, rng.uniform(0, np.pi)])
        longer = np.exp(rng.normal(0, 0.5))
        power = rng.choice([1, 2, 2, 6])
        cut = rng.normal() if rng.random() < 0.25 else None
        reach = int(1.5 * radius * max(longer, 1 / longer)) + 1  # sqrt(2) of a turned box
        rows, columns = (
            np.arange(max(0, int(at) - reach), min(extent, int(at) + reach + 1))
            for at, extent in zip(place, (self._height, self._width), strict=True)
        )
        y, x = rows[:, None] - place[0], columns[None] - place[1]
        along = (y * np.cos(angle) + x * np.sin(angle)) / (radius * longer)
        across = (x * np.cos(angle) - y * np.sin(angle)) / (radius / longer)
        inside = np.abs(along) ** power + np.abs(across) ** power < 1
        if cut is not None:
            inside &= along > across * cut
        self._cover(rows, columns, inside)

    def _cover(self, rows: Array, columns: Array, inside: Array) -> None:
        """A new surface where `inside` [r, c] holds."""
        if inside.any():
            part = self._image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            part[inside] = self._surface(rows, columns)[inside]

    def _surface(self, rows: Array, columns: Array) -> FloatArray:
        """A colour with its shade and its texture [r, c, 3]."""
        rng = self._rng
        colour = self._colours[rng.integers(COLOURS)] + rng.normal(0, OWN_HUE, 3)
        down, over = rng.normal(0, SHADE)
        shade = down * (rows[:, None] / self._height - 0.5) + over * (columns / self._width - 0.5)
        texture = self._textures[rng.integers(len(self._textures))]
        place = np.ix_(
            (rows + rng.integers(self._height)) % self._height,
            (columns + rng.integers(self._width)) % self._width,
        )
        strength = abs(rng.normal(0, TEXTURE))
        return np.asarray(colour + shade[..., None] + strength * texture[place])


def _textures(count: int, height: int, width: int, rng: np.random.Generator) -> Array:
    """Noise of deviation 1 that runs in one direction, more or less so
    [count, height, width, 3], float32."""
    down, over = np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None]
    made = np.empty((count, height, width, 3), dtype=np.float32)
    for one in made:
        angle, stretch = rng.uniform(0, np.pi), np.exp(rng.normal(0, 0.7))
        along = (down * np.cos(angle) + over * np.sin(angle)) * stretch
        across = (over * np.cos(angle) - down * np.sin(angle)) / stretch
        frequency = np.hypot(along, across)
        frequency[0, 0] = 1 / max(height, width)
        if rng.random() < STRIPED:
            wanted = rng.uniform(np.log(1 / 32), np.log(0.4))
            amplitude = np.exp(-0.5 * ((np.log(frequency) - wanted) / 0.3) ** 2)
        else:
            amplitude = frequency ** -rng.uniform(0.6, 1.8)
        parts = rng.standard_normal((2, 3, height, width))
        noise = np.fft.ifft2((parts[0] + 1j * parts[1]) * amplitude).real  # [3, h, w]
        noise -= noise.mean((1, 2), keepdims=True)
        noise /= noise.std((1, 2), keepdims=True) + 1e-6
        grey = rng.uniform(0.5, 1)
        one[:] = np.einsum("ij,jhw->hwi", _MIXED, grey * noise[:1] + (1 - grey) * noise)
    return made


def _blurred(image: FloatArray, deviation: float) -> FloatArray:
    """A Gaussian blur of so many pixels, edges continued."""
    padded = np.pad(image, ((_MARGIN, _MARGIN), (_MARGIN, _MARGIN), (0, 0)), mode="edge")
    height, width, _ = padded.shape
    squared = np.fft.fftfreq(height)[:, None] ** 2 + np.fft.rfftfreq(width)[None] ** 2
    passed = np.exp(-2 * (np.pi * deviation) ** 2 * squared)[..., None]  # [h, w / 2 + 1, 1]
    spectrum = np.fft.rfft2(padded, axes=(0, 1)) * passed
    soft = np.fft.irfft2(spectrum, s=(height, width), axes=(0, 1))
    return np.asarray(soft[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN])
