"""Parts that the torch nets of the tests are made of, and how such a net is built from a seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Built = tuple[nn.Module, tuple[Tensor, ...]]


def randomise(module: nn.Module) -> None:
    """Random statistics, scales and biases in place of the zeros and ones that hide mistakes."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, 0.2, 0.4)
            nn.init.normal_(cast(Tensor, part.running_mean), 0.0, 0.3)
            nn.init.uniform_(cast(Tensor, part.running_var), 0.5, 1.5)
        elif isinstance(part, nn.Conv1d | nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.kaiming_normal_(part.weight)
            if part.bias is not None:
                nn.init.normal_(part.bias, 0.1, 0.3)


def conv_bn(
    cin: int, cout: int, kernel: int = 3, stride: int = 1, groups: int = 1, act: bool = True
) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(cout),
    ]
    return nn.Sequential(*layers, nn.ReLU()) if act else nn.Sequential(*layers)


class Head(nn.Module):
    """Global average pooling and a classifier."""

    def __init__(self, width: int, class_count: int = 10) -> None:
        super().__init__()
        self.fc = nn.Linear(width, class_count)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.fc(x.mean((2, 3))))


class SqueezeExcite(nn.Module):
    def __init__(self, width: int, squeezed: int, hard: bool) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(width, squeezed, 1)
        self.expand = nn.Conv2d(squeezed, width, 1)
        self.gate = nn.Hardsigmoid() if hard else nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        scale = F.relu(self.reduce(F.adaptive_avg_pool2d(x, 1)))
        return x * cast(Tensor, self.gate(self.expand(scale)))


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    batch, width, height, breadth = x.size()
    x = x.view(batch, groups, width // groups, height, breadth)
    return x.transpose(1, 2).contiguous().view(batch, width, height, breadth)


def image(side: int = 16) -> tuple[Tensor, ...]:
    return (torch.randn(1, 3, side, side),)


def builder(
    make: Callable[[], nn.Module], inputs: Callable[[], tuple[Tensor, ...]] = image
) -> Callable[[], Built]:
    """A function that gives the net with random weights, in evaluation mode, and its inputs."""

    def build() -> Built:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module = make()
            randomise(module)
            return module.eval(), inputs()

    return build
