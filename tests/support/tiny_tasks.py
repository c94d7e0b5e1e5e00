"""A regression with two inputs that a small module learns in seconds: loaders, losses, metrics.

What `--module tiny_tasks:two_inputs`, `--loader tiny_tasks:loaders` and so on name.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


class TwoInputs(nn.Module):
    """Images and a vector -> three numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 16, 3, padding=1)
        self.mid = nn.Conv2d(16, 16, 3, padding=1)
        self.drop = nn.Dropout(0.1)
        self.side = nn.Linear(4, 16)
        self.last = nn.Linear(32, 3)

    def forward(self, image: Tensor, side: Tensor) -> Tensor:
        seen = self.mid(self.conv(image).relu()).relu().mean((2, 3))
        out: Tensor = self.last(self.drop(torch.cat([seen, self.side(side).relu()], 1)))
        return out


def two_inputs() -> nn.Module:
    """The same weights at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return TwoInputs()


def samples(count: int = 96) -> tuple[Tensor, Tensor, Tensor]:
    """Images, vectors, and three numbers for each that follow from both."""
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(count, 1, 8, 8, generator=generator)
    side = torch.randn(count, 4, generator=generator)
    wanted = torch.stack([image.mean((1, 2, 3)) * 4, side.sum(1), side[:, 0] - side[:, 1]], 1)
    return image, side, wanted


def pairs(rows: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """A DataLoader's samples as ((image, side), wanted)."""
    image, side, wanted = (torch.stack(each) for each in zip(*rows, strict=True))
    return (image, side), wanted


def loader(*, shuffle: bool = True, count: int = 96) -> DataLoader[Any]:
    """Of batches of 16, in an order from torch's own generator."""
    data = TensorDataset(*samples(count))
    return DataLoader(data, 16, shuffle=shuffle, collate_fn=pairs)


def loaders() -> tuple[DataLoader[Any], DataLoader[Any]]:
    """To train and to validate on."""
    return loader(), loader(shuffle=False, count=32)


def lonely() -> DataLoader[Any]:
    """To train on, and none to validate on."""
    return loader()


class Named:
    """An iterable without a length, of numpy arrays by the names of the module's arguments."""

    def __iter__(self) -> Iterator[tuple[dict[str, Any], Any]]:
        image, side, wanted = (one.numpy() for one in samples(48))
        for start in range(0, 48, 16):
            own = slice(start, start + 16)
            yield {"image": image[own], "side": side[own]}, wanted[own]


def used_up() -> Iterator[Any]:
    """A generator: there is one epoch in it."""
    return iter(loader())


def broken() -> Iterator[Any]:
    """Fails when it is made."""
    raise OSError("no such disk")


def three() -> tuple[int, int, int]:
    """Neither a loader nor a pair."""
    return 1, 2, 3


def not_pairs() -> list[Tensor]:
    """Batches without targets."""
    return [torch.zeros(16, 1, 8, 8)] * 3


def squared(outputs: Tensor, wanted: Tensor) -> Tensor:
    """A loss."""
    return nn.functional.mse_loss(outputs, wanted)


def closeness(outputs: Tensor, wanted: Tensor) -> float:
    """A metric: higher is better, at most 1."""
    return float(1 - np.abs(outputs.numpy() - wanted.numpy()).mean())


def faulty(outputs: Tensor, wanted: Tensor) -> Tensor:
    """A loss with a mistake in it."""
    raise RuntimeError("shapes differ")


def no_scalar(outputs: Tensor, wanted: Tensor) -> Tensor:
    """A loss that is not one number."""
    return outputs - wanted


def words(outputs: Tensor, wanted: Tensor) -> str:
    """A metric that is no number."""
    return "good"
