"""int8 by ONNX Runtime's static quantiser, for every runtime that reads QDQ files.

QuantizeLinear and DequantizeLinear are written around operators (QDQ): weights int8, symmetric, a
scale per channel; activations uint8. OpenVINO ran the same file as fast as its own quantiser's
result or faster (MobileNetV2 at 224: 3.7 against 4.4 ms), so one quantiser serves both.

Latency does not depend on the scales. `with_made_up_scales` therefore needs no data, and a board
can measure a skeleton: it runs the model once on noise, so that what cannot be negative has no zero
point (with one OpenVINO 2026.4 refused ResNet-20's padded shortcuts). Nothing is printed, and no
file is left behind.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from copy import deepcopy
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from rlprune.errors import ModelError, one_line
from rlprune.runtime import get_runtime
from rlprune.runtime.base import Array

SCALED_COUNT = 256
"""Samples that scales are taken from, where there are more: ResNet-20 answered as well with 128."""
UNKNOWN_RANGE = (-1.0, 1.0)
"""Of what came out as no finite number."""

_QUANTISING = ("QuantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger")

Range = tuple[float, float]
"""Least and greatest value of a tensor."""


def quantised(
    model: onnx.ModelProto,
    feeds: Iterable[Mapping[str, Array]],
    *,
    keep_float: Collection[str] = (),
) -> onnx.ModelProto:
    """The model in int8, its scales from what its tensors hold on some inputs.

    Args:
        model: with weights; is not changed.
        feeds: what the model is fed, run by run.
        keep_float: names of nodes that stay in float.

    Raises:
        ModelError: the quantiser refuses the model.
        MeasurementError: the model does not run on `feeds`.
        MissingExtraError: ONNX Runtime is not installed.
    """
    prepared = _prepared(model)
    return _with_scales(prepared, _ranges(prepared, feeds), keep_float)


def with_made_up_scales(
    model: onnx.ModelProto, *, keep_float: Collection[str] = ()
) -> onnx.ModelProto:
    """The model in int8 with scales that mean nothing: as fast as `quantised`, and of no other use.

    Raises: as `quantised`.
    """
    prepared = _prepared(model)
    return _with_scales(prepared, _ranges(prepared, [_noise(prepared)]), keep_float)


def is_quantised(model: onnx.ModelProto) -> bool:
    """Whether the file holds operators that turn floats into integers."""
    return any(node.op_type in _QUANTISING for node in model.graph.node)


def _prepared(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy as the quantiser wants it: BatchNorm folded, constants computed, shapes known."""
    get_runtime("ort")  # sees to it that the package is there, and sends nothing home
    import onnxruntime as ort

    named = deepcopy(model)
    for index, node in enumerate(named.graph.node):
        node.name = node.name or f"unnamed_{index}"
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    with _silently(), tempfile.TemporaryDirectory(prefix="rlprune-int8-") as folder:
        path = Path(folder) / "model.onnx"
        options.optimized_model_filepath = str(path)  # it can only be written to a file
        try:
            named = _with_new_opset(named)
            content = named.SerializeToString()
            ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
            made = onnx.load(path)
        except Exception as error:  # ORT's exceptions share no base class
            raise ModelError(f"cannot be quantised: {one_line(error)}") from error
    # All of ORT's own domains are written into the file, used or not.
    used = {node.domain for node in made.graph.node} | {""}
    opsets = [one for one in made.opset_import if one.domain in used]
    del made.opset_import[:]
    made.opset_import.extend(opsets)
    return onnx.shape_inference.infer_shapes(made)


