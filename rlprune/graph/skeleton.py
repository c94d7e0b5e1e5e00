"""Models without their weights: what goes over the wire.

A skeleton is an ONNX file whose float tensors of 64 elements or more, Constant nodes included, are
reduced to shapes. Smaller ones and all integers stay: Reshape, Slice and Clip mean nothing without
them. It can be traced as it is, and runs as fast as the real model once filled. Names of weights
stay, so that groups are called alike on both sides; notes, source paths and docstrings do not.
"""

from __future__ import annotations

import math
from copy import deepcopy

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from rlprune.errors import ModelError
from rlprune.graph.external import MAX_BYTES
from rlprune.graph.folding import SMALL
from rlprune.graph.load import FLOAT_TYPES, SKELETON_KEY, is_skeleton, load_onnx
from rlprune.graph.sizes import SIZES_KEY
from rlprune.graph.weights import is_hollow

_NOTE_KEPT = "pkg.torch.onnx.name_scopes"


def strip(model: ModelProto) -> bytes:
    """The model as a skeleton; the argument is not changed."""
    bare = ModelProto(ir_version=model.ir_version, producer_name="rlprune")
    bare.opset_import.extend(model.opset_import)
    bare.metadata_props.add(key=SKELETON_KEY, value="1")
    bare.metadata_props.extend(e for e in model.metadata_props if e.key == SIZES_KEY)
    graph = bare.graph
    graph.name = "skeleton"
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    if any(node.domain not in ("", "ai.onnx") for node in model.graph.node):
        # Extents behind operators of other domains are known from nowhere else.
        graph.value_info.extend(model.graph.value_info)
    for value in (*graph.input, *graph.output, *graph.value_info):
        value.ClearField("doc_string")
        del value.metadata_props[:]
    for node in model.graph.node:
        graph.node.append(_bare_node(node))
    for tensor in model.graph.initializer:
        graph.initializer.append(_hollow(tensor))
    return bare.SerializeToString(deterministic=True)


def parse(skeleton: bytes) -> ModelProto:
    """The skeleton as a model that can be traced but not run.

    Raises:
        ModelError: not a sound ONNX file, or not a skeleton.
    """
    model = load_onnx(skeleton)
    if not is_skeleton(model):
        raise ModelError("not a skeleton: its weights are still inside", field="skeleton")
    total = sum(math.prod(tensor.dims) for tensor in _all_tensors(model))
    if total * 4 > MAX_BYTES:
        raise ModelError(f"skeleton of {total} weights is too large", field="skeleton")
    return model


def fill(skeleton: bytes, *, seed: int = 0) -> ModelProto:
    """A model of the skeleton's shape with random weights that keep activations of order one.

    He-scaled by fan-in; statistics and scales near one. Zeros or denormals would change the speed.

    Raises:
        ModelError: see `parse`.
    """
    model = parse(skeleton)
    rng = np.random.default_rng(seed)
    roles = _roles(model)
    for tensor in _all_tensors(model):
        if is_hollow(tensor) and tensor.data_type in FLOAT_TYPES:
            op, place, transposed = roles.get(tensor.name, ("", 0, False))
            values = _draw(rng, tuple(tensor.dims), op, place, transposed)
            dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
            tensor.CopyFrom(numpy_helper.from_array(values.astype(dtype), tensor.name))
    kept = [entry for entry in model.metadata_props if entry.key == SIZES_KEY]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    return model


def _bare_node(node: NodeProto) -> NodeProto:
    copy = deepcopy(node)
    copy.ClearField("doc_string")
    notes = [entry for entry in copy.metadata_props if entry.key == _NOTE_KEPT]
    del copy.metadata_props[:]
    copy.metadata_props.extend(notes)
    for attribute in copy.attribute:
        attribute.ClearField("doc_string")
        if attribute.HasField("t"):
            bare = _hollow(attribute.t)
            bare.name = node.output[0]
            attribute.t.CopyFrom(bare)
    return copy


def _hollow(tensor: TensorProto) -> TensorProto:
    """The tensor's name, type and shape; its data too where it says what the graph does."""
    bare = TensorProto()
    if tensor.data_type in FLOAT_TYPES and math.prod(tensor.dims) >= SMALL:
        bare.name, bare.data_type = tensor.name, tensor.data_type
        bare.dims.extend(tensor.dims)
    else:
        bare.CopyFrom(tensor)
        bare.ClearField("doc_string")
    return bare


def _all_tensors(model: ModelProto) -> list[TensorProto]:
    """Initializers and the tensors of Constant nodes."""
    inside = [a.t for node in model.graph.node for a in node.attribute if a.HasField("t")]
    return [*model.graph.initializer, *inside]


def _roles(model: ModelProto) -> dict[str, tuple[str, int, bool]]:
    """For every tensor, which operator reads it, as which input, and whether transposed."""
    roles: dict[str, tuple[str, int, bool]] = {}
    # Backwards, so that a weight that Transpose moves has its last reader's role.
    for node in reversed(model.graph.node):
        moved = roles.get(node.output[0]) if node.output else None
        for place, name in enumerate(node.input):
            if (
                place == 0
                and moved
                and node.op_type in ("Identity", "Transpose", "Reshape", "Cast")
            ):
                roles[name] = (moved[0], moved[1], moved[2] != (node.op_type == "Transpose"))
            else:
                roles[name] = (node.op_type, place, _is_transposed(node))
    return roles


def _is_transposed(node: NodeProto) -> bool:
    """Whether the weight has outputs first: fan-in is then all axes but the first."""
    if node.op_type == "Gemm":
        return any(a.name == "transB" and a.i for a in node.attribute)
    return node.op_type == "Conv"


def _draw(
    rng: np.random.Generator, dims: tuple[int, ...], op: str, place: int, outputs_first: bool
) -> NDArray[np.float64]:
    if op in ("Conv", "Gemm", "MatMul", "ConvTranspose") and place == 1 and len(dims) > 1:
        fan_in = math.prod(dims[1:]) if outputs_first else math.prod(dims) // dims[-1]
        if op == "ConvTranspose":
            fan_in = dims[0]
        gain = 2.0 if op == "Conv" else 1.0
        return np.asarray(rng.normal(0.0, math.sqrt(gain / max(fan_in, 1)), dims))
    if op == "BatchNormalization":
        if place in (1, 4):
            return np.asarray(rng.uniform(0.8, 1.2, dims))
        return np.asarray(rng.normal(0.0, 0.1, dims))
    if place == 1 and op.endswith("Normalization"):
        return np.asarray(rng.uniform(0.8, 1.2, dims))
    if op in ("Mul", "Div", "PRelu"):
        return np.asarray(rng.uniform(0.5, 1.0, dims))
    return np.asarray(rng.normal(0.0, 0.05, dims))
