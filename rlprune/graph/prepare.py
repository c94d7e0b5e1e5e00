"""From a file as somebody wrote it to a model that the rules can follow.

In this order: graph inputs that were given one value become constants, operators of old opsets are
brought to a known one, an If whose condition is known becomes its branch, what follows an operator
of unknown output shape is set aside (`reach.py`), and weights computed from constants are computed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, numpy_helper

from rlprune.errors import ModelError, UnsupportedOperatorError, one_line
from rlprune.graph.bodies import has_bodies
from rlprune.graph.constants import compute_weights
from rlprune.graph.folding import SMALL, Array
from rlprune.graph.given import with_input_values
from rlprune.graph.load import FLOAT_TYPES, OPSETS, open_negative
from rlprune.graph.normal import NormalModel, normalise
from rlprune.graph.reach import Tail, follow
from rlprune.graph.sizes import read_inputs, some_sizes
from rlprune.graph.weights import is_hollow


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


_LAYERS = frozenset(
    (
        *("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN", "PRelu"),
        *("BatchNormalization", "InstanceNormalization", "LayerNormalization"),
        *("GroupNormalization", "RMSNormalization"),
    )
)
"""Operators whose weights are finite; a mask that is added may hold minus infinity."""


def check_finite(model: ModelProto) -> None:
    """Raises ModelError for a weight that holds NaN, a layer's that holds infinity, or a
    BatchNormalization's variance so far below zero that it has no root. Skeletons pass."""
    weights = list(model.graph.initializer)
    names = [tensor.name for tensor in weights]
    in_layers: set[str] = set()
    variances: dict[str, NodeProto] = {}
    for node in model.graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    weights.append(attribute.t)
                    names.append(node.output[0])
        if node.op_type in _LAYERS:
            in_layers.update(node.input)
        if node.op_type == "BatchNormalization" and len(node.input) > 4:
            variances[node.input[4]] = node
    for name, tensor in zip(names, weights, strict=True):
        if tensor.data_type not in FLOAT_TYPES or is_hollow(tensor):
            continue
        array = numpy_helper.to_array(tensor)
        if not _sound(array):
            nan = bool(np.isnan(_wide(array)).any())
            if nan or name in in_layers:
                raise ModelError(
                    f"weight {name!r} holds NaN or infinite values; export a sound model"
                )
        norm = variances.get(name)
        if norm is not None and array.size:
            epsilon = next((a.f for a in norm.attribute if a.name == "epsilon"), 1e-5)
            least = float(array.min())
            if least + epsilon < 0:
                raise ModelError(
                    f"weight {name!r}, a variance of {norm.name!r}, holds {least:.4g}: its root "
                    "is NaN; export a sound model"
                )


def _sound(array: Array) -> bool:
    """Whether all entries are finite; the sum tells it in one pass where it does not overflow."""
    with np.errstate(all="ignore"):
        total = array.sum(dtype=np.float64) if array.dtype.kind == "f" else np.nan
    return bool(np.isfinite(total)) or bool(np.isfinite(_wide(array)).all())


def _wide(array: Array) -> Array:
    with np.errstate(invalid="ignore"):  # some small types warn of their own NaN
        return array.astype(np.float64)


def with_known_opset(model: ModelProto) -> ModelProto:
    """The model, or one of the first known opset that means the same (`onnx.version_converter`).

    Raises:
        ModelError: the converter does not know how.
    """
    version = next(e.version for e in model.opset_import if e.domain in ("", "ai.onnx"))
    if version in OPSETS:
        return model
    old = deepcopy(model)
    graph = old.graph
    # The converter copies what it is given several times: large weights go beside it.
    weights = {t.name: t for t in model.graph.initializer if _is_large(t)}
    given = {value.name for value in graph.input}
    del graph.value_info[:]  # inferred anew; where it is false the converter gives up
    kept = [tensor for tensor in graph.initializer if tensor.name not in weights]
    small = [deepcopy(tensor) for tensor in kept]
    del graph.initializer[:]
    graph.initializer.extend(small)
    for name, tensor in weights.items():
        if name not in given:
            graph.input.append(
                onnx.helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims))
            )
    for tensor in small:
        if tensor.name not in given:  # IR 3 lists weights among the inputs, and the converter too
            graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            )
    try:
        new = onnx.version_converter.convert_version(old, OPSETS.start)
        onnx.checker.check_model(new)
    except (
        *(ArithmeticError, LookupError, RuntimeError, TypeError, ValueError),
        onnx.checker.ValidationError,
        onnx.shape_inference.InferenceError,
        onnx.version_converter.ConvertError,
    ) as error:
        raise ModelError(
            f"opset {version} is older than {OPSETS.start} and cannot be converted "
            f"({one_line(error)}); export again"
        ) from error
    made = Counter(name for node in new.graph.node for name in node.output)
    constants = {tensor.name for tensor in new.graph.initializer} | set(weights)
    inputs = [value for value in new.graph.input if value.name not in constants]
    real = [deepcopy(value) for value in inputs]
    del new.graph.input[:]
    new.graph.input.extend(real)
    new.graph.initializer.extend(t for name, t in weights.items() if not made[name])
    new.metadata_props.extend(p for p in model.metadata_props if not len(new.metadata_props))
    new.ir_version = max(new.ir_version, 4)
    return new


def _is_large(tensor: TensorProto) -> bool:
    count = 1
    for extent in tensor.dims:
        count *= extent
    return tensor.data_type in FLOAT_TYPES and count >= SMALL
