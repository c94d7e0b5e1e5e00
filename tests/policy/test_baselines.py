"""Policies that learn nothing keep their promises on any task."""

from __future__ import annotations

import numpy as np
import pytest
from learnable import learnable_task
from synthetic import random_task

from rlprune.errors import PolicyError
from rlprune.policy import get_policy
from rlprune.policy.base import Policy
from rlprune.policy.baselines import (
    GlobalMagnitudePolicy,
    KnapsackPolicy,
    PlainUniformPolicy,
    UniformPolicy,
)
from rlprune.solver.knapsack import budgets_at, least_choice

SHARES = np.array([0.1, 0.4, 0.7, 1.0])


@pytest.mark.parametrize(
    "policy",
    [UniformPolicy(), PlainUniformPolicy(), GlobalMagnitudePolicy(), KnapsackPolicy()],
    ids=lambda p: p.name,
)
@pytest.mark.parametrize("seed", range(4))
def test_plans_are_options_within_the_budget_or_the_least(policy: Policy, seed: int) -> None:
    task = random_task(seed, noise=0.1 * seed, folds=4 * (seed % 2))
    budget = np.append(budgets_at(task, SHARES), 1e-6)
    choice = policy.plan(task, budget)
    assert choice.shape == (5, task.site_count)
    assert ((choice >= 0) & (choice < task.option_count)).all()
    assert (task.tables.upper_ms(choice)[:4] <= budget[:4]).all()
    assert (choice[4] == least_choice(task)).all()  # nothing fits a nanosecond


@pytest.mark.parametrize("policy", [UniformPolicy(), GlobalMagnitudePolicy(), KnapsackPolicy()])
def test_the_full_budget_keeps_everything(policy: Policy) -> None:
    task = random_task(3)
    choice = policy.plan(task, task.tables.upper_ms(task.space.unpruned[None]) * 1.001)
    assert (choice[0] == task.space.unpruned).all()


def test_plain_uniform_keeps_one_ratio_rounded_to_the_nearest_level() -> None:
    task = learnable_task(0)
    choice = PlainUniformPolicy().plan(task, budgets_at(task, np.array([0.5])))[0]
    nearest = [np.abs(task.shares - ratio) for ratio in np.linspace(0, 1, 4001)]
    assert tuple(choice) in {tuple(gap.argmin(1)) for gap in nearest}


@pytest.mark.parametrize("seed", range(4))
def test_filled_uniform_keeps_what_the_plain_one_does_until_nothing_more_fits(seed: int) -> None:
    task = random_task(seed, noise=0.1 * seed)
    budget = budgets_at(task, SHARES)
    plain, filled = PlainUniformPolicy().plan(task, budget), UniformPolicy().plan(task, budget)
    assert (filled >= plain).all()
    for row, limit in zip(filled, budget, strict=True):
        for site in np.flatnonzero(row < task.option_count - 1):
            more = row.copy()
            more[site] += 1
            assert task.tables.upper_ms(more[None])[0] > limit


def test_global_magnitude_cuts_where_energy_is_low_and_ignores_losses() -> None:
    task = random_task(5)
    energy = task.profiles.energy_loss
    assert energy is not None
    choice = GlobalMagnitudePolicy().plan(task, budgets_at(task, np.array([0.5])))[0]
    units = np.diff(task.space.settings, axis=1)
    score = (energy[:, :-1] - energy[:, 1:]) / np.maximum(units, 1) * task.space.settings[:, -1:]
    score = np.minimum.accumulate(np.where(units > 0, score, np.inf), axis=1)
    kept = [score[g, c - 1] for g, c in enumerate(choice) if c > 0]
    dropped = [score[g, c] for g, c in enumerate(choice) if c < task.option_count[g] - 1]
    assert min(kept) >= max(dropped)


def test_unknown_policy_is_refused_by_name() -> None:
    with pytest.raises(PolicyError, match="'amc'"):
        get_policy("amc")


def test_a_policy_of_earlier_versions_is_refused_with_the_one_to_use_instead() -> None:
    with pytest.raises(PolicyError, match="'corrected' is no longer there; give 'knapsack'"):
        get_policy("corrected")
