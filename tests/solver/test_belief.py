"""What evaluated plans say of every option's loss: Bayes' rule, and enough of it to plan by."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from synthetic import random_task

from rlprune.graph.types import FloatArray, IntArray
from rlprune.schemes import Space
from rlprune.solver.belief import FLOOR, Belief, Spread
from rlprune.solver.knapsack import budgets_at, solve
from rlprune.solver.task import PruningTask


def task_with(seed: int, sites: int = 6) -> PruningTask:
    return random_task(seed, group_count=sites)


def random_choices(space: Space, count: int, rng: np.random.Generator) -> IntArray:
    return rng.integers(0, space.option_count, (count, len(space.sites)))


def wrong_curve(task: PruningTask, seed: int, spread: Spread) -> FloatArray:
    """The task's own losses times factors of the kind that is believed."""
    rng = np.random.default_rng(seed)
    belief = Belief.of(task.space, task.curve, spread)
    return belief.draws(1, rng)[0]


def losses(curve: FloatArray, choice: IntArray) -> FloatArray:
    return np.asarray(curve[np.arange(choice.shape[1]), choice].sum(1))


def test_of_single_changes_it_is_the_conditional_of_a_gaussian() -> None:
    """There the logarithm of a loss is linear in one factor, so nothing is approximated."""
    task = task_with(0)
    space, spread = task.space, Spread(error=0.1)
    belief = Belief.of(space, task.curve, spread)
    places = [(0, 0), (0, 1), (2, 0)]
    choice = np.tile(space.unpruned, (len(places), 1))
    for row, (site, option) in enumerate(places):
        choice[row, site] = option
    factors, error = np.array([0.4, -0.3, 0.9]), np.array([0.05, 0.2, 0.1])
    told = np.exp(factors) * (losses(task.curve, choice) + FLOOR) - FLOOR
    after = belief.after(choice, told, error)
    flat = [(site, option) for site in range(3) for option in range(2)]
    cov = np.array(
        [[belief.covariance[a, i, j] * (a == b) for b, j in flat] for a, i in flat]
    )  # [6, 6]
    rows = [flat.index(place) for place in places]
    noise = np.diag(error**2 + spread.error**2)
    gain = cov[:, rows] @ np.linalg.inv(cov[np.ix_(rows, rows)] + noise)
    expected = gain @ factors
    found = [after.factors[place] for place in flat]
    assert found == pytest.approx(expected, abs=1e-9)
    left = (cov - gain @ cov[rows]).diagonal()
    assert after.expected(choice)[1] == pytest.approx(np.sqrt(left[rows]), abs=1e-9)


def test_draws_spread_as_they_are_said_to() -> None:
    task = task_with(1)
    rng = np.random.default_rng(0)
    belief = Belief.of(task.space, task.curve)
    belief = belief.after(random_choices(task.space, 5, rng), np.full(5, 0.3), np.full(5, 0.1))
    one = np.tile(task.space.unpruned, (1, 1))
    one[0, 3] = 0
    mean, deviation = belief.expected(one)
    drawn = np.log(belief.draws(4000, rng)[:, 3, 0])
    assert drawn.mean() == pytest.approx(mean[0], abs=4 * deviation[0] / 60)
    assert drawn.std() == pytest.approx(deviation[0], rel=0.06)


def test_an_option_that_changes_nothing_is_believed_to_lose_nothing() -> None:
    task = task_with(2)
    belief = Belief.of(task.space, task.curve)
    for curve in (belief.curve, *belief.draws(3, np.random.default_rng(0))):
        assert not curve[np.arange(task.site_count), task.space.unpruned].any()


def test_what_was_seen_is_expected_and_what_was_not_is_left_open() -> None:
    task = task_with(3, sites=8)
    rng = np.random.default_rng(0)
    belief = Belief.of(task.space, task.curve)
    choice = random_choices(task.space, 12, rng)
    truth = losses(wrong_curve(task, 5, Spread()), choice)
    before = belief.expected(choice)
    after = belief.after(choice, truth, np.full(12, 0.02))
    mean, deviation = after.expected(choice)
    assert np.abs(mean - np.log(truth + FLOOR)).max() < 0.2
    assert (deviation < 0.3 * before[1]).all()
    unseen = np.tile(task.space.unpruned, (1, 1))
    assert after.expected(unseen)[0] == pytest.approx(np.log(FLOOR))


def test_plans_told_one_after_the_other_say_what_they_say_together() -> None:
    task = task_with(4)
    rng = np.random.default_rng(0)
    choice = random_choices(task.space, 6, rng)
    loss, error = losses(wrong_curve(task, 6, Spread()), choice), np.full(6, 0.1)
    start = Belief.of(task.space, task.curve)
    together = start.after(choice, loss, error)
    apart = start
    for row in range(6):
        apart = apart.after(choice[[row]], loss[[row]], error[[row]])
    assert apart.factors == pytest.approx(together.factors, abs=0.02)


@pytest.mark.parametrize("seed", range(4))
def test_rounds_of_plans_find_what_a_knapsack_by_the_truth_finds(seed: int) -> None:
    """Six rounds of eight plans, each drawn from what is believed, in a world of sums."""
    task = task_with(10 + seed, sites=8)
    truth = wrong_curve(task, seed, Spread(site=1.0))
    budget = budgets_at(task, np.array([0.4]))
    best = losses(truth, solve(task, budget, loss=truth))[0]
    start = losses(truth, solve(task, budget))[0]
    rng = np.random.default_rng(seed)
    belief, found = Belief.of(task.space, task.curve, Spread(site=1.0)), [start]
    for _ in range(6):
        choice = solve(task, np.repeat(budget, 8), loss=belief.draws(8, rng))
        told = losses(truth, choice)
        found.append(float(told.min()))
        belief = belief.after(choice, told, np.full(8, 0.02))
    assert min(found) <= best + 0.1 * (start - best) + 0.02 * best


def test_believing_changes_nothing_in_place() -> None:
    task = task_with(5)
    belief = Belief.of(task.space, task.curve)
    kept = replace(belief, factors=belief.factors.copy())
    belief.after(task.space.unpruned[None] - 1, np.array([0.5]), np.array([0.1]))
    assert np.array_equal(belief.factors, kept.factors) and not len(belief.seen.choice)
