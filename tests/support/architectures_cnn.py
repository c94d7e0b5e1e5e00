"""Convolutional architectures in common use, small: what users bring beside torchvision's."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_parts import Head, SqueezeExcite, channel_shuffle, conv_bn


class MobileV3Block(nn.Module):
    def __init__(self, cin: int, hidden: int, cout: int, stride: int, hard: bool = True) -> None:
        super().__init__()
        self.residual = stride == 1 and cin == cout
        self.act = nn.Hardswish() if hard else nn.SiLU()
        self.expand = conv_bn(cin, hidden, 1, act=False)
        self.depth = conv_bn(hidden, hidden, 5, stride, groups=hidden, act=False)
        self.se = SqueezeExcite(hidden, 8, hard)
        self.project = conv_bn(hidden, cout, 1, act=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.se(self.act(self.depth(self.act(self.expand(x)))))
        y = self.project(y)
        return x + y if self.residual else y


class MobileNetV3(nn.Module):
    """Squeeze-and-excite with hard-swish; `hard=False` gives EfficientNet's SiLU and sigmoid."""

    def __init__(self, hard: bool) -> None:
        super().__init__()
        self.stem = conv_bn(3, 16, 3, 2, act=False)
        self.act = nn.Hardswish() if hard else nn.SiLU()
        self.blocks = nn.Sequential(
            MobileV3Block(16, 32, 16, 1, hard), MobileV3Block(16, 48, 24, 2, hard)
        )
        self.last = nn.Linear(24, 32)
        self.fc = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(self.blocks(self.act(self.stem(x))), 1).flatten(1)
        return cast(Tensor, self.fc(self.act(self.last(x))))


class ShuffleNetV1(nn.Module):
    """Grouped 1x1 convolutions with a shuffle between; stride 2 joins the pooled input."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 16)
        self.squeeze = conv_bn(16, 16, 1, groups=4)
        self.depth = conv_bn(16, 16, 3, 2, groups=16, act=False)
        self.expand = conv_bn(16, 24, 1, groups=4, act=False)
        self.last = conv_bn(40, 24, 1)
        self.head = Head(24)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.expand(self.depth(channel_shuffle(self.squeeze(x), 4)))
        x = F.relu(torch.cat((F.avg_pool2d(x, 3, 2, 1), y), 1))
        return cast(Tensor, self.head(self.last(x)))


class Ghost(nn.Module):
    """Half of the channels by a convolution, half by cheap depthwise ones, cropped to the count."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        half = (cout + 1) // 2
        self.count = cout
        self.primary = conv_bn(cin, half, 1)
        self.cheap = conv_bn(half, half, 3, groups=half)

    def forward(self, x: Tensor) -> Tensor:
        first = self.primary(x)
        return torch.cat((first, self.cheap(first)), 1)[:, : self.count]


class GhostNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 16, 3, 2)
        self.ghost1, self.ghost2 = Ghost(16, 48), Ghost(48, 16)
        self.last = conv_bn(16, 24, 1)
        self.head = Head(24)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return cast(Tensor, self.head(self.last(x + self.ghost2(self.ghost1(x)))))


