"""The reference of an episode: the knapsack's plan, and what it would do after any detour.

The dynamic programme, linearised at the reference plan and frozen for the episode, answers at every
group and every budget left by a lookup: which level, how much loss is still to come, and what a
millisecond is worth. The true tables decide what fits; this only advises.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rlprune.graph.types import FloatArray, IntArray
from rlprune.solver.costs import LevelCosts
from rlprune.solver.knapsack import solve, summed_curves
from rlprune.solver.separable import BINS, Programme, at_level
from rlprune.solver.task import PruningTask

PRICE_STEPS = BINS // 16
"""The shadow price is a difference over this many steps either way; closer it is a staircase."""


@dataclass(frozen=True)
class Reference:
    """The knapsack's plans for B budgets, with the frozen programme around each.

    A budget left is counted in ms above the cheapest levels of the groups still to come, at the
    costs frozen here.
    """

    keeps: IntArray
    """[B, G]."""
    choice: IntArray
    """The same as level indices [B, G]."""
    programme: Programme
    above_ms: FloatArray
    """What each level costs above its group's cheapest, other groups as in the plan [B, G, L]."""

    def rest_ms(self, group: int, choice: IntArray) -> FloatArray:
        """What plans [B, G] spend on groups `group`.. at the frozen costs [B]."""
        return np.asarray(at_level(self.above_ms[:, group:], choice[:, group:]).sum(1))

    def rows(self, index: slice) -> Reference:
        """The references of some rows."""
        programme = Programme(
            self.programme.value[:, index],
            self.programme.choice[:, index],
            self.programme.steps[index],
            self.programme.unit[index],
        )
        return Reference(self.keeps[index], self.choice[index], programme, self.above_ms[index])

    def lookup(
        self, group: int, remaining_ms: FloatArray
    ) -> tuple[IntArray, FloatArray, FloatArray]:
        """Level index, loss to go and shadow price (dLoss/dms, >= 0) at a state, each [B].

        Args:
            group: the group whose turn it is.
            remaining_ms: the budget left for this and later groups [B]; the nearest entry answers
                for one outside the table.
        """
        row = np.arange(len(remaining_ms))
        steps = self._steps(remaining_ms, row)
        value = self.programme.value[group]
        low = np.maximum(steps - PRICE_STEPS, 0)
        high = np.minimum(steps + PRICE_STEPS, value.shape[1] - 1)
        price = (value[row, low] - value[row, high]) / ((high - low) * self.programme.unit)
        return self.programme.choice[group, row, steps].astype(np.int64), value[row, steps], price

    def complete(self, group: int, remaining_ms: FloatArray, rows: IntArray) -> IntArray:
        """The programme's level indices of groups `group`.. for N of the rows [N, G - group].

        remaining_ms [N] as in `lookup`.
        """
        left = self._steps(remaining_ms, rows)
        plan = np.empty((len(rows), self.choice.shape[1] - group), dtype=np.int64)
        for later in range(group, self.choice.shape[1]):
            level = self.programme.choice[later, rows, left]
            plan[:, later - group] = level
            left = left - self.programme.steps[rows, later, level]
        return plan

    def _steps(self, remaining_ms: FloatArray, rows: IntArray) -> IntArray:
        # Floored, but for a hair: what the plan itself leaves must find its own entry again.
        steps = np.floor(remaining_ms / self.programme.unit[rows] + 1e-6)
        return np.clip(steps, 0, self.programme.value.shape[2] - 1).astype(np.int64)


def reference(
    task: PruningTask, budget_ms: FloatArray, *, loss: FloatArray | None = None
) -> Reference:
    """Solves the knapsack for budgets [B] and freezes the programme at its plans.

    Arguments as those of `rlprune.solver.knapsack.solve`.
    """
    budget = np.asarray(budget_ms, dtype=np.float64)
    keeps = solve(task, budget, loss=loss)
    choice = task.choice_of(keeps)
    latency, moves = LevelCosts.of(task.tables).moves_ms(choice)
    room = task.tables.interval.limit_ms(budget) - latency
    programme = Programme.solve(moves, summed_curves(task, loss, len(budget)), room)
    return Reference(keeps, choice, programme, moves - moves.min(-1, keepdims=True))
