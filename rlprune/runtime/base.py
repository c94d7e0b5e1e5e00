"""What executes a model: the seam between rlprune and an inference runtime.

Measuring and evaluating ask for nothing more than this, so a further runtime is one more module
with these two classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from numpy.typing import NDArray

Array = NDArray[Any]


class Session(Protocol):
    """One model loaded for execution. Used by one thread at a time."""

    @property
    def input_names(self) -> list[str]:
        """Names of the inputs that must be fed."""
        ...

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        """One inference; all outputs in the model's order.

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

    def load(self, model: bytes, *, thread_count: int = 1) -> Session:
        """Makes a session of a serialized ONNX model that computes on `thread_count` threads.

        Raises:
            MeasurementError: the runtime refuses the model.
        """
        ...
