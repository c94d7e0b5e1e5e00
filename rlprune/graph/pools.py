"""How pooling is listed: over windows, and over all positions whoever wrote that."""

from __future__ import annotations

from collections.abc import Sequence

from rlprune.graph.folding import axes_of
from rlprune.graph.listed import listed
from rlprune.graph.lister import Lister
from rlprune.graph.walk import Node
from rlprune.graph.windows import explicit_pads

_POOLS = {"MaxPool": "max", "AveragePool": "average", "LpPool": "lp"}
_GLOBAL = {
    "GlobalMaxPool": "max",
    "GlobalAveragePool": "average",
    "ReduceMean": "average",
    "ReduceMax": "max",
    "ReduceSum": "sum",
}


@listed(" ".join(_POOLS))
def _pool(lister: Lister, node: Node, data: Sequence[str]) -> None:
    before, after = (lister.normal.shapes[n][2:] for n in (node.inputs[0], node.outputs[0]))
    kernel = node.attrs["kernel_shape"]
    rank = len(kernel)
    stride = node.attrs.get("strides", [1] * rank)
    dilation = node.attrs.get("dilations", [1] * rank)
    pads = explicit_pads(node, before, kernel, stride, dilation)
    if tuple(kernel) == before and not any(pads) and set(after) == {1}:
        _whole(lister, node, _POOLS[node.op])
    elif set(kernel) == {1} and before == after:
        lister.alias(node)
    else:
        lister.add(node, "pool", _POOLS[node.op], kernel=kernel, stride=stride, pads=pads)


@listed(" ".join(_GLOBAL))
def list_global_pool(lister: Lister, node: Node, data: Sequence[str]) -> None:
    """Lists a mean, sum or greatest value over all positions, or over some."""
    variant = _GLOBAL.get(node.op, node.op.lower())
    shape = lister.normal.shapes[node.inputs[0]]
    if not node.op.startswith("Global"):
        known = [lister.normal.value(n) for n in node.inputs]
        axes = {a % len(shape) for a in axes_of(dict(node.attrs), known, 1) or range(len(shape))}
        rest = set(range(len(shape))) - axes - set(lister.channel_axes(node.inputs[0]))
        if any(shape[axis] != lister.batch for axis in rest) or len(rest) > 1:
            lister.add(node, "pool", variant)
            return
    _whole(lister, node, variant)


def _whole(lister: Lister, node: Node, variant: str) -> None:
    # A row that was widened to a map for the pooling is a row.
    extents = list(lister.spatial(node.inputs[0]))
    while len(extents) > 1 and extents[0] == 1:
        del extents[0]
    lister.add(node, "global_pool", variant, in_spatial=tuple(extents), out_spatial=())
