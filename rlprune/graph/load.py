"""Reading ONNX files that somebody else wrote.

`load_onnx` answers with a model that is complete in memory and structurally sound, or raises
`ModelError` in one line. Nothing is executed and nothing outside the file's own folder is read:
external data must lie there, as a plain file, within the size limit (`external.py`). Local
functions, dangling or cyclic names, or absurd sizes are refused before any of their data is looked
at.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, ModelProto, TensorProto, helper

from rlprune.errors import ModelError, UnsupportedOperatorError, one_line
from rlprune.graph.bodies import all_graphs, all_nodes
from rlprune.graph.external import MAX_BYTES, data_files, embed, read_plain
from rlprune.graph.kinds import QUANTISED_REMEDY
from rlprune.graph.size_guard import MAX_NODES, MAX_PARTS, measure, too_many_nodes

MAX_ELEMENTS = 2**31
"""Largest tensor, weights and activations alike."""
MAX_RANK = 16
MAX_NAME = 4096
OPSETS = range(11, 27)
"""Those whose operators are followed."""
OLDEST_OPSET = 7
"""Older ones than `OPSETS` are converted from here on (`prepare.py`)."""
SKELETON_KEY = "rlprune.skeleton"
"""`metadata_props` key that marks a model whose weights were reduced to shapes (`skeleton.py`)."""

FLOAT_TYPES = frozenset(
    (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)
)
_ITEM_BITS: dict[int, int] = {
    kind: 8 * helper.tensor_dtype_to_np_dtype(kind).itemsize
    for kind in (
        *FLOAT_TYPES,
        *(TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64),
        *(TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64),
        TensorProto.BOOL,
    )
}
_FIELDS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")


def load_onnx(source: str | Path | bytes) -> ModelProto:
    """The model of a file, or of a file's bytes, with all its data in memory.

    Raises:
        ModelError: no ONNX, refused by the checker, unsafe external data, too large, or of a kind
            that is not analysed (control flow, local functions, strings).
    """
    path = None if isinstance(source, bytes) else Path(source)
    if isinstance(source, bytes):
        model = _parse(source, "model")
    else:
        path = Path(source)
        model = _parse(read_plain(path), str(path))
    for tensor in _tensors(model):
        if tensor.data_location == TensorProto.EXTERNAL:
            length = _count(tensor.dims) * _ITEM_BITS.get(tensor.data_type, 64) // 8
            embed(tensor, path, length, MAX_BYTES - model.ByteSize())
    open_negative(model)
    check(model)
    return model


def files_read(path: Path) -> set[Path]:
    """The files that a model at `path` is read from, links resolved: itself and its external data;
    itself alone where it is no ONNX file."""
    found = {path.resolve()}
    try:
        return found | data_files(_tensors(_parse(read_plain(path), str(path))), path)
    except ModelError:
        return found


def open_negative(model: ModelProto) -> None:
    """Leaves extents open, in place, that are stated as -1 or less, as PaddlePaddle writes them."""
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_value < 0:
                dim.ClearField("dim_value")


def check(model: ModelProto) -> None:
    """Raises ModelError unless the model is sound and of a kind that can be analysed.

    Runs in time linear in the number of nodes; weights are only measured, not read.
    """
    try:
        _check(model)
    except UnicodeDecodeError as error:
        raise ModelError(f"a name in the model is not UTF-8: {error.object!r}"[:200]) from error


def _check(model: ModelProto) -> None:
    graph = model.graph
    if not graph.node:
        raise ModelError("the model has no nodes")
    if len(graph.node) > MAX_NODES:
        raise too_many_nodes(str(len(graph.node)))
    if model.functions:
        raise ModelError(
            f"the model defines local functions ({model.functions[0].name!r}); "
            "inline them first (onnx.inliner.inline_local_functions)"
        )
    opset = {entry.domain: entry.version for entry in model.opset_import}.get("")
    if opset is None or not OLDEST_OPSET <= opset < OPSETS.stop:
        newer = opset is not None and opset >= OPSETS.stop
        raise ModelError(
            f"opset {opset} is {'newer than' if newer else 'not within'} "
            f"{'' if newer else f'{OLDEST_OPSET}..'}{OPSETS.stop - 1}"
            f"{', the newest known' if newer else ''}; export again at opset 18 or so"
        )
    _check_nodes(model)
    skeleton = is_skeleton(model)
    for tensor in _tensors(model):
        _check_tensor(tensor, skeleton)
    for value in (*graph.input, *graph.output):
        kind = value.type.tensor_type
        _check_text(value.name)
        check_shape(value.name, (d.dim_value for d in kind.shape.dim if d.dim_value >= 0))
    for value in graph.input:
        numbers = value.type.tensor_type.elem_type in _ITEM_BITS
        if not value.type.HasField("tensor_type") or not numbers:
            raise ModelError(f"input {value.name!r} is not a tensor of numbers")
    _check_names(model)
    light = without_weights(model)
    for value in (*light.graph.input, *light.graph.output):
        if value.type.HasField("tensor_type"):
            # The checker wants a shape; what is not said is inferred later.
            value.type.tensor_type.shape.SetInParent()
    run_checker(light)


def run_checker(model: ModelProto, *, full: bool = False, of: str = "") -> None:
    """Raises ModelError where ONNX's checker refuses a model; `full`: its shapes and types, too."""
    try:
        onnx.checker.check_model(model, full_check=full)
    except (
        *(ValueError, RuntimeError, TypeError, onnx.checker.ValidationError),
        onnx.shape_inference.InferenceError,
    ) as error:
        raise ModelError(f"ONNX checker{of}: {one_line(error)}") from error


