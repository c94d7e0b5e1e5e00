"""Which plans are worth an evaluation: those that planners choose, and those around them.

The knapsack with bent curves over all budgets, uniform plans, random ones for breadth, and
mutations of the best so far (evolution), which alone show what lies above the knapsack.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rlprune.graph.types import IntArray
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

    def propose(
        self, known: Evaluations, count: int, rng: np.random.Generator
    ) -> list[tuple[IntArray, str]]:
        """At most `count` new plans [G] and their sources; none where nothing new is found."""
        seen = {tuple(keeps) for keeps in known.keeps}
        seen.add(tuple(self.task.graph.widths))  # the unpruned model's loss is known
        parents = self._front(known)
        makers: dict[str, Callable[[np.random.Generator], IntArray]] = {
            "knapsack": self._knapsack,
            "uniform": self._uniform,
            "random": self._random,
            "mutation": lambda r: self._mutation(parents, r),
        }
        if not len(parents):
            del makers["mutation"]
        weight = np.array([MIX[source] for source in makers])
        made: list[tuple[IntArray, str]] = []
        tries = 0
        while len(made) < count and tries < TRIES:
            source = str(rng.choice(list(makers), p=weight / weight.sum()))
            keeps = makers[source](rng)
            tries += 1
            if tuple(keeps) not in seen:
                seen.add(tuple(keeps))
                made.append((keeps, source))
                tries = 0
        return made

    def _keeps(self, choice: IntArray) -> IntArray:
        keeps: IntArray = self.task.keeps_at(choice[None])[0]
        return keeps

    def _budget(self, rng: np.random.Generator) -> float:
        """Between least and base, the upper half twice as often: below it most plans only guess."""
        base = self.task.graph.widths
        ends = self.task.tables.upper_ms(np.stack([least_keeps(self.task), base]))
        share = 1.0 - rng.uniform() ** 1.6
        return float(ends[0] + share * (ends[1] - ends[0]))

    def _knapsack(self, rng: np.random.Generator) -> IntArray:
        """The knapsack's plan with each group's curve scaled and bent at random."""
        curve = loss_curve(self.task.profiles, self.task.graph)
        sigma = rng.choice([0.0, 0.3, 1.0])
        groups = (self.task.group_count, 1)
        top = np.maximum(curve.max(-1, keepdims=True), 1e-9)
        bent = top * (curve / top) ** np.exp(0.5 * sigma * rng.standard_normal(groups))
        bent = bent * np.exp(sigma * rng.standard_normal(groups))
        keeps: IntArray = solve(self.task, np.array([self._budget(rng)]), loss=bent)[0]
        return keeps

    def _uniform(self, rng: np.random.Generator) -> IntArray:
        """Every group's level nearest to one ratio of its width."""
        widths = self.task.graph.widths
        wanted = rng.uniform(0.1, 1.0) * widths
        choice = np.abs(self.task.levels - wanted[:, None]).argmin(-1)
        return self._keeps(choice)

    def _random(self, rng: np.random.Generator) -> IntArray:
        """Single levels down, at random, until a budget is met."""
        choice = self.task.level_count - 1
        budget = self._budget(rng)
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

    def _front(self, known: Evaluations) -> IntArray:
        """The plans that no cheaper one beats [P, G]."""
        if not len(known.keeps):
            return known.keeps
        cost = self.task.tables.upper_ms(known.keeps)
        order = np.lexsort((known.loss, cost))
        best = np.minimum.accumulate(known.loss[order])
        return np.asarray(known.keeps[order[known.loss[order] <= best]])
