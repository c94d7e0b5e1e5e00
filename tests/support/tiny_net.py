"""A net that learns scikit-learn's digits in seconds; what `--module tiny_net:make` names."""

from __future__ import annotations

import torch
from torch import nn


def make() -> nn.Module:
    """Random weights; BatchNorm, and dropout, which draws random numbers of its own."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.1), nn.Linear(32, 10),
    )  # fmt: skip


def number() -> int:
    """No module."""
    return 7


def fresh() -> nn.Module:
    """Other weights at every call, but for the generator's seed."""
    return nn.Sequential(nn.Conv2d(1, 4, 3))


def leave() -> nn.Module:
    """Code that ends the program."""
    raise SystemExit(7)
