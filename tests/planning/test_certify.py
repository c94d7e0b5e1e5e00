"""A certificate says what was measured, and what was measured keeps the budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_onnx import small_onnx
from synthetic import chain_graph, task_of

import rlprune
from rlprune.errors import InputError, MeasurementError
from rlprune.files import fields_of
from rlprune.graph.types import IntArray
from rlprune.latency.types import Measurement, ModelSubject
from rlprune.planning import make_plan
from rlprune.planning.certify import ENOUGH_SLACK, MAX_ROUNDS, certify_plan
from rlprune.planning.fresh import pooled
from rlprune.plans import Candidate, PruningPlan
from rlprune.policy import get_policy
from rlprune.solver.task import PruningTask


class Device:
    """What plans really take: the prediction times a bias, with noise from session to session."""

    def __init__(self, task: PruningTask, bias: Callable[[float], float], noise: float = 0.0):
        self.task, self.bias, self.noise = task, bias, noise
        self.rng = np.random.default_rng(0)
        self.status = "ok"
        self.count = 0

    def ratio(self, keeps: IntArray) -> float:
        choice = self.task.space.choice_of(keeps[None])
        share = float(self.task.tables.latency_ms(choice)[0]) / self.task.base_ms
        return share * self.bias(share)

    def __call__(self, keeps: IntArray) -> Measurement:
        self.count += 1
        sessions = self.ratio(keeps) * np.exp(self.noise * self.rng.standard_normal(12))
        cpu = tuple((float(ms),) for ms in sessions)
        subject = ModelSubject("f" * 64, tuple(int(keep) for keep in keeps))
        control = ((1.0,),) * 12
        return Measurement("d", subject, cpu, cpu, control, control, status=self.status)


@pytest.fixture
def task() -> PruningTask:
    return task_of(chain_graph([128, 256, 256, 128]), seed=5)


def certified(task: PruningTask, device: Device, share: float) -> PruningPlan:
    def ask(budget_ms: float) -> PruningPlan:
        return make_plan(task, get_policy("knapsack"), budget_ms, device="d")

    return certify_plan(ask, device, ask(share * task.base_ms))


@pytest.mark.parametrize("share", [0.4, 0.6, 0.8])
@pytest.mark.parametrize("bias", [0.8, 0.93, 1.0, 1.08, 1.25])
def test_whatever_the_device_departs_from_the_prediction_the_budget_is_kept_and_used(
    task: PruningTask, share: float, bias: float
) -> None:
    device = Device(
        task, lambda now: bias ** (1.0 - now), noise=0.01
    )  # the unpruned model is known
    plan = certified(task, device, share)
    assert plan.certificate is not None and plan.certificate.within and plan.feasible
    assert 0.9 * share < device.ratio(plan.keeps) <= share
    assert plan.budget_ms == share * task.base_ms
    assert device.count == len(plan.certificate.rounds) <= MAX_ROUNDS
    assert "certified" in plan.note


@pytest.mark.parametrize("seed", range(8))
def test_it_ends_near_the_budget_or_where_no_plan_is_nearer(seed: int) -> None:
    """Whatever the device: of all plans that any budget gives, none lies between."""
    rng = np.random.default_rng(seed)
    task = task_of(chain_graph([64, 128, 64, 32][: 2 + seed % 3]), seed=seed)
    tilt, share = rng.uniform(-0.25, 0.25), rng.uniform(0.45, 0.85)
    device = Device(task, lambda now: float(np.exp(tilt * (1.0 - now))))
    plan = certified(task, device, share)
    found = plan.certificate
    assert found is not None and found.within
    reached, spread = (
        found.measured_latency_ms / plan.budget_ms,
        found.measured_interval_ms[1] / found.measured_latency_ms,
    )
    budgets = np.geomspace(0.5, 1.5, 400) * plan.budget_ms
    offered = task.space.settings_at(get_policy("knapsack").plan(task, budgets))
    ratios = np.array([device.ratio(keeps) for keeps in np.unique(offered, axis=0)]) / share
    better = ratios[(ratios > reached + 1e-9) & (ratios * spread <= 1.0)]
    assert reached >= 1.0 - ENOUGH_SLACK or not len(better)


def test_a_good_first_plan_costs_one_measurement(task: PruningTask) -> None:
    high = task.tables.interval.high_ratio  # what the budget is held against comes true
    device = Device(task, lambda now: 0.97 * high)
    probe = make_plan(task, get_policy("knapsack"), 0.6 * task.base_ms, device="d")
    plan = certified(task, device, probe.predicted_interval_ms[1] / task.base_ms)
    assert plan.certificate is not None and plan.certificate.within
    assert device.count == 1


@pytest.mark.parametrize("evaluated", [True, False])
def test_of_plans_that_keep_the_budget_the_one_that_diverges_least_is_given(
    task: PruningTask, evaluated: bool
) -> None:
    """... where they were evaluated; the slowest otherwise."""
    device = Device(task, lambda now: 0.8)
    asked: list[PruningPlan] = []

    def ask(budget_ms: float) -> PruningPlan:
        plan = make_plan(task, get_policy("knapsack"), budget_ms, device="d")
        assert plan.reference is not None
        # The first is the best of all, though the least that is left.
        loss = 0.1 + 0.1 * len(asked)
        one = Candidate(**fields_of(plan.reference), policy="race", divergence=loss, chosen=True)
        asked.append(replace(plan, candidates=(one,) if evaluated else ()))
        return asked[-1]

    plan = certify_plan(ask, device, ask(0.5 * task.base_ms))
    assert len(asked) > 1
    first = asked[0].predicted_latency_ms
    assert plan.predicted_latency_ms == first if evaluated else plan.predicted_latency_ms > first


def test_a_device_that_cannot_keep_the_budget_says_so(task: PruningTask) -> None:
    device = Device(task, lambda now: 1000.0)
    plan = certified(task, device, 0.5)
    assert plan.certificate is not None and not plan.certificate.within and not plan.feasible
    assert plan.certificate.measured_latency_ms > plan.budget_ms
    assert "not certified" in plan.note


def test_unstable_measurements_certify_nothing(task: PruningTask) -> None:
    device = Device(task, lambda now: 0.9)
    device.status = "unstable"
    plan = certified(task, device, 0.5)
    assert plan.certificate is not None and not plan.certificate.within


def test_a_measurement_that_failed_is_an_error(task: PruningTask) -> None:
    device = Device(task, lambda now: 1.0)
    device.status = "failed"
    with pytest.raises(MeasurementError, match="certified"):
        certified(task, device, 0.5)


def part(*sessions: float, status: str = "ok") -> Measurement:
    cpu = tuple((ms,) for ms in sessions)
    control = ((1.0,),) * len(sessions)
    conditions = (("session_count", str(len(sessions))), ("runtime", "fake 1"))
    return Measurement(
        "d",
        ModelSubject("f" * 64, (8,)),
        cpu,
        cpu,
        control,
        control,
        status=status,
        conditions=conditions,
    )


def test_sessions_of_several_processes_are_one_measurement() -> None:
    found = pooled([part(0.5, 0.52), part(0.6, 0.58)])
    assert found.session_ratios == (0.5, 0.52, 0.6, 0.58) and found.status == "ok"
    assert dict(found.conditions) == {
        "session_count": "4",
        "runtime": "fake 1",
        "process_count": "2",
        "sample_count": "0",
        "dropped_sample_count": "0",
    }


def test_a_process_that_would_not_hold_still_is_left_out_where_others_did() -> None:
    restless = part(0.9, 0.1, status="unstable")
    assert pooled([part(0.5), restless, part(0.6)]).session_ratios == (0.5, 0.6)
    assert pooled([restless, restless, part(0.5)]).status == "unstable"
    assert pooled([part(0.5), part(status="failed")]).status == "failed"


def test_more_processes_make_a_certificate_tighter(task: PruningTask) -> None:
    def upper(process_count: int) -> float:
        device = Device(task, lambda now: 1.0)

        def measure(keeps: IntArray) -> Measurement:
            conditions = (("process_count", str(process_count)),)
            return replace(device(keeps), conditions=conditions)

        plan = make_plan(task, get_policy("knapsack"), 0.6 * task.base_ms, device="d")
        certificate = certify_plan(lambda budget: plan, measure, plan).certificate
        assert certificate is not None
        return certificate.measured_interval_ms[1] / certificate.measured_latency_ms

    assert 1.0 < upper(4) < upper(1)


def test_the_certificate_travels_with_the_plan(task: PruningTask) -> None:
    plan = certified(task, Device(task, lambda now: 1.1 - 0.1 * now), 0.6)
    assert PruningPlan.from_json(plan.to_json()) == plan


def test_certified_on_this_machine_by_a_process_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, long: bool
) -> None:
    if not long:
        pytest.skip("--long: measures this machine for ten seconds or more")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    plan = rlprune.plan(small_onnx(), budget_ratio=0.9, policy="knapsack", certify=True)
    assert plan.certificate is not None
    assert plan.certificate.within == plan.feasible
    for found in plan.certificate.rounds:
        assert found.measured_interval_ms[0] < found.measured_latency_ms
    for device, reason in (("macs", "counted, not measured"), ("elsewhere", "not this machine")):
        with pytest.raises(InputError, match=reason):
            rlprune.plan(small_onnx(), budget_ratio=0.9, device=device, certify=True)
    # Nothing so small exists: that is said before anything is measured again.
    large = rlprune.plan(small_onnx(), budget_ratio=0.9, certify=True, max_params=3)
    assert not large.feasible and large.certificate is None
    assert "no plan of at most 3 parameters" in large.note
