"""Graph inputs that are given one value for good: a sample rate, a threshold, a flag."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import numpy as np
from onnx import ModelProto, helper

from rlprune.errors import ModelError
from rlprune.graph.folding import Array, make_tensor


def with_input_values(model: ModelProto, values: Mapping[str, Any]) -> ModelProto:
    """A copy in which the named graph inputs are constants.

    Args:
        model: not changed.
        values: numbers by input name: one for all entries, or as many as the input has. Extents
            that the file leaves open are as long as the values say, else 1.

    Raises:
        ModelError: no such input; a value that the input's type or shape cannot hold.
    """
    own = deepcopy(model)
    constants = {tensor.name for tensor in own.graph.initializer}
    inputs = {v.name: v for v in own.graph.input if v.name not in constants}
    for name, value in values.items():
        if name not in inputs:
            raise ModelError(
                f"no graph input {name!r} to give a value; the inputs are: {', '.join(inputs)}",
                field="input_values",
            )
        kind = inputs[name].type.tensor_type
        dims = [d.dim_value if d.dim_value > 0 else -1 for d in kind.shape.dim]
        own.graph.initializer.append(make_tensor(name, _filled(name, kind.elem_type, dims, value)))
    kept = [value for value in own.graph.input if value.name not in values]
    del own.graph.input[:]
    own.graph.input.extend(kept)
    return own


def _filled(name: str, elem_type: int, dims: list[int], value: Any) -> Array:
    dtype = helper.tensor_dtype_to_np_dtype(elem_type)
    try:
        numbers = np.asarray(value)
        fits = numbers.dtype.kind in "iufb"
        with np.errstate(all="ignore"):
            array = numbers.astype(dtype)
    except (OverflowError, TypeError, ValueError):
        fits = False
    # Nothing may be lost: 0.5 is no sample rate, 300 no uint8; a float input may round.
    exact = dtype.kind not in "iub"
    if not fits or not (np.isfinite(array.astype(np.float64)) if exact else array == numbers).all():
        raise ModelError(
            f"input {name!r} is of type {dtype}: it cannot hold {value!r}", field="input_values"
        )
    open_axes = [axis for axis, extent in enumerate(dims) if extent < 0]
    fixed = int(np.prod([extent for extent in dims if extent > 0], dtype=np.int64))
    if array.size == 1:
        return np.full([max(extent, 1) for extent in dims], array.ravel()[0], dtype=dtype)
    shape = [1 if extent < 0 else extent for extent in dims]
    if open_axes and array.size % max(fixed, 1) == 0:
        shape[open_axes[-1]] = array.size // max(fixed, 1)
    if int(np.prod(shape, dtype=np.int64)) != array.size:
        text = "x".join("?" if extent < 0 else str(extent) for extent in dims) or "a scalar"
        raise ModelError(
            f"input {name!r} is {text}: {array.size} values do not fill it", field="input_values"
        )
    return array.reshape(shape)
