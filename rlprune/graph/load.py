"""Reading ONNX files that somebody else wrote.

`load_onnx` answers with a model that is complete in memory and structurally sound, or raises
`ModelError` in one line. Nothing is executed and nothing outside the file's own folder is read:
external data must lie beside the file, as a plain file, within the size limit. Graphs with bodies
(If, Loop, Scan), local functions, strings, dangling or cyclic names, or absurd sizes are refused
before any of their data is looked at.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from itertools import islice
from pathlib import Path, PurePosixPath

import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, ModelProto, TensorProto, helper

from rlprune.errors import ModelError, UnsupportedOperatorError
from rlprune.graph.wire import MAX_NODES, MAX_PARTS, measure, too_many_nodes

MAX_BYTES = 2**31 - 1
"""Largest model, external data included; protobuf's own limit."""
MAX_ELEMENTS = 2**31
"""Largest tensor, weights and activations alike."""
MAX_RANK = 16
MAX_NAME = 4096
OPSETS = range(11, 27)
SKELETON_KEY = "rlprune.skeleton"
"""`metadata_props` key that marks a model whose weights were reduced to shapes (`skeleton.py`)."""

_ITEM_BITS: dict[int, int] = {
    TensorProto.FLOAT: 32,
    TensorProto.DOUBLE: 64,
    TensorProto.FLOAT16: 16,
    TensorProto.BFLOAT16: 16,
    TensorProto.INT8: 8,
    TensorProto.UINT8: 8,
    TensorProto.INT16: 16,
    TensorProto.UINT16: 16,
    TensorProto.INT32: 32,
    TensorProto.UINT32: 32,
    TensorProto.INT64: 64,
    TensorProto.UINT64: 64,
    TensorProto.BOOL: 8,
}
FLOAT_TYPES = frozenset(
    (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)
)
_FIELDS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")


def load_onnx(source: str | Path | bytes) -> ModelProto:
    """The model of a file, or of a file's bytes, with all its data in memory.

    Raises:
        ModelError: no ONNX, refused by the checker, unsafe external data, too large, or of a kind
            that is not analysed (control flow, local functions, strings).
    """
    if isinstance(source, bytes):
        model = _parse(source, "model")
        folder = None
    else:
        path = Path(source)
        model = _parse(_read(path), str(path))
        folder = path.parent
    for tensor in _tensors(model):
        if tensor.data_location == TensorProto.EXTERNAL:
            if folder is None:
                raise ModelError(
                    f"tensor {tensor.name!r} keeps its data in another file; "
                    "give the path of the model, or save it with all data inside",
                    field="model",
                )
            _embed(tensor, folder, MAX_BYTES - model.ByteSize())
    check(model)
    return model


def check(model: ModelProto) -> None:
    """Raises ModelError unless the model is sound and of a kind that can be analysed.

    Runs in time linear in the number of nodes; weights are only measured, not read.
    """
    graph = model.graph
    if not graph.node:
        raise ModelError("the model has no nodes", field="model")
    if len(graph.node) > MAX_NODES:
        raise too_many_nodes(str(len(graph.node)))
    if model.functions:
        raise ModelError(
            f"the model defines local functions ({model.functions[0].name!r}); "
            "inline them first (onnx.inliner.inline_local_functions)",
            field="model",
        )
    if graph.sparse_initializer:
        raise ModelError("the model has sparse weights, which are not read", field="model")
    opset = {entry.domain: entry.version for entry in model.opset_import}.get("")
    if opset is None or opset not in OPSETS:
        raise ModelError(
            f"opset {opset} is not within {OPSETS.start}..{OPSETS.stop - 1}; export again",
            field="model",
        )
    _check_nodes(model)
    skeleton = is_skeleton(model)
    for tensor in _tensors(model):
        _check_tensor(tensor, skeleton)
    for value in (*graph.input, *graph.output):
        kind = value.type.tensor_type
        _check_text(value.name)
        if not value.type.HasField("tensor_type") or kind.elem_type not in _ITEM_BITS:
            raise ModelError(f"{value.name!r} is not a tensor of numbers", field="model")
        check_shape(value.name, (d.dim_value for d in kind.shape.dim if d.HasField("dim_value")))
    _check_names(model)
    try:
        onnx.checker.check_model(without_weights(model), full_check=False)
    except (onnx.checker.ValidationError, ValueError, RuntimeError, TypeError) as error:
        raise ModelError(f"ONNX checker: {_one_line(error)}", field="model") from error


def is_skeleton(model: ModelProto) -> bool:
    """Whether the model's weights were reduced to shapes by `skeleton.strip`."""
    return any(entry.key == SKELETON_KEY for entry in model.metadata_props)


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
    if len(shape) > MAX_RANK or any(d < 0 for d in shape) or _count(shape) > MAX_ELEMENTS:
        text = "x".join(map(str, shape[:MAX_RANK]))
        raise ModelError(f"tensor {name!r} of shape {text} is too large", field="model")


def _parse(data: bytes, name: str) -> ModelProto:
    if len(data) > MAX_BYTES:
        raise ModelError(f"{name} has {len(data)} bytes, more than {MAX_BYTES}", field="model")
    measure(data)
    model = ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise ModelError(f"{name} is not an ONNX file, or is cut short", field="model") from error
    if not model.HasField("graph") or not model.opset_import:
        raise ModelError(f"{name} is not an ONNX file", field="model")
    return model