def is_skeleton(model: ModelProto) -> bool:
    """Whether the model's weights were reduced to shapes by `skeleton.strip`."""
    try:
        return any(entry.key == SKELETON_KEY for entry in model.metadata_props)
    except UnicodeDecodeError:
        return False


def without_weights(model: ModelProto) -> ModelProto:
    """A copy whose larger float tensors are graph inputs instead: all that checking needs."""
    light = ModelProto()
    light.ir_version = max(model.ir_version, 4)
    light.opset_import.extend(model.opset_import)
    graph = light.graph
    graph.name = model.graph.name or "graph"
    graph.output.extend(model.graph.output)
    known = {value.name for value in model.graph.input}
    graph.input.extend(model.graph.input)
    for node in model.graph.node:
        value = _constant(node)
        if value is not None and value.data_type in FLOAT_TYPES and _count(value.dims) >= 64:
            graph.input.append(
                helper.make_tensor_value_info(node.output[0], value.data_type, list(value.dims))
            )
        else:
            graph.node.append(node)
    for tensor in model.graph.initializer:
        if tensor.data_type not in FLOAT_TYPES or _count(tensor.dims) < 64:
            graph.initializer.append(tensor)
        elif tensor.name not in known:
            graph.input.append(
                helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            )
    return light


def check_shape(name: str, dims: Iterable[int]) -> None:
    """Raises ModelError if a tensor of these extents is absurd."""
    shape = list(islice(dims, MAX_RANK + 1))
    # Without the empty axes: numpy refuses 0 x 2**40 x 2**40.
    longer = [d for d in shape if d]
    if len(shape) > MAX_RANK or any(d < 0 for d in shape) or _count(longer) > MAX_ELEMENTS:
        text = "x".join(map(str, shape[:MAX_RANK]))
        raise ModelError(f"tensor {name!r} of shape {text} is too large")


def _parse(data: bytes, name: str) -> ModelProto:
    if len(data) > MAX_BYTES:
        raise ModelError(f"{name} has {len(data)} bytes, more than {MAX_BYTES}")
    measure(data)
    model = ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise ModelError(f"{name} is not an ONNX file, or is cut short") from error
    if not model.HasField("graph") or not model.opset_import:
        raise ModelError(f"{name} is not an ONNX file")
    return model


