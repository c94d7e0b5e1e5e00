"""Small networks for 32-pixel images, of the blocks of published families; and a ResNet-50."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _conv(
    cin: int,
    cout: int,
    kernel: int = 3,
    stride: int = 1,
    groups: int = 1,
    act: Callable[[], nn.Module] | None = nn.ReLU,
) -> nn.Sequential:
    """Convolution, BatchNorm, activation."""
    layers = [
        nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(cout),
    ]
    return nn.Sequential(*layers, *([act()] if act else []))


class _Net(nn.Module):
    """Features, mean over space, linear classifier."""

    def __init__(self, width: int, *features: nn.Module, classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(*features)
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.fc(self.features(x).mean((2, 3))))


class _Gate(nn.Module):
    """Squeeze-and-excite (Hu et al. 2018); a hard sigmoid as in MobileNetV3 if asked."""

    def __init__(self, width: int, hard: bool = False) -> None:
        super().__init__()
        squeezed = max(8, width // 32 * 8)
        self.squeeze = nn.Conv2d(width, squeezed, 1)
        self.excite = nn.Conv2d(squeezed, width, 1)
        self.gate = nn.Hardsigmoid() if hard else nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))
        return x * cast(Tensor, self.gate(self.excite(y)))


class _Residual(nn.Module):
    """A body beside a shortcut: identity, or a 1x1 convolution where the shape changes."""

    def __init__(self, cin: int, cout: int, stride: int, *body: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)
        same = stride == 1 and cin == cout
        self.shortcut = nn.Identity() if same else _conv(cin, cout, 1, stride, act=None)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


class _Inverted(nn.Module):
    """Inverted residual (Sandler et al. 2018); with a gate and hard swish as in MobileNetV3."""

    def __init__(self, cin: int, cout: int, stride: int, expand: int, gated: bool = False) -> None:
        super().__init__()
        inner, act = expand * cin, nn.Hardswish if gated else nn.ReLU6
        self.residual = stride == 1 and cin == cout
        self.body = nn.Sequential(
            _conv(cin, inner, 1, act=act),
            _conv(inner, inner, 3, stride, inner, act=act),
            _Gate(inner, hard=True) if gated else nn.Identity(),
            _conv(inner, cout, 1, act=None),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = cast(Tensor, self.body(x))
        return x + y if self.residual else y


class _DenseLayer(nn.Module):
    """Normalise, ReLU, convolve, and append to the input (Huang et al. 2017)."""

    def __init__(self, cin: int, growth: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(cin)
        self.conv = nn.Conv2d(cin, growth, 3, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(F.relu(self.norm(x)))], 1)


class _OneShot(nn.Module):
    """A chain of convolutions whose outputs are all joined once, at its end (VoVNet, Lee 2019)."""

    def __init__(self, cin: int, inner: int, depth: int, cout: int) -> None:
        super().__init__()
        self.chain = nn.ModuleList([_conv(inner if i else cin, inner) for i in range(depth)])
        self.join = _conv(cin + depth * inner, cout, 1)

    def forward(self, x: Tensor) -> Tensor:
        outputs = [x]
        for layer in self.chain:
            outputs.append(layer(outputs[-1]))
        return cast(Tensor, self.join(torch.cat(outputs, 1)))


class _Inception(nn.Module):
    """Branches 1x1, 3x3 and two 3x3, and a pooled one, side by side (Szegedy et al. 2015)."""

    def __init__(self, cin: int, one: int, three: int, five: int, pooled: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            [
                _conv(cin, one, 1),
                nn.Sequential(_conv(cin, three // 2, 1), _conv(three // 2, three)),
                nn.Sequential(_conv(cin, five // 2, 1), _conv(five // 2, five), _conv(five, five)),
                nn.Sequential(nn.AvgPool2d(3, 1, 1), _conv(cin, pooled, 1)),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


class _ConvNeXt(nn.Module):
    """Depthwise convolution, LayerNorm, and an MLP over channels, beside a shortcut (Liu et al.
    2022); 5x5 where they have 7x7, for small images."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(width, width, 5, 1, 2, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.mix(x).permute(0, 2, 3, 1))
        y = self.scale * cast(Tensor, self.down(F.gelu(self.up(y))))
        return x + y.permute(0, 3, 1, 2)


