"""ONNX Runtime on the CPU, set up so that its time can be measured.

Sequential execution and no spinning: with one thread every kernel runs on the calling thread, so
the thread's CPU time is the model's. The wheel carries a telemetry client that writes files and
starts a thread at import; it is switched off before.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from rlprune.errors import MeasurementError, one_line
from rlprune.runtime.base import Array

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # must stand before the import; afterwards is too late

import onnxruntime as ort

FATAL = 4
"""Severity from which ORT writes to stderr; refusals reach the caller as exceptions anyway."""


class OrtSession:
    """A `Session` of ONNX Runtime."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._run = session.run

    @property
    def input_names(self) -> list[str]:
        return [value.name for value in self._session.get_inputs()]

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        try:
            outputs: list[Array] = self._run(None, feeds)
        except Exception as error:  # ORT's exceptions share no base class of their own
            raise MeasurementError(f"ONNX Runtime failed: {one_line(error)}") from error
        return outputs

    def close(self) -> None:
        del self._session, self._run


class OrtRuntime:
    """The `Runtime` of the installed onnxruntime, CPU provider only."""

    name = "ort"
    version: str = ort.__version__

    def refusal(self, precision: str) -> str:
        if precision == "bf16":
            return "ONNX Runtime has no bf16 kernels for CPUs; take openvino, or f32 or int8"
        return ""

    def load(self, model: bytes, *, thread_count: int = 1, precision: str = "f32") -> OrtSession:
        if refusal := self.refusal(precision):
            raise MeasurementError(refusal)
        options = ort.SessionOptions()
        options.intra_op_num_threads = thread_count
        options.inter_op_num_threads = thread_count
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        options.log_severity_level = FATAL
        try:
            session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # as above
            raise MeasurementError(f"ONNX Runtime refuses the model: {one_line(error)}") from error
        return OrtSession(session)
