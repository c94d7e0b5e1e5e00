"""Tables follow the store: one compilation per generation, and a report changes the plan."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from planning_here import plan_here
from small_onnx import small_onnx
from synthetic import channel_space

from rlprune.errors import InputError, NotFoundError
from rlprune.graph.from_onnx import OnnxTrace, trace_onnx
from rlprune.graph.skeleton import strip
from rlprune.latency.types import Measurement, ModelSubject, OperatorSpec
from rlprune.planning import latency_model, make_plan, task_for
from rlprune.policy import get_policy
from rlprune.schemes import Space
from rlprune.sensitivity.energy import energy_profiles
from rlprune.sensitivity.types import GroupProfiles
from rlprune.store import Store, open_store

DEVICE = "board-1"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(open_store(f"sqlite:///{tmp_path / 'store.sqlite'}")) as opened:
        yield opened


@pytest.fixture(scope="module")
def trace() -> OnnxTrace:
    return trace_onnx(small_onnx())


@pytest.fixture(scope="module")
def space(trace: OnnxTrace) -> Space:
    return channel_space(trace.graph)


@pytest.fixture(scope="module")
def profiles(trace: OnnxTrace, space: Space) -> GroupProfiles:
    return energy_profiles(trace, space)


def measured(subject: OperatorSpec | ModelSubject, ms: float) -> Measurement:
    """A measurement of a device that never wavers."""
    samples = ((ms,) * 3,) * 3
    return Measurement(DEVICE, subject, samples, samples)


def report(store: Store, trace: OnnxTrace, space: Space, *, factor: float = 1.0) -> None:
    """Reports everything missing, as a device does that runs a MAC in `factor` ns."""
    store.put_graph(trace.graph, strip(trace.model))
    graph = trace.graph
    measurements = []
    for subject in latency_model(store, DEVICE).missing(space):
        if isinstance(subject, ModelSubject):
            macs = float(graph.macs(np.array(subject.settings, dtype=np.int64)))
        else:
            cells = float(np.prod(subject.out_spatial)) * float(np.prod(subject.kernel or (1,)))
            macs = subject.in_width * subject.out_width * cells
        measurements.append(measured(subject, 0.01 + factor * macs * 1e-6))
    store.add_measurements(measurements)


def test_unknown_device_is_told_the_known_ones(
    store: Store, trace: OnnxTrace, space: Space, profiles: GroupProfiles
) -> None:
    store.register_device(DEVICE)
    with pytest.raises(NotFoundError, match=f"toaster.*{DEVICE}.*macs"):
        task_for(space, profiles, store, "toaster")


def test_device_without_measurements_is_refused_not_guessed(
    store: Store, trace: OnnxTrace, space: Space, profiles: GroupProfiles
) -> None:
    store.register_device(DEVICE)
    with pytest.raises(NotFoundError, match="no measurements yet"):
        task_for(space, profiles, store, DEVICE)


def test_tables_are_compiled_once_per_generation(
    store: Store, trace: OnnxTrace, space: Space, profiles: GroupProfiles
) -> None:
    report(store, trace, space)
    first = task_for(space, profiles, store, DEVICE).tables
    assert task_for(space, profiles, store, DEVICE).tables is first
    assert latency_model(store, DEVICE) is latency_model(store, DEVICE)
    store.add_measurements([measured(ModelSubject(trace.graph.fingerprint, (16, 16)), 9.0)])
    assert task_for(space, profiles, store, DEVICE).tables is not first


def test_other_levels_and_other_stores_have_their_own_tables(
    store: Store, tmp_path: Path, trace: OnnxTrace, space: Space, profiles: GroupProfiles
) -> None:
    report(store, trace, space)
    first = task_for(space, profiles, store, DEVICE).tables
    finer = channel_space(trace.graph, round_to=4)
    other_task = task_for(finer, energy_profiles(trace, finer), store, DEVICE)
    assert (other_task.tables.option_count > first.option_count).any()
    with closing(open_store(f"sqlite:///{tmp_path / 'other.sqlite'}")) as other:
        report(other, trace, space, factor=5.0)
        slow = task_for(space, profiles, other, DEVICE)
        assert slow.base_ms > 2 * first.base_ms


def test_reports_change_the_plan(
    store: Store, trace: OnnxTrace, space: Space, profiles: GroupProfiles
) -> None:
    report(store, trace, space)
    policy = get_policy("knapsack")
    task = task_for(space, profiles, store, DEVICE)
    budget = 0.7 * task.base_ms
    before = make_plan(task, policy, budget, device=DEVICE)
    widths = tuple(int(width) for width in trace.graph.widths)
    slower = [
        measured(ModelSubject(trace.graph.fingerprint, keeps), 2 * ms)
        for keeps, ms in [
            (widths, task.base_ms),
            (before.reference.keeps, before.predicted_latency_ms),  # type: ignore[union-attr]
        ]
        for _ in range(20)
    ]
    store.add_measurements(slower)
    after = make_plan(task_for(space, profiles, store, DEVICE), policy, budget, device=DEVICE)
    assert after.base_latency_ms > before.base_latency_ms
    assert after.macs < before.macs


def test_another_device_is_planned_for_from_the_store_and_what_is_not_measured_is_told(
    store: Store, trace: OnnxTrace, space: Space
) -> None:
    report(store, trace, space)
    plan = plan_here(trace, store, budget_ratio=0.8, device=DEVICE, policy="knapsack")
    assert plan.device == DEVICE and plan.feasible
    stranger = trace_onnx(small_onnx(widths=(24, 40)))
    rough = plan_here(stranger, store, budget_ratio=0.8, device=DEVICE, policy="knapsack")
    assert "rlprune measure MODEL --for-plans" in rough.note
    low, high = rough.predicted_interval_ms
    assert high / low > 1.5 and high <= rough.budget_ms


def test_a_device_of_another_batch_is_refused(store: Store) -> None:
    """By what a model of one image takes, one of four would be planned as four times too fast."""
    trace = trace_onnx(small_onnx(shape=(4, 3, 16, 16)))
    space = channel_space(trace.graph)
    profiles = energy_profiles(trace, space)
    for device, known in (("board.t1.b1", "batch 1"), ("board.t1.b16", "batch 16")):
        with pytest.raises(InputError, match=f"{known}, this one is of batch 4"):
            task_for(space, profiles, store, device)
        with pytest.raises(InputError, match="work --batch 4"):
            plan_here(trace, store, budget_ratio=0.5, device=device)
