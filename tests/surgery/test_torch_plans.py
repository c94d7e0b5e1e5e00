"""Every topology: the cut module equals the cut ONNX file and the net with zeroed consumers."""

from __future__ import annotations

import functools
import io
import warnings

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from topologies import TOPOLOGIES
from torch import Tensor, nn

from rlprune.graph.from_onnx import trace_onnx
from rlprune.graph.from_torch import TorchTrace, trace_torch
from rlprune.graph.types import IntArray
from rlprune.surgery.importance import unit_scores
from rlprune.surgery.onnx import kept_units, prune_onnx
from rlprune.surgery.torch import prune_torch

EVERY = pytest.mark.parametrize("name", list(TOPOLOGIES))


@functools.cache
def traced(name: str) -> tuple[TorchTrace, tuple[Tensor, ...]]:
    module, inputs = TOPOLOGIES[name]()
    return trace_torch(module, inputs), inputs


def some_keeps(trace: TorchTrace, seed: int = 0) -> IntArray:
    """A different share of every group, between a quarter and all."""
    share = np.random.default_rng(seed).uniform(0.25, 1.0, len(trace.graph.groups))
    return np.maximum(1, (trace.graph.widths * share).astype(np.int64))


def run_onnx(model: onnx.ModelProto, inputs: tuple[Tensor, ...]) -> NDArray[np.float32]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [value.name for value in session.get_inputs()]
    feeds = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
    return np.asarray(session.run(None, feeds)[0])


def run(module: nn.Module, inputs: tuple[Tensor, ...]) -> NDArray[np.float32]:
    with torch.no_grad():
        return np.asarray(module(*inputs).numpy())


def zeroed(trace: TorchTrace, keeps: IntArray) -> onnx.ModelProto:
    """The uncut ONNX twin, weights that read dropped channels zeroed."""
    kept = kept_units(unit_scores(trace.onnx), keeps)
    model = onnx.ModelProto()
    model.CopyFrom(trace.onnx.model)
    reading = {"Conv": 1, "ConvTranspose": 0, "Gemm": 1, "MatMul": 0}
    axes = {n.input[1]: reading[n.op_type] for n in model.graph.node if n.op_type in reading}
    for tensor in model.graph.initializer:
        if tensor.name not in axes:
            continue
        array = numpy_helper.to_array(tensor).copy()
        group, unit = trace.onnx.channels.axis_units(tensor.name, axes[tensor.name])
        gone = [g >= 0 and u not in kept[g] for g, u in zip(group, unit, strict=True)]
        np.moveaxis(array, axes[tensor.name], 0)[gone] = 0.0
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return model


def assert_close(left: NDArray[np.float32], right: NDArray[np.float32]) -> None:
    np.testing.assert_allclose(left, right, atol=2e-5 * float(np.abs(right).max()) + 1e-6)


@EVERY
def test_cut_module_equals_cut_onnx_and_the_zeroed_net(name: str) -> None:
    trace, inputs = traced(name)
    assert trace.graph.prunable_macs_ratio() > 0.95
    keeps = some_keeps(trace)
    ours = run(prune_torch(trace, keeps), inputs)
    assert_close(ours, run_onnx(prune_onnx(trace.onnx, keeps), inputs))
    assert_close(ours, run_onnx(zeroed(trace, keeps), inputs))


@EVERY
@pytest.mark.parametrize("first", [0, 1])
def test_plan_that_leaves_every_other_group_whole(name: str, first: int) -> None:
    trace, inputs = traced(name)
    keeps = some_keeps(trace)
    keeps[first::2] = trace.graph.widths[first::2]
    ours = run(prune_torch(trace, keeps), inputs)
    assert_close(ours, run_onnx(prune_onnx(trace.onnx, keeps), inputs))


@EVERY
def test_full_plan_changes_nothing(name: str) -> None:
    trace, inputs = traced(name)
    assert_close(run(prune_torch(trace, trace.graph.widths), inputs), run(trace.module, inputs))


@EVERY
def test_callers_module_stays_untouched(name: str) -> None:
    module, inputs = TOPOLOGIES[name]()
    calls: list[int] = []
    module.register_forward_hook(lambda *_: calls.append(1))
    before = {key: value.clone() for key, value in module.state_dict().items()}
    modes = [part.training for part in module.modules()]
    trace = trace_torch(module, inputs)
    prune_torch(trace, np.ones_like(trace.graph.widths))
    assert not calls and len(module._forward_hooks) == 1
    assert [part.training for part in module.modules()] == modes
    assert all(parameter.grad is None for parameter in module.parameters())
    assert before.keys() == module.state_dict().keys()
    for key, value in module.state_dict().items():
        assert torch.equal(value, before[key])


@EVERY
def test_cut_module_is_exported_and_cut_again(name: str) -> None:
    trace, inputs = traced(name)
    keeps = some_keeps(trace)
    small = prune_torch(trace, keeps)
    again = trace_torch(small, inputs)
    assert again.graph.macs(again.graph.widths) == trace.graph.macs(keeps)
    assert_close(run_onnx(again.onnx.model, inputs), run(small, inputs))
    smaller = np.maximum(1, again.graph.widths // 2)
    assert_close(
        run(prune_torch(again, smaller), inputs), run_onnx(prune_onnx(again.onnx, smaller), inputs)
    )


@EVERY
def test_trace_of_module_and_of_its_export_have_one_fingerprint(name: str) -> None:
    trace, inputs = traced(name)
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(trace.module, inputs, file, dynamo=False)  # type: ignore[arg-type]
    theirs = trace_onnx(file.getvalue()).graph
    assert trace.graph.fingerprint == theirs.fingerprint
    assert trace.graph.widths.tolist() == theirs.widths.tolist()
