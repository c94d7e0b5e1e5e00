"""Which units matter: the energy that the effective weights pass through them.

A unit is worth what the weights that make it put into it, times what the weights that read it take
out. Effective means with the BatchNorm behind a layer folded in, before which a weight's scale is
arbitrary. On one plan of ResNet-20 at 0.55 of its MACs, after reconstruction, the L1 norm of what
makes a unit lost 1.34 nats, this 1.08.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from onnx import TensorProto, numpy_helper

from rlprune.errors import ModelError
from rlprune.graph.from_onnx import OnnxTrace
from rlprune.graph.types import FloatArray
from rlprune.graph.walk import Node
from rlprune.graph.weights import is_hollow


def unit_scores(trace: OnnxTrace) -> list[FloatArray]:
    """Per group the energy that passes through each unit [width]: made times read.

    A group that no weight reads, or none makes, is scored by the other alone.
    """
    tensors = {tensor.name: tensor for tensor in trace.model.graph.initializer}
    made = _summed(trace, _made(trace, tensors))
    read = _summed(trace, _read(trace, tensors))
    return [
        (one if one.any() else np.ones_like(one)) * (two if two.any() else np.ones_like(two))
        for one, two in zip(made, read, strict=True)
    ]


def _summed(trace: OnnxTrace, energies: Iterator[tuple[str, int, FloatArray]]) -> list[FloatArray]:
    """Energies along axes of weights (weight, axis, [extent]) summed over each group's units."""
    scores = [np.zeros(group.width, dtype=np.float64) for group in trace.graph.groups]
    for tensor, axis, energy in energies:
        group, unit = trace.channels.axis_units(tensor, axis)
        for g in np.unique(group[group >= 0]):
            own = group == g
            np.add.at(scores[g], unit[own], energy[own])
    return scores


def _made(
    trace: OnnxTrace, tensors: Mapping[str, TensorProto]
) -> Iterator[tuple[str, int, FloatArray]]:
    """Squared L2 norms along the axes that make channels."""
    nodes = {node.name: node for node in trace.normal.nodes}
    for producer in trace.channels.producers:
        energy = _energy(tensors[producer.tensor], producer.axis)
        readers = trace.normal.readers.get(nodes[producer.node].outputs[0], ())
        scale = _batch_norm_scale(readers, tensors)
        if scale is not None and len(scale) == len(energy):
            energy = energy * np.square(scale)
        yield producer.tensor, producer.axis, energy


def _read(
    trace: OnnxTrace, tensors: Mapping[str, TensorProto]
) -> Iterator[tuple[str, int, FloatArray]]:
    """Squared L2 norms along the axes that layers mix their inputs along."""
    for node in trace.normal.nodes:
        axes = mixing_axes(node, trace.normal.shapes)
        if axes is None or node.inputs[1] not in tensors:
            continue
        weight = tensors[node.inputs[1]]
        scale = _batch_norm_scale(trace.normal.readers.get(node.outputs[0], ()), tensors)
        yield weight.name, axes[0], _energy(weight, axes[0], axes[1], scale)


def mixing_axes(node: Node, shapes: Mapping[str, Sequence[int]]) -> tuple[int, int] | None:
    """(in, out) axes of the weight of a layer in which every output reads every input channel."""
    match node.op:
        case "Conv" if int(node.attrs.get("group", 1)) == 1:
            return 1, 0
        case "ConvTranspose" if int(node.attrs.get("group", 1)) == 1:
            return 0, 1
        case "Gemm" if not int(node.attrs.get("transA", 0)):
            return (1, 0) if int(node.attrs.get("transB", 0)) else (0, 1)
        case "MatMul" if len(shapes[node.inputs[1]]) == 2:
            return 0, 1
    return None


def _energy(
    weight: TensorProto,
    axis: int,
    scaled_axis: int | None = None,
    scale: FloatArray | None = None,
) -> FloatArray:
    """Squared L2 norm of every slice along `axis`, with another axis scaled first; all alike in a
    skeleton, which may be cut as well.

    Raises:
        ModelError: it is not finite; names the weight.
    """
    if is_hollow(weight):
        return np.ones(weight.dims[axis])
    squares = np.square(numpy_helper.to_array(weight).astype(np.float64))
    if scaled_axis is not None and scale is not None and len(scale) == squares.shape[scaled_axis]:
        along = [1] * squares.ndim
        along[scaled_axis] = -1
        squares = squares * np.square(scale).reshape(along)
    others = tuple(k for k in range(squares.ndim) if k != axis)
    energy = np.asarray(squares.sum(axis=others))
    if not np.isfinite(energy).all():
        raise ModelError(
            f"weight {weight.name!r} holds NaN or infinite values; export a sound model"
        )
    return energy


def _batch_norm_scale(
    readers: Sequence[Node], tensors: Mapping[str, TensorProto]
) -> FloatArray | None:
    """gamma / sqrt(variance + epsilon) of the BatchNorm that alone reads a layer's output."""
    if len(readers) != 1 or readers[0].op != "BatchNormalization":
        return None
    gamma, variance = readers[0].inputs[1], readers[0].inputs[4]
    if any(name not in tensors or is_hollow(tensors[name]) for name in (gamma, variance)):
        return None
    epsilon = float(readers[0].attrs.get("epsilon", 1e-5))
    spread = numpy_helper.to_array(tensors[variance]).astype(np.float64)
    factor = numpy_helper.to_array(tensors[gamma]).astype(np.float64)
    return np.asarray(factor / np.sqrt(np.maximum(spread, 0.0) + epsilon))
