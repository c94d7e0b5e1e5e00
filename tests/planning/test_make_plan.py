"""A plan holds every figure that its reader needs, and they follow from the task's own tables."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from synthetic import chain_graph, graph_of, linear, task_of

from rlprune.graph.types import FloatArray, IntArray, Width
from rlprune.planning import make_plan
from rlprune.plans import PruningPlan
from rlprune.policy import get_policy
from rlprune.solver.knapsack import least_choice, solve
from rlprune.solver.task import PruningTask


@dataclass(frozen=True)
class Fixed:
    """A policy that chooses what it was told to, whatever is asked."""

    choice: IntArray
    name: str = "fixed/1"

    def plan(self, task: PruningTask, budget_ms: FloatArray) -> IntArray:
        return np.repeat(self.choice[None], len(budget_ms), axis=0)


@pytest.fixture
def task() -> PruningTask:
    return task_of(chain_graph([32, 48, 64]), seed=3)


def test_figures_are_those_of_the_task_tables(task: PruningTask) -> None:
    budget = 0.8 * task.base_ms
    keeps = np.array([16, 24, 32])
    choice = task.space.choice_of(keeps)
    plan = make_plan(task, Fixed(choice), budget, device="synthetic")

    low, high = task.tables.interval.low_ratio, task.tables.interval.high_ratio
    predicted = float(task.tables.latency_ms(choice[None])[0])
    assert plan.keeps.tolist() == [16, 24, 32]
    assert plan.predicted_latency_ms == predicted
    assert plan.predicted_interval_ms == (predicted * low, predicted * high)
    assert plan.base_latency_ms == task.base_ms
    least = float(task.tables.latency_ms(least_choice(task)[None])[0])
    assert plan.least_latency_ms == least < predicted
    assert plan.macs == task.graph.macs(keeps)
    assert plan.params == task.graph.params(keeps)
    assert (plan.policy, plan.device, plan.feasible) == ("fixed/1", "synthetic", True)
    plan.check(task.graph)
    assert PruningPlan.from_json(plan.to_json()) == plan


def test_reference_is_the_knapsack_plan_of_the_same_budget(task: PruningTask) -> None:
    budget = 0.7 * task.base_ms
    expected = task.space.settings_at(solve(task, np.array([budget]))[0])
    plan = make_plan(task, Fixed(least_choice(task)), budget, device="synthetic")
    assert plan.reference is not None
    assert plan.reference.keeps == tuple(expected)
    assert plan.reference.macs == task.graph.macs(expected)
    assert plan.reference.predicted_interval_ms[1] <= budget


def test_a_policy_that_chose_the_reference_says_so(task: PruningTask) -> None:
    budget = 0.7 * task.base_ms
    same = Fixed(solve(task, np.array([budget]))[0])
    assert (
        "the same plan as the latency-constrained knapsack's"
        in make_plan(task, same, budget, device="d").note
    )
    other = Fixed(least_choice(task))
    assert "the same" not in make_plan(task, other, budget, device="d").note


def test_infeasible_budget_is_answered_with_the_least_plan(task: PruningTask) -> None:
    least = least_choice(task)
    floor = float(task.tables.upper_ms(least[None])[0])
    plan = make_plan(task, Fixed(task.space.unpruned), 0.99 * floor, device="d")
    assert not plan.feasible
    assert plan.keeps.tolist() == task.space.settings_at(least).tolist()
    assert f"{floor:.4g} ms" in plan.note
    assert make_plan(task, Fixed(least), 1.0001 * floor, device="d").feasible


def test_note_says_what_the_losses_were_estimated_from(task: PruningTask) -> None:
    policy = Fixed(least_choice(task))
    measured = make_plan(task, policy, task.base_ms, device="d")
    assert measured.profiled and measured.note == ""
    weights = replace(task, profiles=replace(task.profiles, measured_loss=None))
    plan = make_plan(weights, policy, task.base_ms, device="d")
    assert not plan.profiled and "weights and shapes" in plan.note
    shapes = replace(weights, profiles=replace(weights.profiles, energy_loss=None))
    assert "from shapes" in make_plan(shapes, policy, task.base_ms, device="d").note


def test_model_without_groups_gets_an_empty_plan() -> None:
    graph = graph_of([], [linear("head", -1, Width(8), Width(10))], (1, 8))
    task = task_of(graph)
    plan = make_plan(task, Fixed(np.zeros(0, dtype=np.int64)), 10.0, device="d")
    assert plan.groups == () and plan.feasible and plan.params == 90
    assert "nothing to prune" in plan.note


def test_members_name_tensor_and_axis() -> None:
    from rlprune.graph.types import Group, Member

    graph = chain_graph([16])
    member = Member("conv0", "conv0.weight", 0, 1)
    graph = replace(graph, groups=(Group("conv0", 16, (member,)),))
    task = task_of(graph)
    plan = make_plan(task, Fixed(task.space.unpruned), task.base_ms * 2, device="d")
    assert plan.groups[0].members == ("conv0.weight[0]",)


def test_parameters_are_a_second_budget_for_every_policy(task: PruningTask) -> None:
    budget, most = 0.8 * task.base_ms, int(task.graph.params(task.graph.widths)) // 5
    for name in ("knapsack", "uniform", "global"):
        free = make_plan(task, get_policy(name), budget, device="d")
        small = make_plan(task, get_policy(name), budget, device="d", max_params=most)
        assert free.params > most >= small.params
        assert small.feasible and f"at most {most:,} parameters" in small.note
        assert small.predicted_interval_ms[1] <= budget


def test_too_few_parameters_are_an_answer_that_says_so(task: PruningTask) -> None:
    plan = make_plan(task, get_policy("knapsack"), 0.8 * task.base_ms, device="d", max_params=10)
    assert not plan.feasible
    assert "no plan of at most 10 parameters was found" in plan.note


def test_nothing_to_prune_and_too_large_is_infeasible() -> None:
    task = task_of(graph_of([], [linear("head", -1, Width(8), Width(10))], (1, 8)))
    plan = make_plan(task, get_policy("knapsack"), 10.0, device="d", max_params=89)
    assert not plan.feasible and "of at most 89 parameters" in plan.note
    assert make_plan(task, get_policy("knapsack"), 10.0, device="d", max_params=90).feasible


def test_a_policy_without_a_small_plan_yields_to_the_knapsack(task: PruningTask) -> None:
    most = int(task.graph.params(task.graph.widths)) // 5
    whole = Fixed(task.space.unpruned)
    plan = make_plan(task, whole, task.base_ms * 2, device="d", max_params=most)
    assert plan.policy == "knapsack"
    assert "no plan of fixed/1 is small enough" in plan.note
    assert plan.params <= most
