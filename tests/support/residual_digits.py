"""A network of inverted residuals that learns scikit-learn's digits in seconds."""

from __future__ import annotations

import functools
from typing import cast

import numpy as np
import torch
from exports import older_export
from sklearn.datasets import load_digits
from topologies import InvertedResidual
from torch import Tensor, nn

from rlprune.graph.from_onnx import OnnxTrace, trace_onnx

HELD_OUT = 400


class ResidualDigits(nn.Module):
    """A stem, a first block that widens, and three with shortcuts."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6()
        )
        self.blocks = nn.Sequential(
            InvertedResidual(8, 16, 1, 2), *(InvertedResidual(16, 16, 1, 2) for _ in range(4))
        )
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.fc(self.blocks(self.stem(x)).mean((2, 3))))


def images() -> tuple[np.ndarray, np.ndarray]:
    """All digits [N, 1, 8, 8] about zero, in a fixed order, and their labels [N]."""
    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    x = (pixels[order].reshape(-1, 1, 8, 8) / 8.0 - 1.0).astype(np.float32)
    return x, labels[order]


@functools.cache
def trained() -> OnnxTrace:
    """The network after some epochs on all but the last `HELD_OUT` digits, BatchNorm folded."""
    x, y = (torch.from_numpy(one[:-HELD_OUT]) for one in images())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = ResidualDigits()
        optimiser = torch.optim.AdamW(net.parameters(), lr=1e-2)
        for _ in range(4):
            order = torch.randperm(len(x))
            for start in range(0, len(x), 64):
                rows = order[start : start + 64]
                optimiser.zero_grad()
                loss = nn.functional.cross_entropy(net(x[rows]), y[rows])
                torch.autograd.backward(loss)
                optimiser.step()
    return trace_onnx(older_export(lambda: (net.eval(), (x[:1],)), 18))