def _with_new_opset(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model in an opset that has scales per channel (13)."""
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.quantize import update_opset_version

    made: onnx.ModelProto = update_opset_version(model, QuantType.QInt8, QuantType.QUInt8)
    return made


def _noise(model: onnx.ModelProto) -> dict[str, Array]:
    """An input of normal numbers, zeros where integers are wanted; open extents are 1."""
    rng = np.random.default_rng(0)
    weights = {tensor.name for tensor in model.graph.initializer}
    fed: dict[str, Array] = {}
    for value in model.graph.input:
        if value.name not in weights:
            kind = value.type.tensor_type
            shape = [max(1, dim.dim_value) for dim in kind.shape.dim]
            dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
            floats = np.issubdtype(dtype, np.floating)
            fed[value.name] = (rng.standard_normal(shape) if floats else np.zeros(shape)).astype(
                dtype
            )
    return fed


def _float_tensors(model: onnx.ModelProto) -> list[str]:
    """Names of all float32 tensors that are computed or fed, in the order of the file."""
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer}
    kinds = {
        value.name: value.type.tensor_type.elem_type
        for value in (*graph.input, *graph.output, *graph.value_info)
    }
    names = [value.name for value in graph.input]
    names += [name for node in graph.node for name in node.output]
    return [
        name
        for name in dict.fromkeys(names)
        if name not in weights and kinds.get(name) == TensorProto.FLOAT
    ]


def _ranges(model: onnx.ModelProto, feeds: Iterable[Mapping[str, Array]]) -> dict[str, Range]:
    """Least and greatest value of every float tensor over all runs."""
    names = _float_tensors(model)
    asked = deepcopy(model)
    del asked.graph.output[:]
    for name in names:
        for kind in ("Min", "Max"):
            output = f"{name}//{kind}"
            asked.graph.node.append(helper.make_node(f"Reduce{kind}", [name], [output], keepdims=0))
            asked.graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, ()))
    low, high = np.full(len(names), np.inf), np.full(len(names), -np.inf)
    with closing(get_runtime("ort").load(asked.SerializeToString())) as session:
        for fed in feeds:
            found = np.array([float(value) for value in session.run(fed)]).reshape(-1, 2)
            low, high = np.minimum(low, found[:, 0]), np.maximum(high, found[:, 1])
    known = np.isfinite(low) & np.isfinite(high)
    return {
        name: (float(low[place]), float(high[place])) if known[place] else UNKNOWN_RANGE
        for place, name in enumerate(names)
    }


def _with_scales(
    model: onnx.ModelProto, ranges: Mapping[str, Range], keep_float: Collection[str]
) -> onnx.ModelProto:
    from onnxruntime.quantization import CalibrationMethod, QuantType
    from onnxruntime.quantization.calibrate import TensorData, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    data = {
        name: TensorData(lowest=np.array(low, np.float32), highest=np.array(high, np.float32))
        for name, (low, high) in ranges.items()
    }
    with _silently():
        try:
            quantiser = QDQQuantizer(
                model,
                per_channel=True,
                reduce_range=False,
                weight_qType=QuantType.QInt8,
                activation_qType=QuantType.QUInt8,
                tensors_range=TensorsData(CalibrationMethod.MinMax, data),
                nodes_to_quantize=[],
                nodes_to_exclude=[
                    node.name for node in model.graph.node if _is_of(node.name, keep_float)
                ],
                op_types_to_quantize=sorted({*QDQRegistry, *QLinearOpsRegistry}),
                extra_options={},
            )
            quantiser.quantize_model()
            quantiser.model.topological_sort()
        except Exception as error:  # it raises ValueError, KeyError, RuntimeError, ...
            raise ModelError(f"cannot be quantised: {one_line(error)}") from error
    made: onnx.ModelProto = quantiser.model.model
    return made


def _is_of(name: str, kept: Collection[str]) -> bool:
    """Whether a node is one of those kept; ONNX Runtime names what it fuses MATMUL/SomeFusion."""
    before, _, last = name.rpartition("/")
    return name in kept or (last.endswith("Fusion") and before in kept)


@contextmanager
def _silently() -> Iterator[None]:
    """Keeps what the quantiser logs and warns of to itself, and the root logger as it was."""
    root, handler, level = logging.getLogger(), logging.NullHandler(), logging.root.manager.disable
    root.addHandler(handler)  # without one, a first message would set up logging for the process
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
        root.removeHandler(handler)