class _Downsample(nn.Module):
    """LayerNorm over channels, then a convolution of stride 2."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(cin, eps=1e-6)
        self.conv = nn.Conv2d(cin, cout, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return cast(Tensor, self.conv(y))


def vgg(*stages: tuple[int, ...]) -> nn.Module:
    layers: list[nn.Module] = []
    cin = 3
    for index, stage in enumerate(stages):
        layers += [nn.MaxPool2d(2)] if index else []
        for width in stage:
            layers.append(_conv(cin, width))
            cin = width
    return _Net(cin, *layers)


def mobilenet_v1(stem: int, *blocks: tuple[int, int]) -> nn.Module:
    """Blocks as (stride, channels out)."""
    layers, cin = [_conv(3, stem)], stem
    for stride, cout in blocks:
        layers += [_conv(cin, cin, 3, stride, cin), _conv(cin, cout, 1)]
        cin = cout
    return _Net(cin, *layers)


def inverted(stem: int, *blocks: tuple[int, int, int], last: int, gated: bool = False) -> nn.Module:
    """Blocks as (expansion, stride, channels out), then a 1x1 convolution to `last`."""
    act = nn.Hardswish if gated else nn.ReLU6
    layers: list[nn.Module] = [_conv(3, stem, act=act)]
    cin = stem
    for expand, stride, cout in blocks:
        layers.append(_Inverted(cin, cout, stride, expand, gated))
        cin = cout
    return _Net(last, *layers, _conv(cin, last, 1, act=act))


def basic(cin: int, cout: int, stride: int, gated: bool = False) -> nn.Module:
    gate = [_Gate(cout)] if gated else []
    return _Residual(
        cin, cout, stride, _conv(cin, cout, 3, stride), _conv(cout, cout, act=None), *gate
    )


def bottleneck(cin: int, cout: int, stride: int, shrink: int = 2, gated: bool = False) -> nn.Module:
    inner = cout // shrink
    gate = [_Gate(cout)] if gated else []
    return _Residual(
        cin,
        cout,
        stride,
        _conv(cin, inner, 1),
        _conv(inner, inner, 3, stride),
        _conv(inner, cout, 1, act=None),
        *gate,
    )


def resnet(
    stem: int, block: Callable[[int, int, int], nn.Module], *blocks: tuple[int, int]
) -> nn.Module:
    """Blocks as (stride, channels out)."""
    layers: list[nn.Module] = [_conv(3, stem)]
    cin = stem
    for stride, cout in blocks:
        layers.append(block(cin, cout, stride))
        cin = cout
    return _Net(cin, *layers)


def densenet(stem: int, *stages: tuple[int, int]) -> nn.Module:
    """Stages as (layers, growth); between them a 1x1 convolution halves the channels."""
    layers: list[nn.Module] = [nn.Conv2d(3, stem, 3, 1, 1, bias=False)]
    cin = stem
    for index, (depth, growth) in enumerate(stages):
        if index:
            cout = cin // 16 * 8
            layers += [nn.BatchNorm2d(cin), nn.ReLU(), nn.Conv2d(cin, cout, 1, bias=False)]
            layers.append(nn.AvgPool2d(2))
            cin = cout
        for _ in range(depth):
            layers.append(_DenseLayer(cin, growth))
            cin += growth
    return _Net(cin, *layers, nn.BatchNorm2d(cin), nn.ReLU())


def vovnet(stem: int, depth: int, *stages: tuple[int, int]) -> nn.Module:
    """Stages as (channels of the chain, channels out)."""
    layers: list[nn.Module] = [_conv(3, stem)]
    cin = stem
    for index, (inner, cout) in enumerate(stages):
        layers += [nn.MaxPool2d(2)] if index else []
        layers.append(_OneShot(cin, inner, depth, cout))
        cin = cout
    return _Net(cin, *layers)


def convnext(*stages: tuple[int, int]) -> nn.Module:
    """Stages as (blocks, channels); the first at half the image's extents."""
    layers: list[nn.Module] = [nn.Conv2d(3, stages[0][1], 3, 2, 1)]
    cin = stages[0][1]
    for index, (depth, width) in enumerate(stages):
        layers += [_Downsample(cin, width)] if index else []
        layers += [_ConvNeXt(width) for _ in range(depth)]
        cin = width
    return _Net(cin, *layers)


def inception(stem: int, *modules: tuple[int, int, int, int, int]) -> nn.Module:
    """Modules as (pool first by, and the widths of the four branches)."""
    layers: list[nn.Module] = [_conv(3, stem)]
    cin = stem
    for pool, *widths in modules:
        layers += [nn.MaxPool2d(pool)] if pool > 1 else []
        layers.append(_Inception(cin, *widths))
        cin = sum(widths)
    return _Net(cin, *layers)


def gated_bottleneck(cin: int, cout: int, stride: int) -> nn.Module:
    return bottleneck(cin, cout, stride, gated=True)


def gated_basic(cin: int, cout: int, stride: int) -> nn.Module:
    return basic(cin, cout, stride, gated=True)


def resnet50() -> nn.Module:
    """Of 224 pixels and 1,000 classes; stride in the 3x3 convolution, as everybody trains it."""
    layers: list[nn.Module] = [_conv(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)]
    cin = 64
    for stage, count in enumerate((3, 4, 6, 3)):
        for block in range(count):
            layers.append(bottleneck(cin, 256 << stage, 2 if stage and not block else 1, 4))
            cin = 256 << stage
    return _Net(cin, *layers, classes=1000)
