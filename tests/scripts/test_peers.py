"""The benchmark's peers keep their promises on any task: plans within the budget, honest counts."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from synthetic import chain_graph, random_task, task_of

from benchmarks.peers.amc import amc, random_policy
from benchmarks.peers.book import Book
from benchmarks.peers.rules import SensitivityPolicy
from benchmarks.peers.search import Search, SearchSpace, follow
from benchmarks.peers.searches import evolution, evopress, netadapt, random_search
from rlprune.graph.types import FloatArray, IntArray
from rlprune.sensitivity.evaluate import Evaluation
from rlprune.solver.knapsack import budgets_at, least_choice, solve
from rlprune.solver.task import PruningTask

COUNT = 24

Make = Callable[[PruningTask, float], Search]


def _evolution(task: PruningTask, budget: float) -> Search:
    start = solve(task, np.array([budget]))[0]
    return evolution(SearchSpace.of(task, budget), start, np.random.default_rng(1))


SEARCHES: dict[str, Make] = {
    "random": lambda task, b: random_search(SearchSpace.of(task, b), np.random.default_rng(1)),
    "evolution": _evolution,
    "evopress": lambda task, b: evopress(SearchSpace.of(task, b), np.random.default_rng(1)),
    "netadapt": lambda task, b: netadapt(SearchSpace.of(task, b), COUNT, np.random.default_rng(1)),
    "amc": lambda task, b: amc(task, b, COUNT, 1),
    "random_policy": lambda task, b: random_policy(task, b, np.random.default_rng(1)),
}


def budget_of(task: PruningTask, share: float) -> float:
    return float(budgets_at(task, np.array([share]))[0])


def additive(task: PruningTask) -> Callable[[IntArray], float]:
    """Loses the sum of its sites' own losses."""
    curve, sites = task.curve, np.arange(task.site_count)

    def loss(choice: IntArray) -> float:
        return float(curve[sites, choice].sum())

    return loss


def fits_of(task: PruningTask, budget: float) -> Callable[[IntArray], bool]:
    return lambda choice: bool(task.tables.upper_ms(choice[None])[0] <= budget)


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize("seed", range(3))
def test_every_search_answers_with_options_within_the_budget(name: str, seed: int) -> None:
    task = random_task(seed, noise=0.1 * seed)  # with noise fewer channels may cost more
    budget = budget_of(task, 0.2 + 0.2 * seed)
    search = SEARCHES[name](task, budget)
    trail = follow(search, additive(task), fits_of(task, budget), COUNT)
    found = trail.at(COUNT)
    assert 0 < trail.evaluation_count <= COUNT and found is not None
    choice = np.array(found[0])
    assert fits_of(task, budget)(choice)
    assert (choice >= 0).all() and (choice < task.option_count).all()
    assert found[1] == additive(task)(choice)


@pytest.mark.parametrize("name", sorted(SEARCHES.keys() - {"netadapt"}))
def test_all_but_the_greedy_search_propose_nothing_over_the_budget(name: str) -> None:
    task = random_task(2, noise=0.2)
    budget = budget_of(task, 0.3)
    plans: list[IntArray] = []

    def evaluate(choice: IntArray) -> float:
        plans.append(choice)
        return additive(task)(choice)

    follow(SEARCHES[name](task, budget), evaluate, fits_of(task, budget), COUNT)
    assert all(fits_of(task, budget)(choice) for choice in plans)


def test_random_and_evolved_plans_leave_no_room_for_another_option() -> None:
    task = random_task(1)
    budget = budget_of(task, 0.5)
    space = SearchSpace.of(task, budget)
    rng = np.random.default_rng(0)
    for choice in (space.random(rng) for _ in range(20)):
        for site in np.flatnonzero(choice < task.space.unpruned):
            wider = choice.copy()
            wider[site] += 1
            assert not space.fits(wider)


@pytest.mark.parametrize("name", ["netadapt", "evopress"])
@pytest.mark.parametrize("seed", range(3))
def test_they_reach_the_budget_at_little_more_loss_than_the_knapsack(name: str, seed: int) -> None:
    task = random_task(seed)
    budget = budget_of(task, 0.4)
    space, rng = SearchSpace.of(task, budget), np.random.default_rng(0)
    search = evopress(space, rng) if name == "evopress" else netadapt(space, 200, rng)
    trail = follow(search, additive(task), fits_of(task, budget), 200)
    loss = additive(task)
    found = trail.at(200)
    assert found is not None and trail.evaluation_count <= 200
    # Losses do add up here, so the knapsack is (nearly) the best there is.
    best, worst = loss(solve(task, np.array([budget]))[0]), loss(least_choice(task))
    assert found[1] <= best + 0.35 * (worst - best)


