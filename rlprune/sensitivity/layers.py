"""Other weights for the layers of a model, in the types that its file has.

Nothing is added to the file: what layers are shifted by goes into constants that are there, so that
a reconstructed model has exactly the parameters of the one that was only cut.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from rlprune.graph.types import FloatArray


@dataclass(frozen=True, slots=True)
class LayerChange:
    """Other values for a weight, and what is added to the constants behind it."""

    weight: FloatArray
    """In the file's layout."""
    added: Mapping[str, FloatArray]
    """By the name of a bias, of a BatchNorm's mean or of an Add's constant [C]."""


def with_layers(model: onnx.ModelProto, changes: Mapping[str, LayerChange]) -> onnx.ModelProto:
    """A copy of `model` in which the weights named have other values.

    Every tensor keeps its name, shape and type, however many layers read it. A change that the type
    cannot hold is left out.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    constants = {tensor.name: tensor for tensor in made.graph.initializer}
    for name, change in changes.items():
        new = {name: _cast(change.weight, constants[name])}
        for behind, added in change.added.items():
            old = np.asarray(numpy_helper.to_array(constants[behind]), dtype=np.float64)
            new[behind] = _cast(old + added.reshape(old.shape), constants[behind])
        if any(values is None for values in new.values()):
            continue
        for tensor, values in new.items():
            constants[tensor].CopyFrom(numpy_helper.from_array(np.asarray(values), tensor))
    return made


def _cast(values: FloatArray, like: onnx.TensorProto) -> NDArray[Any] | None:
    """In the type of another tensor; None where that overflows."""
    kind = helper.tensor_dtype_to_np_dtype(like.data_type)
    with np.errstate(over="ignore"):
        cast = np.ascontiguousarray(values).astype(kind)
    return cast if np.isfinite(cast.astype(np.float64)).all() else None
