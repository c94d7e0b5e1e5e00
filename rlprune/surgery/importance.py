"""Which units matter: the size of the effective weights that make them.

Effective means with the BatchNorm behind it folded in; the raw weight before a BatchNorm has an
arbitrary scale (ARCHITECTURE section 5).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from onnx import TensorProto, numpy_helper

from rlprune.graph.from_onnx import OnnxTrace
from rlprune.graph.types import FloatArray
from rlprune.graph.walk import Node


def unit_scores(trace: OnnxTrace, *, norm: int = 1) -> list[FloatArray]:
    """Per group, the summed L1 norm (norm=2: squared L2) of what produces each unit, [width].

    Args:
        norm: 1 or 2.

    Raises:
        ValueError: another norm.
    """
    if norm not in (1, 2):
        raise ValueError(f"norm is {norm}; 1 and 2 are known")
    scores = [np.zeros(group.width, dtype=np.float64) for group in trace.graph.groups]
    tensors = {tensor.name: tensor for tensor in trace.model.graph.initializer}
    nodes = {node.name: node for node in trace.normal.nodes}
    for producer in trace.channels.producers:
        group, unit = trace.channels.axis_units(producer.tensor, producer.axis)
        free = group >= 0
        if not free.any():
            continue
        weight = np.abs(numpy_helper.to_array(tensors[producer.tensor]))
        energy = weight if norm == 1 else weight * weight
        others = tuple(k for k in range(weight.ndim) if k != producer.axis)
        size = energy.sum(axis=others, dtype=np.float64)
        scale = _batch_norm_scale(
            trace.normal.readers.get(nodes[producer.node].outputs[0], ()), tensors
        )
        if scale is not None and len(scale) == len(size):
            size = size * np.abs(scale) ** norm
        for g in np.unique(group[free]):
            own = group == g
            np.add.at(scores[g], unit[own], size[own])
    return scores


def _batch_norm_scale(
    readers: Sequence[Node], tensors: Mapping[str, TensorProto]
) -> FloatArray | None:
    """gamma / sqrt(variance + epsilon) of the BatchNorm that alone reads a layer's output."""
    if len(readers) != 1 or readers[0].op != "BatchNormalization":
        return None
    gamma, variance = readers[0].inputs[1], readers[0].inputs[4]
    if gamma not in tensors or variance not in tensors:
        return None
    epsilon = float(readers[0].attrs.get("epsilon", 1e-5))
    spread = numpy_helper.to_array(tensors[variance]).astype(np.float64)
    factor = numpy_helper.to_array(tensors[gamma]).astype(np.float64)
    return np.asarray(factor / np.sqrt(np.maximum(spread, 0.0) + epsilon))
