"""The zoo: CIFAR-10 networks of different block types, ours and the measuring pack's, by name.

What the policy learns from and is judged on. `NETS` are trained by `make_zoo` from scratch and are
package data; `PRETRAINED` are others' and stay in the measuring pack. Families are block types, and
the two of `HELD_OUT` never enter the default policy's training.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from cifar_pack import REPOSITORY, CifarPack, exported, shared_data
from numpy.typing import NDArray
from torch import Tensor, nn

from rlprune.errors import InputError
from rlprune.graph.from_onnx import OnnxTrace, trace_onnx

HELD_OUT = ("dense", "squeeze_excite")
"""Families that no default policy is trained on; named before any net of the zoo was trained.

Their block types differ from all others in what the graph offers: a concat that keeps growing, so
that one group is read by many layers, and gates whose cost does not follow from their channels.
"""

JUDGED = ("cifar10_resnet20", "cifar10_resnet56")
"""Networks that no default policy is trained on either, though their family is: the literature's
own, which policies are judged on beside the held-out families."""

PRETRAINED = {
    "cifar10_resnet8_mlperf_tiny": "residual",
    "cifar10_resnet20": "residual",
    "cifar10_resnet20b_distiller": "residual",
    "cifar10_resnet32": "residual",
    "cifar10_resnet56": "residual",
    "cifar10_plain_ai85nascifarnet": "plain",
}
"""Name in the measuring pack -> family."""

WEIGHTS = REPOSITORY / "rlprune" / "training" / "data" / "zoo"

PREPROCESS = {
    "scale": 1 / 255,
    "mean": [0.4914, 0.4822, 0.4465],
    "std": [0.247, 0.2435, 0.2616],
    "formula": "(uint8 * scale - mean) / std",
}
"""Of the nets trained here; per channel, RGB."""


@dataclass(frozen=True, slots=True)
class ZooNet:
    """An architecture that `make_zoo` trains."""

    family: str
    """Its block type."""
    make: Callable[[], nn.Module]
    """The net, untrained, for images [N, 3, H, W]; logits [N, 10]."""
    epochs: tuple[int, int, int] = (4, 4, 3)
    """At 16, 24 and 32 pixels, in this order: early epochs on small images cost a third or half
    of the last ones (progressive resizing)."""
    bfloat16: bool = True
    """Whether convolutions are trained in bfloat16 (autocast): a step of dense convolutions took
    0.6-0.8 of its time, one of depthwise convolutions 1.2-1.8 (EPYC with avx512_bf16)."""


@dataclass(frozen=True)
class Loaded:
    """A trained network, whoever trained it."""

    name: str
    family: str
    module: nn.Module
    """In eval mode, float32."""
    card: Mapping[str, Any]
    """Recipe and accuracies (ours) or source and licence (the pack's); has `preprocess`."""

    def preprocess(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """RGB images [N, H, W, 3] -> what the network takes, [N, 3, H, W]."""
        return preprocess(pixels, self.card["preprocess"])


def traced(net: Loaded) -> OnnxTrace:
    """The network as an ordinary export has it: BatchNorm folded, batch open."""
    return trace_onnx(exported(net.module))


def names(weights: Path = WEIGHTS) -> list[str]:
    """The networks that can be loaded: the pack's, then ours whose weights are in `weights`."""
    return [*PRETRAINED, *(name for name in NETS if (weights / f"{name}.safetensors").is_file())]


def family(name: str) -> str:
    """The block type of a network.

    Raises:
        InputError: no such network.
    """
    if name in PRETRAINED:
        return PRETRAINED[name]
    if name not in NETS:
        raise InputError(f"no net {name!r} in the zoo; there are {', '.join([*PRETRAINED, *NETS])}")
    return NETS[name].family


def held_out(name: str) -> bool:
    """Whether a network is for judging policies and never for training them.

    Raises:
        InputError: no such network.
    """
    return family(name) in HELD_OUT or name in JUDGED


def load(name: str, *, weights: Path = WEIGHTS, pack: CifarPack | None = None) -> Loaded:
    """A trained network of the zoo; `pack` saves reading the measuring pack's index again.

    Raises:
        InputError: no such network, or its weights are not there.
        SystemExit: a pretrained network without the measuring pack.
    """
    kind = family(name)
    if name in PRETRAINED:
        module, card = (pack or CifarPack(shared_data())).network(name)
        return Loaded(name, kind, module, card)
    path = weights / f"{name}.safetensors"
    if not path.is_file():
        raise InputError(f"no weights of {name} in {weights}; run scripts/make_zoo --only {name}")
    from safetensors.torch import load_file

    module = NETS[name].make()
    module.load_state_dict({key: tensor.float() for key, tensor in load_file(path).items()})
    return Loaded(name, kind, module.eval(), json.loads(path.with_suffix(".json").read_text()))


def preprocess(pixels: NDArray[np.uint8], how: Mapping[str, Any]) -> NDArray[np.float32]:
    """RGB images [N, H, W, 3] -> [N, 3, H, W]: (pixel * scale - mean) / std."""
    mean, std = (np.asarray(how[key], np.float32) for key in ("mean", "std"))
    x = (pixels.astype(np.float32) * np.float32(how["scale"]) - mean) / std
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2))


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

    def __init__(self, width: int, *features: nn.Module) -> None:
        super().__init__()
        self.features = nn.Sequential(*features)
        self.fc = nn.Linear(width, 10)

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


