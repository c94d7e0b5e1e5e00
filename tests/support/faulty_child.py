"""A measuring child with a runtime made up for tests: quick, and faulty where a width says so."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx

SEGFAULT, ALLOCATE, SLEEP, RAISE, SPIN, SLOW = 13, 17, 19, 23, 29, 31
"""Input widths of operators that make the runtime misbehave."""


class FaultySession:
    def __init__(self, width: int, name: str) -> None:
        self.width = width
        self.input_names = [name]

    def run(self, feeds: Mapping[str, Any]) -> list[Any]:
        kept = []
        if self.width == SEGFAULT:
            ctypes.string_at(0)
        while self.width == ALLOCATE:
            kept.append(bytearray(1 << 24))
        while self.width == SLEEP:
            time.sleep(60)
        if self.width == RAISE:
            raise ValueError("of a class\nthat nobody expects")
        while self.width == SPIN:
            pass
        return [np.arange(self.width * 20).sum()]

    def close(self) -> None:
        pass


class FaultyRuntime:
    name = "faulty"
    version = "1"

    def refusal(self, precision: str) -> str:
        return ""

    def load(self, model: bytes, *, thread_count: int = 1, precision: str = "f32") -> FaultySession:
        value = onnx.load_model_from_string(model).graph.input[0]
        dims = value.type.tensor_type.shape.dim
        width = dims[1].dim_value if len(dims) > 1 else 1
        if width == SLOW:
            time.sleep(1.0)
        return FaultySession(width, value.name)


if __name__ == "__main__":
    from rlprune.device import child_main
    from rlprune.runtime import RUNTIMES

    RUNTIMES["faulty"] = (__name__, "FaultyRuntime", "device")
    child_main.main()
