"""The zoo: CIFAR-10 networks of different block types, ours and the measuring pack's, by name.

What the policy learns from and is judged on. `NETS` are trained by `scripts/data zoo` from scratch
and lie with the recordings; `PRETRAINED` are others' and stay in the measuring pack. Families are
block types, and the two of `HELD_OUT` never enter the default policy's training.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from datasets.nets import (
    bottleneck,
    convnext,
    densenet,
    gated_basic,
    gated_bottleneck,
    inception,
    inverted,
    mobilenet_v1,
    resnet,
    vgg,
    vovnet,
)
from datasets.pack import CifarPack, exported, shared_data
from datasets.running import zoo_folder
from rlprune.errors import InputError
from rlprune.graph.from_onnx import OnnxTrace, trace_onnx
from rlprune.recording.model_dir import RecordedModel

HELD_OUT = ("dense", "squeeze_excite", "convnext")
"""Families that no default policy is trained on; named before any net of the zoo was trained.

Their block types differ from all others in what the graph offers: a concat that keeps growing, so
that one group is read by many layers; gates whose cost does not follow from their channels; and
streams under LayerNorm, of which nothing can go.
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

PREPROCESS = {
    "scale": 1 / 255,
    "mean": [0.4914, 0.4822, 0.4465],
    "std": [0.247, 0.2435, 0.2616],
    "formula": "(uint8 * scale - mean) / std",
}
"""Of the nets trained here; per channel, RGB."""


@dataclass(frozen=True, slots=True)
class ZooNet:
    """An architecture that `scripts/data zoo` trains."""

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
    optimizer: str = "sgd"
    """`adamw` for networks normalised over channels: a ConvNeXt has 53 % after four epochs of it,
    46 % after four of SGD, and ends at 77 % with that."""
    finish: int = 0
    """Epochs at 32 pixels in which the rate rises once more, to a third, and falls (a warm restart,
    Loshchilov and Hutter 2017)."""


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


def names() -> list[str]:
    """The networks that can be loaded: the pack's, then ours whose weights are there."""
    there = zoo_folder()
    return [*PRETRAINED, *(name for name in NETS if (there / f"{name}.safetensors").is_file())]


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


def load(name: str, *, weights: Path | None = None, pack: CifarPack | None = None) -> Loaded:
    """A trained network of the zoo; `pack` saves reading the measuring pack's index again.

    Raises:
        InputError: no such network, or its weights are not there.
        SystemExit: a pretrained network without the measuring pack.
    """
    kind = family(name)
    if name in PRETRAINED:
        module, card = (pack or CifarPack(shared_data())).network(name)
        return Loaded(name, kind, module, card)
    path = (weights or zoo_folder()) / f"{name}.safetensors"
    if not path.is_file():
        what = f"no weights of {name} in {path.parent}"
        raise InputError(f"{what}; run scripts/data zoo --only {name}")
    from safetensors.torch import load_file

    module = NETS[name].make()
    module.load_state_dict({key: tensor.float() for key, tensor in load_file(path).items()})
    return Loaded(name, kind, module.eval(), json.loads(path.with_suffix(".json").read_text()))


def preprocess(pixels: NDArray[np.uint8], how: Mapping[str, Any]) -> NDArray[np.float32]:
    """RGB images [N, H, W, 3] -> [N, 3, H, W]: (pixel * scale - mean) / std."""
    mean, std = (np.asarray(how[key], np.float32) for key in ("mean", "std"))
    x = (pixels.astype(np.float32) * np.float32(how["scale"]) - mean) / std
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2))


LONGER = (4, 5, 4)
"""Epochs of nets that learn slowly: most of their convolutions see one channel each."""


def _convnext(*stages: tuple[int, int]) -> ZooNet:
    net = partial(convnext, *stages)
    return ZooNet("convnext", net, (4, 7, 7), bfloat16=False, optimizer="adamw", finish=4)


