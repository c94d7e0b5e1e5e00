"""What a model's file holds: numbers in its weights, and operators that nobody can count."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from onnx import TensorProto

from rlprune.graph.channels import ChannelMap
from rlprune.graph.lister import width_of
from rlprune.graph.normal import NormalModel
from rlprune.graph.operators import is_listed
from rlprune.graph.scope import RULES
from rlprune.graph.types import Uncounted, WeightCount, Width

_WHOLE_NUMBERS = frozenset(
    (
        *(TensorProto.INT16, TensorProto.INT32, TensorProto.INT64),
        *(TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64),
        *(TensorProto.BOOL, TensorProto.STRING, TensorProto.COMPLEX64, TensorProto.COMPLEX128),
    )
)
"""Types of what is no weight: indices, shapes, masks."""


def count_weights(
    normal: NormalModel, channels: ChannelMap, widths: Sequence[int]
) -> tuple[WeightCount, ...]:
    """Of all initializers that are weights; those whose axes shrink alike are one entry."""
    counted: Counter[tuple[Width, ...]] = Counter()
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
        counted[free] += math.prod(w.const for w in axes if not w.terms)
    return tuple(WeightCount(often, axes) for axes, often in counted.items())


def count_unknown(normal: NormalModel) -> tuple[Uncounted, ...]:
    """Operators that no rule knows, by type, in order of appearance."""
    sizes = {
        tensor.name: math.prod(tensor.dims)
        for tensor in normal.model.graph.initializer
        if tensor.data_type not in _WHOLE_NUMBERS
    }
    found: Counter[str] = Counter()
    read: dict[str, set[str]] = {}
    for node in normal.nodes:
        if node.op not in RULES and not is_listed(node.op):
            found[node.op] += 1
            read.setdefault(node.op, set()).update(name for name in node.inputs if name in sizes)
    return tuple(
        Uncounted(op, count, sum(sizes[name] for name in read[op])) for op, count in found.items()
    )
