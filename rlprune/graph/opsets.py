"""Models of old opsets, brought to one whose operators are followed."""

from __future__ import annotations

from collections import Counter
from copy import deepcopy

import onnx
from onnx import ModelProto, TensorProto

from rlprune.errors import ModelError, one_line
from rlprune.graph.folding import SMALL
from rlprune.graph.load import FLOAT_TYPES, OPSETS


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
            f"({one_line(error)}); export again",
            field="model",
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