class RegNet(nn.Module):
    """Grouped bottleneck with squeeze-and-excite between."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 16, 3, 2)
        self.a, self.b = conv_bn(16, 32, 1), conv_bn(32, 32, 3, 2, groups=4)
        self.se = SqueezeExcite(32, 8, False)
        self.c = conv_bn(32, 32, 1, act=False)
        self.shortcut = conv_bn(16, 32, 1, 2, act=False)
        self.head = Head(32)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.c(self.se(self.b(self.a(x))))
        return cast(Tensor, self.head(F.relu(y + self.shortcut(x))))


class RepVgg(nn.Module):
    """Three branches summed before they are merged: 3x3, 1x1 and a bare BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 16, 3, 2)
        self.three, self.one = conv_bn(16, 16, 3, act=False), conv_bn(16, 16, 1, act=False)
        self.bare = nn.BatchNorm2d(16)
        self.head = Head(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return cast(Tensor, self.head(F.relu(self.three(x) + self.one(x) + self.bare(x))))


class GroupNormNet(nn.Module):
    """What GroupNorm normalises is held; what lies between convolutions is not."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, 2, 1), nn.GroupNorm(4, 16)
        self.a, self.b = nn.Conv2d(16, 48, 1), nn.Conv2d(48, 16, 3, 1, 1)
        self.norm2 = nn.GroupNorm(4, 16)
        self.head = Head(16)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        return cast(Tensor, self.head(x + self.norm2(self.b(F.silu(self.a(x))))))


class ConvNextBlock(nn.Module):
    """Depthwise 7x7, LayerNorm over channels put last, MLP, LayerScale."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depth = nn.Conv2d(width, width, 7, 1, 3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(torch.full((width,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.depth(x).permute(0, 2, 3, 1))
        y = self.gamma * self.down(F.gelu(self.up(y)))
        return x + y.permute(0, 3, 1, 2)


class ConvNext(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 4, 4)
        self.norm = nn.LayerNorm(16, eps=1e-6)
        self.blocks = nn.Sequential(ConvNextBlock(16), ConvNextBlock(16))
        self.last = nn.LayerNorm(16)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return cast(Tensor, self.fc(self.last(self.blocks(x).mean((-2, -1)))))


class Res2Net(nn.Module):
    """Splits whose parts are added one to the next, then joined."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.enter = conv_bn(3, 16, 3, 2), conv_bn(16, 32, 1)
        self.convs = nn.ModuleList([conv_bn(8, 8) for _ in range(3)])
        self.leave = conv_bn(32, 16, 1, act=False)
        self.head = Head(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        parts = self.enter(x).split(8, 1)
        done = [self.convs[0](parts[0])]
        for conv, part in zip(list(self.convs)[1:], parts[1:3], strict=True):
            done.append(conv(done[-1] + part))
        y = self.leave(torch.cat([*done, parts[3]], 1))
        return cast(Tensor, self.head(F.relu(x + y)))


class SelectiveKernel(nn.Module):
    """SKNet: branches stacked on a new axis, weighed by a softmax over the branches."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 16, 3, 2)
        self.a, self.b = conv_bn(16, 24), conv_bn(16, 24, 5)
        self.squeeze, self.choose = nn.Linear(24, 12), nn.Linear(12, 48)
        self.head = Head(24)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        maps = torch.stack((self.a(x), self.b(x)), 1)
        z = F.relu(self.squeeze(maps.sum(1).mean((2, 3))))
        weight = self.choose(z).view(-1, 2, 24).softmax(1)
        return cast(Tensor, self.head((maps * weight[..., None, None]).sum(1)))


class Cbam(nn.Module):
    """Gate over channels, then one over positions from the mean and maximum of the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = conv_bn(3, 16, 3, 2), conv_bn(16, 48)
        self.mlp = nn.Sequential(nn.Conv2d(16, 8, 1), nn.ReLU(), nn.Conv2d(8, 16, 1))
        self.last = conv_bn(48, 16)
        self.spatial = nn.Conv2d(2, 1, 7, 1, 3)
        self.head = Head(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.last(self.body(self.stem(x)))
        gate = self.mlp(F.adaptive_avg_pool2d(x, 1)) + self.mlp(F.adaptive_max_pool2d(x, 1))
        x = x * torch.sigmoid(gate)
        seen = torch.cat((x.mean(1, keepdim=True), x.amax(1, keepdim=True)), 1)
        return cast(Tensor, self.head(x * torch.sigmoid(self.spatial(seen))))


class Eca(nn.Module):
    """A convolution that slides over the channels: they are positions there, and held."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last = conv_bn(3, 16, 3, 2), conv_bn(16, 24)
        self.slide = nn.Conv1d(1, 1, 3, padding=1, bias=False)
        self.head = Head(24)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        pooled = F.adaptive_avg_pool2d(x, 1).squeeze(-1).transpose(-1, -2)
        gate = self.slide(pooled).transpose(-1, -2).unsqueeze(-1)
        return cast(Tensor, self.head(self.last(x * torch.sigmoid(gate))))


class CoordinateAttention(nn.Module):
    """Rows and columns joined on a spatial axis, worked on together, split again."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix = conv_bn(3, 16, 3, 2), conv_bn(16, 8, 1)
        self.rows, self.columns = nn.Conv2d(8, 16, 1), nn.Conv2d(8, 16, 1)
        self.head = Head(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        rows, columns = x.mean(3, keepdim=True), x.mean(2, keepdim=True).transpose(2, 3)
        both = self.mix(torch.cat((rows, columns), 2))
        rows, columns = both.split([x.shape[2], x.shape[3]], 2)
        gate = self.rows(rows).sigmoid() * self.columns(columns.transpose(2, 3)).sigmoid()
        return cast(Tensor, self.head(x * gate))


class KeywordsSeparable(nn.Module):
    """MatchboxNet-like: 1-D depthwise-separable blocks with a shortcut over several of them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv1d(10, 16, 11, 2, 5), nn.BatchNorm1d(16), nn.ReLU())
        self.block = nn.Sequential(
            nn.Conv1d(16, 16, 13, 1, 6, groups=16, bias=False),
            nn.Conv1d(16, 24, 1, bias=False),
            nn.BatchNorm1d(24),
            nn.ReLU(),
            nn.Conv1d(24, 24, 15, 1, 14, 2, groups=24, bias=False),
            nn.Conv1d(24, 24, 1, bias=False),
            nn.BatchNorm1d(24),
        )
        self.shortcut = nn.Sequential(nn.Conv1d(16, 24, 1), nn.BatchNorm1d(24))
        self.out = nn.Conv1d(24, 12, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(self.block(x) + self.shortcut(x))
        return cast(Tensor, self.out(x).mean(-1))
