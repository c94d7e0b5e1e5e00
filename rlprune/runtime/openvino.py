"""OpenVINO on the CPU, set up so that its time can be measured and its numbers are float32.

By default it computes in bfloat16 where the processor can, which no other runtime here does, so
float32 is asked for unless a model is to run in bfloat16. One stream of one unpinned thread:
inference runs on the calling thread, so the thread's CPU time is the model's. Its package
`openvino-telemetry` writes an id to the home and reports usage; it is kept from being imported.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from rlprune.errors import MeasurementError, one_line
from rlprune.runtime.base import Array, with_closed_extents
from rlprune.runtime.prepared import Prepared

# What is None here cannot be imported; OpenVINO then does without.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

import openvino as ov  # noqa: E402

MAX_KEPT_BYTES = 16 << 20
"""Models up to this size are kept compiled: exporting ViT-B was seen to take 8 s, reading it 15."""


class OpenvinoSession:
    """A `Session` of OpenVINO."""

    def __init__(self, compiled: Any) -> None:
        self._request = compiled.create_infer_request()
        self._compiled = compiled
        self.input_names: list[str] = [port.any_name for port in compiled.inputs]
        self._fed: dict[str, Array] = {}

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        try:
            for name, array in feeds.items():
                # The same array again is already bound: binding costs more than a small operator.
                if self._fed.get(name) is not array:
                    self._request.set_tensor(name, ov.Tensor(array, shared_memory=True))
                    self._fed[name] = array
            # Views of the request's own memory, which the next run writes over.
            found = self._request.infer(share_outputs=True)
        except Exception as error:  # its exceptions are plain RuntimeErrors
            raise MeasurementError(f"OpenVINO failed: {one_line(error)}") from error
        return list(found.values())

    def close(self) -> None:
        del self._request, self._compiled
        self._fed.clear()


class OpenvinoRuntime:
    """The `Runtime` of the installed openvino, CPU plugin only."""

    name = "openvino"
    version: str = ov.__version__.partition("-")[0]

    def __init__(self) -> None:
        self._core = ov.Core()
        # Compiling takes 25 ms of CPU time for one small operator, importing what was compiled 5;
        # kernels and latency were seen to be the same, and every session has memory of its own.
        self._compiled = Prepared()

    def refusal(self, precision: str) -> str:
        able = self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if precision == "bf16" and "BF16" not in able:
            return "this processor has no bf16 instructions (AVX512-BF16 or AMX); take f32 or int8"
        return ""

    def load(
        self, model: bytes, *, thread_count: int = 1, precision: str = "f32"
    ) -> OpenvinoSession:
        if refusal := self.refusal(precision):
            raise MeasurementError(refusal)
        hint = "bf16" if precision == "bf16" else "f32"
        options = {
            "INFERENCE_PRECISION_HINT": hint,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": thread_count,
            "ENABLE_CPU_PINNING": False,
        }

        def compiled() -> Any:
            read = self._core.read_model(with_closed_extents(model))
            return self._core.compile_model(read, "CPU", options)

        def exported() -> bytes:
            content: bytes = compiled().export_model().getvalue()
            return content

        try:
            # What is imported computes on one thread, whatever it is told and says (2026.4.1).
            if thread_count > 1 or len(model) > MAX_KEPT_BYTES:
                return OpenvinoSession(compiled())
            content = self._compiled.get(model, exported, variant=hint)
            return OpenvinoSession(self._core.import_model(content, "CPU", options))
        except Exception as error:  # as above
            raise MeasurementError(f"OpenVINO refuses the model: {one_line(error)}") from error
