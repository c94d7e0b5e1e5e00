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
from rlprune.solver.knapsack import least_choice, solve
from rlprune.solver.second_budget import solve_within
from rlprune.solver.task import PruningTask


def summed_loss(task: PruningTask, choice: IntArray) -> FloatArray:
    return np.asarray(task.curve[np.arange(task.site_count), choice].sum(-1))


def budget_at(task: PruningTask, position: float) -> float:
    least, base = task.tables.upper_ms(np.stack([least_choice(task), task.space.unpruned]))
    return float(least + position * (base - least))


def params_at(task: PruningTask, position: float) -> int:
    least, base = task.space.params(np.stack([0 * task.space.unpruned, task.space.unpruned]))
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
    choice = solve_within(task, budget, params)
    if choice is None:  # the least widths of all are the only certain plan
        assert size < 0.2
        return
    assert task.space.params(choice) <= params
    assert task.tables.upper_ms(choice[None])[0] <= budget
    assert ((choice >= 0) & (choice < task.option_count)).all()


def test_close_to_the_best_of_all_plans() -> None:
    shares = []
    for seed in range(12):
        task = task_of(chain_graph([32, 48, 64, 64]), seed=seed)
        plans = np.array(list(itertools.product(*map(range, task.option_count))))
        budget, params = budget_at(task, 0.7), params_at(task, 0.3)
        fits = (task.tables.upper_ms(plans) <= budget) & (task.space.params(plans) <= params)
        best, worst = summed_loss(task, plans)[fits].min(), summed_loss(task, plans).max()
        choice = solve_within(task, budget, params)
        assert choice is not None
        shares.append((summed_loss(task, choice[None])[0] - best) / (worst - best))
    assert np.mean(shares) < 0.02
    assert max(shares) < 0.08


def test_the_knapsack_plan_where_it_is_small_enough() -> None:
    task = task_of(chain_graph([32, 48, 64]), seed=1)
    budget = budget_at(task, 0.5)
    [alone] = solve(task, np.array([budget]))
    own = solve_within(task, budget, int(task.space.params(alone)))
    assert own is not None
    assert own.tolist() == alone.tolist()


def test_losses_that_are_all_zero_do_no_harm() -> None:
    task = task_of(chain_graph([32, 48, 64]), seed=1)
    flat = replace(task.profiles, measured_loss=None, initial_loss=np.zeros_like(task.shares))
    choice = solve_within(replace(task, profiles=flat), budget_at(task, 0.5), params_at(task, 0.2))
    assert choice is not None and task.space.params(choice) <= params_at(task, 0.2)


@pytest.mark.parametrize("params", [1, 100])
def test_none_where_even_the_least_widths_are_too_many(params: int) -> None:
    task = task_of(chain_graph([32, 48, 64]), seed=1)
    assert task.space.params(0 * task.space.unpruned) > params
    assert solve_within(task, 2 * task.base_ms, params) is None
