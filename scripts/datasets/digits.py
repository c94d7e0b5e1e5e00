"""Small networks of five block types, and the digits that they are trained on.

What the demo learns from: nets of any width and depth, on scikit-learn's handwritten digits (they
come with a dependency), enlarged to 32 pixels and repeated over three channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

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


def train_net(spec: NetSpec, splits: Splits, *, epoch_count: int = 6, seed: int = 0) -> nn.Module:
    """A net trained from scratch on `splits.train`, in eval mode.

    All epochs but the last two see the images at half their size, which costs a quarter
    (progressive resizing).
    """
    module = build(spec, seed=seed)
    untaught = TrainConfig(batch_size=32, distill_weight=0.0)
    coarse = replace(untaught, epoch_count=epoch_count - 2, learning_rate=0.1, seed=seed)
    fine = replace(untaught, epoch_count=min(epoch_count, 2), learning_rate=0.05, seed=seed + 1)
    if epoch_count > 2:
        halved = F.avg_pool2d(torch.from_numpy(splits.train.x), 2).numpy()
        fit(
            module,
            CalibrationSet.single(halved, splits.train.y),
            coarse,
            augment=partial(shifted, pixels=1),
        )
    fit(module, splits.train, fine, augment=shifted)
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
