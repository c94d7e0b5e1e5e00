"""A model that is about to be written, run once beside the one it was cut from."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import ModelProto, helper

from rlprune.errors import MeasurementError, MissingExtraError, ModelError
from rlprune.graph.from_onnx import OnnxTrace
from rlprune.runtime import get_runtime
from rlprune.runtime.base import Array


def run_once(
    trace: OnnxTrace, model: ModelProto, feeds: Mapping[str, Array] | None = None
) -> dict[str, float]:
    """How far each output of `model` lies from that of the model traced, on the same inputs.

    The root mean square of the difference as a share of that of the original's output about its
    mean; of outputs that are no floats the share of entries that differ.

    Args:
        feeds: an array for every input; by default noise of the sizes analysed (integers are 0).

    Returns:
        By output name. Empty where nothing can be compared: no runtime is installed, or the
        original itself does not run on these inputs.

    Raises:
        ModelError: the original runs, and this one does not, or answers in another shape or type.
    """
    try:
        runtime = get_runtime()
    except MissingExtraError:
        return {}
    given = noise(trace) if feeds is None else feeds
    names = [value.name for value in model.graph.output]
    try:
        session = runtime.load(trace.model.SerializeToString())
        expected = [np.array(output) for output in session.run(given)]
        session.close()
    except MeasurementError:
        return {}
    try:
        session = runtime.load(model.SerializeToString())
        found = session.run(given)
    except MeasurementError as error:
        raise ModelError(f"the cut model does not run: {error}", field="model") from error
    moved = {}
    for name, before, after in zip(names, expected, found, strict=True):
        if (before.shape, before.dtype) != (after.shape, after.dtype):
            raise ModelError(
                f"output {name!r} of the cut model is {after.dtype} {after.shape}, that of the "
                f"model {before.dtype} {before.shape}",
                field="model",
            )
        moved[name] = _distance(before, after)
    session.close()
    return moved


def noise(trace: OnnxTrace) -> dict[str, Array]:
    """Normal noise for every float input, zeros for the others, at the sizes analysed."""
    rng = np.random.default_rng(0)
    feeds: dict[str, Array] = {}
    for value, shape in zip(trace.model.graph.input, trace.graph.input_shapes, strict=True):
        dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        is_float = np.issubdtype(dtype, np.floating)
        feeds[value.name] = (rng.standard_normal(shape) if is_float else np.zeros(shape)).astype(
            dtype
        )
    return feeds


def _distance(before: Array, after: Array) -> float:
    if not before.size:
        return 0.0
    if not np.issubdtype(before.dtype, np.floating):
        return float((before != after).mean())
    whole = before.astype(np.float64)
    spread = float(np.sqrt(np.mean((whole - whole.mean()) ** 2))) or 1.0
    return float(np.sqrt(np.mean((after.astype(np.float64) - whole) ** 2))) / spread
