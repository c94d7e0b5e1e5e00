"""A small numpy evaluator for the arithmetic exporters leave around shapes.

Only what computes Reshape targets, Slice ends, scales and the like; tensors of weights are moved by
the layout operators but never computed with, so that a model and its skeleton fold alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[Any]
Attrs = dict[str, Any]

SMALL = 64
"""Float tensors of so many elements or more are weights: their values are never looked at."""
MAX_FOLDED = 2**20
"""Largest integer tensor that is folded."""
MAX_ALL_FOLDED = 2**23
"""Most elements of all that is folded."""


def readable(dtype: np.dtype[Any], count: int) -> bool:
    """Whether a constant's values may decide about the graph."""
    if dtype.kind == "O":  # text
        return False
    return count < SMALL if dtype.kind not in "iub" else count <= MAX_FOLDED


def ints(array: Array | None) -> list[int] | None:
    """A constant as a flat list of Python ints."""
    return None if array is None else [int(v) for v in np.asarray(array).ravel()]


def reshape_target(shape: Sequence[int], target: Sequence[int], allow_zero: bool) -> list[int]:
    """ONNX Reshape's output shape."""
    out = [
        shape[k] if d == 0 and not allow_zero and k < len(shape) else d
        for k, d in enumerate(target)
    ]
    if -1 in out:
        rest = int(np.prod([d for d in out if d != -1], dtype=np.int64))
        out[out.index(-1)] = int(np.prod(shape, dtype=np.int64)) // rest if rest else 0
    return out


def counts_fit(op: str, attrs: Attrs, shapes: Sequence[Sequence[int]]) -> bool:
    """What ONNX's inference does not look at: a Reshape keeps the count, a Gemm sums over one
    length. `shapes` are of the first two inputs and of the output."""
    if op == "Reshape":
        return math.prod(shapes[0]) == math.prod(shapes[-1])
    if op == "Gemm":
        return shapes[0][not attrs.get("transA")] == shapes[1][bool(attrs.get("transB"))]
    return True


def axes_of(attrs: Attrs, inputs: Sequence[Array | None], place: int) -> list[int] | None:
    """`axes` as an attribute (older opsets) or as a constant input."""
    if "axes" in attrs:
        return [int(v) for v in attrs["axes"]]
    return ints(inputs[place]) if len(inputs) > place else None


def slice_index(
    shape: Sequence[int], attrs: Attrs, inputs: Sequence[Array | None]
) -> tuple[slice, ...] | None:
    """ONNX Slice as Python slices; None where a bound is not constant."""
    if "starts" in attrs:
        starts, ends = list(attrs["starts"]), list(attrs["ends"])
        axes = list(attrs.get("axes", range(len(starts))))
        steps = [1] * len(starts)
    else:
        known = [ints(a) for a in inputs[1:]]
        if any(a is None and k < 2 for k, a in enumerate(known)):
            return None
        starts, ends = known[0] or [], known[1] or []
        axes = list(range(len(starts)))
        if len(known) > 2 and known[2] is not None:
            axes = known[2]
        steps = known[3] if len(known) > 3 and known[3] is not None else [1] * len(starts)
    index = [slice(None)] * len(shape)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        extent = shape[axis]
        if step > 0:
            index[axis] = slice(*slice(start, end, step).indices(extent))
        else:
            low = None if end < -extent else end
            index[axis] = slice(min(start, extent - 1), low, step)
    return tuple(index)


def _cast(attrs: Attrs, x: Array) -> Array:
    return x.astype(helper.tensor_dtype_to_np_dtype(attrs["to"]))