def _vgg(*stages: tuple[int, ...]) -> nn.Module:
    layers: list[nn.Module] = []
    cin = 3
    for index, stage in enumerate(stages):
        layers += [nn.MaxPool2d(2)] if index else []
        for width in stage:
            layers.append(_conv(cin, width))
            cin = width
    return _Net(cin, *layers)


def _mobilenet_v1(stem: int, *blocks: tuple[int, int]) -> nn.Module:
    """Blocks as (stride, channels out)."""
    layers, cin = [_conv(3, stem)], stem
    for stride, cout in blocks:
        layers += [_conv(cin, cin, 3, stride, cin), _conv(cin, cout, 1)]
        cin = cout
    return _Net(cin, *layers)


def _inverted(
    stem: int, *blocks: tuple[int, int, int], last: int, gated: bool = False
) -> nn.Module:
    """Blocks as (expansion, stride, channels out), then a 1x1 convolution to `last`."""
    act = nn.Hardswish if gated else nn.ReLU6
    layers: list[nn.Module] = [_conv(3, stem, act=act)]
    cin = stem
    for expand, stride, cout in blocks:
        layers.append(_Inverted(cin, cout, stride, expand, gated))
        cin = cout
    return _Net(last, *layers, _conv(cin, last, 1, act=act))


def _basic(cin: int, cout: int, stride: int, gated: bool) -> nn.Module:
    gate = [_Gate(cout)] if gated else []
    return _Residual(
        cin, cout, stride, _conv(cin, cout, 3, stride), _conv(cout, cout, act=None), *gate
    )


def _bottleneck(cin: int, cout: int, stride: int) -> nn.Module:
    inner = cout // 2
    return _Residual(
        cin,
        cout,
        stride,
        _conv(cin, inner, 1),
        _conv(inner, inner, 3, stride),
        _conv(inner, cout, 1, act=None),
    )


def _resnet(
    stem: int, block: Callable[[int, int, int], nn.Module], *blocks: tuple[int, int]
) -> nn.Module:
    """Blocks as (stride, channels out)."""
    layers: list[nn.Module] = [_conv(3, stem)]
    cin = stem
    for stride, cout in blocks:
        layers.append(block(cin, cout, stride))
        cin = cout
    return _Net(cin, *layers)


def _densenet(stem: int, *stages: tuple[int, int]) -> nn.Module:
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