@pytest.mark.parametrize("seed", range(3))
def test_evolution_begins_with_its_seed_and_never_ends_worse(seed: int) -> None:
    task = random_task(seed)
    budget = budget_of(task, 0.5)
    start = solve(task, np.array([budget]))[0]
    jitter = np.random.default_rng(seed).normal(size=(task.site_count, 100))

    def loss(choice: IntArray) -> float:
        return additive(task)(choice) + float(np.abs(jitter[range(len(choice)), choice]).sum())

    trail = follow(SEARCHES["evolution"](task, budget), loss, fits_of(task, budget), COUNT)
    assert trail.improvements[0] == (1, tuple(start), loss(start))
    losses = [one[2] for one in trail.improvements]
    assert losses == sorted(losses, reverse=True)
    assert len(losses) > 1  # the knapsack's plan is not the best for this loss
    assert trail.at(0) is None


def test_a_search_is_stopped_by_its_count_and_a_repeated_plan_counts() -> None:
    def endless() -> Search:
        while True:
            yield np.array([8])

    asked: list[IntArray] = []

    def evaluate(choice: IntArray) -> float:
        asked.append(choice)
        return 1.0

    trail = follow(endless(), evaluate, lambda choice: True, 5)
    assert trail.evaluation_count == len(asked) == 5
    assert trail.improvements == ((1, (8,), 1.0),)


def test_a_plan_over_the_budget_counts_and_never_wins() -> None:
    def two() -> Search:
        yield np.array([16])
        yield np.array([8])

    trail = follow(two(), lambda choice: -float(choice[0]), lambda choice: bool(choice[0] < 10), 5)
    assert trail.evaluation_count == 2
    assert trail.at(1) is None and trail.at(5) == ((8,), -8.0)


def test_sensitivity_takes_the_least_options_below_one_threshold() -> None:
    task = random_task(3)
    budgets = budgets_at(task, np.array([0.2, 0.5, 1.0]))
    plans = SensitivityPolicy().plan(task, np.append(budgets, 1e-6))
    assert (task.tables.upper_ms(plans[:3]) <= budgets).all()
    assert (plans[2] == task.space.unpruned).all()
    assert (plans[3] == least_choice(task)).all()
    curve, sites = task.curve, np.arange(task.site_count)
    for choice in plans[:2]:
        threshold = curve[sites, choice].max()
        below = np.maximum(choice - 1, 0)
        # One option less would lose more than any site does, or there is none.
        assert ((choice == 0) | (curve[sites, below] > threshold)).all()


def test_amc_finds_better_plans_after_its_warm_up_than_in_it() -> None:
    task = task_of(chain_graph([64, 64, 64]), round_to=4)
    budget = budget_of(task, 0.9)
    losses: list[float] = []

    def evaluate(choice: IntArray) -> float:
        """Every group should keep a third; a ratio drawn at random is 0.3 from that."""
        shares = task.shares[np.arange(task.site_count), choice]
        losses.append(float(np.abs(shares - 1 / 3).mean()))
        return losses[-1]

    follow(amc(task, budget, 100, 0), evaluate, fits_of(task, budget), 100)
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:25])


def test_the_same_seed_gives_the_same_search() -> None:
    task = random_task(0)
    for make in SEARCHES.values():
        first, second = (
            [tuple(choice) for choice in islice(make(task, budget_of(task, 0.5)), 1)]
            for _ in range(2)
        )
        assert first == second


def evaluation_of(losses: FloatArray) -> Evaluation:
    return Evaluation.of(losses, losses / 2, 0.5)


def test_the_book_asks_once_per_context_and_remembers_when_reopened(tmp_path: Path) -> None:
    made: list[int] = []

    def make() -> Evaluation:
        made.append(1)
        return evaluation_of(np.arange(8.0) / 4)

    keeps = np.array([8, 16])
    book = Book(tmp_path / "book.sqlite")
    first = book.evaluation("here", keeps, make)
    again = book.evaluation("here", keeps, make)
    book.close()
    reopened = Book(tmp_path / "book.sqlite").evaluation("here", keeps, make)
    assert len(made) == 1
    assert first.loss == again.loss == reopened.loss == 0.875
    assert (reopened.image_losses == np.arange(8.0) / 4).all()
    assert first.divergence == again.divergence == reopened.divergence == 0.4375
    assert reopened.accuracy == 0.5 and (reopened.fold_losses == first.fold_losses).all()
    book = Book(tmp_path / "book.sqlite")
    book.evaluation("elsewhere", keeps, make)
    book.evaluation("here", np.array([8, 8]), make)
    assert len(made) == 3


def test_a_finding_is_made_once(tmp_path: Path) -> None:
    book = Book(tmp_path / "book.sqlite")
    assert book.finding("key", lambda: {"loss": 0.1}) == {"loss": 0.1}
    assert book.finding("key", lambda: pytest.fail("asked again")) == {"loss": 0.1}
