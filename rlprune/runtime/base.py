"""What executes a model: the seam between rlprune and an inference runtime.

Measuring and evaluating ask for nothing more than this, so a further runtime is one more module
with these two classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from rlprune.errors import InputError, MeasurementError, one_line

Array = NDArray[Any]


class Session(Protocol):
    """One model loaded for execution. Used by one thread at a time.

    With one thread everything is computed on the thread that calls `run`, so that its CPU time is
    the model's.
    """

    @property
    def input_names(self) -> list[str]:
        """Names of the inputs that must be fed."""
        ...

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        """One inference; all outputs in the model's order, good until the next run.

        An array that is fed again, itself and not a copy, may have been bound before: write new
        values into a new array.

        Raises:
            MeasurementError: the runtime failed while executing.
        """
        ...

    def close(self) -> None:
        """Frees what the runtime holds; the session is of no use afterwards."""
        ...


class Runtime(Protocol):
    """An inference runtime of one version."""

    @property
    def name(self) -> str:
        """Short name as it stands in device keys, e.g. `ort`."""
        ...

    @property
    def version(self) -> str: ...

    def refusal(self, precision: str) -> str:
        """Why models cannot be computed in a precision here, and what to do; empty where they
        can."""
        ...

    def load(self, model: bytes, *, thread_count: int = 1, precision: str = "f32") -> Session:
        """Makes a session of a serialized ONNX model that computes on `thread_count` threads.

        What the file holds as float32 is computed in float32 whatever the processor offers, or
        with `bf16` in bfloat16. In `int8` the file says itself what is computed in integers, and
        the rest is float32. Extents that the model leaves open may be taken as 1, as measuring
        feeds them.

        Raises:
            MeasurementError: the runtime refuses the model or the precision.
        """
        ...


def check_precision(runtime: Runtime, precision: str) -> None:
    """Refuses a precision that a runtime has not.

    Raises:
        InputError: it says why.
    """
    refusal = runtime.refusal(precision)
    if refusal:
        raise InputError(refusal, field="precision")


def with_closed_extents(model: bytes) -> bytes:
    """A serialized ONNX model with every open extent of its inputs set to 1.

    Raises:
        MeasurementError: no ONNX model.
    """
    try:
        parsed = onnx.load_model_from_string(model)
    except DecodeError as error:
        raise MeasurementError(f"not an ONNX model: {one_line(error)}") from error
    weights = {tensor.name for tensor in parsed.graph.initializer}
    open_dims = [
        dim
        for value in parsed.graph.input
        if value.name not in weights
        for dim in value.type.tensor_type.shape.dim
        if dim.dim_value < 1
    ]
    if not open_dims:
        return model
    for dim in open_dims:
        dim.dim_value = 1
    # What was inferred with open extents would contradict.
    del parsed.graph.value_info[:]
    for output in parsed.graph.output:
        output.type.tensor_type.ClearField("shape")
    return parsed.SerializeToString()
