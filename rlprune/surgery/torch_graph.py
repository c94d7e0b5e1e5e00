"""Widths written into a module's forward code, replaced through `torch.fx`.

The full-size module is traced symbolically and exported once more, this time with every value whose
widths matter as an output of its own: so the ONNX trace knows the channels of exactly the values
that the fx graph computes, and nothing has to be matched by order or by name of operator.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from rlprune.errors import ModelError
from rlprune.graph.channels import ChannelMap
from rlprune.graph.from_onnx import trace_onnx
from rlprune.graph.from_torch import TorchTrace, export_onnx
from rlprune.graph.types import IntArray

_SIZES_AT = {"view": 1, "reshape": 1, "expand": 1, "new_zeros": 1, "zeros": 0, "unflatten": 2}
"""Functions whose arguments from here on are the sizes of their result."""
_PARTS: dict[str, Callable[[Tensor, Any], Sequence[Tensor]]] = {
    "split": Tensor.split,
    "chunk": Tensor.chunk,
    "tensor_split": Tensor.tensor_split,
}
"""Functions that cut an axis into parts; all become `torch.split` with sizes."""


def kept_positions(
    channels: ChannelMap, tensor: str, axis: int, size: int, kept: list[IntArray]
) -> IntArray:
    """Positions of an axis of length `size` that stay when group g keeps the units `kept[g]`.

    Ascending; held positions, and those of a tensor that the trace does not know, all stay.
    """
    try:
        group, unit = channels.axis_units(tensor, axis)
    except KeyError:
        return np.arange(size, dtype=np.int64)
    stays = group < 0
    for index in np.unique(group[~stays]):
        stays |= (group == index) & np.isin(unit, kept[index])
    return np.flatnonzero(stays).astype(np.int64)


def rewrite_widths(module: nn.Module, trace: TorchTrace, kept: list[IntArray]) -> fx.GraphModule:
    """`module` (in eval mode) as an fx graph whose written-down widths are those after the cut.

    Its tensors are still of full size.

    Raises:
        ModelError: torch.fx cannot follow the forward code, or not to the same graph.
    """
    try:
        tracer = _Tracer()
        rewritten = fx.GraphModule(module, tracer.trace(module), type(module).__name__)
        shapes = _Shapes(rewritten)
        shapes.run(*trace.inputs)
    except Exception as error:  # tracing runs forward code, which may raise anything
        raise ModelError(
            f"module {type(trace.module).__name__} cannot be cut: its forward code has widths "
            f"written into it and torch.fx cannot trace it ({str(error).splitlines()[0][:200]}); "
            "prune its ONNX export instead"
        ) from error
    widths = _Widths(rewritten, trace, kept, shapes.shapes)
    for node in rewritten.graph.nodes:
        _rewrite(node, widths)
    rewritten.graph.lint()
    rewritten.recompile()
    return rewritten


class _Tracer(fx.Tracer):
    """Knows into how many parts `chunk` and `split` cut, so that code may loop over them."""

    def create_proxy(self, *args: Any, **kwargs: Any) -> Any:
        proxy: Any = super().create_proxy(*args, **kwargs)
        node = proxy.node
        if node.op in ("call_function", "call_method") and _name(node) in _PARTS:
            spec = node.args[1] if len(node.args) > 1 else None
            if isinstance(spec, list | tuple) and _name(node) == "split":
                return tuple(proxy[index] for index in range(len(spec)))
            if isinstance(spec, int) and _name(node) == "chunk":
                return tuple(proxy[index] for index in range(spec))
        return proxy


class _Shapes(fx.Interpreter):
    """Runs the graph and notes the shape of every tensor it computes."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.shapes: dict[str, tuple[int, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        with torch.no_grad():
            result = super().run_node(n)
        if isinstance(result, Tensor):
            self.shapes[n.name] = tuple(result.shape)
        return result


class _Widths:
    """Which positions stay of the values that an fx graph computes."""

    def __init__(
        self,
        module: fx.GraphModule,
        trace: TorchTrace,
        kept: list[IntArray],
        shapes: dict[str, tuple[int, ...]],
    ) -> None:
        self._kept = kept
        self._shapes = shapes
        inputs = {node.name for node in module.graph.nodes if node.op == "placeholder"}
        subjects = [_subject(node) for node in module.graph.nodes]
        watched = list(
            dict.fromkeys(
                node.name
                for node in subjects
                if node is not None and node.name in shapes and node.name not in inputs
            )
        )
        self._names = {name: f"fx.{name}" for name in watched}
        self._channels = _watch(module, trace, self._names)

    def shape(self, node: object) -> tuple[int, ...] | None:
        """Shape at full width; None where the value is no tensor."""
        return self._shapes.get(node.name) if isinstance(node, fx.Node) else None

    def kept(self, node: fx.Node, axis: int) -> IntArray:
        """Positions of that axis that stay."""
        size = self._shapes[node.name][axis]
        name = self._names.get(node.name, "")
        return kept_positions(self._channels, name, axis, size, self._kept)


