"""Pinned groups as one group: exact in cost, summed in loss, optimal where all plans are tried."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import pytest
from synthetic import random_graph, random_profiles, random_tables

from rlprune.graph.types import FloatArray, IntArray
from rlprune.policy import POLICY_NAMES, get_policy
from rlprune.sensitivity.energy import loss_curve
from rlprune.sensitivity.types import keep_levels
from rlprune.solver.knapsack import solve
from rlprune.solver.pinned import PinnedTask
from rlprune.solver.task import PruningTask

PINS = ((0, 2, 3),)


def task_with_pins(seed: int, *, folds: int = 4, noise: float = 0.0) -> PruningTask:
    """Five groups wired at random, of widths whose ratios are eighths; 0, 2 and 3 are pinned."""
    rng = np.random.default_rng(seed)
    graph = random_graph(rng, 5)
    widths = rng.choice([16, 32, 48], 5)
    graph = replace(
        graph,
        groups=tuple(
            replace(group, width=int(width))
            for group, width in zip(graph.groups, widths, strict=True)
        ),
    )
    levels, count = keep_levels(graph, round_to=4, pins=PINS, max_levels=4)
    tables = random_tables(graph, levels, count, rng, noise=noise)
    return PruningTask(graph, tables, random_profiles(graph, levels, count, rng, folds=folds))


def every_plan(task: PruningTask) -> IntArray:
    """All keeps of a small task [N, G]."""
    choices = product(*(range(int(count)) for count in task.level_count))
    return task.keeps_at(np.array(list(choices)))


@pytest.mark.parametrize("noise", [0.0, 0.3])
@pytest.mark.parametrize("seed", range(6))
def test_merged_tables_and_graph_cost_what_the_expanded_plan_costs(seed: int, noise: float) -> None:
    task = task_with_pins(seed, noise=noise)
    pinned = PinnedTask.of(task, PINS)
    assert pinned.task.group_count == 3
    merged = every_plan(pinned.task)
    keeps = pinned.expand(merged)
    assert len(np.unique(keeps[:, PINS[0]] / task.graph.widths[list(PINS[0])], axis=0)) > 1
    np.testing.assert_array_equal(
        pinned.task.tables.latency_ms(merged), task.tables.latency_ms(keeps)
    )
    np.testing.assert_array_equal(pinned.task.graph.macs(merged), task.graph.macs(keeps))
    for group in range(3):
        moved = np.repeat(merged[:5, None], pinned.task.levels.shape[1], axis=1)
        moved[..., group] = pinned.task.levels[group]
        np.testing.assert_allclose(
            np.diff(pinned.task.tables.group_ms(merged[:5], group)),
            np.diff(task.tables.latency_ms(pinned.expand(moved).reshape(-1, 5)).reshape(5, -1)),
            atol=1e-9,
        )


@pytest.mark.parametrize("folds", [0, 1])
def test_the_merged_curve_is_the_sum_of_the_curves(folds: int) -> None:
    for seed in range(4):
        task = task_with_pins(seed, folds=folds)
        whole = loss_curve(task.profiles, task.graph)
        pinned = PinnedTask.of(task, PINS).task
        merged = loss_curve(pinned.profiles, pinned.graph)
        np.testing.assert_allclose(merged[0], whole[[0, 2, 3]].sum(0), rtol=1e-9)
        np.testing.assert_allclose(merged[1:], whole[[1, 4]], rtol=1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_the_knapsack_over_pins_is_the_best_of_all_pinned_plans(seed: int) -> None:
    task = task_with_pins(seed)
    curve = loss_curve(task.profiles, task.graph)
    plans = every_plan(task)
    ratio = plans[:, PINS[0]] / task.graph.widths[list(PINS[0])]
    plans = plans[(ratio == ratio[:, :1]).all(1)]
    loss = curve[np.arange(5), task.choice_of(plans)].sum(1)
    upper = task.tables.upper_ms(plans)
    pinned = PinnedTask.of(task, PINS)
    budgets = upper.min() + np.array([0.0, 0.25, 0.5, 0.75, 1.0]) * (upper.max() - upper.min())
    keeps = pinned.expand(solve(pinned.task, budgets))
    assert (task.tables.upper_ms(keeps) <= budgets).all()
    found = curve[np.arange(5), task.choice_of(keeps)].sum(1)
    best = np.array([loss[upper <= budget].min() for budget in budgets])
    np.testing.assert_allclose(found, best, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", POLICY_NAMES)
def test_every_policy_plans_pinned_groups_at_one_ratio_within_the_budget(name: str) -> None:
    task = task_with_pins(3)
    pinned = PinnedTask.of(task, PINS)
    budgets = np.array([0.5, 0.7, 0.9]) * task.base_ms * task.tables.interval.high_ratio
    keeps = pinned.expand(get_policy(name).plan(pinned.task, budgets))
    ratio = keeps[:, PINS[0]] / task.graph.widths[list(PINS[0])]
    assert (ratio == ratio[:, :1]).all()
    assert (task.tables.upper_ms(keeps) <= budgets).all()


def test_without_pins_the_task_is_itself() -> None:
    task = task_with_pins(0)
    pinned = PinnedTask.of(task, ())
    assert pinned.task is task
    assert (pinned.expand(task.levels.T) == task.levels.T).all()


def test_levels_of_different_ratios_are_refused() -> None:
    task = task_with_pins(0)
    levels = task.levels.copy()
    levels[2, 0] += 4
    odd = replace(task, tables=replace(task.tables, levels=levels))
    with pytest.raises(ValueError, match="ratios"):
        PinnedTask.of(odd, PINS)


@dataclass(frozen=True)
class _Sum:
    """An objective that tells the keeps it was asked about."""

    def loss(self, keeps: IntArray) -> FloatArray:
        return keeps.astype(np.float64) @ np.array([1.0, 10.0, 100.0, 1e3, 1e4])


def test_the_objective_is_asked_about_whole_plans() -> None:
    task = replace(task_with_pins(1), objective=_Sum())
    pinned = PinnedTask.of(task, PINS)
    assert pinned.task.objective is not None
    merged = every_plan(pinned.task)
    np.testing.assert_array_equal(
        pinned.task.objective.loss(merged), _Sum().loss(pinned.expand(merged))
    )