def _vovnet(stem: int, depth: int, *stages: tuple[int, int]) -> nn.Module:
    """Stages as (channels of the chain, channels out)."""
    layers: list[nn.Module] = [_conv(3, stem)]
    cin = stem
    for index, (inner, cout) in enumerate(stages):
        layers += [nn.MaxPool2d(2)] if index else []
        layers.append(_OneShot(cin, inner, depth, cout))
        cin = cout
    return _Net(cin, *layers)


def _inception(stem: int, *modules: tuple[int, int, int, int, int]) -> nn.Module:
    """Modules as (pool first by, and the widths of the four branches)."""
    layers: list[nn.Module] = [_conv(3, stem)]
    cin = stem
    for pool, *widths in modules:
        layers += [nn.MaxPool2d(pool)] if pool > 1 else []
        layers.append(_Inception(cin, *widths))
        cin = sum(widths)
    return _Net(cin, *layers)


def _gated_basic(cin: int, cout: int, stride: int) -> nn.Module:
    return _basic(cin, cout, stride, gated=True)


LONGER = (4, 5, 4)
"""Epochs of nets that learn slowly: most of their convolutions see one channel each."""

NETS: dict[str, ZooNet] = {
    "vgg": ZooNet("plain", lambda: _vgg((16, 24), (48, 48), (96, 96))),
    "mobilenetv2": ZooNet(
        "inverted_residual",
        lambda: _inverted(
            16, (2, 2, 24), (4, 1, 24), (4, 1, 24), (4, 2, 56), (4, 1, 56), (4, 1, 56), last=192
        ),
        LONGER,
        bfloat16=False,
    ),
    "seresnet": ZooNet(
        "squeeze_excite",
        lambda: _resnet(16, _gated_basic, (1, 16), (2, 32), (1, 32), (2, 64), (1, 64)),
    ),
    "densenet": ZooNet("dense", lambda: _densenet(16, (2, 16), (4, 16), (4, 24))),
    "mobilenetv1": ZooNet(
        "separable",
        lambda: _mobilenet_v1(24, (1, 32), (2, 96), (1, 96), (2, 192), (1, 192), (1, 192)),
        bfloat16=False,
    ),
    "inception": ZooNet(
        "inception",
        lambda: _inception(
            24,
            (2, 16, 32, 16, 16),
            (1, 16, 48, 16, 16),
            (2, 32, 64, 32, 16),
            (1, 48, 80, 32, 16),
        ),
    ),
    "mobilenetv3": ZooNet(
        "squeeze_excite",
        lambda: _inverted(
            16, (2, 2, 24), (3, 1, 24), (4, 2, 48), (3, 1, 48), (3, 1, 48), last=144, gated=True
        ),
        LONGER,
        bfloat16=False,
    ),
    "vovnet": ZooNet("dense", lambda: _vovnet(16, 3, (16, 32), (24, 64), (40, 96))),
    "mobilenetv2_wide": ZooNet(
        "inverted_residual",
        lambda: _inverted(16, (3, 2, 32), (4, 1, 32), (3, 2, 72), (4, 1, 72), last=160),
        LONGER,
        bfloat16=False,
    ),
    "mobilenetv1_deep": ZooNet(
        "separable",
        lambda: _mobilenet_v1(
            32, (2, 64), (1, 64), (1, 64), (2, 128), (1, 128), (1, 128), (1, 128), (1, 128)
        ),
        bfloat16=False,
    ),
    "resnet_bottleneck": ZooNet(
        "residual",
        lambda: _resnet(24, _bottleneck, (2, 64), (1, 64), (1, 64), (2, 128), (1, 128), (1, 128)),
    ),
    "vgg_wide_end": ZooNet("plain", lambda: _vgg((16, 16), (32, 64), (64, 128))),
}
"""In the order of training: first one of each family, so that an early stop leaves variety."""
