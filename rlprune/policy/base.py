"""What every policy answers: given a task and budgets, how many units each group keeps."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np

from rlprune.graph.types import FloatArray, IntArray
from rlprune.solver.task import PruningTask


class Policy(Protocol):
    """Decides plans. Stateless once made, so any thread may call it."""

    @property
    def name(self) -> str:
        """Name and, where anything was fitted or learned, a version: `learned/1f3a9c`."""
        ...

    def plan(self, task: PruningTask, budget_ms: FloatArray) -> IntArray:
        """Keeps [B, G] for budgets [B], each a level of its group.

        `task.tables.upper_ms` of every row is within its budget where any plan is; where none is,
        the row is `rlprune.solver.knapsack.least_keeps`.
        """
        ...


@runtime_checkable
class SamplingPolicy(Policy, Protocol):
    """A policy that has more than one answer, for whoever can evaluate several."""

    def sample(
        self, task: PruningTask, budget_ms: float, count: int, rng: np.random.Generator
    ) -> IntArray:
        """Keeps [count, G] around its plan for one budget, each within it; some may be equal."""
        ...