NETS: dict[str, ZooNet] = {
    "vgg": ZooNet("plain", lambda: vgg((16, 24), (48, 48), (96, 96))),
    "mobilenetv2": ZooNet(
        "inverted_residual",
        lambda: inverted(
            16, (2, 2, 24), (4, 1, 24), (4, 1, 24), (4, 2, 56), (4, 1, 56), (4, 1, 56), last=192
        ),
        LONGER,
        bfloat16=False,
    ),
    "seresnet": ZooNet(
        "squeeze_excite",
        lambda: resnet(16, gated_basic, (1, 16), (2, 32), (1, 32), (2, 64), (1, 64)),
    ),
    "densenet": ZooNet("dense", lambda: densenet(16, (2, 16), (4, 16), (4, 24))),
    "mobilenetv1": ZooNet(
        "separable",
        lambda: mobilenet_v1(24, (1, 32), (2, 96), (1, 96), (2, 192), (1, 192), (1, 192)),
        bfloat16=False,
    ),
    "inception": ZooNet(
        "inception",
        lambda: inception(
            24, (2, 16, 32, 16, 16), (1, 16, 48, 16, 16), (2, 32, 64, 32, 16), (1, 48, 80, 32, 16)
        ),
    ),
    "mobilenetv3": ZooNet(
        "squeeze_excite",
        lambda: inverted(
            16, (2, 2, 24), (3, 1, 24), (4, 2, 48), (3, 1, 48), (3, 1, 48), last=144, gated=True
        ),
        LONGER,
        bfloat16=False,
    ),
    "vovnet": ZooNet("dense", lambda: vovnet(16, 3, (16, 32), (24, 64), (40, 96))),
    "mobilenetv2_wide": ZooNet(
        "inverted_residual",
        lambda: inverted(16, (3, 2, 32), (4, 1, 32), (3, 2, 72), (4, 1, 72), last=160),
        LONGER,
        bfloat16=False,
    ),
    "mobilenetv1_deep": ZooNet(
        "separable",
        lambda: mobilenet_v1(
            32, (2, 64), (1, 64), (1, 64), (2, 128), (1, 128), (1, 128), (1, 128), (1, 128)
        ),
        bfloat16=False,
    ),
    "resnet_bottleneck": ZooNet(
        "residual",
        lambda: resnet(24, bottleneck, (2, 64), (1, 64), (1, 64), (2, 128), (1, 128), (1, 128)),
    ),
    "vgg_wide_end": ZooNet("plain", lambda: vgg((16, 16), (32, 64), (64, 128))),
    "convnext": _convnext((2, 40), (2, 80), (2, 160)),
    "convnext_deep": _convnext((2, 32), (4, 64), (2, 128)),
    "convnext_wide_end": _convnext((1, 40), (2, 80), (3, 176)),
    "convnext_narrow": _convnext((3, 32), (3, 64), (3, 128)),
    "densenet_deep": ZooNet("dense", lambda: densenet(16, (2, 16), (5, 16), (8, 16))),
    "vovnet_deep": ZooNet("dense", lambda: vovnet(24, 4, (16, 40), (24, 72), (32, 112))),
    "seresnet_wide": ZooNet(
        "squeeze_excite",
        lambda: resnet(16, gated_basic, (1, 16), (1, 16), (2, 40), (1, 40), (2, 72)),
    ),
    "seresnet_bottleneck": ZooNet(
        "squeeze_excite",
        lambda: resnet(
            24, gated_bottleneck, (2, 64), (1, 64), (1, 64), (2, 128), (1, 128), (1, 128)
        ),
    ),
}
"""In the order of training: first one of each family, so that an early stop leaves variety."""


def recorded_families(models: Mapping[str, RecordedModel]) -> dict[str, str]:
    """The block type of each recorded model.

    Raises:
        SystemExit: one is held out, so nothing may be fitted to it.
    """
    families = {}
    for name, model in models.items():
        assert model.evaluations is not None  # `load_models` refuses those without
        families[name] = str(model.evaluations.about.get("family"))
        if name in JUDGED or families[name] in HELD_OUT:
            raise SystemExit(f"{name} is held out: plans are judged on it; take it away")
    return families
