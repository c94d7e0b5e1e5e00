"""Small networks of five block types, and the digits that they are trained on.

Nets of any width and depth, on scikit-learn's handwritten digits, which come with a dependency:
as they are (`digits`), enlarged and repeated over three channels; or a harder task made of them
(`cluttered`), on which a small network has something to lose.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets import nets
from rlprune.errors import InputError
from rlprune.finetuning.augment import shifted
from rlprune.finetuning.loop import TrainConfig, fit
from rlprune.sensitivity.calibration import CalibrationSet


@dataclass(frozen=True, slots=True)
class NetSpec:
    """A net: three stages of `depth` blocks at 32, 16 and 8 pixels."""

    kind: str
    """One of `KINDS`."""
    width: int
    """Channels of the first stage; the later ones have two and four times as many."""
    depth: int

    @property
    def name(self) -> str:
        return f"{self.kind}-w{self.width}-d{self.depth}"

    @property
    def blocks(self) -> list[tuple[int, int]]:
        """Stride and channels of each block."""
        return [
            (2 if stage and not index else 1, self.width << stage)
            for stage in range(3)
            for index in range(self.depth)
        ]


KINDS: dict[str, Callable[[NetSpec], nn.Module]] = {
    "plain": lambda spec: nets.vgg(*((spec.width << s,) * spec.depth for s in range(3))),
    "residual": lambda spec: nets.resnet(spec.width, nets.basic, *spec.blocks),
    "squeeze": lambda spec: nets.resnet(spec.width, nets.gated_basic, *spec.blocks),
    "inverted": lambda spec: nets.inverted(
        spec.width, *((4, stride, cout) for stride, cout in spec.blocks), last=4 * spec.width
    ),
    "dense": lambda spec: nets.densenet(
        spec.width, *((2 * spec.depth, max(8, (spec.width << s) // 16 * 8)) for s in range(3))
    ),
}


@dataclass(frozen=True, slots=True)
class Splits:
    """Disjoint images: to train on, to calibrate and choose with, and to report on."""

    train: CalibrationSet
    calibration: CalibrationSet
    report: CalibrationSet

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a batch of one image."""
        return (1, *self.train.x.shape[1:])


def build(spec: NetSpec, *, seed: int = 0) -> nn.Module:
    """An untrained net, in eval mode.

    Raises:
        InputError: no such kind.
    """
    if spec.kind not in KINDS:
        raise InputError(f"no net of kind {spec.kind!r}; there are {', '.join(KINDS)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return KINDS[spec.kind](spec).eval()


def train_net(
    spec: NetSpec, images: CalibrationSet, *, coarse: int = 5, fine: int = 5, seed: int = 0
) -> nn.Module:
    """A net trained from scratch, in eval mode.

    The first epochs, `coarse`, see the images at half their size, which costs a quarter
    (progressive resizing); the last, `fine`, at their own.
    """
    module = build(spec, seed=seed)
    config = TrainConfig(coarse, batch_size=64, learning_rate=0.1, distill_weight=0.0, seed=seed)
    halved = F.avg_pool2d(torch.from_numpy(images.x), 2).numpy()
    small = CalibrationSet.single(halved, images.labels)
    fit(module, small, config, augment=partial(shifted, pixels=1))
    fit(module, images, replace(config, epoch_count=fine, seed=seed + 1), augment=shifted)
    return module


def digits(*, seed: int = 0, side: int = 32, noise: float = 0.0) -> Splits:
    """scikit-learn's 1,797 handwritten digits, enlarged to [N, 3, side, side].

    900 to train on, 450 to calibrate, 447 to report on, drawn by `seed`; noise is normal, of that
    standard deviation.
    """
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    small = torch.from_numpy(pixels).float().view(-1, 1, 8, 8) / 16.0
    large = F.interpolate(small, (side, side), mode="bilinear").expand(-1, 3, -1, -1)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(labels))
    x = ((large - 0.3) / 0.35).numpy().astype(np.float32)
    if noise:
        x = x + np.float32(noise) * rng.standard_normal(x.shape, dtype=np.float32)
    parts = [
        CalibrationSet.single(np.ascontiguousarray(x[part]), labels[part].astype(np.int64))
        for part in np.split(order, [900, 1350])
    ]
    return Splits(*parts)


def cluttered(
    *, seed: int = 0, side: int = 24, counts: tuple[int, int, int] = (6000, 512, 2000)
) -> Splits:
    """The same digits turned, scaled, moved, coloured, among pieces of others: [N, 3, side, side].

    The answer is the whole digit. Images of different parts are made of different handwriting:
    1,100 digits to train on, 300 to calibrate, 397 to report on.

    Args:
        counts: images of each part.
    """
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    small = torch.from_numpy(pixels).float().view(-1, 1, 8, 8) / 16.0
    rng = np.random.default_rng(seed)
    parts = []
    order = np.split(rng.permutation(len(labels)), [1100, 1400])
    for own, count in zip(order, counts, strict=True):
        picked = own[rng.integers(0, len(own), count)]
        image = _placed(small[picked], rng, side, turn=0.5, scale=(0.55, 0.8), move=0.3)
        for _ in range(CLUTTER):
            piece = small[own[rng.integers(0, len(own), count)]] * _quarters(count, rng)
            around = _placed(piece, rng, side, turn=np.pi, scale=(0.5, 0.8), move=0.8)
            image = torch.maximum(image, around)
        image += NOISE * torch.from_numpy(rng.standard_normal(image.shape, dtype=np.float32))
        x = ((image - 0.2) / 0.3).numpy().astype(np.float32)
        parts.append(CalibrationSet.single(x, labels[picked].astype(np.int64)))
    return Splits(*parts)


CLUTTER, NOISE = 3, 0.15
"""Pieces of other digits in an image; standard deviation of what is added to its pixels, 0 to 1."""


def _placed(
    small: Tensor,
    rng: np.random.Generator,
    side: int,
    *,
    turn: float,
    scale: tuple[float, float],
    move: float,
) -> Tensor:
    """Each [1, 8, 8] somewhere on a canvas, in a colour of its own: [N, 3, side, side].

    Args:
        turn: up to so many radians either way.
        scale: share of the canvas that it spans.
        move: of its middle, in halves of the canvas.
    """
    count = len(small)
    angle = rng.uniform(-turn, turn, count)
    size = rng.uniform(*scale, count)
    dx, dy = rng.uniform(-move, move, (2, count))
    cos, sin = np.cos(angle) / size, np.sin(angle) / size
    rows = [[cos, -sin, sin * dy - cos * dx], [sin, cos, -sin * dx - cos * dy]]
    theta = torch.from_numpy(np.moveaxis(np.array(rows), -1, 0)).float()  # [N, 2, 3]
    grid = F.affine_grid(theta, [count, 1, side, side], align_corners=False)
    colour = torch.from_numpy(rng.uniform(0.4, 1.0, (count, 3, 1, 1))).float()
    return F.grid_sample(small, grid, align_corners=False) * colour


def _quarters(count: int, rng: np.random.Generator) -> Tensor:
    """Masks [N, 1, 8, 8] of one quarter each."""
    quarter = torch.from_numpy(rng.integers(0, 4, count))
    each = F.one_hot(quarter, 4).float().view(count, 1, 2, 2)
    return F.interpolate(each, scale_factor=4, mode="nearest")
