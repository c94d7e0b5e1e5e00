"""One question has one answer, whoever is asked: this machine, or a server."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx_nets import conv_net
from service_rig import BOARD, Rig, dump, macs_cost
from service_rig import measured as measured_as

import rlprune
from rlprune.errors import InputError, NotFoundError, UnavailableError
from rlprune.graph.from_onnx import trace_onnx
from rlprune.graph.skeleton import strip
from rlprune.latency.types import Arithmetic, ModelSubject
from rlprune.planning import LocalPlanner, PlanRequest, latency_model, make_plans
from rlprune.plans import PruningPlan
from rlprune.schemes import space_with
from rlprune.schemes.channels import keep_levels
from rlprune.service import remote
from rlprune.store import Store, open_store

KEY = "board-1.x.t1.b1"
NET = conv_net((16, 32, 32), extent=16)
TRACE = trace_onnx(NET)
CALIBRATION = {"x": np.random.default_rng(0).standard_normal((200, 3, 16, 16)).astype(np.float32)}
Ask = Callable[..., list[PruningPlan]]


@pytest.fixture(autouse=True)
def own_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


@pytest.fixture(params=["here", "server"])
def ask(rig: Rig, request: pytest.FixtureRequest) -> Ask:
    """Plans by this machine's planner or by the server's, over the same store."""

    def plans(trace: Any = TRACE, *, calibration: Any = None, **options: Any) -> list[PruningPlan]:
        planner = LocalPlanner(rig.store) if request.param == "here" else rig.client.planner()
        asked = PlanRequest.of(**options)
        return make_plans(planner, trace, asked, calibration=calibration, model_name="net.onnx")

    return plans


@pytest.fixture
def measured(rig: Rig) -> Rig:
    """A server whose boards have measured what plans of NET need without constraints."""
    space = space_with(TRACE.graph, *keep_levels(TRACE.graph, finer=True))
    rig.store.put_graph(TRACE.graph, strip(TRACE.model))
    for key, factor in ((KEY, 1.0), (KEY.replace(".t1.", ".t2."), 0.6)):
        cost = macs_cost(TRACE.graph, factor)
        rig.device.register_device(key, {})
        for arithmetic in (Arithmetic(), Arithmetic("int8", ("conv1",))):
            while missing := latency_model(rig.store, key, arithmetic).missing(space):
                rig.store.add_measurements([measured_as(key, one, cost(one)) for one in missing])
    return rig


def module() -> Any:
    from topologies import TOPOLOGIES

    return rlprune.trace(*TOPOLOGIES["resnet_a"]())


WAYS: dict[str, dict[str, Any]] = {
    "ratio": {"budget_ratio": 0.6},
    "ms": {"budget_ms": 0.12},
    "infeasible": {"budget_ms": 1e-6},
    "policy": {"budget_ratio": 0.6, "policy": "uniform"},
    "own plan": {"budget_ratio": 0.6, "policy": "learned", "guard": False},
    "round_to": {"budget_ratio": 0.6, "round_to": 4},
    "min_keep": {"budget_ratio": 0.7, "min_keep": 16},
    "min_keep_ratio": {"budget_ratio": 0.8, "min_keep_ratio": 0.5},
    "hold": {"budget_ratio": 0.8, "hold": "conv1.weight"},
    "pin": {"budget_ratio": 0.6, "pin": ["conv*"]},
    "max_params": {"budget_ratio": 0.9, "max_params": 9_000},
    "int8": {"budget_ratio": 0.6, "precision": "int8", "keep_float": "conv1"},
    "too few": {"budget_ratio": 0.9, "max_params": 3},
    "calibration": {"budget_ratio": 0.6, "calibration": CALIBRATION},
    "profile": {"budget_ratio": 0.6, "calibration": CALIBRATION, "policy": "knapsack"},
    "instant": {"budget_ratio": 0.6, "calibration": CALIBRATION, "effort": "instant"},
    "several": {"budget_ratio": [0.8, 0.6, 0.4], "calibration": CALIBRATION},
    "what is known": {"budget_ratio": 0.6, "wait": False},
    "in time": {"budget_ratio": 0.6, "policy": "knapsack", "timeout_sec": 30.0},
    "threads": {"budget_ratio": 0.6, "threads": 2},
}


@pytest.mark.parametrize("way", WAYS)
def test_the_same_question_gets_the_same_plan_here_and_there(measured: Rig, way: str) -> None:
    # Constraints have levels that the board has not measured yet; nobody works there.
    options = {"wait": way == "in time"} | WAYS[way]
    given = options.pop("calibration", None)
    request = PlanRequest.of(device=KEY, **options)
    here, there = (
        make_plans(planner, TRACE, request, calibration=given)
        for planner in (LocalPlanner(measured.store), measured.client.planner())
    )
    assert here == there
    assert [one.expected_divergence for one in here] == [
        pytest.approx(one.expected_divergence) for one in there
    ]
    for one in here:
        one.check(TRACE.graph)
    assert way != "threads" or ".t2." in here[0].device
    assert way != "several" or [one.feasible for one in here] == [True] * 3


def test_an_untrained_module_is_planned_alike_here_and_there(rig: Rig) -> None:
    trace = module()
    asked = {"device": "macs", "budget_ratio": 0.5}
    for options in ({"at_init": "synflow"}, {"at_init": "synflow", "max_params": 3_000}):
        here = rlprune.plan(trace, **asked, **options)  # type: ignore[call-overload]
        there = rig.client.plan(trace, **asked, **options)  # type: ignore[call-overload]
        assert here == there and "by synflow at initialisation" in there.note
        assert there.expected_divergence is None
    with pytest.raises(InputError, match="cannot be trained") as refusal:
        rig.client.plan(NET, device="macs", budget_ratio=0.5, at_init="synflow")
    assert refusal.value.field == "at_init"


def test_one_budget_gives_a_plan_and_several_a_list(rig: Rig) -> None:
    for plan in (rlprune.plan, rig.client.plan):
        one: Any = plan(NET, device="macs", budget_ratio=0.5)
        assert isinstance(one, PruningPlan)
        several: Any = plan(NET, device="macs", budget_ratio=[0.5])
        assert several == [one]
        more: Any = plan(NET, device="macs", budget_ratio=(0.8, 0.5))
        assert [p.budget_ms for p in more] == sorted((p.budget_ms for p in more), reverse=True)
        assert more[1].budget_ms == one.budget_ms


def test_budgets_of_one_request_share_profile_and_measurements(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rlprune.planning import rounds

    profiled = []
    own = rounds.profile_model

    def counted(*args: Any, **options: Any) -> Any:
        profiled.append(args)
        return own(*args, **options)

    monkeypatch.setattr(rounds, "profile_model", counted)
    asked: dict[str, Any] = {"device": "macs", "budget_ratio": [0.8, 0.6, 0.4]}
    for plan in (rig.client.plan, rlprune.plan):
        plan(TRACE, policy="knapsack", **asked)
    assert len(profiled) == 2


def test_what_is_given_is_what_is_kept(ask: Ask, measured: Rig) -> None:
    before = len(list(measured.client.plans()))
    options = {"calibration": CALIBRATION, "schemes": "channels"}
    made = ask(device=KEY, budget_ratio=[0.7, 0.5], **options)
    kept = list(measured.client.plans())[: -before or None][::-1]
    assert [record.plan for record in kept] == made
    for plan in made:
        assert sum(one.chosen for one in plan.candidates) == 1
        assert all(one.divergence is not None for one in plan.candidates)
    for record in kept:
        assert record.model_name == "net.onnx"
        assert json.loads(record.request) == {
            "budget_ratio": [0.7, 0.5],
            "device": KEY,
            "schemes": ["channel"],
        }


def test_a_device_nobody_knows_is_refused_alike(ask: Ask) -> None:
    with pytest.raises(NotFoundError) as refusal:
        ask(device="board-9", budget_ratio=0.5)
    assert refusal.value.field == "device"
    with pytest.raises(InputError, match="names no threads") as refused:
        ask(device="macs", threads=2, budget_ratio=0.5)
    assert refused.value.field == "threads"


def test_a_server_is_told_which_device(rig: Rig) -> None:
    with pytest.raises(InputError, match="which device") as refusal:
        rig.client.plan(NET, budget_ratio=0.5)
    assert refusal.value.field == "device"


def test_without_waiting_nothing_is_measured_here() -> None:
    plan = rlprune.plan(NET, budget_ratio=0.5, wait=False)
    assert plan.feasible and "estimated from similar devices" in plan.note
    assert "rlprune measure MODEL --for-plans" in plan.note
    assert open_store().measurements(plan.device) == []


def test_an_instant_plan_measures_two_variants_and_the_next_none() -> None:
    first = rlprune.plan(NET, budget_ratio=0.5, effort="instant")
    known = open_store().measurements(first.device)
    assert len(known) == 2 and all(isinstance(one.subject, ModelSubject) for one in known)
    assert "estimated from 2 measured plans" in first.note
    rlprune.plan(NET, budget_ratio=0.6, effort="instant")
    assert len(open_store().measurements(first.device)) == 2


def test_measuring_here_ends_in_time() -> None:
    rough = rlprune.plan(NET, budget_ratio=0.5, timeout_sec=0.0)
    assert open_store().measurements(rough.device) == []
    plan = rlprune.plan(NET, budget_ratio=0.9, policy="knapsack", timeout_sec=0.5)
    count = len(open_store().measurements(plan.device))
    assert 0 < count < 30, "what was begun was ended, and nothing begun after"
    assert rlprune.plan(NET, budget_ratio=0.9, policy="knapsack", wait=False) == plan


def test_a_store_that_takes_no_plan_loses_none(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, rig: Rig
) -> None:
    def full(*_: object, **__: object) -> str:
        raise UnavailableError("store s.sqlite: disk is full")

    monkeypatch.setattr(Store, "put_plan", full)
    for plan in (rlprune.plan, rig.client.plan):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "rlprune.planning"):
            made = plan(NET, device="macs", budget_ratio=0.5)
        assert made.feasible
        (line,) = (one for one in caplog.records if one.name == "rlprune.planning")
        assert "is not kept" in line.getMessage() and "\n" not in line.getMessage()


def test_a_certificate_is_kept_and_its_rounds_are_not_plans_of_their_own(
    measured: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device is a tenth slower than predicted."""
    cost = macs_cost(TRACE.graph)
    base_ms = cost(ModelSubject(TRACE.graph.fingerprint, tuple(TRACE.graph.widths.tolist())))

    def measure(
        channel: object, model: object, subjects: list[ModelSubject], *_: object, **__: object
    ) -> Any:
        (subject,) = subjects
        one = measured_as(KEY, subject, 1.1 * cost(subject))
        control = measured_as(KEY, subject, base_ms).cpu_ms
        return [replace(one, control_cpu_ms=control, control_wall_ms=control)]

    monkeypatch.setattr(remote, "measure_on", measure)
    plan = measured.client.plan(
        TRACE, device=KEY, budget_ratio=0.6, policy="knapsack", certify=True
    )
    assert plan.certificate is not None and len(plan.certificate.rounds) > 1
    (kept,) = measured.client.plans()
    assert kept.plan == plan and kept.plan.certificate == plan.certificate
    assert PruningPlan.from_json(plan.to_json()) == plan


def test_waiting_keeps_one_plan(rig: Rig) -> None:
    rig.device.register_device(BOARD, {})
    with rig.working(macs_cost(TRACE.graph)):
        plan = rig.client.plan(TRACE, device=BOARD, budget_ratio=0.6, policy="knapsack")
    (kept,) = rig.client.plans()
    assert kept.plan == plan


def test_a_plan_kept_here_is_found_in_the_local_store() -> None:
    plan = rlprune.plan(NET, device="macs", budget_ratio=0.5)
    [record], _ = open_store().plans()
    assert record.plan == plan and json.loads(record.request)["budget_ratio"] == [0.5]
    assert dump(open_store())["graphs"] == [], "nothing was measured"
    assert replace(plan, note="") != plan
