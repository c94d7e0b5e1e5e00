"""The attributes in which layers keep their widths, made to follow the weights.

torch's own layers are known. In a module of the user's an attribute is taken for a width where its
name says so and its value is the width of an axis, or the number of units of a group, that the cut
changes within that module; where that leaves a choice, the choices are tried (surgery.torch).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

import numpy as np
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from rlprune.surgery.torch_attention import PrunedMultiheadAttention
from rlprune.surgery.torch_cut import Cut
from rlprune.surgery.torch_sites import own_code

MAX_CHOICES = 32
"""Combinations of attributes tried for one module."""
_WIDTH_NAME = re.compile(
    r"channels|features|planes|width|dim|heads|groups|filters|hidden|inner|embed|expan|cin|cout|"
    r"in_ch|out_ch|extra"
)


def follow_layer(part: nn.Module, path: str, cut: Cut) -> None:
    """Sets the widths of one of torch's own layers, whose tensors are cut already."""
    if isinstance(part, _ConvNd):
        transposed = isinstance(part, _ConvTransposeNd)
        wide = part.out_channels if transposed else part.in_channels
        if part.groups > 1:
            name = f"{path}.weight" if path else "weight"
            part.groups = cut.wide_side(name, wide) // part.weight.shape[1]
        wide = part.weight.shape[1] * part.groups
        narrow = part.weight.shape[0]
        part.in_channels, part.out_channels = (narrow, wide) if transposed else (wide, narrow)
    elif isinstance(part, nn.Linear):
        part.out_features, part.in_features = part.weight.shape
    elif isinstance(part, _NormBase):
        tensor = part.weight if part.weight is not None else part.running_mean
        if tensor is not None:
            part.num_features = tensor.shape[0]
    elif isinstance(part, nn.RNNBase):
        part.input_size = dict(part.named_parameters())["weight_ih_l0"].shape[1]
    elif isinstance(part, nn.GroupNorm) and part.weight is not None:
        follow_group_norm(part, part.weight.shape[0])
    elif isinstance(part, nn.PReLU):
        part.num_parameters = part.weight.shape[0]
    elif isinstance(part, nn.Embedding):
        part.num_embeddings, part.embedding_dim = part.weight.shape
    elif isinstance(part, nn.MultiheadAttention):
        if part.k_proj_weight is not None and part.v_proj_weight is not None:
            part.kdim, part.vdim = part.k_proj_weight.shape[1], part.v_proj_weight.shape[1]
        was = getattr(part, "head_dim", part.embed_dim // part.num_heads)
        packed = part.in_proj_weight is not None
        takes = (part.in_proj_weight if packed else part.q_proj_weight).shape[1]
        gives, mixed = part.out_proj.weight.shape
        if mixed != part.num_heads * was or not takes == gives == part.embed_dim:
            PrunedMultiheadAttention.convert(part, was)
    elif isinstance(part, nn.TransformerEncoder):
        layers = [getattr(layer, "self_attn", None) for layer in part.layers]
        if any(isinstance(layer, PrunedMultiheadAttention) for layer in layers):
            part.use_nested_tensor = False


def follow_group_norm(part: nn.GroupNorm, channels: int) -> None:
    """Sets its widths; where every channel was a group of its own, it stays so."""
    if part.num_groups == part.num_channels:
        part.num_groups = channels
    part.num_channels = channels


def width_choices(part: nn.Module, path: str, cut: Cut) -> Iterator[dict[str, int]]:
    """What the width attributes of a module of the user's may be after the cut, likeliest first.

    `part` has its full tensors still.
    """
    found: dict[int, set[int]] = {}
    for prefix, layer in _own_layers(part, path):
        for name, tensor in layer.named_parameters(recurse=False):
            full = f"{prefix}.{name}" if prefix else name
            for axis, size in enumerate(tensor.shape):
                group, unit = cut.units(full, axis, size)
                found.setdefault(size, set()).add(len(cut.stay(group, unit)))
                for index in np.unique(group[group >= 0]):
                    units = len(cut.survivors[index])
                    found.setdefault(int(cut.widths[index]), set()).add(units)
                    repeat = int((group == index).sum()) // int(cut.widths[index])
                    if repeat > 1:
                        found.setdefault(int((group == index).sum()), set()).add(units * repeat)
    names = {
        name: sorted(found[value] | {value}, key=lambda new, old=value: (new == old, new))  # type: ignore[misc]
        for name, value in vars(part).items()
        if type(value) is int and value > 1 and value in found and _WIDTH_NAME.search(name)
    }
    names = {name: options for name, options in names.items() if len(options) > 1}
    picks = itertools.product(*names.values())
    for pick in itertools.islice(picks, MAX_CHOICES):
        yield dict(zip(names, pick, strict=True))


def _own_layers(part: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    """`part` and the layers below it, down to the next modules with code of their own."""
    yield path, part
    for name, child in part.named_children():
        if not own_code(child):
            yield from _own_layers(child, f"{path}.{name}" if path else name)


def put(root: nn.Module, path: str, part: nn.Module) -> nn.Module:
    """`root` with `part` at `path`, wherever the module there is used."""
    if not path:
        return part
    old = root.get_submodule(path)
    for owner in root.modules():
        for name, child in owner._modules.items():
            if child is old:
                owner._modules[name] = part
    return root
