"""Smaller kernels in a torch module: weights sliced, and the borders of convolutions with them.

The layers stay torch's own. Where the border becomes uneven a convolution pads as it does for its
other padding modes, by `F.pad`, here with zeros. Where the weights decide which taps of a kernel
stay, the border is a tensor of the module's state (`BORDER`), so that a plan applied to other
weights takes this module's `state_dict` and then computes the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rlprune.errors import ModelError
from rlprune.graph.from_torch import TorchTrace
from rlprune.graph.torch_call import Call, tensors_in
from rlprune.graph.walk import Node
from rlprune.graph.windows import zero_border
from rlprune.surgery.onnx import weights_read
from rlprune.surgery.removal import Removal, first_places
from rlprune.surgery.torch_check import agree
from rlprune.surgery.torch_cut import Cut

BORDER = "zero_border"
"""Buffer of a convolution: zeros before the map along every axis, then those behind it."""

_Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d


@dataclass(frozen=True)
class _Narrowed:
    """One convolution that loses taps."""

    path: str
    conv: _Conv
    kernel: tuple[int, ...]
    """Extents afterwards."""
    lost: list[int]
    """What the border loses, as ONNX has pads."""
    chosen: bool
    """Whether taps in other places could have stayed, too."""


def narrow_kernels(
    small: nn.Module, trace: TorchTrace, removal: Removal, cut: Cut, call: Call
) -> None:
    """Takes the taps outside of `removal.windows` out of `small`, cut from the traced module, in
    place.

    Raises:
        ModelError: a kernel is read by code that does not follow it, naming the layer.
    """
    layers = _layers(small, trace, removal, cut)
    if not layers:
        return
    with torch.no_grad():
        for layer in layers:
            window = cut.windows[cut.windowed[_weight_of(layer.path)]]
            outside = torch.ones(layer.conv.weight.shape[2:], dtype=torch.bool)
            outside[tuple(slice(first, first + count) for first, count in window)] = False
            layer.conv.weight[:, :, outside] = 0.0
        with _noting(layers) as seen:
            expected = [tensor.clone() for tensor in tensors_in(call.run(small))]
    for layer in layers:
        weight = layer.conv.weight
        window = cut.windows[cut.windowed[_weight_of(layer.path)]]
        for axis, (first, count) in enumerate(window):
            weight = weight.narrow(2 + axis, first, count)
        layer.conv.weight = nn.Parameter(weight.detach().clone(), layer.conv.weight.requires_grad)
        if layer.path not in seen or not _fit(layer, *seen[layer.path]):
            raise _unfollowed(trace, layer.path)
    if not agree(small, expected, call):
        raise _unfollowed(trace, layers[0].path)


def follow_borders(module: nn.Module) -> None:
    """Makes the borders that are part of a module's state follow it when a state is loaded, and be
    where its weights are."""
    for part in module.modules():
        if isinstance(part, _Conv) and BORDER in part._buffers:
            part._buffers[BORDER] = part.get_buffer(BORDER).to(part.weight.device)
            part.register_load_state_dict_post_hook(_follow_border)  # type: ignore[no-untyped-call]


def _follow_border(conv: _Conv, _: Any) -> None:
    border = conv.get_buffer(BORDER)
    if not border.is_meta:
        conv._reversed_padding_repeated_twice = _for_pad(border.tolist())


def _layers(small: nn.Module, trace: TorchTrace, removal: Removal, cut: Cut) -> list[_Narrowed]:
    """The convolutions whose kernels are cut; none of branches that are left out."""
    read = weights_read(trace.onnx, removal.left_out)
    nodes = {
        node.inputs[1]: node
        for node in trace.onnx.normal.nodes
        if len(node.inputs) > 1 and node.inputs[1] in removal.windows and node.inputs[1] in read
    }
    found = []
    for path, part in small.named_modules():
        node = nodes.get(cut.windowed.get(_weight_of(path), ""))
        if isinstance(part, _Conv) and node is not None:
            found.append(_narrowed(path, part, node, trace, removal))
            del nodes[node.inputs[1]]
    if nodes:
        raise _unfollowed(trace, next(iter(nodes)).removesuffix(".weight"))
    return found


def _narrowed(path: str, conv: _Conv, node: Node, trace: TorchTrace, removal: Removal) -> _Narrowed:
    window = removal.windows[node.inputs[1]]
    kernel, rank = conv.weight.shape[2:], len(window)
    _, pads = zero_border(trace.onnx.normal, node)
    begins, ends, places = [], [], 1
    for axis, (first, count) in enumerate(window):
        step = conv.dilation[axis]
        begins.append(first * step)
        ends.append((kernel[axis] - first - count) * step)
        border = pads[axis], pads[rank + axis]
        places *= len(first_places(kernel[axis], count, step, border))
    extents = tuple(count for _, count in window)
    return _Narrowed(path, conv, extents, begins + ends, places > 1 or BORDER in conv._buffers)


def _fit(layer: _Narrowed, call: Call, expected: list[Tensor]) -> bool:
    """Gives the convolution the border with which it answers as before; False where none does."""
    conv = layer.conv
    own = _border(conv)
    left = [pad - lost for pad, lost in zip(own, layer.lost, strict=True)]
    # Code before the convolution may put zeros around the map itself: as many whatever the kernel
    # (the convolution then crops), or as many as `kernel_size` asks for. Where the weights decide
    # which taps stay, the one way that serves all is taken: `kernel_size` tells what that code is
    # to think.
    ways = [(layer.kernel, left), (layer.kernel, own), (conv.kernel_size, left)]
    if layer.chosen:
        del ways[1]
    for kernel, border in ways:
        conv.kernel_size = kernel
        _set_border(conv, border, chosen=layer.chosen)
        if agree(conv, expected, call):
            return True
    return False


def _border(conv: _Conv) -> list[int]:
    """The zeros that a convolution puts around its map, as ONNX has pads."""
    if isinstance(conv.padding, str) or str(conv.padding_mode) == "constant":
        pairs = conv._reversed_padding_repeated_twice[::-1]  # (end, begin) of the first axis on
        return [*pairs[1::2], *pairs[::2]]
    return [*conv.padding, *conv.padding]


def _set_border(conv: _Conv, border: list[int], *, chosen: bool) -> None:
    rank = len(border) // 2
    even = not chosen and border[:rank] == border[rank:] and min(border) >= 0
    conv.padding = tuple(border[:rank]) if even else (0,) * rank
    conv.padding_mode = "zeros" if even else "constant"  # type: ignore[assignment]
    conv._reversed_padding_repeated_twice = _for_pad(border)
    if chosen:
        conv.register_buffer(BORDER, torch.tensor(border))


def _for_pad(border: list[int]) -> list[int]:
    """As `F.pad` takes it: begin and end of the last axis, then of the one before."""
    rank = len(border) // 2
    return [
        count for axis in reversed(range(rank)) for count in (border[axis], border[rank + axis])
    ]


@contextmanager
def _noting(layers: list[_Narrowed]) -> Iterator[dict[str, tuple[Call, list[Tensor]]]]:
    """What each layer is called with first, and answers; copies, for what follows may write into
    them."""
    seen: dict[str, tuple[Call, list[Tensor]]] = {}
    handles = []
    for layer in layers:

        def note(_: nn.Module, args: Any, kwargs: Any, result: Any, path: str = layer.path) -> None:
            given = Call(args, kwargs).map(torch.clone)
            seen.setdefault(path, (given, [one.clone() for one in tensors_in(result)]))

        handles.append(layer.conv.register_forward_hook(note, with_kwargs=True))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _weight_of(path: str) -> str:
    return f"{path}.weight" if path else "weight"


def _unfollowed(trace: TorchTrace, path: str) -> ModelError:
    return ModelError(
        f"module {type(trace.module).__name__}: the kernel of {path or 'the module itself'!r} "
        "cannot be cut, since it is no nn.Conv layer or its code does not follow the kernel; "
        "leave it whole (plan with schemes=('channel',), or hold it), or prune the ONNX export "
        "instead"
    )
