"""Which plans are worth an evaluation: those that planners choose, and those around them.

The knapsack with bent curves over all budgets, uniform plans, random ones for breadth, and
mutations of the best so far (evolution), which alone show what lies above the knapsack.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rlprune.graph.types import FloatArray, IntArray
from rlprune.profile.energy import loss_curve
from rlprune.task.knapsack import least_keeps, solve
from rlprune.task.task import PruningTask
from rlprune.task.taskdir import Evaluations

MIX = {"knapsack": 0.3, "uniform": 0.1, "random": 0.15, "mutation": 0.45}
"""Share of the plans that each source proposes."""
TRIES = 50
"""Proposals in a row that were all seen before; then there are no more plans worth asking for."""


@dataclass(frozen=True)
class PlanProposer:
    """Proposes plans of one task, each at most once."""

    task: PruningTask
    known: Evaluations
    """What was evaluated before: not proposed again, and what mutations start from."""

    def propose(self, count: int, rng: np.random.Generator) -> list[tuple[IntArray, str]]:
        """At most `count` new plans [G] and their sources; none where nothing new is found."""
        seen = {tuple(keeps) for keeps in self.known.keeps}
        seen.add(tuple(self.task.graph.widths))  # the unpruned model's loss is known
        cost = self.task.tables.upper_ms(self.known.keeps)
        floor, parents = self._floor(cost), self._parents(cost)
        makers: dict[str, Callable[[], IntArray]] = {
            "knapsack": lambda: self._knapsack(self._budget(floor, rng), rng),
            "uniform": lambda: self._uniform(rng),
            "random": lambda: self._random(self._budget(floor, rng), rng),
            "mutation": lambda: self._mutation(parents, rng),
        }
        made: list[tuple[IntArray, str]] = []
        tries = 0
        while len(made) < count and tries < TRIES:
            source = str(rng.choice(list(MIX), p=list(MIX.values())))
            keeps = makers[source]()
            tries += 1
            if tuple(keeps) not in seen:
                seen.add(tuple(keeps))
                made.append((keeps, source))
                tries = 0
        return made

    def _keeps(self, choice: IntArray) -> IntArray:
        keeps: IntArray = self.task.keeps_at(choice[None])[0]
        return keeps

    def _floor(self, cost: FloatArray) -> float:
        """The least cost at which a known plan still answers half as well as the best [ms]."""
        useful = self.known.accuracy > 0.5 * self.known.accuracy.max(initial=0.0)
        return float(cost[useful].min()) if useful.any() else 0.0

    def _budget(self, floor: float, rng: np.random.Generator) -> float:
        """Between least and base; mostly above `floor`, for below it plans only guess."""
        base = self.task.graph.widths
        least, most = self.task.tables.upper_ms(np.stack([least_keeps(self.task), base]))
        if rng.uniform() < 0.8:
            least = np.clip(0.9 * floor, least, most)
        return float(rng.uniform(least, most))

    def _knapsack(self, budget: float, rng: np.random.Generator) -> IntArray:
        """The knapsack's plan with each group's curve scaled and bent at random."""
        curve = loss_curve(self.task.profiles, self.task.graph)
        sigma = rng.choice([0.0, 0.3, 1.0])
        groups = (self.task.group_count, 1)
        top = np.maximum(curve.max(-1, keepdims=True), 1e-9)
        bent = top * (curve / top) ** np.exp(0.5 * sigma * rng.standard_normal(groups))
        bent = bent * np.exp(sigma * rng.standard_normal(groups))
        keeps: IntArray = solve(self.task, np.array([budget]), loss=bent)[0]
        return keeps

    def _uniform(self, rng: np.random.Generator) -> IntArray:
        """Every group's level nearest to one ratio of its width."""
        widths = self.task.graph.widths
        wanted = rng.uniform(0.1, 1.0) * widths
        choice = np.abs(self.task.levels - wanted[:, None]).argmin(-1)
        return self._keeps(choice)

    def _random(self, budget: float, rng: np.random.Generator) -> IntArray:
        """Single levels down, at random, until a budget is met."""
        choice = self.task.level_count - 1
        while choice.any():
            keeps = self.task.keeps_at(choice[None])
            if self.task.tables.upper_ms(keeps)[0] <= budget:
                break
            group = rng.choice(np.flatnonzero(choice))
            choice[group] = rng.integers(0, choice[group])
        return self._keeps(choice)

    def _mutation(self, parents: IntArray, rng: np.random.Generator) -> IntArray:
        """A parent with one to three groups' levels moved by one or two."""
        keeps = parents[rng.integers(len(parents))]
        choice = (self.task.levels < keeps[:, None]).sum(-1)
        count = min(int(rng.integers(1, 4)), self.task.group_count)
        for group in rng.choice(self.task.group_count, size=count, replace=False):
            step = rng.choice([-2, -1, 1, 2])
            choice[group] = np.clip(choice[group] + step, 0, self.task.level_count[group] - 1)
        return self._keeps(choice)

    def _parents(self, cost: FloatArray) -> IntArray:
        """The unpruned model, and the plans that no cheaper one beats and that do not guess."""
        known = self.known
        order = np.lexsort((known.loss, cost))
        best = np.minimum.accumulate(known.loss[order])
        front = order[known.loss[order] <= best]
        front = front[known.accuracy[front] > 0.5 * known.accuracy.max(initial=0.0)]
        return np.concatenate([self.task.graph.widths[None], known.keeps[front]])
