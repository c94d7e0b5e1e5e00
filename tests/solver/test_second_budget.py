"""Two budgets at once: plans keep both, and lose little more than the best of all plans."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import chain_graph, random_task, task_of

from rlprune.graph.types import FloatArray, IntArray
from rlprune.sensitivity.energy import loss_curve
from rlprune.solver.knapsack import least_keeps, solve
from rlprune.solver.second_budget import solve_within
from rlprune.solver.task import PruningTask


def summed_loss(task: PruningTask, keeps: IntArray) -> FloatArray:
    curve = loss_curve(task.profiles, task.graph)
    return np.asarray(curve[np.arange(task.group_count), task.choice_of(keeps)].sum(-1))


def budget_at(task: PruningTask, position: float) -> float:
    least, base = task.tables.upper_ms(np.stack([least_keeps(task), task.graph.widths]))
    return float(least + position * (base - least))


def params_at(task: PruningTask, position: float) -> int:
    least, base = task.graph.params(np.stack([task.levels[:, 0], task.graph.widths]))
    return int(least + position * (base - least))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    latency=st.floats(0.05, 0.95),
    size=st.floats(0.02, 0.95),
)
def test_plans_keep_both_budgets_at_levels_of_their_groups(
    seed: int, latency: float, size: float
) -> None:
    task = random_task(seed, group_count=6)
    budget, params = budget_at(task, latency), params_at(task, size)
    keeps = solve_within(task, budget, params)
    if keeps is None:  # the least widths of all are the only certain plan
        assert size < 0.2
        return
    assert task.graph.params(keeps) <= params
    assert task.tables.upper_ms(keeps[None])[0] <= budget
    assert (task.keeps_at(task.choice_of(keeps[None])) == keeps).all()


def test_close_to_the_best_of_all_plans() -> None:
    shares = []
    for seed in range(12):
        task = task_of(chain_graph([32, 48, 64, 64]), seed=seed)
        plans = task.keeps_at(np.array(list(itertools.product(*map(range, task.level_count)))))
        budget, params = budget_at(task, 0.7), params_at(task, 0.3)
        fits = (task.tables.upper_ms(plans) <= budget) & (task.graph.params(plans) <= params)
        best, worst = summed_loss(task, plans)[fits].min(), summed_loss(task, plans).max()
        keeps = solve_within(task, budget, params)
        assert keeps is not None
        shares.append((summed_loss(task, keeps[None])[0] - best) / (worst - best))
    assert np.mean(shares) < 0.02
    assert max(shares) < 0.08


def test_the_knapsack_plan_where_it_is_small_enough() -> None:
    task = task_of(chain_graph([32, 48, 64]), seed=1)
    budget = budget_at(task, 0.5)
    [alone] = solve(task, np.array([budget]))
    own = solve_within(task, budget, int(task.graph.params(alone)))
    assert own is not None
    assert own.tolist() == alone.tolist()


def test_losses_that_are_all_zero_do_no_harm() -> None:
    task = task_of(chain_graph([32, 48, 64]), seed=1)
    flat = replace(
        task.profiles, measured_loss=None, initial_loss=np.zeros_like(task.levels, float)
    )
    keeps = solve_within(replace(task, profiles=flat), budget_at(task, 0.5), params_at(task, 0.2))
    assert keeps is not None and task.graph.params(keeps) <= params_at(task, 0.2)


@pytest.mark.parametrize("params", [1, 100])
def test_none_where_even_the_least_widths_are_too_many(params: int) -> None:
    task = task_of(chain_graph([32, 48, 64]), seed=1)
    assert task.graph.params(task.levels[:, 0]) > params
    assert solve_within(task, 2 * task.base_ms, params) is None
