"""Policies that learn nothing: what a learned one has to beat.

`PlainUniformPolicy` and `GlobalMagnitudePolicy` are what most users do by hand (one ratio for all
layers; one threshold on normalised scores, as Torch-Pruning's global pruning). `UniformPolicy`
spends what rounding leaves of the budget, so that a plan which beats it is better and not merely
larger. `KnapsackPolicy` is the latency-aware optimum over single-group losses (HALP), and what a
learned policy starts from.
"""

from __future__ import annotations

import numpy as np

from rlprune.graph.types import FloatArray, IntArray
from rlprune.sensitivity.energy import loss_curve
from rlprune.solver.knapsack import least_keeps, solve
from rlprune.solver.task import PruningTask


class PlainUniformPolicy:
    """One keep ratio for all groups: the largest whose rounding to levels meets the budget."""

    name = "uniform-plain"

    def plan(self, task: PruningTask, budget_ms: FloatArray) -> IntArray:
        """As `Policy.plan`."""
        levels = task.levels
        ratio = levels / levels[:, -1:]  # [G, L]
        # A group's rounded level changes only halfway between two levels: these are all the plans.
        halfway = (ratio[:, 1:] + ratio[:, :-1]) / 2
        targets = np.unique(np.concatenate([[0.0], halfway.ravel(), [1.0]]))  # [R] ascending
        # The count of midpoints at or below the target is the nearest level (ties go up); padding
        # adds midpoints of 1, which only the last target reaches, where padded levels are full.
        choice = (halfway[None] <= targets[:, None, None]).sum(-1)  # [R, G]
        return _largest_within(task, task.keeps_at(choice), budget_ms)


class UniformPolicy:
    """One keep ratio for all groups, filled up: groups are raised in turn, those that keep the
    smaller share first, until none can be raised within the budget."""

    name = "uniform"

    def plan(self, task: PruningTask, budget_ms: FloatArray) -> IntArray:
        """As `Policy.plan`."""
        budget = np.asarray(budget_ms, dtype=np.float64)
        keeps = PlainUniformPolicy().plan(task, budget)
        if not task.group_count or not len(budget):
            return keeps
        choice = task.choice_of(keeps)  # [B, G]
        within = task.tables.upper_ms(keeps) <= budget  # [B]; the others stay at the least
        choice[within] = _filled(task, choice[within], budget[within])
        return task.keeps_at(choice)


class GlobalMagnitudePolicy:
    """One threshold on every unit's weight energy over its group's mean; no data needed."""

    name = "global"

    def plan(self, task: PruningTask, budget_ms: FloatArray) -> IntArray:
        """As `Policy.plan`; where not even weights were known, the shapes' loss curve stands in."""
        energy = task.profiles.energy_loss
        curve = loss_curve(task.profiles, task.graph) if energy is None else energy
        levels = task.levels
        units = np.diff(levels, axis=1)  # [G, L-1]; 0 in the padding
        drop = curve[:, :-1] - curve[:, 1:]
        score = drop / np.maximum(units, 1) * levels[:, -1:]  # mean over a group's units is about 1
        # Units are ranked, so a level's units never outscore those below; noise must not say so.
        score = np.minimum.accumulate(np.where(units > 0, score, np.inf), axis=1)
        finite = score[np.isfinite(score)]
        thresholds = np.unique(np.concatenate([finite, [np.inf]]))[::-1]  # fewest kept first
        real = units > 0
        choice = ((score[None] >= thresholds[:, None, None]) & real).sum(-1)  # [T, G]
        return _largest_within(task, task.keeps_at(choice), budget_ms)


class KnapsackPolicy:
    """Least summed single-group loss within the budget; the reference plan itself."""

    name = "knapsack"

    def plan(self, task: PruningTask, budget_ms: FloatArray) -> IntArray:
        """As `Policy.plan`."""
        return solve(task, np.asarray(budget_ms, dtype=np.float64))


def _largest_within(task: PruningTask, candidates: IntArray, budget_ms: FloatArray) -> IntArray:
    """The last of candidates [C, G], ordered by what they keep, within each budget -> [B, G]."""
    upper = task.tables.upper_ms(candidates)
    within = np.asarray(upper[None] <= np.asarray(budget_ms)[:, None])  # [B, C]
    last = len(candidates) - 1 - np.argmax(within[:, ::-1], axis=1)
    return np.where(np.asarray(within.any(1))[:, None], candidates[last], least_keeps(task))


def _filled(task: PruningTask, choice: IntArray, budget_ms: FloatArray) -> IntArray:
    """Level indices [B, G] raised one group and one level at a time while that fits the budgets."""
    choice = choice.copy()
    row = np.arange(len(choice))
    width = task.graph.widths
    raised = np.ones(len(choice), dtype=np.bool_)
    while raised.any():
        raised[:] = False
        order = np.argsort(task.keeps_at(choice) / width, axis=1, kind="stable")  # [B, G]
        for group in order.T:  # [B], another in each row
            more = choice.copy()
            more[row, group] = np.minimum(choice[row, group] + 1, task.level_count[group] - 1)
            grows = more[row, group] > choice[row, group]
            if not grows.any():
                continue
            fits = grows & (task.tables.upper_ms(task.keeps_at(more)) <= budget_ms)
            choice[fits] = more[fits]
            raised |= fits
    return choice