def _read(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ModelError(f"{path} has {size} bytes, more than {MAX_BYTES}", field="model")
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}", field="model") from error


def _tensors(model: ModelProto) -> Iterable[TensorProto]:
    yield from model.graph.initializer
    for node in model.graph.node:
        for attribute in node.attribute:
            _check_text(attribute.name)
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _constant(node: onnx.NodeProto) -> TensorProto | None:
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
        return None
    return next((a.t for a in node.attribute if a.name == "value"), None)


def _embed(tensor: TensorProto, folder: Path, budget: int) -> None:
    """Reads a tensor's external data into it, if it lies safely beside the model."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    parts = PurePosixPath(location.replace("\\", "/")).parts
    if not parts or location.startswith(("/", "\\")) or ".." in parts or ":" in parts[0]:
        raise ModelError(
            f"tensor {tensor.name!r} points outside the model's folder ({location!r}); refused",
            field="model",
        )
    path = folder.joinpath(*parts)
    root = folder.resolve()
    if path.resolve() != root.joinpath(*parts):
        raise ModelError(f"external data {location!r} is a link; refused", field="model")
    length = _count(tensor.dims) * _ITEM_BITS.get(tensor.data_type, 64) // 8
    try:
        offset = int(entries.get("offset", "0"))
        stated = int(entries.get("length", str(length)))
        if length > budget:
            raise ModelError(
                f"with {tensor.name!r} the model has more than {MAX_BYTES} bytes, which no ONNX "
                "file in one piece can; split it, or use a smaller precision",
                field="model",
            )
        if offset < 0 or stated != length:
            raise ModelError(
                f"external data of {tensor.name!r} has the wrong length", field="model"
            )
        # O_NOFOLLOW: a link that appeared after the test above is not followed either.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
        with os.fdopen(handle, "rb") as file:
            file.seek(offset)
            data = file.read(length)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"cannot read external data {location!r}: {error}", field="model"
        ) from error
    if len(data) != length:
        raise ModelError(f"external data {location!r} is cut short", field="model")
    tensor.raw_data = data
    del tensor.external_data[:]
    tensor.ClearField("data_location")


def _check_tensor(tensor: TensorProto, skeleton: bool) -> None:
    _check_text(tensor.name)
    check_shape(tensor.name, tensor.dims)
    if tensor.data_type not in _ITEM_BITS:
        kind = TensorProto.DataType.Name(tensor.data_type) if tensor.data_type < 30 else "?"
        raise ModelError(f"tensor {tensor.name!r} holds {kind}, not numbers", field="model")
    if tensor.data_location == TensorProto.EXTERNAL:
        raise ModelError(f"tensor {tensor.name!r} keeps its data in another file", field="model")
    count = _count(tensor.dims)
    if tensor.HasField("raw_data"):
        sound = len(tensor.raw_data) * 8 == count * _ITEM_BITS[tensor.data_type]
    else:
        stored = sum(len(getattr(tensor, field)) for field in _FIELDS)
        empty = skeleton and stored == 0 and tensor.data_type in FLOAT_TYPES
        sound = stored == count or empty
    if not sound:
        raise ModelError(f"tensor {tensor.name!r} does not hold what its shape says", field="model")


def _check_nodes(model: ModelProto) -> None:
    values = 0
    for index, node in enumerate(model.graph.node):
        name = node.name or (node.output[0] if node.output else str(index))
        for text in (node.name, node.op_type, node.domain, *node.input, *node.output):
            _check_text(text)
        for attribute in node.attribute:
            values += len(attribute.ints) + len(attribute.floats) + len(attribute.strings)
            if values > MAX_PARTS:
                raise ModelError(
                    f"the attributes of the nodes hold more than {MAX_PARTS} numbers",
                    field="model",
                )
            nested = attribute.HasField("g") or len(attribute.graphs)
            if nested or attribute.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS):
                raise UnsupportedOperatorError(
                    name,
                    node.op_type,
                    "control flow is not analysed; export with static control flow",
                )
            if attribute.type in (AttributeProto.SPARSE_TENSOR, AttributeProto.SPARSE_TENSORS):
                raise UnsupportedOperatorError(name, node.op_type, "sparse tensors are not read")
            if attribute.ref_attr_name:
                raise ModelError(f"node {name!r} refers to a function's attribute", field="model")


def _check_text(text: str) -> None:
    # Protobuf hands out what is no UTF-8 as bytes, whatever its types say.
    if not isinstance(text, str):
        raise ModelError(f"name {text[:MAX_NAME]!r} is not UTF-8", field="model")
    if len(text) > MAX_NAME:
        raise ModelError(
            f"name {text[:40]!r}... has {len(text)} letters, more than {MAX_NAME}", field="model"
        )


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
                raise ModelError(
                    f"node {name!r} ({node.op_type}) reads {tensor!r}: {why}", field="model"
                )
        for tensor in node.output:
            if tensor and tensor in known:
                raise ModelError(f"tensor {tensor!r} is made twice", field="model")
            known.add(tensor)
    for value in graph.output:
        if value.name not in known:
            raise ModelError(f"output {value.name!r}: nothing makes it", field="model")


def _count(dims: Iterable[int]) -> int:
    return math.prod(dims)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
