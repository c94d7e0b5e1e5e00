"""Other weights for the layers of a model, in the type that its file has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from rlprune.graph.types import FloatArray


@dataclass(frozen=True, slots=True)
class LayerChange:
    """Other values for a weight and what is added behind it."""

    weight: FloatArray
    """In the file's layout."""
    shifts: Mapping[str, FloatArray]
    """By the output of each layer that reads the weight: added to its channels [C]. Layers that
    share their bias, too, are given equal ones."""


def with_layers(model: onnx.ModelProto, changes: Mapping[str, LayerChange]) -> onnx.ModelProto:
    """A copy of `model` in which the weights named have other values.

    A weight stays one tensor, of its name and type, however many layers read it, and so does a bias
    that none but those layers read. A change that the type cannot hold is left out.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    readers: dict[str, list[str]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node.output[0])
    nodes: list[onnx.NodeProto] = []
    makers = {node.output[0]: node for node in graph.node if node.output}
    further: dict[str, list[onnx.NodeProto]] = {}
    for name, change in changes.items():
        kind = constants[name]
        layers = [makers[output] for output in change.shifts]
        weight = _cast(change.weight, kind)
        biases = _biases(change, layers, constants, readers)
        if weight is None or any(bias is None for _, bias in biases):
            continue
        constants[name].CopyFrom(numpy_helper.from_array(weight, name))
        for node, (bias, values) in zip(layers, biases, strict=True):
            assert values is not None
            if bias in constants:
                constants[bias].CopyFrom(numpy_helper.from_array(values, bias))
            else:
                graph.initializer.append(numpy_helper.from_array(values, bias))
                constants[bias] = graph.initializer[-1]
            if node.op_type == "MatMul":
                output = node.output[0]
                node.output[0] = f"{output}//scaled"
                further[node.output[0]] = [
                    helper.make_node("Add", [node.output[0], bias], [output])
                ]
            else:
                del node.input[2:]
                node.input.append(bias)
    for node in graph.node:
        nodes.append(node)
        nodes.extend(further.get(node.output[0], ()) if node.output else ())
    kept_nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept_nodes)
    read = {name for node in graph.node for name in node.input} | {o.name for o in graph.output}
    for index in reversed(range(len(graph.initializer))):
        if graph.initializer[index].name not in read:
            del graph.initializer[index]
    return made


def _biases(
    change: LayerChange,
    layers: Sequence[onnx.NodeProto],
    constants: Mapping[str, onnx.TensorProto],
    readers: Mapping[str, Sequence[str]],
) -> list[tuple[str, NDArray[Any] | None]]:
    """By layer the bias's name and values, None where its type cannot hold them."""
    found = []
    own = {node.output[0] for node in layers}
    shared_new = {_bias(node) for node in layers} == {""} and _equal(change.shifts.values())
    for node in layers:
        output, old = node.output[0], _bias(node)
        shift = change.shifts[output] / _beta(node)
        name = f"{layers[0].output[0] if shared_new else output}//bias"
        if old:
            shift = shift + np.asarray(numpy_helper.to_array(constants[old]), dtype=np.float64)
            if set(readers[old]) <= own and _alone(old, layers, change):
                name = old
        found.append((name, _cast(shift, constants[node.input[1]])))
    return found


def _alone(bias: str, layers: Sequence[onnx.NodeProto], change: LayerChange) -> bool:
    """Whether all layers that read a bias are shifted alike."""
    return _equal([change.shifts[node.output[0]] for node in layers if _bias(node) == bias])


def _equal(shifts: Any) -> bool:
    first, *others = shifts
    return all(np.array_equal(first, other) for other in others)


def _bias(node: onnx.NodeProto) -> str:
    return node.input[2] if node.op_type != "MatMul" and len(node.input) > 2 else ""


def _beta(node: onnx.NodeProto) -> float:
    values = [item.f for item in node.attribute if node.op_type == "Gemm" and item.name == "beta"]
    return values[0] if values else 1.0


def _cast(values: FloatArray, like: onnx.TensorProto) -> NDArray[Any] | None:
    """In the type of another tensor; None where that overflows."""
    kind = helper.tensor_dtype_to_np_dtype(like.data_type)
    with np.errstate(over="ignore"):
        cast = np.ascontiguousarray(values).astype(kind)
    return cast if np.isfinite(cast.astype(np.float64)).all() else None