def _watch(module: fx.GraphModule, trace: TorchTrace, names: dict[str, str]) -> ChannelMap:
    """Channel map of `module`; the value of the node called `name` is the tensor `names[name]`."""
    twin = copy.deepcopy(module)
    nodes = {node.name: node for node in twin.graph.nodes}
    end = next(node for node in twin.graph.nodes if node.op == "output")
    end.args = ((*(nodes[name] for name in names), end.args[0]),)
    twin.recompile()
    model = export_onnx(twin, trace.inputs, tuple(names.values()))
    del model.graph.output[: len(names)]
    again = trace_onnx(model)
    ours = [(g.width, {m.tensor for m in g.members}) for g in again.graph.groups]
    theirs = [(g.width, {m.tensor for m in g.members}) for g in trace.graph.groups]
    if again.graph.fingerprint != trace.graph.fingerprint or ours != theirs:
        raise ModelError(
            f"module {type(trace.module).__name__} cannot be cut: torch.fx sees another graph "
            "than the ONNX export shows; prune the export instead"
        )
    return again.channels


def _name(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target))


def _subject(node: fx.Node) -> fx.Node | None:
    """The node whose widths decide how `node` is rewritten; None where it is left alone."""
    if node.op not in ("call_function", "call_method"):
        return None
    name = _name(node)
    if name in _SIZES_AT or name == "pad":
        return node
    if name in _PARTS or name in ("getitem", "narrow"):
        return node.args[0] if isinstance(node.args[0], fx.Node) else None
    return None


def _rewrite(node: fx.Node, widths: _Widths) -> None:
    """Replaces the widths in the arguments of one node by those after the cut."""
    subject = _subject(node)
    shape = widths.shape(subject)
    if subject is None or shape is None:
        return
    name = _name(node)
    if name in _SIZES_AT:
        _rewrite_sizes(node, len(shape), widths)
    elif name == "pad":
        _rewrite_pad(node, len(shape), widths)
    elif name in _PARTS:
        _rewrite_parts(node, subject, shape, widths)
    elif name == "narrow" and all(isinstance(arg, int) for arg in node.args[1:]):
        axis, start, length = (int(str(arg)) for arg in node.args[1:4])
        stays = widths.kept(subject, axis % len(shape))
        begin = start % shape[axis]
        first = int(np.searchsorted(stays, begin))
        node.args = (subject, axis, first, int(np.searchsorted(stays, begin + length)) - first)
    elif name == "getitem":
        node.args = (subject, _cut_index(node.args[1], subject, shape, widths))


def _rewrite_sizes(node: fx.Node, rank: int, widths: _Widths) -> None:
    at = _SIZES_AT[_name(node)]
    offset = int(str(node.args[1])) % rank if _name(node) == "unflatten" else 0
    listed = isinstance(node.args[at], list | tuple)
    sizes: list[Any] = list(node.args[at] if listed else node.args[at:])  # type: ignore[arg-type]
    for index, size in enumerate(sizes):
        if isinstance(size, int) and size > 1:
            sizes[index] = len(widths.kept(node, offset + index))
    node.args = (*node.args[:at], tuple(sizes)) if listed else (*node.args[:at], *sizes)


def _rewrite_pad(node: fx.Node, rank: int, widths: _Widths) -> None:
    given = node.kwargs["pad"] if "pad" in node.kwargs else node.args[1]
    if not isinstance(given, list | tuple) or not all(isinstance(n, int) for n in given):
        return
    pad: list[Any] = list(given)
    for pair in range(len(pad) // 2):
        low, high = pad[2 * pair], pad[2 * pair + 1]
        axis = rank - 1 - pair
        stays = widths.kept(node, axis)
        if low > 0:
            pad[2 * pair] = int((stays < low).sum())
        if high > 0:
            size = (widths.shape(node) or ())[axis]
            pad[2 * pair + 1] = int((stays >= size - high).sum())
    if "pad" in node.kwargs:
        node.update_kwarg("pad", pad)
    else:
        node.update_arg(1, pad)


def _rewrite_parts(node: fx.Node, x: fx.Node, shape: tuple[int, ...], widths: _Widths) -> None:
    method = _PARTS[_name(node)]
    spec = (
        node.args[1]
        if len(node.args) > 1
        else next((value for key, value in node.kwargs.items() if key != "dim"), None)
    )
    axis = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
    if not isinstance(axis, int) or not isinstance(spec, int | list | tuple):
        return
    axis %= len(shape)
    stays = widths.kept(x, axis)
    if len(stays) == shape[axis]:
        return
    parts = method(torch.arange(shape[axis]), spec)
    node.op, node.target = "call_function", torch.split
    node.args = (x, [int(np.isin(part.numpy(), stays).sum()) for part in parts], axis)
    node.kwargs = {}


def _cut_index(index: Any, x: fx.Node, shape: tuple[int, ...], widths: _Widths) -> Any:
    """An index expression with the bounds of its slices moved to where the kept positions are."""
    items: Sequence[Any] = index if isinstance(index, tuple) else (index,)
    taken = sum(item is not None and item is not Ellipsis for item in items)
    moved: list[Any] = []
    axis = 0
    for item in items:
        if item is Ellipsis:
            axis += len(shape) - taken
        elif item is not None:
            if isinstance(item, slice) and item.step in (None, 1):
                item = _cut_slice(item, shape[axis], widths.kept(x, axis))
            axis += 1
        moved.append(item)
    return tuple(moved) if isinstance(index, tuple) else moved[0]


def _cut_slice(item: slice, size: int, stays: IntArray) -> slice:
    def move(bound: Any) -> Any:
        if not isinstance(bound, int):
            return bound  # open, or computed when run
        at = max(bound + size, 0) if bound < 0 else min(bound, size)
        return int(np.searchsorted(stays, at))

    return item if len(stays) == size else slice(move(item.start), move(item.stop), item.step)
