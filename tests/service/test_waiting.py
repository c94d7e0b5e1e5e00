"""What a plan waits for: nothing, the first jobs, or all that its device should measure."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx_nets import conv_net
from service_rig import BOARD, Rig, macs_cost, measured, messages

from rlprune.errors import UnavailableError
from rlprune.graph.from_onnx import trace_onnx
from rlprune.graph.skeleton import strip
from rlprune.latency.types import ModelSubject
from rlprune.v1 import plans_pb2

NET = conv_net()
TRACE = trace_onnx(NET)
IMAGES = {"x": np.random.default_rng(0).standard_normal((64, 3, 16, 16), dtype=np.float32)}


def create(rig: Rig, device: str, **changes: Any) -> plans_pb2.CreatePlanResponse:
    asked = plans_pb2.CreatePlanRequest(
        skeleton=strip(TRACE.model),
        device=device,
        budget_ratio=0.5,
        policy="knapsack",
        **changes,
    )
    return rig.channel.call("PlanService/CreatePlan", asked, plans_pb2.CreatePlanResponse)


def test_a_device_of_a_known_runtime_is_answered_before_it_has_measured_anything(rig: Rig) -> None:
    """By the operators that ship; the jobs are queued, those that tell most first."""
    key = "ort-9.9.a-board.t1.b1"
    rig.device.register_device(key, {})
    first = create(rig, key, request_id="r1")
    assert first.HasField("plan") and not first.measured
    assert first.plan.feasible and "estimated from similar devices" in first.plan.note
    low, high = (first.plan.predicted_interval_ms.low, first.plan.predicted_interval_ms.high)
    assert high / low > 1.5
    pending = create(rig, key, provisional=True)
    assert 0 < pending.awaited_job_count < pending.pending_job_count == first.pending_job_count
    job = rig.device.lease("worker", key)
    assert job is not None and isinstance(job.left[0], ModelSubject)


def test_an_instant_plan_waits_for_no_job_and_a_quick_one_for_the_first(rig: Rig) -> None:
    key = "ort-9.9.a-board.t1.b1"
    rig.device.register_device(key, {})
    asked: dict[str, Any] = {"device": key, "budget_ratio": 0.5, "calibration": IMAGES}
    instant = rig.client.plan(NET, effort="instant", timeout_sec=1e6, **asked)
    assert instant.feasible and "estimated from similar devices" in instant.note
    with rig.working(macs_cost(TRACE.graph), key):
        quick = rig.client.plan(NET, effort="quick", timeout_sec=120.0, **asked)
    assert quick.feasible and "similar devices" not in quick.note


def test_a_quick_plan_of_an_unknown_runtime_waits_for_the_first_jobs_alone(rig: Rig) -> None:
    rig.device.register_device(BOARD, {})
    asked: dict[str, Any] = {"device": BOARD, "budget_ratio": 0.5, "calibration": IMAGES}
    with pytest.raises(UnavailableError, match="rlprune work"):
        rig.client.plan(NET, effort="quick", timeout_sec=0.3, **asked)
    job = rig.device.lease("worker", BOARD)
    assert job is not None and all(isinstance(one, ModelSubject) for one in job.left[:4])
    cost = macs_cost(TRACE.graph)
    reported = [measured(BOARD, one, cost(one)) for one in job.left]
    rig.device.report(job.lease_id, job.lease_id, messages(reported), done=True)
    made = rig.client.plan(NET, effort="quick", timeout_sec=60.0, **asked)
    assert made.feasible and rig.device.lease("worker", BOARD) is not None, "jobs are left"
