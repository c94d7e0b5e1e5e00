"""Pinned groups as one group: exact in cost, summed in loss, optimal where all plans are tried."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import pytest
from calibrated import traced
from synthetic import random_graph, random_profiles, random_tables

from rlprune.graph.types import FloatArray, IntArray
from rlprune.policy import POLICY_NAMES, get_policy
from rlprune.schemes import space_with
from rlprune.schemes.channels import keep_levels
from rlprune.solver.costs import MoveCosts
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
    space = space_with(graph, *keep_levels(graph, round_to=4, pins=PINS, max_levels=4))
    tables = random_tables(space, rng, noise=noise)
    return PruningTask(space, tables, random_profiles(space, rng, folds=folds))


def every_plan(task: PruningTask) -> IntArray:
    """All choices of a small task [N, S]."""
    return np.array(list(product(*(range(int(count)) for count in task.option_count))))


def ratios(task: PruningTask, choice: IntArray) -> FloatArray:
    """Shares that the pinned groups keep [N, 3]."""
    pinned = list(PINS[0])
    return np.asarray(task.space.settings_at(choice)[:, pinned] / task.graph.widths[pinned])


@pytest.mark.parametrize("noise", [0.0, 0.3])
@pytest.mark.parametrize("seed", range(6))
def test_merged_tables_and_graph_cost_what_the_expanded_plan_costs(seed: int, noise: float) -> None:
    task = task_with_pins(seed, noise=noise)
    pinned = PinnedTask.of(task, PINS)
    assert pinned.task.site_count == 3
    merged = every_plan(pinned.task)
    choice = pinned.expand(merged)
    assert len(np.unique(ratios(task, choice), axis=0)) > 1
    np.testing.assert_array_equal(
        pinned.task.tables.latency_ms(merged), task.tables.latency_ms(choice)
    )
    np.testing.assert_array_equal(
        pinned.task.tables.operator_ms(merged), task.tables.operator_ms(choice)
    )
    np.testing.assert_array_equal(pinned.task.space.macs(merged), task.space.macs(choice))
    costs = MoveCosts.of(pinned.task.tables)
    for site in range(3):
        count = int(pinned.task.option_count[site])
        moved = np.repeat(merged[:5, None], count, axis=1)
        moved[..., site] = np.arange(count)
        np.testing.assert_allclose(
            np.diff(costs.site_moves_ms(merged[:5], site)[1][:, :count]),
            np.diff(task.tables.latency_ms(pinned.expand(moved).reshape(-1, 5)).reshape(5, -1)),
            atol=1e-9,
        )


@pytest.mark.parametrize("name", ["resnet_b", "mobilenet_v2", "dense_concat", "vgg_flatten"])
def test_the_merged_task_counts_what_the_expanded_plan_has(name: str) -> None:
    """Parameters too, of files whose weights were counted: their axes are merged as widths are."""
    graph = traced(name).graph
    assert graph.weights
    pins = (tuple(range(0, len(graph.groups), 2)),)
    space = space_with(graph, *keep_levels(graph, round_to=1, pins=pins, max_levels=4))
    rng = np.random.default_rng(0)
    task = PruningTask(space, random_tables(space, rng), random_profiles(space, rng))
    pinned = PinnedTask.of(task, pins)
    assert pinned.task.site_count < task.site_count
    merged = rng.integers(0, pinned.task.option_count, (50, pinned.task.site_count))
    choice = pinned.expand(merged)
    assert len(np.unique(task.space.params(choice))) > 1
    np.testing.assert_array_equal(pinned.task.space.params(merged), task.space.params(choice))
    np.testing.assert_array_equal(pinned.task.space.macs(merged), task.space.macs(choice))


@pytest.mark.parametrize("folds", [0, 1])
def test_the_merged_curve_is_the_sum_of_the_curves(folds: int) -> None:
    for seed in range(4):
        task = task_with_pins(seed, folds=folds)
        whole = task.curve
        pinned = PinnedTask.of(task, PINS).task
        merged = pinned.curve
        np.testing.assert_allclose(merged[0], whole[[0, 2, 3]].sum(0), rtol=1e-9)
        np.testing.assert_allclose(merged[1:], whole[[1, 4]], rtol=1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_the_knapsack_over_pins_is_the_best_of_all_pinned_plans(seed: int) -> None:
    task = task_with_pins(seed)
    curve = task.curve
    plans = every_plan(task)
    ratio = ratios(task, plans)
    plans = plans[(ratio == ratio[:, :1]).all(1)]
    loss = curve[np.arange(5), plans].sum(1)
    upper = task.tables.upper_ms(plans)
    pinned = PinnedTask.of(task, PINS)
    budgets = upper.min() + np.array([0.0, 0.25, 0.5, 0.75, 1.0]) * (upper.max() - upper.min())
    choice = pinned.expand(solve(pinned.task, budgets))
    assert (task.tables.upper_ms(choice) <= budgets).all()
    found = curve[np.arange(5), choice].sum(1)
    best = np.array([loss[upper <= budget].min() for budget in budgets])
    np.testing.assert_allclose(found, best, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", POLICY_NAMES)
def test_every_policy_plans_pinned_groups_at_one_ratio_within_the_budget(name: str) -> None:
    task = task_with_pins(3)
    pinned = PinnedTask.of(task, PINS)
    budgets = np.array([0.5, 0.7, 0.9]) * task.base_ms * task.tables.interval.high_ratio
    choice = pinned.expand(get_policy(name).plan(pinned.task, budgets))
    ratio = ratios(task, choice)
    assert (ratio == ratio[:, :1]).all()
    assert (task.tables.upper_ms(choice) <= budgets).all()


def test_without_pins_the_task_is_itself() -> None:
    task = task_with_pins(0)
    pinned = PinnedTask.of(task, ())
    assert pinned.task is task
    plans = every_plan(task)
    assert (pinned.expand(plans) == plans).all()


def test_options_of_different_ratios_are_refused() -> None:
    task = task_with_pins(0)
    levels = task.space.settings.copy()
    levels[2, 0] += 4
    odd = replace(task, space=space_with(task.graph, levels, task.option_count))
    with pytest.raises(ValueError, match="ratios"):
        PinnedTask.of(odd, PINS)


@dataclass(frozen=True)
class _Sum:
    """Some objective over the settings of the whole task."""

    def loss(self, settings: IntArray) -> FloatArray:
        return settings.astype(np.float64) @ np.array([1.0, 10.0, 100.0, 1e3, 1e4])


def test_an_objective_over_whole_plans_is_not_asked_about_merged_ones() -> None:
    task = replace(task_with_pins(1), objective=_Sum())
    assert PinnedTask.of(task, PINS).task.objective is None
