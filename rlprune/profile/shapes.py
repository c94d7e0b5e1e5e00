"""Images of random overlapping shapes, for who has no images at hand.

Occlusion of things of all sizes is what gives photographs their statistics: the "dead leaves"
model (Lee, Mumford and Huang 2001) has their power spectrum and their edges, and networks see
enough in it that loss curves measured on such images plan about as well as those measured on
photographs.
"""

from __future__ import annotations

import numpy as np

from rlprune.runtime.base import Array

SMALLEST = 1.5
"""Radius in pixels of the smallest shapes."""


def random_shapes(count: int, height: int, width: int, rng: np.random.Generator) -> Array:
    """RGB images [count, height, width, 3] of discs and rectangles, uint8."""
    images = np.zeros((count, height, width, 3), dtype=np.float32)
    side = min(height, width)
    most = max(side / 2, SMALLEST)
    # As many shapes to the area as 6 to 30 on 32x32, so that long images are covered as well.
    area = max(1.0, height * width / side**2) * max(1.0, side / 32) ** 0.5
    for image in images:
        image[:] = rng.uniform(0, 255, 3)
        for _ in range(int(rng.integers(6, 30) * area)):
            radius = float(np.clip((2 * rng.pareto(1.5) + SMALLEST) * side / 32, SMALLEST, most))
            _draw(image, radius, rng)
    images += rng.normal(0, 6, images.shape).astype(np.float32)
    return np.clip(images, 0, 255).astype(np.uint8)


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
    # Colours in nature are correlated: one brightness, and a little of each channel's own.
    colour = np.clip(rng.uniform(0, 255) + rng.normal(0, 35, 3), 0, 255)
    shade = np.broadcast_to(rng.normal(0, 12) * columns / radius, inside.shape)
    part = image[top:bottom, left:right]
    part[inside] = colour + shade[inside][:, None]
