"""What a model's file holds: numbers in its weights, and operators that nobody can count."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from onnx import NodeProto, TensorProto

from rlprune.graph.bodies import reads_of
from rlprune.graph.channels import ChannelMap
from rlprune.graph.lister import width_of
from rlprune.graph.normal import NormalModel
from rlprune.graph.operators import is_listed
from rlprune.graph.reach import Tail
from rlprune.graph.scope import RULES
from rlprune.graph.types import Uncounted, WeightCount, Width
from rlprune.graph.walk import Node

_WHOLE_NUMBERS = frozenset(
    (
        *(TensorProto.INT16, TensorProto.INT32, TensorProto.INT64),
        *(TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64),
        *(TensorProto.BOOL, TensorProto.STRING, TensorProto.COMPLEX64, TensorProto.COMPLEX128),
    )
)
"""Types of what is no weight: indices, shapes, masks."""


def count_weights(
    normal: NormalModel,
    channels: ChannelMap,
    widths: Sequence[int],
    tail: Tail | None,
    made_by: Mapping[str, int],
) -> tuple[WeightCount, ...]:
    """Of all initializers that are weights; those that the same operators read and whose axes
    shrink alike are one entry.

    Args:
        made_by: the operator that every tensor comes from.
    """
    counted: Counter[tuple[tuple[Width, ...], tuple[int, ...]]] = Counter()
    for tensor in () if tail is None else tail.weights:
        if tensor.data_type not in _WHOLE_NUMBERS:
            counted[(), ()] += math.prod(tensor.dims)
    owners = _owners(normal, made_by)
    for tensor in normal.model.graph.initializer:
        if tensor.data_type in _WHOLE_NUMBERS:
            continue
        axes = [
            width_of(channels.axis_units(tensor.name, axis)[0], widths)
            if channels.blocks.get(tensor.name)
            else Width(extent)
            for axis, extent in enumerate(tensor.dims)
        ]
        free = tuple(sorted((w for w in axes if w.terms), key=lambda w: (w.const, w.terms)))
        often = math.prod(w.const for w in axes if not w.terms)
        counted[free, owners.get(tensor.name, ())] += often
    return tuple(
        WeightCount(often, axes, operators) for (axes, operators), often in counted.items()
    )


def _owners(normal: NormalModel, made_by: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """By constant, the operators that it is of no use without; those that are an output are left
    out, and what nothing is known of."""
    nodes: dict[str, set[int] | None] = {}  # None: it may be needed whatever goes
    found: dict[str, tuple[int, ...]] = {}
    needed = {value.name for value in normal.model.graph.output}
    for node in reversed(normal.nodes):
        own: set[int] | None = {made_by[name] for name in node.outputs if name in made_by}
        if not own or node.op == "Pad":  # a border is the convolution's, or else its reader's
            own = _together(nodes, (r for o in node.outputs for r in normal.readers.get(o, ())))
        nodes[node.name] = None if not own or needed.intersection(node.outputs) else own
    for name in (tensor.name for tensor in normal.model.graph.initializer):
        readers = _together(nodes, normal.readers.get(name, ()))
        if readers and min(readers) >= 0 and name not in needed:
            found[name] = tuple(sorted(readers))
    return found


def _together(nodes: Mapping[str, set[int] | None], readers: Iterable[Node]) -> set[int] | None:
    """The operators of all readers; None where one may be needed whatever goes."""
    own: set[int] = set()
    for reader in readers:
        theirs = nodes.get(reader.name)
        if theirs is None:
            return None
        own |= theirs
    return own


def count_unknown(normal: NormalModel, tail: Tail | None) -> tuple[Uncounted, ...]:
    """Operators that no rule knows, and those behind the analysed part, by type, in order.

    Those of ONNX without weights are left out: what they cost is small.
    """
    behind = () if tail is None else tail.nodes
    kept = () if tail is None else tail.weights
    sizes = {
        tensor.name: math.prod(tensor.dims)
        for tensor in (*normal.model.graph.initializer, *kept)
        if tensor.data_type not in _WHOLE_NUMBERS
    }
    found: Counter[str] = Counter()
    read: dict[str, set[str]] = {}
    nodes = [(node.op, node.inputs) for node in normal.nodes]
    nodes = [(op, read) for op, read in nodes if op not in RULES and not is_listed(op)]
    for op, inputs in (*nodes, *((_name(proto), reads_of(proto)) for proto in behind)):
        found[op] += 1
        read.setdefault(op, set()).update(name for name in inputs if name in sizes)
    every = [
        Uncounted(op, count, sum(map(sizes.__getitem__, read[op]))) for op, count in found.items()
    ]
    return tuple(one for one in every if one.params or "." in one.operator)


def _name(proto: NodeProto) -> str:
    known = proto.domain in ("", "ai.onnx")
    return proto.op_type if known else f"{proto.domain}.{proto.op_type}"