def _divide(_: Attrs, a: Array, b: Array) -> Array:
    if a.dtype.kind in "iu":
        if (b == 0).any():
            raise ValueError("division by zero")
        return np.asarray(np.sign(a) * np.sign(b) * (abs(a) // abs(b))).astype(a.dtype)  # truncates
    return np.asarray(a / b)


def _mod(attrs: Attrs, a: Array, b: Array) -> Array:
    return np.fmod(a, b) if attrs.get("fmod") else np.mod(a, b)


def _constant_of_shape(attrs: Attrs, shape: Array) -> Array:
    value = attrs.get("value")
    fill = numpy_helper.to_array(value) if value is not None else np.zeros(1, np.float32)
    extents = [int(d) for d in shape]
    if int(np.prod(extents, dtype=np.float64)) > MAX_FOLDED:
        raise ValueError("too large to fold")
    return np.full(extents, fill.ravel()[0], dtype=fill.dtype)


def _reshape(attrs: Attrs, x: Array, target: Array) -> Array:
    return x.reshape(
        reshape_target(x.shape, [int(d) for d in target], bool(attrs.get("allowzero")))
    )


def _flatten(attrs: Attrs, x: Array) -> Array:
    axis = attrs.get("axis", 1) % (x.ndim + 1)
    return x.reshape(int(np.prod(x.shape[:axis], dtype=np.int64)), -1)


def _transpose(attrs: Attrs, x: Array) -> Array:
    return np.transpose(x, attrs.get("perm"))


def _squeeze(attrs: Attrs, x: Array, axes: Array | None = None) -> Array:
    which = axes_of(attrs, [x, axes], 1)
    return np.squeeze(x, axis=None if which is None else tuple(which))


def _unsqueeze(attrs: Attrs, x: Array, axes: Array | None = None) -> Array:
    return np.expand_dims(x, tuple(axes_of(attrs, [x, axes], 1) or ()))


def _gather(attrs: Attrs, x: Array, index: Array) -> Array:
    return np.take(x, index, axis=attrs.get("axis", 0))


def _slice(attrs: Attrs, x: Array, *bounds: Array) -> Array:
    index = slice_index(x.shape, attrs, [x, *bounds])
    if index is None:
        raise ValueError("bounds are not constant")
    return x[index]


def _concat(attrs: Attrs, *parts: Array) -> Array:
    return np.concatenate(parts, axis=attrs["axis"])


def _range(_: Attrs, start: Array, limit: Array, step: Array) -> Array:
    if abs(float(limit - start)) > MAX_FOLDED * abs(float(step)):
        raise ValueError("too large to fold")
    return np.arange(start.item(), limit.item(), step.item(), dtype=start.dtype)


def _expand(_: Attrs, x: Array, shape: Array) -> Array:
    extents = np.broadcast_shapes(x.shape, tuple(int(d) for d in shape))
    if int(np.prod(extents, dtype=np.float64)) > MAX_FOLDED:
        raise ValueError("too large to fold")
    return np.broadcast_to(x, extents).copy()


def _reduce_prod(attrs: Attrs, x: Array, axes: Array | None = None) -> Array:
    which = axes_of(attrs, [x, axes], 1)
    keep = bool(attrs.get("keepdims", 1))
    return np.asarray(np.prod(x, axis=None if which is None else tuple(which), keepdims=keep))


def _fold_pairs(pick: np.ufunc, arrays: Sequence[Array]) -> Array:
    result = arrays[0]
    for array in arrays[1:]:
        result = pick(result, array)
    return np.asarray(result)


def result_size(op: str, attrs: Attrs, arrays: Sequence[Array]) -> int:
    """Elements that folding would make, or a bound of them; told before they are made.

    Raises:
        ValueError: the arrays do not broadcast.
    """
    if op == "Gather":
        extent = max(arrays[0].shape[int(attrs.get("axis", 0))], 1)
        return int(arrays[0].size // extent * arrays[1].size)
    if op == "Concat" or op in LAYOUT:
        return int(sum(array.size for array in arrays))
    if op in ("ConstantOfShape", "Range", "ReduceProd"):
        return 0  # bounded where they are made
    return int(math.prod(np.broadcast_shapes(*(array.shape for array in arrays))))


LAYOUT: dict[str, Callable[..., Array]] = {
    "Identity": lambda _, x: x,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Transpose": _transpose,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Gather": _gather,
    "Slice": _slice,
    "Expand": _expand,
    "Cast": _cast,
}
"""Operators that only move values: folded for weights too."""

ARITHMETIC: dict[str, Callable[..., Array]] = {
    **LAYOUT,
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Range": _range,
    "ReduceProd": _reduce_prod,
    "Add": lambda _, a, b: a + b,
    "Sub": lambda _, a, b: a - b,
    "Mul": lambda _, a, b: a * b,
    "Div": _divide,
    "Mod": _mod,
    "Pow": lambda _, a, b: np.power(a, b).astype(a.dtype),
    "Sqrt": lambda _, a: np.sqrt(a),
    "Reciprocal": lambda _, a: (1 / a).astype(a.dtype),
    "Neg": lambda _, a: -a,
    "Abs": lambda _, a: np.abs(a),
    "Floor": lambda _, a: np.floor(a),
    "Ceil": lambda _, a: np.ceil(a),
    "Min": lambda _, *a: _fold_pairs(np.minimum, a),
    "Max": lambda _, *a: _fold_pairs(np.maximum, a),
    "Equal": lambda _, a, b: a == b,
    "Less": lambda _, a, b: a < b,
    "Greater": lambda _, a, b: a > b,
    "LessOrEqual": lambda _, a, b: a <= b,
    "GreaterOrEqual": lambda _, a, b: a >= b,
    "Not": lambda _, a: ~a,
    "And": lambda _, a, b: a & b,
    "Or": lambda _, a, b: a | b,
    "Where": lambda _, c, a, b: np.asarray(np.where(c, a, b)),
}
"""Operators evaluated on small constants."""


def constant_value(attrs: Mapping[str, Any]) -> Array | None:
    """What a Constant node holds, but for a `value` tensor, whose data may be large."""
    for key, dtype in (("value_int", np.int64), ("value_float", np.float32)):
        if key in attrs:
            return np.array(attrs[key], dtype=dtype)
    for key, dtype in (("value_ints", np.int64), ("value_floats", np.float32)):
        if key in attrs:
            return np.array(list(attrs[key]), dtype=dtype)
    return None


def make_tensor(name: str, array: Array) -> TensorProto:
    """An initializer of these values."""
    # Not ascontiguousarray, which gives a scalar an axis.
    return numpy_helper.from_array(np.asarray(array, order="C"), name)