def _tensors(model: ModelProto) -> Iterable[TensorProto]:
    """All constants, those of bodies among them."""
    for graph in all_graphs(model.graph):
        yield from graph.initializer
    for node in all_nodes(model.graph):
        for attribute in node.attribute:
            _check_text(attribute.name)
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _constant(node: onnx.NodeProto) -> TensorProto | None:
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
        return None
    return next((a.t for a in node.attribute if a.name == "value"), None)


def _check_tensor(tensor: TensorProto, skeleton: bool) -> None:
    _check_text(tensor.name)
    check_shape(tensor.name, tensor.dims)
    if tensor.data_type not in _ITEM_BITS and tensor.data_type != TensorProto.STRING:
        known = tensor.data_type in TensorProto.DataType.values()
        kind = TensorProto.DataType.Name(tensor.data_type) if known else "?"
        small = kind.startswith(("FLOAT8", "FLOAT4", "INT4", "UINT4", "INT2", "UINT2"))
        remedy = f", {QUANTISED_REMEDY}" if small else ", not numbers"
        raise ModelError(f"tensor {tensor.name!r} holds {kind}{remedy}")
    if tensor.data_location == TensorProto.EXTERNAL:
        raise ModelError(f"tensor {tensor.name!r} keeps its data in another file")
    count = _count(tensor.dims)
    if tensor.HasField("raw_data"):
        sound = len(tensor.raw_data) * 8 == count * _ITEM_BITS.get(tensor.data_type, -1)
    else:
        stored = sum(len(getattr(tensor, field)) for field in _FIELDS)
        empty = skeleton and stored == 0 and tensor.data_type in FLOAT_TYPES
        sound = stored == count or empty
    if not sound:
        raise ModelError(f"tensor {tensor.name!r} does not hold what its shape says")


def _check_nodes(model: ModelProto) -> None:
    values = 0
    for index, node in enumerate(all_nodes(model.graph)):
        for text in (node.name, node.op_type, node.domain, *node.input, *node.output):
            _check_text(text)
        name = node.name or (node.output[0] if node.output else str(index))
        for attribute in node.attribute:
            values += len(attribute.ints) + len(attribute.floats) + len(attribute.strings)
            if values > MAX_PARTS:
                raise ModelError(f"the attributes of the nodes hold more than {MAX_PARTS} numbers")
            if attribute.type in (AttributeProto.SPARSE_TENSOR, AttributeProto.SPARSE_TENSORS):
                raise UnsupportedOperatorError(name, node.op_type, "sparse tensors are not read")
            if attribute.ref_attr_name:
                raise ModelError(f"node {name!r} refers to a function's attribute")
    for graph in all_graphs(model.graph):
        if graph.sparse_initializer:
            raise ModelError("the model has sparse weights, which are not read")
        for value in (*graph.input, *graph.output, *graph.value_info):
            _check_text(value.name)
            for dim in value.type.tensor_type.shape.dim:
                _check_text(dim.dim_param)


def _check_text(text: str | bytes) -> None:
    # Protobuf hands out what is no UTF-8 as bytes, whatever its types say.
    if not isinstance(text, str):
        raise ModelError(f"name {text[:MAX_NAME]!r} is not UTF-8")
    if len(text) > MAX_NAME:
        raise ModelError(f"name {text[:40]!r}... has {len(text)} letters, more than {MAX_NAME}")


def _check_names(model: ModelProto) -> None:
    graph = model.graph
    known = {tensor.name for tensor in graph.initializer} | {value.name for value in graph.input}
    made_later = {output for node in graph.node for output in node.output if output}
    for index, node in enumerate(graph.node):
        name = node.name or f"#{index}"
        for tensor in node.input:
            if tensor and tensor not in known:
                why = (
                    "a cycle, or nodes out of order" if tensor in made_later else "nothing makes it"
                )
                raise ModelError(f"node {name!r} ({node.op_type}) reads {tensor!r}: {why}")
        for tensor in node.output:
            if tensor and tensor in known:
                raise ModelError(f"tensor {tensor!r} is made twice")
            known.add(tensor)
    for value in graph.output:
        if value.name not in known:
            raise ModelError(f"output {value.name!r}: nothing makes it")


def _count(dims: Iterable[int]) -> int:
    return math.prod(dims)
