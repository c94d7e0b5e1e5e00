"""Weights that are no numbers, found before anything is planned with them."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, numpy_helper

from rlprune.errors import ModelError
from rlprune.graph.folding import Array
from rlprune.graph.load import FLOAT_TYPES
from rlprune.graph.weights import is_hollow

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
    BatchNormalization's variance so far below zero that it has no root. Skeletons pass.
    """
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
