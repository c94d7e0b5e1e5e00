"""From a file as somebody wrote it to a model that the rules can follow.

In this order: graph inputs that were given one value become constants, operators of old opsets are
brought to a known one, an If whose condition is known becomes its branch, what follows an operator
of unknown output shape is set aside (`reach.py`), and weights computed from constants are computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from onnx import ModelProto, ValueInfoProto

from rlprune.errors import UnsupportedOperatorError
from rlprune.graph.bodies import has_bodies
from rlprune.graph.constants import compute_weights
from rlprune.graph.finite import check_finite
from rlprune.graph.given import with_input_values
from rlprune.graph.load import open_negative
from rlprune.graph.normal import NormalModel, normalise
from rlprune.graph.opsets import with_known_opset
from rlprune.graph.reach import Tail, follow
from rlprune.graph.sizes import read_inputs, some_sizes


@dataclass(frozen=True)
class Prepared:
    """A model in normal form, and what is kept as it is behind it."""

    normal: NormalModel
    tail: Tail | None = None
    closed: tuple[str, ...] = ()
    """What the file leaves open and a branch closes, a sentence each."""


def prepare(
    model: ModelProto,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    input_values: Mapping[str, Any] | None = None,
    *,
    computing: bool = True,
) -> Prepared:
    """The part of a checked model that can be analysed, in normal form; the argument is not
    changed.

    Args:
        model: as `load.check` lets it pass.
        input_shapes: extents of graph inputs that the file leaves open, by name.
        input_values: values of graph inputs that are to be constants, by name.
        computing: whether weights that are computed from constants become constants.

    Raises:
        ModelError: see `normal.normalise`; a value does not fit its input.
        UnsupportedOperatorError: the extents of no layer can be told.
    """
    if any(d.dim_value < 0 for v in _ends(model) for d in v.type.tensor_type.shape.dim):
        own = deepcopy(model)
        open_negative(own)
        model = own
    if input_values:
        model = with_input_values(model, input_values)
    model = with_known_opset(model)
    if not has_bodies(model):
        try:
            whole = compute_weights(model) if computing else model
            check_finite(whole)
            return Prepared(normalise(whole, input_shapes))
        except UnsupportedOperatorError:
            pass  # its extents end somewhere: found out below
    head, tail, closed = followed(model, input_shapes)
    if computing:
        head = compute_weights(head)
    check_finite(head)
    return Prepared(normalise(head, input_shapes), tail, closed)


def followed(
    model: ModelProto, input_shapes: Mapping[str, Sequence[int]] | None = None
) -> tuple[ModelProto, Tail | None, tuple[str, ...]]:
    """A copy of the part that can be analysed, without branches of known condition, what is behind
    it, and a sentence for every open extent that a branch closes; `model` is not changed.

    Raises:
        ModelError, UnsupportedOperatorError: see `reach.follow`.
    """
    own = deepcopy(model)
    inputs = read_inputs(own, dict(input_shapes or {}))
    tail, labels = follow(own, some_sizes(inputs))
    values = {value.name: value.type.tensor_type.shape for value in own.graph.input}
    closed = []
    for one in inputs:
        for axis, label in enumerate(one.labels):
            if label in labels and axis < len(values[one.name].dim):
                values[one.name].dim[axis].dim_value = one.extents[axis]
                closed.append(
                    f"input {one.name!r} stays {one.extents[axis]} long on axis {axis}, which the "
                    "file leaves open: a branch depends on it"
                )
    return own, tail, tuple(closed)


def _ends(model: ModelProto) -> list[ValueInfoProto]:
    return [*model.graph.input, *model.graph.output, *model.graph.value_info]
