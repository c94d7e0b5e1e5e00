"""What pair terms promise: totals and moves exact, plans near the best of all, nothing without."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import random_task, resnet_like, task_of

from rlprune.graph.types import FloatArray, IntArray
from rlprune.solver.knapsack import budgets_at, solve
from rlprune.solver.pair_terms import PairTerms
from rlprune.solver.task import PruningTask

Term = tuple[int, int, int, int]


def random_terms(task: PruningTask, seed: int, *, share: float = 0.4) -> dict[Term, float]:
    """Terms for some pairs of options short of the last, as large as the curves, both signs."""
    rng = np.random.default_rng(seed)
    size = float(np.ptp(task.curve, axis=1).mean())
    return {
        (one, option, two, other): float(rng.normal(0.3, 0.5)) * size
        for one, two in itertools.combinations(range(task.site_count), 2)
        if rng.random() < share
        for option in range(int(task.option_count[one]) - 1)
        for other in range(int(task.option_count[two]) - 1)
    }


def total(task: PruningTask, terms: dict[Term, float], choice: IntArray) -> float:
    """The sum as a reader of the definition would write it."""
    alone = sum(float(task.curve[site, option]) for site, option in enumerate(choice))
    together = sum(
        loss
        for (one, option, two, other), loss in terms.items()
        if choice[one] == option and choice[two] == other
    )
    return alone + together


def all_plans(task: PruningTask) -> IntArray:
    return np.array(list(itertools.product(*map(range, task.option_count))))


def summed(task: PruningTask, pairs: PairTerms, plans: IntArray) -> FloatArray:
    curve = task.curve[np.arange(task.site_count), plans].sum(-1)
    return np.asarray(curve + pairs.total(plans))


def test_totals_and_moves_of_one_site_and_of_two_are_the_sums_of_their_terms() -> None:
    for seed in range(10):
        task = random_task(seed, group_count=4, max_levels=4)
        terms = random_terms(task, seed)
        pairs = PairTerms.of(task.option_count, terms)
        plans = all_plans(task)
        expected = np.array([total(task, terms, plan) for plan in plans])
        assert summed(task, pairs, plans) == pytest.approx(expected)

        plan = plans[np.random.default_rng(seed).integers(len(plans))]
        added, beyond = pairs.around(plan[None])[0], pairs.beyond(plan[None])[0]
        here = pairs.total(plan)
        for site in range(task.site_count):
            for option in range(int(task.option_count[site])):
                moved = plan.copy()
                moved[site] = option
                gain = added[site, option] - added[site, plan[site]]
                assert pairs.total(moved) - here == pytest.approx(gain)
        for edge, (one, two) in enumerate(pairs.edges):
            for option, other in itertools.product(*map(range, task.option_count[[one, two]])):
                moved = plan.copy()
                moved[[one, two]] = option, other
                gain = added[one, option] - added[one, plan[one]] + beyond[edge, option, other]
                gain += added[two, other] - added[two, plan[two]]
                assert pairs.total(moved) - here == pytest.approx(gain, abs=1e-9)


def test_terms_may_be_named_from_either_side() -> None:
    count = np.array([3, 2, 4])
    one = PairTerms.of(count, {(0, 1, 2, 3): 0.5})
    other = PairTerms.of(count, {(2, 3, 0, 1): 0.5})
    assert np.array_equal(one.edges, other.edges) and np.array_equal(one.extra, other.extra)


@pytest.mark.parametrize(
    "term", [(0, 0, 0, 1), (0, 3, 1, 0), (0, 0, 3, 0), (-1, 0, 1, 0), (1, 2, 2, 0)]
)
def test_terms_of_what_is_not_there_are_refused(term: Term) -> None:
    with pytest.raises(ValueError, match="pair term"):
        PairTerms.of(np.array([3, 2, 4]), {term: 1.0})
    with pytest.raises(ValueError, match="pair term"):
        PairTerms.of(np.array([3, 2, 4]), {(0, 0, 1, 0): float("nan")})


def test_without_terms_plans_are_the_same_to_the_last_bit() -> None:
    task = task_of(resnet_like((2, 2, 2)), seed=2, noise=0.1)
    budget_ms = budgets_at(task, np.linspace(0.0, 1.0, 8))
    none = PairTerms.of(task.option_count, {})
    assert np.array_equal(solve(task, budget_ms, pairs=none), solve(task, budget_ms))
    nothing = PairTerms.of(task.option_count, {(0, 0, 3, 0): 0.0})
    assert np.array_equal(solve(task, budget_ms, pairs=nothing), solve(task, budget_ms))


def gaps(task: PruningTask, pairs: PairTerms, found: IntArray, budget_ms: FloatArray) -> FloatArray:
    """Loss above the best of all plans within the budget, as a share of what plans lose."""
    plans = all_plans(task)
    latency, loss = task.tables.upper_ms(plans), summed(task, pairs, plans)
    best = np.array([loss[latency <= budget].min() for budget in budget_ms])
    return np.asarray((summed(task, pairs, found) - best) / max(np.ptp(loss), 1e-12))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    groups=st.integers(2, 5),
    noise=st.sampled_from([0.0, 0.2]),
    share=st.sampled_from([0.2, 0.5, 1.0]),
)
def test_plans_are_within_the_budget_and_near_the_best_of_all(
    seed: int, groups: int, noise: float, share: float
) -> None:
    task = random_task(seed, group_count=groups, max_levels=4, noise=noise)
    pairs = PairTerms.of(task.option_count, random_terms(task, seed, share=share))
    budget_ms = budgets_at(task, np.linspace(0.1, 1.0, 5))
    found = solve(task, budget_ms, pairs=pairs)
    assert (task.tables.upper_ms(found) <= budget_ms).all()
    assert (found < task.option_count).all()
    gap = gaps(task, pairs, found, budget_ms)
    assert gap.min() > -1e-6
    assert gap.max() < 0.15


def test_most_plans_are_the_best_of_all_and_those_without_terms_are_not() -> None:
    with_terms, without = [], []
    for seed in range(40):
        task = random_task(seed, group_count=5, max_levels=4, noise=0.1)
        pairs = PairTerms.of(task.option_count, random_terms(task, seed))
        budget_ms = budgets_at(task, np.linspace(0.1, 0.9, 5))
        with_terms.append(gaps(task, pairs, solve(task, budget_ms, pairs=pairs), budget_ms))
        without.append(gaps(task, pairs, solve(task, budget_ms), budget_ms))
    assert np.mean(np.array(with_terms) < 1e-6) > 0.95
    assert np.mean(with_terms) < 0.1 * np.mean(without)


def test_terms_of_a_last_option_hold_where_other_sites_have_more_options() -> None:
    """A site's curve repeats its last option up to the longest site's; so must its terms."""
    task = next(
        task
        for task in (random_task(seed, group_count=4, max_levels=4) for seed in range(100))
        if task.option_count.min() < task.option_count.max()
    )
    short = int(task.option_count.argmin())
    other = (short + 1) % task.site_count
    last, whole = int(task.option_count[short]) - 1, int(task.option_count[other]) - 1
    pairs = PairTerms.of(task.option_count, {(short, last, other, whole): 10.0})
    found = solve(task, budgets_at(task, np.array([1.001])), pairs=pairs)[0]
    assert (found < task.option_count).all()
    assert (found[short], found[other]) != (last, whole)


def test_a_rows_answer_does_not_depend_on_its_batch() -> None:
    task = random_task(6, group_count=6)
    pairs = PairTerms.of(task.option_count, random_terms(task, 6))
    budget_ms = budgets_at(task, np.linspace(0.1, 0.9, 6))
    apart = [solve(task, budget_ms[row : row + 1], pairs=pairs)[0] for row in range(6)]
    assert np.array_equal(solve(task, budget_ms, pairs=pairs), np.array(apart))
