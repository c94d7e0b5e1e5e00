"""A model that is about to be written, run once beside the one it was cut from."""

from __future__ import annotations

from contextlib import closing

import numpy as np
from onnx import ModelProto, helper

from rlprune.errors import MeasurementError, MissingExtraError, ModelError
from rlprune.graph.from_onnx import OnnxTrace
from rlprune.runtime import get_runtime
from rlprune.runtime.base import Array


def run_once(trace: OnnxTrace, model: ModelProto) -> None:
    """Runs `model` and the model traced on noise of the sizes analysed (integers are 0), where a
    runtime is installed and the original runs.

    Raises:
        ModelError: the original runs, and this one does not, or answers in another shape or type.
    """
    rng = np.random.default_rng(0)
    feeds: dict[str, Array] = {}
    for value, shape in zip(trace.model.graph.input, trace.graph.input_shapes, strict=True):
        dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        is_float = np.issubdtype(dtype, np.floating)
        given = rng.standard_normal(shape) if is_float else np.zeros(shape)
        feeds[value.name] = given.astype(dtype)
    try:
        runtime = get_runtime()
        with closing(runtime.load(trace.model.SerializeToString())) as session:
            expected = [(output.shape, output.dtype) for output in session.run(feeds)]
    except (MissingExtraError, MeasurementError):
        return
    try:
        with closing(runtime.load(model.SerializeToString())) as session:
            found = [(output.shape, output.dtype) for output in session.run(feeds)]
    except MeasurementError as error:
        raise ModelError(f"the cut model does not run: {error}") from error
    for value, before, after in zip(model.graph.output, expected, found, strict=True):
        if before != after:
            raise ModelError(
                f"output {value.name!r} of the cut model is {after[1]} {after[0]}, that of the "
                f"model {before[1]} {before[0]}"
            )
