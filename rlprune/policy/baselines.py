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
from rlprune.solver.knapsack import least_choice, solve
from rlprune.solver.task import PruningTask


class PlainUniformPolicy:
    """One share of the channels kept in all groups: the largest whose rounding to options meets the
    budget. Kernels and blocks, of which there is no such share, are left as they are."""

    name = "uniform-plain"

    def plan(self, task: PruningTask, budget_ms: FloatArray) -> IntArray:
        """As `Policy.plan`."""
        shares = task.shares  # [S, L]
        # A site's rounded option changes only halfway between two: these are all the plans.
        halfway = (shares[:, 1:] + shares[:, :-1]) / 2
        targets = np.unique(np.concatenate([[0.0], halfway.ravel(), [1.0]]))  # [R] ascending
        # The count of midpoints at or below the target is the nearest option (ties go up); padding
        # adds midpoints of 1, which only the last target reaches.
        choice = (halfway[None] <= targets[:, None, None]).sum(-1)  # [R, S]
        choice = np.minimum(choice, task.option_count - 1)
        choice[:, task.space.group_count :] = task.space.unpruned[task.space.group_count :]
        return _largest_within(task, choice, budget_ms)


class UniformPolicy:
    """One share kept in all groups, filled up: groups are raised in turn, those that keep the
    smaller share first, until none can be raised within the budget."""

    name = "uniform"

    def plan(self, task: PruningTask, budget_ms: FloatArray) -> IntArray:
        """As `Policy.plan`."""
        budget = np.asarray(budget_ms, dtype=np.float64)
        choice = PlainUniformPolicy().plan(task, budget)
        if not task.site_count or not len(budget):
            return choice
        within = task.tables.upper_ms(choice) <= budget  # [B]; the others stay at the least
        choice[within] = _filled(task, choice[within], budget[within])
        return choice


class GlobalMagnitudePolicy:
    """One threshold on every unit's weight energy over its group's mean; no data needed."""

    name = "global"

    def plan(self, task: PruningTask, budget_ms: FloatArray) -> IntArray:
        """As `Policy.plan`; where not even weights were known, the shapes' loss curve stands in."""
        energy = task.profiles.energy_loss
        curve = task.curve if energy is None else energy
        chain, shares = task.space.ordered, task.shares
        values = task.space.settings
        units = np.abs(np.diff(values, axis=1)) * chain[:, None]  # [S, L-1]; 0 in the padding
        drop = curve[:, :-1] - curve[:, 1:]
        score = drop / np.maximum(units, 1) * values[:, -1:]  # mean over a group's units is about 1
        # Units are ranked, so an option's units never outscore those below; noise must not say so.
        score = np.minimum.accumulate(np.where(units > 0, score, np.inf), axis=1)
        # Options that are no chain: the one that keeps least below the threshold, none above it.
        free, free_shares = curve[~chain], shares[~chain]
        finite = np.concatenate([score[np.isfinite(score)], _slopes(free, free_shares)])
        thresholds = np.unique(np.concatenate([finite, [np.inf]]))[::-1]  # fewest kept first
        choice = ((score[None] >= thresholds[:, None, None]) & (units > 0)).sum(-1)  # [T, S]
        if len(free):
            priced = np.minimum(thresholds, 2 * finite.max(initial=1.0) + 1)[:, None, None]
            cost = free + priced * free_shares  # [T, F, L]
            last = cost.shape[-1] - 1 - np.argmin(cost[..., ::-1], axis=-1)
            choice[:, ~chain] = np.minimum(last, task.option_count[~chain] - 1)
        return _largest_within(task, choice, budget_ms)


class KnapsackPolicy:
    """Least summed single-site loss within the budget; the reference plan itself."""

    name = "knapsack"

    def plan(self, task: PruningTask, budget_ms: FloatArray) -> IntArray:
        """As `Policy.plan`."""
        return solve(task, np.asarray(budget_ms, dtype=np.float64))


def _largest_within(task: PruningTask, candidates: IntArray, budget_ms: FloatArray) -> IntArray:
    """The last of candidates [C, S], ordered by what they keep, within each budget -> [B, S]."""
    upper = task.tables.upper_ms(candidates)
    within = np.asarray(upper[None] <= np.asarray(budget_ms)[:, None])  # [B, C]
    last = len(candidates) - 1 - np.argmax(within[:, ::-1], axis=1)
    return np.where(np.asarray(within.any(1))[:, None], candidates[last], least_choice(task))


def _slopes(curve: FloatArray, shares: FloatArray) -> FloatArray:
    """Energy per share that any two options of a site differ by, where more share has more."""
    more = shares[:, None, :] - shares[:, :, None]  # [F, L, L], from and to
    lost = curve[:, :, None] - curve[:, None, :]
    rises = (more > 0) & (lost > 0)
    return np.asarray(lost[rises] / more[rises])


def _filled(task: PruningTask, choice: IntArray, budget_ms: FloatArray) -> IntArray:
    """Choices [B, S] raised one site and one option at a time while that fits the budgets."""
    choice = choice.copy()
    row, site = np.arange(len(choice)), np.arange(task.site_count)
    raised = np.ones(len(choice), dtype=np.bool_)
    while raised.any():
        raised[:] = False
        order = np.argsort(task.shares[site, choice], axis=1, kind="stable")  # [B, S]
        for own in order.T:  # [B], another in each row
            more = choice.copy()
            more[row, own] = np.minimum(choice[row, own] + 1, task.option_count[own] - 1)
            grows = more[row, own] > choice[row, own]
            if not grows.any():
                continue
            fits = grows & (task.tables.upper_ms(more) <= budget_ms)
            choice[fits] = more[fits]
            raised |= fits
    return choice
