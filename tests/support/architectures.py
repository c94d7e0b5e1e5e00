"""Every architecture in common use that the tests know, and how much of it should be prunable."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from architectures_attention import (
    CrossAttention,
    EncoderLayer,
    Llama,
    Mixer,
    MobileVit,
    NonLocal,
    SpatialReduction,
    Swin,
    VisionTransformer,
)
from architectures_cnn import (
    Cbam,
    ConvNext,
    CoordinateAttention,
    Eca,
    GhostNet,
    GroupNormNet,
    KeywordsSeparable,
    MobileNetV3,
    RegNet,
    RepVgg,
    Res2Net,
    SelectiveKernel,
    ShuffleNetV1,
)
from architectures_dense import Aspp, Decoder, LrAspp, SuperResolution, UNetBilinear, Yolo
from architectures_recurrent import Keywords, Recogniser
from torch import Tensor, nn
from torch_parts import Built, builder, image


@dataclass(frozen=True)
class Architecture:
    build: Callable[[], Built]
    prunable: float
    """Least share of the MACs that should lie in operators with a prunable axis."""


def rows() -> tuple[Tensor, ...]:
    return (torch.randn(1, 12, 10),)


def _cnn(
    make: Callable[[], nn.Module],
    prunable: float = 0.9,
    inputs: Callable[[], tuple[Tensor, ...]] = image,
) -> Architecture:
    return Architecture(builder(make, inputs), prunable)


def _transformer(
    make: Callable[[], nn.Module],
    prunable: float = 0.6,
    inputs: Callable[[], tuple[Tensor, ...]] = image,
) -> Architecture:
    return Architecture(builder(make, inputs), prunable)


ARCHITECTURES: dict[str, Architecture] = {
    "mobilenet_v3": _cnn(lambda: MobileNetV3(hard=True)),
    "efficientnet": _cnn(lambda: MobileNetV3(hard=False)),
    "shufflenet_v1": _cnn(ShuffleNetV1),
    "ghostnet": _cnn(GhostNet),
    "regnet": _cnn(RegNet),
    "repvgg": _cnn(RepVgg),
    "yolo": _cnn(Yolo),
    "super_resolution": _cnn(SuperResolution),
    "decoder": _cnn(Decoder, inputs=lambda: (torch.randn(1, 20),)),
    "group_norm": _cnn(GroupNormNet),
    "convnext": _cnn(ConvNext, 0.6),
    "lr_aspp": _cnn(LrAspp),
    "unet_bilinear": _cnn(UNetBilinear, inputs=lambda: image(14)),
    "aspp": _cnn(Aspp),
    "res2net": _cnn(Res2Net),
    "selective_kernel": _cnn(SelectiveKernel),
    "cbam": _cnn(Cbam),
    "eca": _cnn(Eca, 0.5),
    "coordinate_attention": _cnn(CoordinateAttention),
    "keywords_separable": _cnn(KeywordsSeparable, inputs=lambda: (torch.randn(1, 10, 48),)),
    "vit_unbound": _transformer(lambda: VisionTransformer("unbound")),
    "vit_fused": _transformer(lambda: VisionTransformer("fused")),
    "vit_packed": _transformer(lambda: VisionTransformer("packed")),
    "vit_separate": _transformer(lambda: VisionTransformer("separate")),
    "encoder_layer": _transformer(EncoderLayer, inputs=rows),
    "cross_attention": _transformer(CrossAttention, inputs=rows),
    "swin": _transformer(Swin),
    "mixer": _transformer(Mixer),
    "llama": _transformer(Llama, inputs=rows),
    "spatial_reduction": _transformer(SpatialReduction),
    "mobile_vit": _transformer(MobileVit),
    "non_local": _transformer(NonLocal),
    "recogniser": _cnn(Recogniser, 0.6),
    "keywords": _cnn(Keywords, 0.3, inputs=rows),
}
