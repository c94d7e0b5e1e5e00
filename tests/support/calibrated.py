"""Traced test nets together with images whose labels they know."""

from __future__ import annotations

import io
import warnings

import numpy as np
import onnx
import torch
from topologies import TOPOLOGIES

from rlprune.graph.from_onnx import OnnxTrace, trace_onnx
from rlprune.graph.types import IntArray
from rlprune.runtime import get_runtime
from rlprune.sensitivity.calibration import CalibrationSet
from rlprune.sensitivity.evaluate import Evaluation, Evaluator
from rlprune.sensitivity.fit import fit_inputs


def traced(name: str) -> OnnxTrace:
    """A topology through the older exporter: BatchNorm folded where it can be, batch fixed to 1."""
    module, inputs = TOPOLOGIES[name]()
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, inputs, buffer, dynamo=False, opset_version=17)  # type: ignore[arg-type]
    return trace_onnx(buffer.getvalue())


def own_images(trace: OnnxTrace, count: int = 64, *, seed: int = 0) -> CalibrationSet:
    """Random images, labelled by the model itself, one image at a time."""
    shape = trace.graph.input_shapes[0][1:]
    x = np.random.default_rng(seed).standard_normal((count, *shape)).astype(np.float32)
    return fit_inputs({"x": x}, single_outputs(trace.model, x).argmax(1), trace)


def single_outputs(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    """What the file as it stands answers, one image at a time."""
    session = get_runtime().load(model.SerializeToString())
    name = session.input_names[0]
    return np.concatenate([session.run({name: x[i : i + 1]})[0] for i in range(len(x))])


def judged(trace: OnnxTrace, model: onnx.ModelProto, samples: CalibrationSet) -> Evaluation:
    """A model cut from the traced one as it stands, on samples with labels."""
    judge = Evaluator(trace, samples, runtime=get_runtime(), reconstruct=False)
    return judge.evaluate_model(model)


def shrunk(trace: OnnxTrace, ratio: float = 0.75) -> IntArray:
    """Every group at `ratio` of its width."""
    return np.maximum(1, (trace.graph.widths * ratio).astype(np.int64))
