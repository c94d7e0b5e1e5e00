"""Planners that ask for no evaluation beyond single-site losses: one threshold for all sites."""

from __future__ import annotations

import numpy as np

from rlprune.graph.types import FloatArray, IntArray
from rlprune.solver.knapsack import least_choice
from rlprune.solver.task import PruningTask


class SensitivityPolicy:
    """The least options whose loss alone is under one threshold, the least that meets the budget.

    FastNAS (NVIDIA Model-Optimizer): single-layer sensitivities, then a binary search on one
    threshold. Departs: sensitivities are the profile's losses, the same that the knapsack sees; the
    sites' losses are all the thresholds there are, so each is tried instead of halving.
    """

    name = "sensitivity"

    def plan(self, task: PruningTask, budget_ms: FloatArray) -> IntArray:
        """As `Policy.plan`."""
        curve = task.curve  # [S, L], non-increasing
        thresholds = np.unique(curve)
        allowed = curve[None] <= thresholds[:, None, None]  # [T, S, L]
        candidates = allowed.argmax(-1)
        upper = task.tables.upper_ms(candidates)
        plans = []
        for budget in np.asarray(budget_ms):
            within = np.flatnonzero(upper <= budget)
            plans.append(candidates[within[0]] if len(within) else least_choice(task))
        return np.array(plans)
