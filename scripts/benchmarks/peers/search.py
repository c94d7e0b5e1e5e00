"""What a search is here: it proposes plans, is told what they cost on the objective's images, and
is stopped by a count. That cost is called a loss.

Whoever runs a search evaluates for it and counts: an evaluation that another search asked for
before costs this one just as much.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass

import numpy as np

from rlprune.graph.types import FloatArray, IntArray
from rlprune.solver.costs import MoveCosts
from rlprune.solver.knapsack import latency_limit, least_choice
from rlprune.solver.task import PruningTask

Search = Generator[IntArray, float, None]
"""Yields choices [S] to be evaluated and is sent the loss [nats]; may end before it is stopped."""

HAIR = 1e-12
"""Relative; single moves are added to a latency, which rounds differently from the whole sum."""


@dataclass(frozen=True)
class Trail:
    """What a search found, by the number of its evaluations."""

    evaluation_count: int
    improvements: tuple[tuple[int, tuple[int, ...], float], ...]
    """(evaluations so far, choice, loss) of every plan within the budget that beat those before."""

    def at(self, count: int) -> tuple[tuple[int, ...], float] | None:
        """Best plan within the budget, and its loss, after `count` evaluations; None before one."""
        known = [(choice, loss) for after, choice, loss in self.improvements if after <= count]
        return known[-1] if known else None


def follow(
    search: Search,
    evaluate: Callable[[IntArray], float],
    fits: Callable[[IntArray], bool],
    count: int,
    on_progress: Callable[[int, float], None] | None = None,
) -> Trail:
    """Runs `search` for at most `count` evaluations; plans over the budget count but never win.

    `on_progress(done, best loss)` is called after each.
    """
    improvements: list[tuple[int, tuple[int, ...], float]] = []
    best, done = np.inf, 0
    answer: float | None = None
    while done < count:
        try:
            choice = next(search) if answer is None else search.send(answer)
        except StopIteration:
            break
        answer = evaluate(choice)
        done += 1
        if answer < best and fits(choice):
            best = answer
            improvements.append((done, tuple(choice.tolist()), answer))
        if on_progress is not None:
            on_progress(done, best)
    search.close()
    return Trail(done, tuple(improvements))


@dataclass(frozen=True)
class SearchSpace:
    """The choices of one task within one budget."""

    task: PruningTask
    costs: MoveCosts
    limit: float
    """What the predicted latency may be, ms."""
    least: IntArray
    """The cheapest plan known; the answer where a budget cannot be met."""

    @staticmethod
    def of(task: PruningTask, budget_ms: float) -> SearchSpace:
        return SearchSpace(
            task,
            MoveCosts.of(task.tables),
            float(latency_limit(task, np.array([budget_ms]))[0]),
            least_choice(task),
        )

    @property
    def free(self) -> IntArray:
        """The sites that have a choice."""
        return np.flatnonzero(self.task.option_count > 1)

    def fits(self, choice: IntArray) -> bool:
        return bool(self.costs.latency_ms(choice[None])[0] <= self.limit)

    def moves(self, choice: IntArray) -> tuple[float, FloatArray]:
        """Latency of a plan, and what moving one site alone to each option adds [S, L], ms."""
        latency, moves = self.costs.moves_ms(choice[None])
        return float(latency[0]), moves[0]

    def fitted(self, choice: IntArray, rng: np.random.Generator) -> IntArray:
        """The plan brought to just within the budget by single options of random sites.

        First down until it fits, each time to the nearest option that is cheaper, then up as
        long as anything fits; `least` where going down leads nowhere.
        """
        choice = choice.copy()
        place = np.arange(self.task.shares.shape[1])
        while not self.fits(choice):
            _, moves = self.moves(choice)
            down = (place < choice[:, None]) & (moves < -HAIR)
            able = np.flatnonzero(down.any(1))
            if not len(able):
                return self.least.copy()
            site = rng.choice(able)
            choice[site] = np.flatnonzero(down[site])[-1]
        while True:
            latency, moves = self.moves(choice)
            up = (place > choice[:, None]) & (place < self.task.option_count[:, None])
            up &= latency + moves <= self.limit * (1 - HAIR)
            able = np.flatnonzero(up.any(1))
            if not len(able):
                return choice
            site = rng.choice(able)
            choice[site] = np.flatnonzero(up[site])[0]

    def random(self, rng: np.random.Generator) -> IntArray:
        """Random keep ratios, shifted together to where they just fit, and rounded to options."""
        share = self.task.shares
        wanted = rng.random(len(share))
        low, high = -1.0, 1.0
        for _ in range(12):
            middle = (low + high) / 2
            choice = np.abs(share - (wanted + middle)[:, None]).argmin(1)
            low, high = (middle, high) if self.fits(choice) else (low, middle)
        choice = np.abs(share - (wanted + low)[:, None]).argmin(1)
        return self.fitted(choice, rng)
