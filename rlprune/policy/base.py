"""What every policy answers: given a task and budgets, how many units each group keeps."""

from __future__ import annotations

from typing import Protocol

from rlprune.graph.types import FloatArray, IntArray
from rlprune.task.task import PruningTask


class Policy(Protocol):
    """Decides plans. Stateless once made, so any thread may call it."""

    @property
    def name(self) -> str:
        """Name and, where anything was fitted or learned, a version: `learned/1f3a9c`."""
        ...

    def plan(self, task: PruningTask, budget_ms: FloatArray) -> IntArray:
        """Keeps [B, G] for budgets [B], each a level of its group.

        `task.tables.upper_ms` of every row is within its budget where any plan is; where none is,
        the row is `rlprune.task.knapsack.least_keeps`.
        """
        ...
