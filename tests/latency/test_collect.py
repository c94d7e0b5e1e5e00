"""From a traced model to a latency model that is ready to plan, on the real runtime."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from synthetic import channel_space

from rlprune.errors import PlanError
from rlprune.graph.from_onnx import OnnxTrace, trace_onnx
from rlprune.graph.skeleton import strip
from rlprune.latency.collect import measure_subjects, skeleton_models, trace_models
from rlprune.latency.device import local_device_key
from rlprune.latency.measure import MeasureConfig
from rlprune.latency.model import LatencyModel
from rlprune.latency.types import ModelSubject, OperatorSpec
from rlprune.runtime import get_runtime

QUICK = MeasureConfig(session_count=2, extra_session_count=0, sample_count=3, max_sample_count=4)


@pytest.fixture(scope="module")
def trace() -> OnnxTrace:
    """Three convolutions and a classifier, 64 channels wide."""
    rng = np.random.default_rng(0)
    weights, nodes, x = [], [], "x"
    for index, (ins, outs) in enumerate([(3, 32), (32, 64), (64, 64)]):
        values = rng.standard_normal((outs, ins, 3, 3)).astype(np.float32) / np.sqrt(9 * ins)
        weights.append(numpy_helper.from_array(values.astype(np.float32), f"w{index}"))
        nodes.append(
            helper.make_node("Conv", [x, f"w{index}"], [f"c{index}"], f"conv{index}", pads=[1] * 4)
        )
        nodes.append(helper.make_node("Relu", [f"c{index}"], [f"r{index}"], f"relu{index}"))
        x = f"r{index}"
    weights.append(numpy_helper.from_array(rng.standard_normal((64, 10)).astype(np.float32), "f"))
    nodes.append(helper.make_node("GlobalAveragePool", [x], ["p"], "pool"))
    nodes.append(helper.make_node("Flatten", ["p"], ["v"], "flatten"))
    nodes.append(helper.make_node("Gemm", ["v", "f"], ["y"], "fc"))
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 10])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    return trace_onnx(model)


def test_measuring_what_is_missing_makes_the_model_ready(trace: OnnxTrace) -> None:
    """The whole loop: ask, measure, fit, compile; the least plan is predicted below the base."""
    runtime, graph = get_runtime(), trace.graph
    device = local_device_key(runtime)
    space = channel_space(graph)
    missing = LatencyModel.fit(device, [], {}).missing(space)
    seen: list[tuple[int, int]] = []
    measured = measure_subjects(
        missing,
        model_of=trace_models(trace),
        device=device,
        runtime=runtime,
        config=QUICK,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert [one.subject for one in measured] == missing
    assert all(one.status != "failed" for one in measured), [one.reason for one in measured]
    assert all(one.device == device for one in measured)
    assert seen[-1] == (2 * len(missing), 2 * len(missing))
    assert seen == sorted(seen)
    model = LatencyModel.fit(device, measured, {graph.fingerprint: graph})
    left = model.missing(space)
    # Unstable plans, on a busy machine; or operators that turned out dearer than guessed.
    assert len(left) < len(missing) / 2
    assert not set(left) & {one.subject for one in measured}
    tables = model.compile(space)
    base, least = tables.latency_ms(np.stack([space.unpruned, 0 * space.unpruned]))
    assert 0 < least < base


def test_a_skeleton_measures_like_a_trace(trace: OnnxTrace) -> None:
    """The same subjects, models of the same shapes, from kilobytes without weights."""
    skeleton, fingerprint = strip(trace.model), trace.graph.fingerprint
    from_skeleton, from_trace = (
        skeleton_models({fingerprint: skeleton}.__getitem__),
        trace_models(trace),
    )
    for keeps in ((), (8, 16, 24)):
        subject = ModelSubject(fingerprint, keeps)
        shapes = [
            {w.name: tuple(w.dims) for w in model_of(subject).graph.initializer}
            for model_of in (from_skeleton, from_trace)
        ]
        assert shapes[0] == shapes[1]


def test_a_plan_that_cannot_be_built_is_a_failed_measurement(trace: OnnxTrace) -> None:
    good = ModelSubject(trace.graph.fingerprint, (8, 16, 24))
    bad = replace(good, settings=(8, 16, 999))
    real = trace_models(trace)

    def model_of(subject: ModelSubject) -> onnx.ModelProto:
        if subject == bad:
            raise PlanError("keep 999 is not within 1..64")
        return real(subject)

    measured = measure_subjects(
        [bad, good, good], model_of=model_of, device="d", runtime=get_runtime(), config=QUICK
    )
    statuses = {one.subject: one for one in measured}
    assert len(measured) == 2
    assert statuses[bad].status == "failed" and "999" in statuses[bad].reason
    assert statuses[good].status != "failed"
    assert dict(statuses[good].conditions)["control"] == "given"


def test_a_control_that_cannot_be_built_fails_its_models_only() -> None:
    def model_of(subject: ModelSubject) -> onnx.ModelProto:
        raise PlanError("no such graph here")

    spec = OperatorSpec("add", "", 8, 8, (4, 4), (4, 4))
    measured = measure_subjects(
        [ModelSubject("f" * 64, (8,)), spec],
        model_of=model_of,
        device="d",
        runtime=get_runtime(),
        config=QUICK,
    )
    assert [(one.subject == spec, one.status == "failed") for one in measured] == [
        (True, False),
        (False, True),
    ]
