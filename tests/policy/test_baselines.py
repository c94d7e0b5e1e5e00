"""Policies that learn nothing keep their promises on any task."""

from __future__ import annotations

from pathlib import Path

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
from rlprune.policy.corrected import (
    NUMBERS,
    CorrectedKnapsackPolicy,
    bend,
    budgets_at,
    fit_corrected,
)
from rlprune.solver.knapsack import least_keeps, solve

SHARES = np.array([0.1, 0.4, 0.7, 1.0])
BENT = CorrectedKnapsackPolicy(tuple(0.1 * (-1) ** i for i in range(len(NUMBERS))))


@pytest.mark.parametrize(
    "policy",
    [UniformPolicy(), PlainUniformPolicy(), GlobalMagnitudePolicy(), KnapsackPolicy(), BENT],
    ids=lambda p: p.name,
)
@pytest.mark.parametrize("seed", range(4))
def test_plans_are_levels_within_the_budget_or_the_least(policy: Policy, seed: int) -> None:
    task = random_task(seed, noise=0.1 * seed, folds=4 * (seed % 2))
    budget = np.append(budgets_at(task, SHARES), 1e-6)
    keeps = policy.plan(task, budget)
    assert keeps.shape == (5, task.group_count)
    assert all(keep in task.levels[g] for row in keeps for g, keep in enumerate(row))
    assert (task.tables.upper_ms(keeps)[:4] <= budget[:4]).all()
    assert (keeps[4] == least_keeps(task)).all()  # nothing fits a nanosecond


@pytest.mark.parametrize("policy", [UniformPolicy(), GlobalMagnitudePolicy(), KnapsackPolicy()])
def test_the_full_budget_keeps_everything(policy: Policy) -> None:
    task = random_task(3)
    keeps = policy.plan(task, task.tables.upper_ms(task.graph.widths[None]) * 1.001)
    assert (keeps[0] == task.graph.widths).all()


def test_plain_uniform_keeps_one_ratio_rounded_to_the_nearest_level() -> None:
    task = learnable_task(0)
    keeps = PlainUniformPolicy().plan(task, budgets_at(task, np.array([0.5])))[0]
    width = task.graph.widths
    nearest = [np.abs(task.levels / width[:, None] - r) for r in np.linspace(0, 1, 4001)]
    plans = {tuple(task.keeps_at(gap.argmin(1))) for gap in nearest}
    assert tuple(keeps) in plans


@pytest.mark.parametrize("seed", range(4))
def test_filled_uniform_keeps_what_the_plain_one_does_until_nothing_more_fits(seed: int) -> None:
    task = random_task(seed, noise=0.1 * seed)
    budget = budgets_at(task, SHARES)
    plain, filled = PlainUniformPolicy().plan(task, budget), UniformPolicy().plan(task, budget)
    assert (filled >= plain).all()
    choice = task.choice_of(filled)
    for row, limit in zip(choice, budget, strict=True):
        for group in np.flatnonzero(row < task.level_count - 1):
            more = row.copy()
            more[group] += 1
            assert task.tables.upper_ms(task.keeps_at(more[None]))[0] > limit


def test_global_magnitude_cuts_where_energy_is_low_and_ignores_losses() -> None:
    task = random_task(5)
    energy = task.profiles.energy_loss
    assert energy is not None
    keeps = GlobalMagnitudePolicy().plan(task, budgets_at(task, np.array([0.5])))[0]
    choice = (task.levels < keeps[:, None]).sum(1)
    units = np.diff(task.levels, axis=1)
    score = (energy[:, :-1] - energy[:, 1:]) / np.maximum(units, 1) * task.levels[:, -1:]
    score = np.minimum.accumulate(np.where(units > 0, score, np.inf), axis=1)
    kept = [score[g, c - 1] for g, c in enumerate(choice) if c > 0]
    dropped = [score[g, c] for g, c in enumerate(choice) if c < task.level_count[g] - 1]
    assert min(kept) >= max(dropped)


def test_numbers_of_zero_are_the_knapsack() -> None:
    task = random_task(7)
    budget = budgets_at(task, SHARES)
    plain = CorrectedKnapsackPolicy((0.0,) * len(NUMBERS))
    assert (plain.plan(task, budget) == solve(task, budget)).all()


def test_bent_curves_fall_with_the_level_and_end_at_zero() -> None:
    task = random_task(8)
    numbers = np.random.default_rng(0).normal(0, 2, (20, len(NUMBERS)))
    curves = bend(task, numbers)
    assert (np.diff(curves, axis=2) <= 1e-12).all()
    assert (curves[:, :, -1] == 0).all()


def test_fitted_numbers_beat_the_knapsack_on_graphs_they_never_saw() -> None:
    fitted = fit_corrected(
        [learnable_task(seed, (1 + seed % 2, 1)) for seed in range(3)],
        budget_count=3,
        generations=12,
        population=10,
    )
    ratios = []
    for seed in (100, 101, 102, 103):
        task = learnable_task(seed)
        assert task.objective is not None
        budget = budgets_at(task, SHARES[:3])
        ours = task.objective.loss(fitted.plan(task, budget)).sum()
        ratios.append(ours / task.objective.loss(solve(task, budget)).sum())
    assert np.mean(ratios) < 0.95


def test_corrected_knapsack_survives_its_file_and_its_name_follows_its_numbers(
    tmp_path: Path,
) -> None:
    path = tmp_path / "corrected.json"
    BENT.save(path)
    loaded = get_policy(str(path))
    assert loaded == BENT and loaded.name == BENT.name
    assert CorrectedKnapsackPolicy((0.0,) * len(NUMBERS)).name != BENT.name


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"format": "rlprune.corrected/0"}'])
def test_damaged_numbers_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "corrected.json"
    path.write_text(text)
    with pytest.raises(PolicyError, match=r"corrected\.json"):
        get_policy(str(path))


def test_unknown_policy_is_refused_by_name() -> None:
    with pytest.raises(PolicyError, match="'amc'"):
        get_policy("amc")
