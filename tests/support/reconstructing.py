"""Samples and plans for the tests of reconstruction."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx

from rlprune.graph.from_onnx import OnnxTrace
from rlprune.graph.types import FloatArray, IntArray
from rlprune.runtime import get_runtime
from rlprune.runtime.base import Array
from rlprune.sensitivity.batching import open_batch
from rlprune.sensitivity.calibration import CalibrationSet

RUNTIME = get_runtime()

SIDE = 8


def values(model: onnx.ModelProto, names: Sequence[str], x: Array) -> list[FloatArray]:
    """What the tensors named hold on a batch."""
    opened = open_batch(model)
    del opened.graph.output[:]
    opened.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = RUNTIME.load(opened.SerializeToString())
    return [np.asarray(v, np.float64) for v in session.run({session.input_names[0]: x})]


def images_of(trace: OnnxTrace, count: int = 128, *, seed: int = 0) -> CalibrationSet:
    """Random images without labels of any meaning."""
    shape = trace.graph.input_shapes[0][1:]
    x = np.random.default_rng(seed).standard_normal((count, *shape)).astype(np.float32)
    return CalibrationSet.single(x, np.zeros(count, dtype=np.int64))


def halved(trace: OnnxTrace) -> list[IntArray]:
    """Every other unit of every group."""
    return [np.arange(0, width, 2) for width in trace.graph.widths]
