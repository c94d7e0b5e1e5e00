"""Channels, kernel shapes and blocks go the whole way together: planned, kept, carried out."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent import futures
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx_oracle import numbers_in_weights
from residual_net import Residual, stack
from scheme_oracle import EVERY, sites_of

import rlprune
from rlprune.constraints import Constraints, bind
from rlprune.device.worker import WorkerConfig, work
from rlprune.errors import InputError, PlanError, RlpruneError
from rlprune.graph.from_onnx import OnnxTrace, trace_onnx
from rlprune.latency.device import local_device_key
from rlprune.latency.macs import macs_tables
from rlprune.latency.measure import MeasureConfig
from rlprune.mdp.episode import ActionMode
from rlprune.planning.breakdown import explain_latency
from rlprune.plans import PruningPlan
from rlprune.policy.baselines import GlobalMagnitudePolicy
from rlprune.runtime import get_runtime
from rlprune.schemes import space_of
from rlprune.sensitivity.energy import energy_profiles
from rlprune.service.client import Client
from rlprune.service.server import start
from rlprune.solver.task import PruningTask
from rlprune.store import Store, open_store
from rlprune_envs import ChannelPruningEnv

BRIEF = MeasureConfig(
    warmup_count=1,
    min_sample_ms=0.3,
    sample_count=3,
    max_sample_count=3,
    session_count=2,
    extra_session_count=0,
)
SCHEMES = ("shape", "block")


@pytest.fixture(scope="module")
def trace() -> OnnxTrace:
    return stack(Residual.plain, 4, side=24)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with_store = open_store(f"sqlite:///{tmp_path / 'store.sqlite'}")
    yield with_store
    with_store.close()


def changed(plan: PruningPlan) -> set[str]:
    """Schemes of which the plan takes another option than the whole."""
    return {entry.scheme for entry in plan.groups if entry.keep < entry.width}


@pytest.mark.parametrize("ratio", [0.15, 0.3, 0.6])
@pytest.mark.parametrize("policy", ["knapsack", "uniform", "global", "learned"])
def test_a_plan_by_macs_costs_what_it_says(
    trace: OnnxTrace, tmp_path: Path, policy: str, ratio: float
) -> None:
    plan = rlprune.plan(trace, device="macs", budget_ratio=ratio, schemes=SCHEMES, policy=policy)
    assert plan.schemes == ("channel", "block", "shape")
    assert plan.predicted_latency_ms <= plan.budget_ms
    plan.save(tmp_path / "plan.json")
    again = PruningPlan.load(tmp_path / "plan.json")
    assert again == plan
    small = rlprune.apply(again, trace, calibration="none")
    onnx.checker.check_model(small, full_check=True)
    cut = trace_onnx(small).graph
    assert int(cut.macs(cut.widths)) == plan.macs
    assert numbers_in_weights(small) == plan.params


def test_plans_of_all_schemes_are_evaluated_and_reconstructed(trace: OnnxTrace) -> None:
    images = np.random.default_rng(0).normal(size=(32, 3, 24, 24)).astype(np.float32)
    plan = rlprune.plan(trace, device="macs", budget_ratio=0.4, schemes=SCHEMES, calibration=images)
    assert plan.profiled and len(changed(plan)) > 1
    found = []
    rlprune.apply(plan, trace, calibration={"x": images}, on_result=found.append)
    assert found[0].moved is not None and found[0].inputs


@pytest.mark.parametrize(
    ("pattern", "scheme"), [("conv4", "shape"), ("b1", "block"), ("conv4", "channel")]
)
def test_what_is_held_is_left_as_it_is(trace: OnnxTrace, pattern: str, scheme: str) -> None:
    bounds = [bind(trace.graph, Constraints(hold=own), round_to=1) for own in ((pattern,), ())]
    held, free = (
        {one.name: one for one in space_of(trace.graph, bound, EVERY).sites if one.scheme == scheme}
        for bound in bounds
    )
    # conv4 makes the stream, as conv0 does, of what conv2 makes.
    whole = {"conv0", "conv2"} if scheme == "channel" else {pattern}
    for name, site in free.items():
        kept = site.values[-1:] if name in whole else site.values
        assert held[name].values == kept and len(site.values) > 1
    plan = rlprune.plan(trace, device="macs", budget_ratio=0.4, schemes=SCHEMES, hold=pattern)
    entries = [one for one in plan.groups if one.scheme == scheme and one.name in whole]
    assert entries and all(entry.keep == entry.width for entry in entries)


def test_a_block_of_which_a_layer_is_held_stays(trace: OnnxTrace) -> None:
    inside = next(op.weight for op in trace.graph.operators if op.name == "conv7")
    for pattern in ("conv7", inside):
        bound = bind(trace.graph, Constraints(hold=(pattern,)), round_to=1)
        sites = [one for one in space_of(trace.graph, bound, EVERY).sites if one.scheme == "block"]
        assert [len(one.values) for one in sites] == [1, 2, 2]


def test_a_pattern_that_means_no_site_is_refused(trace: OnnxTrace) -> None:
    with pytest.raises(InputError, match=r"hold 'b7' matches no layer; near names: .*b1"):
        rlprune.plan(trace, device="macs", budget_ratio=0.4, schemes=SCHEMES, hold="b7")


def test_a_plan_with_an_option_that_does_not_exist_is_refused_in_one_line(trace: OnnxTrace) -> None:
    plan = rlprune.plan(trace, device="macs", budget_ratio=0.4, schemes=SCHEMES)
    name = next(entry.name for entry in plan.groups if entry.scheme == "block")
    groups = tuple(
        replace(entry, keep=7, width=9) if entry.name == name and entry.scheme == "block" else entry
        for entry in plan.groups
    )
    with pytest.raises(RlpruneError) as refusal:
        rlprune.apply(replace(plan, groups=groups), trace, calibration="none")
    assert "\n" not in str(refusal.value) and isinstance(refusal.value, PlanError)


def test_over_the_wire_measured_by_a_worker_and_refused_where_nothing_is_so(
    trace: OnnxTrace, store: Store
) -> None:
    server = start("127.0.0.1:0", store)
    config = WorkerConfig(poll_sec=0.05, max_backoff_sec=0.2, measure=BRIEF)
    key, stop = local_device_key(get_runtime("ort")), threading.Event()
    try:
        with futures.ThreadPoolExecutor(1) as pool, Client(server.address) as client:
            worker = pool.submit(work, server.address, stop=stop, config=config)
            try:
                until_known(client, key)
                plan = client.plan(
                    trace, device=key, budget_ratio=0.5, schemes=SCHEMES, policy="knapsack"
                )
                (kept,) = client.plans(device=key)
                with pytest.raises(InputError, match="no scheme 'nothing' is installed"):
                    client.plan(trace, device=key, budget_ratio=0.5, schemes="nothing")
            finally:
                stop.set()
            worker.result(30)
    finally:
        server.stop(0.5)
    assert kept.plan == plan and plan.schemes == ("channel", "block", "shape")
    small = rlprune.apply(plan, trace, calibration="none")
    assert numbers_in_weights(small) == plan.params
    subjects = [one.subject for one in store.measurements(key)]
    kernels = {s.kernel for s in subjects if getattr(s, "kind", "") == "conv"}
    assert len(kernels) > 3  # convolutions were measured in several forms
    assert not any(getattr(s, "variant", "") == "absent" for s in subjects)
    assert any(0 in getattr(s, "settings", ())[len(trace.graph.groups) :] for s in subjects)
    report = explain_latency(trace, plan, store=store)
    assert report.after is not None  # what was measured since moves predictions a little
    assert report.after.predicted_ms == pytest.approx(plan.predicted_latency_ms, rel=0.1)
    gone = [one.name for one in plan.groups if one.scheme == "block" and one.keep == 0]
    costs = {one.name: one.ms[1] for one in report.operators}
    assert all(costs[name] == 0.0 for name in gone)


def until_known(client: Client, key: str) -> None:
    for _ in range(600):
        if any(device.key == key for device in client.devices()):
            return
        threading.Event().wait(0.05)
    raise AssertionError("the worker never came")


def task_of(trace: OnnxTrace) -> PruningTask:
    """What there is to decide about a network, in numbers of MACs."""
    space = space_of(trace.graph, bind(trace.graph, Constraints(), round_to=1), EVERY)
    return PruningTask(space, macs_tables(space), energy_profiles(trace, space))


def test_one_threshold_takes_of_every_scheme_what_has_least_energy(trace: OnnxTrace) -> None:
    """Whatever options are called: 103 is not a third of 303."""
    task = task_of(trace)
    energy, shares = task.profiles.energy_loss, task.shares
    assert energy is not None
    budgets = np.linspace(0.2, 0.9, 8) * task.base_ms
    for choice in GlobalMagnitudePolicy().plan(task, budgets):
        for site in np.flatnonzero(~task.space.ordered):
            lost, left = energy[site, choice[site]], shares[site, choice[site]]
            dominates = (energy[site] <= lost) & (shares[site] < left)
            assert not dominates.any()
    taken = GlobalMagnitudePolicy().plan(task, budgets[2:3])[0] < task.space.unpruned
    assert {one.scheme for one, own in zip(task.space.sites, taken, strict=True) if own} >= {
        "channel",
        "shape",
    }


@pytest.mark.parametrize("action", ["ratio", "correction"])
def test_an_environment_walks_through_all_sites_within_the_budget(
    trace: OnnxTrace, action: ActionMode
) -> None:
    task = task_of(trace)
    env = ChannelPruningEnv([task], action=action)
    rng = np.random.default_rng(0)
    for seed in range(3):
        env.reset(seed=seed)
        over, steps = False, 0
        while not over:
            bent = rng.uniform(-1, 1, env.action_space.shape).astype(np.float32)
            observation, reward, over, _, info = env.step(bent)
            steps += 1
            assert np.isfinite(reward) and np.isfinite(observation).all()
        assert steps == task.site_count == len(info["keeps"])
        assert info["latency_ms"] <= info["budget_ms"] * (1 + 1e-9)
        task.space.choice_of(np.asarray(info["keeps"]))  # all of them are options


def test_sites_come_in_the_order_of_the_schemes_names(trace: OnnxTrace) -> None:
    space = space_of(trace.graph, bind(trace.graph, Constraints(), round_to=1), EVERY)
    order = [site.scheme for site in space.sites]
    assert order == sorted(order, key=["channel", "block", "shape"].index)
    assert set(sites_of(trace, "block")) == {"b1", "b2", "b3"}
