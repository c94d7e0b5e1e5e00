"""Torch nets whose channels branch: joined, split, gated, grouped or shuffled."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_parts import Head, SqueezeExcite, channel_shuffle, conv_bn


class DenseLayer(nn.Module):
    """BatchNorm after the concat, before the convolution, as DenseNet has it."""

    def __init__(self, cin: int, growth: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(cin)
        self.conv = nn.Conv2d(cin, growth, 3, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(F.relu(self.norm(x)))], 1)


class DenseNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 1, 1)
        self.block1 = nn.Sequential(DenseLayer(16, 8), DenseLayer(24, 8))
        self.transition = nn.Sequential(
            nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 16, 1, bias=False), nn.AvgPool2d(2)
        )
        self.block2 = nn.Sequential(DenseLayer(16, 8), DenseLayer(24, 8))
        self.norm = nn.BatchNorm2d(32)
        self.head = Head(32)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block2(self.transition(self.block1(self.stem(x))))
        return cast(Tensor, self.head(F.relu(self.norm(x))))


class LinearSqueezeExcite(nn.Module):
    """As first published: two Linear layers and a view back to a map."""

    def __init__(self, width: int, squeezed: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(width, squeezed), nn.ReLU(), nn.Linear(squeezed, width), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, width, _, _ = x.size()
        scale: Tensor = self.fc(F.adaptive_avg_pool2d(x, 1).view(batch, width))
        return x * scale.view(batch, width, 1, 1)


class SeNet(nn.Module):
    """Squeeze-and-excite residual net; `hard` as in MobileNetV3 (hard-swish, hard-sigmoid)."""

    def __init__(self, hard: bool, linear: bool = False) -> None:
        super().__init__()
        self.act = nn.Hardswish() if hard else nn.SiLU()
        self.stem = conv_bn(3, 16, 3, 2, act=False)
        self.conv1 = conv_bn(16, 32, 1, act=False)
        self.conv2 = conv_bn(32, 32, 3, groups=32, act=False)
        self.se = LinearSqueezeExcite(32, 8) if linear else SqueezeExcite(32, 8, hard)
        self.conv3 = conv_bn(32, 16, 1, act=False)
        self.head = Head(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.stem(x))
        y = self.act(self.conv1(x))
        y = self.se(self.act(self.conv2(y)))
        return cast(Tensor, self.head(x + self.conv3(y)))


class GroupedNet(nn.Module):
    """ResNeXt-like: grouped convolutions, whose groups must stay of one size."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 16)
        self.reduce = conv_bn(16, 32, 1)
        self.grouped = conv_bn(32, 32, 3, groups=4)
        self.expand = conv_bn(32, 16, 1, act=False)
        self.uneven = nn.Conv2d(16, 24, 3, 2, 1, groups=2)
        self.head = Head(24)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(x + self.expand(self.grouped(self.reduce(x))))
        return cast(Tensor, self.head(F.relu(self.uneven(x))))


class ShuffleUnit(nn.Module):
    """ShuffleNetV2: split, work on one half, concat, shuffle; with stride 2 both halves work."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        half = cout // 2
        self.stride = stride
        if stride == 2:
            self.branch1 = nn.Sequential(
                conv_bn(cin, cin, 3, 2, groups=cin, act=False), conv_bn(cin, half, 1)
            )
        self.branch2 = nn.Sequential(
            conv_bn(cin if stride == 2 else half, half, 1),
            conv_bn(half, half, 3, stride, groups=half, act=False),
            conv_bn(half, half, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 2:
            return channel_shuffle(torch.cat((self.branch1(x), self.branch2(x)), 1), 2)
        kept, worked = x.chunk(2, 1)
        return channel_shuffle(torch.cat((kept, self.branch2(worked)), 1), 2)


class ShuffleNetV2(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 16)
        self.units = nn.Sequential(
            ShuffleUnit(16, 32, 2), ShuffleUnit(32, 32, 1), ShuffleUnit(32, 32, 1)
        )
        self.last = conv_bn(32, 32, 1)
        self.head = Head(32)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.head(self.last(self.units(self.stem(x)))))


class C2f(nn.Module):
    """YOLOv8: chunk in two, bottlenecks on the second, all of it concatenated."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        half = cout // 2
        self.enter = conv_bn(cin, cout, 1)
        self.blocks = nn.ModuleList([conv_bn(half, half), conv_bn(half, half)])
        self.leave = conv_bn(2 * half + 2 * half, cout, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.enter(x).chunk(2, 1))
        for block in self.blocks:
            parts.append(parts[-1] + block(parts[-1]))
        return cast(Tensor, self.leave(torch.cat(parts, 1)))


