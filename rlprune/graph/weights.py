"""Constants of a model: tensors of the file, or what was computed or moved of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from rlprune.graph.folding import Array, readable

Shape = tuple[int, ...]


@dataclass
class Weight:
    """A constant: its proto (or another's, moved), extents, and values where they may be read."""

    dims: Shape
    elem_type: int
    proto: TensorProto | None = None
    array: Array | None = None
    origin: str = ""
    """Name of the tensor it is an untouched copy of."""


def weight_of(proto: TensorProto) -> Weight:
    """A constant tensor, its values read where they may decide about the graph."""
    dims = tuple(proto.dims)
    weight = Weight(dims, proto.data_type, proto=proto, origin=proto.name)
    dtype = helper.tensor_dtype_to_np_dtype(proto.data_type)
    if readable(dtype, int(np.prod(dims, dtype=np.int64))) and not is_hollow(proto):
        weight.array = numpy_helper.to_array(proto)
    return weight


def is_hollow(proto: TensorProto) -> bool:
    """Whether a skeleton's tensor: a shape without data."""
    if proto.HasField("raw_data") or 0 in proto.dims:
        return False
    fields = (proto.float_data, proto.int32_data, proto.int64_data, proto.double_data)
    return not any(len(values) for values in (*fields, proto.uint64_data))


def to_array(weight: Weight) -> Array:
    if weight.array is not None:
        return weight.array
    assert weight.proto is not None
    return numpy_helper.to_array(weight.proto)
