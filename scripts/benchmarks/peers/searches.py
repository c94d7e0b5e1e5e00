"""Searches without a learner: random, evolutionary, and greedy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.peers.amc import amc, random_policy
from benchmarks.peers.search import HAIR, Search, SearchSpace
from rlprune.graph.types import IntArray
from rlprune.solver.knapsack import solve
from rlprune.solver.task import PruningTask

OFFSPRING = 16
POPULATION = 24
TOURNAMENT = 4
CROSSED_RATIO = 0.5
"""Share of children with two parents."""
ANYWHERE_RATIO = 0.15
"""Share of mutated sites that move to any option, not to one of the next two."""
TRIES = 200
"""Proposals in a row that were all seen before; then the space is taken as searched."""


def search_named(method: str, task: PruningTask, budget_ms: float, count: int, seed: int) -> Search:
    """A search by its name, for `count` evaluations; `evolution` starts from the knapsack's plan.

    Raises:
        KeyError: there is none of that name.
    """
    rng = np.random.default_rng(seed)
    space = SearchSpace.of(task, budget_ms)
    made: dict[str, Callable[[], Search]] = {
        "amc": lambda: amc(task, budget_ms, count, seed),
        "random_policy": lambda: random_policy(task, budget_ms, rng),
        "random": lambda: random_search(space, rng),
        "evopress": lambda: evopress(space, rng),
        "netadapt": lambda: netadapt(space, count, rng),
        "evolution": lambda: evolution(space, solve(task, np.array([budget_ms]))[0], rng),
    }
    return made[method]()


def random_search(space: SearchSpace, rng: np.random.Generator) -> Search:
    """Random plans that just fit; the best by loss after statistics correction is kept.

    EagleEye (Li et al., ECCV 2020): random ratios within the constraint, ranked by the accuracy
    with re-estimated BatchNorm. Departs: ratios are moved to meet the budget, none is thrown away.
    """
    seen: set[tuple[int, ...]] = set()
    repeats = 0
    while repeats < TRIES:
        choice = space.random(rng)
        repeats += 1
        if tuple(choice) not in seen:
            seen.add(tuple(choice))
            repeats = 0
            yield choice


def evolution(space: SearchSpace, start: IntArray, rng: np.random.Generator) -> Search:
    """A steady-state genetic algorithm from one plan: tournament, crossover, mutation, repair.

    As in LeGR (Chin et al., CVPR 2020) and MetaPruning (Liu et al., ICCV 2019), over options;
    departs: it starts from `start` (a choice [S], the knapsack's) and its mutations, and no
    plan is evaluated twice.
    """
    people: list[tuple[float, IntArray]] = []
    seen: set[tuple[int, ...]] = set()
    child = space.fitted(start, rng) if not space.fits(start) else start
    while True:
        seen.add(tuple(child))
        loss = yield child
        people.append((loss, child))
        people.sort(key=lambda one: one[0])
        del people[POPULATION:]
        for _ in range(TRIES):
            child = space.fitted(_mutated(_child(people, start, rng), space, rng), rng)
            if tuple(child) not in seen:
                break
        else:
            return


def evopress(space: SearchSpace, rng: np.random.Generator) -> Search:
    """One parent, and `OFFSPRING` children in a generation: the best of all is the next parent.

    EvoPress (Sieberling et al., ICML 2025): a child takes a level from some units and gives it to
    others, so that it is as large as its parent; the first parent is the best of some random plans.
    Departs: children are all judged on the same images, which costs more and decides better than
    its selection in steps.
    """
    losses = []
    for _ in range(OFFSPRING):
        plan = space.random(rng)
        losses.append(((yield plan), plan))
    best, parent = min(losses, key=lambda one: one[0])
    seen = {tuple(plan) for _, plan in losses}
    while True:
        children = []
        for _ in range(TRIES):
            child = _switched(parent, space, rng)
            if tuple(child) not in seen:
                seen.add(tuple(child))
                children.append(child)
            if len(children) == OFFSPRING:
                break
        if not children:
            return
        for child in children:
            loss = yield child
            if loss < best:
                best, parent = loss, child


def _switched(choice: IntArray, space: SearchSpace, rng: np.random.Generator) -> IntArray:
    """A level less at one to three sites, and as many more at others as fit."""
    choice = choice.copy()
    for _ in range(min(rng.integers(1, 4), rng.integers(1, 4))):
        able = space.free[choice[space.free] > 0]
        if len(able):
            choice[rng.choice(able)] -= 1
    return space.fitted(choice, rng)


def _child(
    people: list[tuple[float, IntArray]], start: IntArray, rng: np.random.Generator
) -> IntArray:
    if len(people) < POPULATION // 2:
        return start
    mother, father = (
        people[int(rng.integers(len(people), size=TOURNAMENT).min())][1] for _ in range(2)
    )
    if rng.random() >= CROSSED_RATIO:
        return mother
    return np.where(rng.random(len(mother)) < 0.5, mother, father)


def _mutated(choice: IntArray, space: SearchSpace, rng: np.random.Generator) -> IntArray:
    """One to a few sites moved, mostly by one or two options."""
    choice = choice.copy()
    count = min(int(rng.geometric(0.5)), len(space.free))
    for site in rng.choice(space.free, size=count, replace=False):
        last = int(space.task.option_count[site]) - 1
        if rng.random() < ANYWHERE_RATIO:
            choice[site] = rng.integers(last + 1)
        else:
            choice[site] = np.clip(choice[site] + rng.choice([-2, -1, 1, 2]), 0, last)
    return choice


def netadapt(space: SearchSpace, evaluation_count: int, rng: np.random.Generator) -> Search:
    """Greedy: each round every site alone is shrunk until the round's latency step is met.

    NetAdapt (Yang et al., ECCV 2018): of the sites' proposals the one that loses least is taken,
    until the budget is met. Steps are equal, and as many as `evaluation_count` pays for. Departs:
    proposals are compared after statistics correction, not after short training; where no site
    alone can make the step, each proposes the most that it can save.
    """
    choice, asked = space.task.space.unpruned, 0
    rounds = max(1, evaluation_count // max(1, len(space.free)))
    place = np.arange(space.task.shares.shape[1])
    done = 0
    while not space.fits(choice):
        latency, moves = space.moves(choice)
        step = (latency - space.limit) / max(1, rounds - done)
        below = place < choice[:, None]
        enough = below & (latency + moves <= max(latency - step, space.limit) * (1 - HAIR))
        if enough.any():
            options = {s: np.flatnonzero(enough[s])[-1] for s in space.free if enough[s].any()}
        else:
            saving = np.where(below & (moves < -HAIR), moves, 0.0)
            options = {s: saving[s].argmin() for s in space.free if saving[s].any()}
        if not options or asked + len(options) > evaluation_count:
            break
        proposals = []
        for site, option in options.items():
            proposal = choice.copy()
            proposal[site] = option
            loss = yield proposal
            proposals.append((loss, proposal))
        asked += len(options)
        choice = min(proposals, key=lambda one: one[0])[1]
        done += 1
    if not space.fits(choice):
        yield space.fitted(choice, rng)
