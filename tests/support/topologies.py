"""Small torch nets, one per way in which channels can be tied; every room's tests prune these.

Built from a seed, with random BatchNorm statistics, scales and biases, so that a channel cut from
the wrong place shows in the output. `TOPOLOGIES[name]()` gives an eval-mode module and its inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from topologies_branched import (
    C2fNet,
    DenseNet,
    DepthMultiplier,
    GroupedNet,
    Inception,
    Keywords1d,
    SeNet,
    ShuffleNetV2,
    SliceNet,
    UNet,
)
from torch import Tensor, nn
from torch_parts import Built, Head, builder, conv_bn


class Vgg(nn.Module):
    """Plain; Flatten repeats each channel once per pixel; dropout, biases beside BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(inplace=True),
            nn.Conv2d(16, 16, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 24, 3, padding=1),
            nn.BatchNorm2d(24),
            nn.LeakyReLU(0.1),
            nn.AvgPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Dropout(0.5), nn.Linear(24 * 16, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 10)
        )

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.classifier(torch.flatten(self.features(x), 1)))


class ViewVgg(nn.Module):
    """Plain; flattens with a constant `view`, whose size pruning must change."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv_bn(3, 16, stride=2)
        self.fc1 = nn.Linear(16 * 64, 24)
        self.norm = nn.BatchNorm1d(24)
        self.fc2 = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).view(-1, 1024)
        return cast(Tensor, self.fc2(F.relu(self.norm(self.fc1(x)))))


class BlockA(nn.Module):
    """Option-A residual block of CIFAR ResNets: strided slice and zero channels as shortcut."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(cout)
        self.conv2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(cout)
        self.stride, self.extra = stride, cout - cin

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        if self.stride != 1 or self.extra:
            low = self.extra // 2
            shortcut = x[:, :, :: self.stride, :: self.stride]
            shortcut = F.pad(shortcut, (0, 0, 0, 0, low, self.extra - low))
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + shortcut)


class ResNetA(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 16)
        self.blocks = nn.Sequential(
            BlockA(16, 16, 1), BlockA(16, 32, 2), BlockA(32, 32, 1), BlockA(32, 64, 2)
        )
        self.head = Head(64)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.head(self.blocks(self.stem(x))))


class BlockB(nn.Module):
    """Residual block with a projection shortcut where the shape changes."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv_bn(cin, cout, 3, stride)
        self.conv2 = conv_bn(cout, cout, 3, act=False)
        same = stride == 1 and cin == cout
        self.shortcut = nn.Identity() if same else conv_bn(cin, cout, 1, stride, act=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(self.conv1(x)) + self.shortcut(x))


class ResNetB(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 16)
        self.blocks = nn.Sequential(BlockB(16, 16, 1), BlockB(16, 32, 2), BlockB(32, 32, 1))
        self.head = Head(32)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.head(self.blocks(self.stem(x))))


class InvertedResidual(nn.Module):
    def __init__(self, cin: int, cout: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = cin * expand
        self.residual = stride == 1 and cin == cout
        self.body = nn.Sequential(
            nn.Conv2d(cin, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(),
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(),
            nn.Conv2d(hidden, cout, 1, bias=False),
            nn.BatchNorm2d(cout),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return x + y if self.residual else y


class MobileNetV2(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8, 3, 2)
        self.blocks = nn.Sequential(
            InvertedResidual(8, 16, 1, 2),
            InvertedResidual(16, 16, 1, 2),
            InvertedResidual(16, 24, 2, 2),
        )
        self.last = conv_bn(24, 48, 1)
        self.head = Head(48)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.head(self.last(self.blocks(self.stem(x)))))


class PreActBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + cast(Tensor, self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x)))))))


class PreAct(nn.Module):
    """BatchNorm before the convolution: it cannot be folded into the one that made the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1, bias=False)
        self.blocks = nn.Sequential(PreActBlock(16), PreActBlock(16))
        self.norm = nn.BatchNorm2d(16)
        self.head = Head(16)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.head(F.relu(self.norm(self.blocks(self.stem(x))))))


TOPOLOGIES: dict[str, Callable[[], Built]] = {
    "vgg_flatten": builder(Vgg),
    "vgg_view": builder(ViewVgg),
    "resnet_a": builder(ResNetA),
    "resnet_b": builder(ResNetB),
    "mobilenet_v2": builder(MobileNetV2),
    "dense_concat": builder(DenseNet),
    "se_sigmoid": builder(lambda: SeNet(hard=False)),
    "se_hardswish": builder(lambda: SeNet(hard=True)),
    "se_linear": builder(lambda: SeNet(hard=False, linear=True)),
    "grouped_conv": builder(GroupedNet),
    "channel_shuffle": builder(ShuffleNetV2),
    "c2f": builder(C2fNet),
    "inception": builder(Inception),
    "channel_slice": builder(SliceNet),
    "depth_multiplier": builder(DepthMultiplier),
    "keywords_1d": builder(Keywords1d, lambda: (torch.randn(1, 10, 48),)),
    "unet": builder(UNet),
    "preact": builder(PreAct),
}
