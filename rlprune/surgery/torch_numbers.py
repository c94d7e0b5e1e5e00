"""Numbers in one fx graph that name widths: sizes, paddings, parts, bounds, indices, groups."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, fx, nn

from rlprune.graph.types import IntArray

_SIZES_AT = {
    **dict.fromkeys(("view", "reshape", "expand", "new_zeros", "new_ones", "new_empty"), 1),
    **dict.fromkeys(("zeros", "ones"), 0),
    "unflatten": 2,
}
"""Functions whose arguments from here on are the sizes of their result."""
_PARTS: dict[str, Callable[[Tensor, Any], Sequence[Tensor]]] = {
    "split": Tensor.split,
    "chunk": Tensor.chunk,
    "tensor_split": Tensor.tensor_split,
}
"""Functions that cut an axis into parts; all become `torch.split` with sizes."""
_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")
_READING = ("getitem", "setitem", "narrow", "index_select", "group_norm")
"""Functions whose numbers are about the axes of their first argument."""


class Widths(Protocol):
    """Which positions stay of the values that an fx graph computes."""

    def shape(self, node: object) -> tuple[int, ...] | None:
        """Shape at full width; None where the value is no tensor."""

    def kept(self, node: fx.Node, axis: int) -> IntArray:
        """Positions of that axis that stay, ascending."""


def subject(node: fx.Node) -> fx.Node | None:
    """The node whose widths decide how `node` is rewritten; None where it is left alone."""
    if node.op not in ("call_function", "call_method"):
        return None
    name = _name(node)
    if name in _SIZES_AT or name == "pad":
        return node
    if name in (*_PARTS, *_READING, *_CONVOLUTIONS) and node.args:
        return node.args[0] if isinstance(node.args[0], fx.Node) else None
    return None


def rewrite(part: nn.Module, graph: fx.Graph, widths: Widths) -> tuple[bool, set[str]]:
    """Replaces the widths in a part's code by those after the cut.

    Returns:
        whether any was found, and the names of the index tensors of `part` that were replaced: by
        ones that pick the same channels of what is left.
    """
    changed = False
    replaced: set[str] = set()
    for node in list(graph.nodes):
        source = subject(node)
        shape = widths.shape(source)
        if source is None or shape is None:
            continue
        before = (node.target, str(node.args), str(node.kwargs))
        name = _name(node)
        if name in _SIZES_AT:
            _sizes(node, len(shape), widths)
        elif name == "pad":
            _pad(node, len(shape), widths)
        elif name in _PARTS:
            _parts(node, source, shape, widths)
        elif name == "narrow" and all(isinstance(arg, int) for arg in node.args[1:]):
            axis, start, length = (int(str(arg)) for arg in node.args[1:4])
            stays = widths.kept(source, axis % len(shape))
            begin = start % shape[axis]
            first = int(np.searchsorted(stays, begin))
            node.args = (source, axis, first, int(np.searchsorted(stays, begin + length)) - first)
        elif name in ("getitem", "setitem"):
            index = _index(part, node.args[1], source, shape, widths, replaced)
            node.args = (source, index, *node.args[2:])
        elif name == "index_select" and len(node.args) > 2 and isinstance(node.args[1], int):
            axis = node.args[1] % len(shape)
            _pick(part, node.args[2], shape[axis], widths.kept(source, axis), replaced)
        elif name in _CONVOLUTIONS:
            _groups(node, source, widths, "groups", 6)
        elif name == "group_norm":
            _groups(node, source, widths, "num_groups", 1)
        changed |= before != (node.target, str(node.args), str(node.kwargs))
    return changed, replaced


def _name(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target))


def _sizes(node: fx.Node, rank: int, widths: Widths) -> None:
    at = _SIZES_AT[_name(node)]
    if len(node.args) <= at:
        return
    offset = int(str(node.args[1])) % rank if _name(node) == "unflatten" else 0
    listed = isinstance(node.args[at], list | tuple)
    sizes: list[Any] = list(node.args[at] if listed else node.args[at:])  # type: ignore[arg-type]
    for index, size in enumerate(sizes):
        if isinstance(size, fx.Node):
            size = size.meta["value"]
        place = offset + index
        full = (widths.shape(node) or ())[place]
        stays = len(widths.kept(node, place))
        if size == full and stays != full:
            sizes[index] = stays
    node.args = (*node.args[:at], tuple(sizes)) if listed else (*node.args[:at], *sizes)


def _pad(node: fx.Node, rank: int, widths: Widths) -> None:
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
        node.update_kwarg("pad", type(given)(pad))
    else:
        node.update_arg(1, type(given)(pad))


def _parts(node: fx.Node, x: fx.Node, shape: tuple[int, ...], widths: Widths) -> None:
    method = _PARTS[_name(node)]
    spec = (
        node.args[1]
        if len(node.args) > 1
        else next((value for key, value in node.kwargs.items() if key != "dim"), None)
    )
    axis = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
    if isinstance(spec, fx.Node):
        spec = spec.meta["value"]
    if isinstance(spec, list | tuple):
        spec = [item.meta["value"] if isinstance(item, fx.Node) else item for item in spec]
    if not isinstance(axis, int) or not isinstance(spec, int | list):
        return
    axis %= len(shape)
    stays = widths.kept(x, axis)
    if len(stays) == shape[axis]:
        return
    parts = method(torch.arange(shape[axis]), spec)
    node.op, node.target = "call_function", torch.split
    node.args = (x, [int(np.isin(part.numpy(), stays).sum()) for part in parts], axis)
    node.kwargs = {}


def _groups(node: fx.Node, x: fx.Node, widths: Widths, name: str, place: int) -> None:
    """The groups of a functional depthwise convolution, or of a normalisation of every channel by
    itself, follow the channels."""
    given = len(node.args) > place
    groups = node.args[place] if given else node.kwargs.get(name, 1)
    full = widths.shape(x)
    if not isinstance(groups, int) or groups == 1 or full is None or full[1] != groups:
        return
    stays = len(widths.kept(x, 1))
    if given:
        node.update_arg(place, stays)
    else:
        node.update_kwarg(name, stays)


def _index(
    part: nn.Module,
    index: Any,
    x: fx.Node,
    shape: tuple[int, ...],
    widths: Widths,
    replaced: set[str],
) -> Any:
    """An index expression, its bounds and picks moved to where the kept positions are."""
    items: Sequence[Any] = index if isinstance(index, tuple) else (index,)
    taken = sum(item is not None and item is not Ellipsis for item in items)
    moved: list[Any] = []
    axis = 0
    for item in items:
        if item is Ellipsis:
            axis += len(shape) - taken
        elif item is not None:
            if isinstance(item, slice) and item.step in (None, 1):
                item = _slice(item, shape[axis], widths.kept(x, axis))
            elif isinstance(item, list | fx.Node):
                item = _pick(part, item, shape[axis], widths.kept(x, axis), replaced)
            axis += 1
        moved.append(item)
    return tuple(moved) if isinstance(index, tuple) else moved[0]


def _slice(item: slice, size: int, stays: IntArray) -> slice:
    def move(bound: Any) -> Any:
        if isinstance(bound, fx.Node):
            bound = bound.meta["value"]
        if not isinstance(bound, int):
            return bound
        at = max(bound + size, 0) if bound < 0 else min(bound, size)
        return int(np.searchsorted(stays, at))

    return item if len(stays) == size else slice(move(item.start), move(item.stop), item.step)


def _pick(part: nn.Module, item: Any, size: int, stays: IntArray, replaced: set[str]) -> Any:
    """Positions picked one by one: a list in the code, or an index tensor that the part holds."""
    held = item.meta["value"] if isinstance(item, fx.Node) else None
    if isinstance(item, fx.Node):
        stored = item.op == "get_attr" and isinstance(held, Tensor) and held.dtype == torch.int64
        picks = held.tolist() if stored and isinstance(held, Tensor) else None
    else:
        picks = item
    if len(stays) == size or not isinstance(picks, list):
        return item
    if not all(isinstance(pick, int) for pick in picks):
        return item
    place = {position: new for new, position in enumerate(stays.tolist())}
    new = [place[pick % size] for pick in picks if pick % size in place]
    if held is None:
        return new
    path, _, name = str(item.target).rpartition(".")
    setattr(part.get_submodule(path), name, held.new_tensor(new))
    replaced.add(str(item.target))
    return item
