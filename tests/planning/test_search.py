"""The search for a plan: what is evaluated is told, and nothing that was found is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from calibrated import own_images, traced
from synthetic import chain_graph

import rlprune
from rlprune.errors import CalibrationError
from rlprune.planning.effort import EFFORTS, cost_text, passed_count
from rlprune.planning.judge import SearchImages
from rlprune.plans import PruningPlan
from rlprune.policy.race import NAME
from rlprune.sensitivity.calibration import CalibrationSet
from rlprune.sensitivity.one_pass import OnePass


@pytest.fixture(autouse=True)
def own_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


@pytest.fixture
def net() -> tuple[Any, Any]:
    trace = traced("resnet_a")
    return trace, own_images(trace, 160)


def plan_of(net: tuple[Any, Any], **options: Any) -> Any:
    trace, images = net
    asked = {"device": "macs", "budget_ratio": 0.5, "calibration": images} | options
    return rlprune.plan(trace, **asked)


def test_the_plan_is_one_that_was_evaluated_within_the_budget(net: tuple[Any, Any]) -> None:
    plan = plan_of(net, effort="quick")
    [chosen] = [one for one in plan.candidates if one.chosen]
    assert chosen.keeps == tuple(plan.keeps)
    assert plan.predicted_latency_ms <= plan.budget_ms
    assert all(one.divergence is not None for one in plan.candidates)
    assert all(one.predicted_latency_ms <= plan.budget_ms for one in plan.candidates)
    closely = max(one.image_count for one in plan.candidates)
    last = [one for one in plan.candidates if one.image_count == closely]
    assert chosen in last and 2 <= len(last) < len(plan.candidates)
    least = min(one.divergence for one in last)
    assert chosen.divergence <= 1.5 * least, "what is believed is near to what was seen"
    assert plan.policy == NAME and "plans evaluated at the price of" in plan.note
    assert plan_of(net) == plan, "so much is done by default"


def test_instantly_nothing_is_evaluated(net: tuple[Any, Any]) -> None:
    plan = plan_of(net, effort="instant")
    assert plan.policy == "knapsack" and not plan.candidates
    assert "one pass of the unpruned network on" in plan.note
    assert plan.reference is not None and tuple(plan.keeps) == plan.reference.keeps


def test_without_data_inputs_are_made_up(net: tuple[Any, Any]) -> None:
    plan = plan_of(net, effort="instant", calibration=None)
    assert plan.feasible and "one pass" in plan.note


def test_a_network_that_runs_on_no_made_up_input_is_planned_by_its_weights(
    net: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any, **__: Any) -> Any:
        raise CalibrationError("index out of bounds")

    monkeypatch.setattr(OnePass, "of", refused)
    plan = plan_of(net, calibration=None)
    assert plan.feasible and "predicted from weights and shapes" in plan.note
    for asked in ({"calibration": None, "effort": "quick"}, {}):
        with pytest.raises(CalibrationError):
            plan_of(net, **asked)


def test_ctrl_c_gives_the_best_so_far(net: tuple[Any, Any]) -> None:
    def stop(what: str, done: int, total: int) -> None:
        if what == "evaluating plans" and done == 11:
            raise KeyboardInterrupt

    plan = plan_of(net, effort="quick", on_progress=stop)
    assert "11 plans evaluated" in plan.note and "stopped before its end" in plan.note
    assert plan.predicted_latency_ms <= plan.budget_ms


def test_what_was_evaluated_for_one_budget_tells_for_the_next(net: tuple[Any, Any]) -> None:
    both = plan_of(net, effort="quick", budget_ratio=[0.6, 0.5])
    alone: PruningPlan = plan_of(net, effort="quick", budget_ratio=0.5)
    assert [one.feasible for one in both] == [True, True]
    assert both[1].predicted_latency_ms <= alone.budget_ms
    first, second = (one.note.partition(" plans")[0].rpartition(" ")[2] for one in both)
    assert int(second) > int(first)


def test_a_budget_that_cannot_be_met_costs_no_evaluation(net: tuple[Any, Any]) -> None:
    plan = plan_of(net, effort="quick", budget_ratio=None, budget_ms=1e-6)
    assert not plan.feasible and not plan.candidates


def test_prices_are_those_that_are_said() -> None:
    small, large = chain_graph([32, 64, 32]), chain_graph([512, 1024, 512], side=128)
    for graph in (small, large):
        images = {name: effort.images(graph) for name, effort in EFFORTS.items()}
        assert images["instant"] == passed_count(graph) < 300
        assert 6_000 < images["quick"] < 9_000, "some eight evaluations"
        assert 80_000 < images["thorough"] < 120_000
    assert passed_count(small) == 256 and passed_count(large) == 4
    quick = EFFORTS["quick"]
    assert quick.fitted(small) == quick
    middle = chain_graph([128, 256, 128], side=96)
    assert quick.cpu_sec(middle) > quick.most_sec >= 0.9 * quick.fitted(middle).cpu_sec(middle)
    assert quick.fitted(middle).rounds >= 2
    times = [effort.fitted(large).cpu_sec(large) for effort in EFFORTS.values()]
    assert times == sorted(times) and "of CPU" in cost_text("quick", large)


@pytest.mark.parametrize("name", ["quick", "thorough"])
def test_of_as_many_images_as_are_needed_no_part_is_short(name: str) -> None:
    graph, effort = chain_graph([32, 64, 32]), EFFORTS[name]
    needed = SearchImages.needed(effort, graph)
    own = SearchImages.of(CalibrationSet.single(np.zeros((needed, 1))), effort, graph)
    assert len(own.passed) == passed_count(graph) and len(own.solved) == effort.solved
    assert len(own.judged) == effort.judged and len(own.closer) == effort.closer
    assert needed < 2 * (len(own.passed) + len(own.judged) + len(own.closer)), "and few are left"