class C2fNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 16, 3, 2)
        self.c2f = C2f(16, 32)
        self.head = Head(32)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.head(self.c2f(self.stem(x))))


class Inception(nn.Module):
    """Branches of different depth, concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 16)
        self.one = conv_bn(16, 8, 1)
        self.three = nn.Sequential(conv_bn(16, 8, 1), conv_bn(8, 16, 3))
        self.five = nn.Sequential(conv_bn(16, 8, 1), conv_bn(8, 8, 3), conv_bn(8, 8, 3))
        self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), conv_bn(16, 8, 1))
        self.last = conv_bn(40, 24, 3, 2)
        self.head = Head(24)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat((self.one(x), self.three(x), self.five(x), self.pool(x)), 1)
        return cast(Tensor, self.head(self.last(x)))


class SliceNet(nn.Module):
    """Channel slices and split sizes written as numbers in the forward code."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 32)
        self.left = conv_bn(8, 16)
        self.right = conv_bn(24, 16)
        self.mixed = conv_bn(16, 24)
        self.tail = nn.Conv2d(16, 16, 1)
        self.head = Head(24)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        mixed = self.mixed(self.left(x[:, :8]) + self.right(x[:, 8:]))
        first, second = torch.split(mixed, [8, 16], dim=1)
        return cast(Tensor, self.head(torch.cat((first, self.tail(second)), 1)))


class DepthMultiplier(nn.Module):
    """Depthwise convolution with two outputs per input channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 16, 3, 2)
        self.depth = conv_bn(16, 32, 3, groups=16)
        self.point = conv_bn(32, 24, 1)
        self.head = Head(24)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.head(self.point(self.depth(self.stem(x)))))


class Keywords1d(nn.Module):
    """Keyword spotting on feature rows: 1-D convolutions, depthwise ones among them."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv1d(10, 16, 5, 2, 2),
            nn.BatchNorm1d(16),
            nn.ReLU(),
            nn.Conv1d(16, 16, 3, 1, 1, groups=16, bias=False),
            nn.BatchNorm1d(16),
            nn.ReLU(),
            nn.Conv1d(16, 32, 1),
            nn.PReLU(32),
            nn.MaxPool1d(2),
            nn.Conv1d(32, 24, 3, 1, 1),
            nn.ELU(),
            nn.AdaptiveAvgPool1d(1),
        )
        self.fc = nn.Linear(24, 12)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.fc(self.body(x).squeeze(2)))


class UNet(nn.Module):
    """Down, ConvTranspose up and nearest resize up, skips by concat; a map as output."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = conv_bn(3, 16), conv_bn(16, 24)
        self.middle = conv_bn(24, 32)
        self.up2 = nn.ConvTranspose2d(32, 24, 2, 2)
        self.join2 = conv_bn(48, 16)
        self.join1 = conv_bn(32, 16)
        self.out = nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.down1(x)
        two = self.down2(F.max_pool2d(one, 2))
        x = self.up2(self.middle(F.max_pool2d(two, 2)))
        x = self.join2(torch.cat((x, two), 1))
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        return cast(Tensor, self.out(self.join1(torch.cat((x, one), 1))))
