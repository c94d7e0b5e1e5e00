"""Every topology, as the older exporter writes it: cut ONNX equals the net with zeroed readers."""

from __future__ import annotations

import functools
import io
import warnings
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx_oracle import (
    assert_every_group_matters,
    assert_pruned_right,
    inputs_of,
    relative_error,
    run,
    some_keeps,
)
from topologies import TOPOLOGIES

from rlprune.graph.from_onnx import OnnxTrace, trace_onnx
from rlprune.graph.load import load_onnx
from rlprune.surgery.onnx import prune_onnx

EVERY = pytest.mark.parametrize("name", list(TOPOLOGIES))
BOTH = pytest.mark.parametrize("keeps_batch_norm", [False, True], ids=["folded", "batchnorm"])


@functools.cache
def exported(
    name: str, keeps_batch_norm: bool, opset: int = 18, *, open_batch: bool = False
) -> bytes:
    module, inputs = TOPOLOGIES[name]()
    file = io.BytesIO()
    options: dict[str, Any] = {}
    if keeps_batch_norm:
        options["training"] = torch.onnx.TrainingMode.PRESERVE
        options["do_constant_folding"] = False
    if open_batch:
        options["input_names"], options["output_names"] = ["x"], ["y"]
        options["dynamic_axes"] = {"x": {0: "batch"}, "y": {0: "batch"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            inputs,
            file,
            dynamo=False,
            opset_version=opset,
            **options,
        )
    return file.getvalue()


@functools.cache
def traced(name: str, keeps_batch_norm: bool) -> OnnxTrace:
    return trace_onnx(exported(name, keeps_batch_norm))


@EVERY
@BOTH
def test_pruned_model_equals_the_whole_with_zeroed_readers(
    name: str, keeps_batch_norm: bool
) -> None:
    trace = traced(name, keeps_batch_norm)
    for keeps in some_keeps(trace):
        assert_pruned_right(trace, keeps)


@EVERY
@BOTH
def test_every_group_changes_the_output_alone(name: str, keeps_batch_norm: bool) -> None:
    assert_every_group_matters(traced(name, keeps_batch_norm))


@EVERY
def test_all_macs_are_prunable(name: str) -> None:
    assert traced(name, False).graph.prunable_macs_ratio() == 1.0


@EVERY
def test_normal_form_computes_the_same(name: str) -> None:
    trace = traced(name, False)
    inputs = inputs_of(trace)
    model = load_onnx(exported(name, False))
    assert relative_error(run(model, inputs), run(trace.model, inputs)) < 1e-5


@EVERY
def test_tracing_leaves_the_model_alone(name: str) -> None:
    model = onnx.load_model_from_string(exported(name, False))
    before = model.SerializeToString(deterministic=True)
    trace_onnx(model)
    assert model.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("name", ["vgg_view", "channel_shuffle", "se_linear", "unet"])
@pytest.mark.parametrize("opset", [17, 18])
def test_open_batch_has_the_same_fingerprint_and_stays_open(name: str, opset: int) -> None:
    trace = trace_onnx(exported(name, False, opset, open_batch=True))
    assert trace.graph.fingerprint == traced(name, False).graph.fingerprint
    keeps = np.maximum(1, trace.graph.widths // 2)
    assert_pruned_right(trace, keeps)
    pruned = prune_onnx(trace, keeps)
    shape = trace.graph.input_shapes[0][1:]
    rows = np.random.default_rng(0).standard_normal((3, *shape)).astype(np.float32)
    one_by_one = np.concatenate([run(pruned, [row[None]])[0] for row in rows])
    assert relative_error(run(pruned, [rows]), [one_by_one]) < 1e-5


@EVERY
def test_folding_batchnorm_and_the_opset_do_not_change_the_fingerprint(name: str) -> None:
    first = traced(name, False).graph
    assert traced(name, True).graph.fingerprint == first.fingerprint
    for opset in (17, 20):
        again = trace_onnx(exported(name, False, opset)).graph
        assert again.fingerprint == first.fingerprint
        assert again.widths.tolist() == first.widths.tolist()
