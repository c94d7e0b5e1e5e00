"""The separable multiple-choice knapsack: one level per group, costs and losses that just add up.

Two solvers, both over many rows at once. `greedy` walks the lower convex hull of every group (the
linear relaxation's optimum, rounded down): fast, off by at most one hull step. `Programme` is the
exact dynamic programme over a discretised budget; one table answers for every group to start at and
every budget left, which is what a reference needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from rlprune.graph.types import FloatArray, IntArray

Scalar = TypeVar("Scalar", bound=np.generic)

BINS = 256
"""Steps in which a budget is counted."""
MARGIN = 8
"""Steps that tables reach beyond the budget: rounding may have overcharged a plan that fits."""


def at_level(values: NDArray[Scalar], level: IntArray) -> NDArray[Scalar]:
    """values [R, G, L] at level [R, G] -> [R, G]."""
    rows, groups = level.shape
    return values[np.arange(rows)[:, None], np.arange(groups), level]


def greedy(cost: FloatArray, loss: FloatArray, capacity: FloatArray) -> IntArray:
    """Levels [R, G] of nearly least loss with summed cost within capacity, where any are.

    Args:
        cost: [R, G, L] in any unit, by any offset per group.
        loss: [R, G, L].
        capacity: [R], for the sum of costs; below the cheapest plan gives the cheapest plan.
    """
    rows, groups, levels = cost.shape
    row = np.arange(rows)[:, None]
    level = cost.argmin(-1)  # [R, G]
    here = at_level(cost, level)
    room = capacity - here.sum(-1)
    path, ratios, extras = [level], [], []
    steepest = np.full((rows, groups), np.inf)
    for _ in range(levels - 1):
        extra = cost - here[..., None]
        gain = at_level(loss, level)[..., None] - loss
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where((gain > 0) & (extra > 0), gain / extra, -1.0)
        after = ratio.argmax(-1)
        best = at_level(ratio, after)
        if (best < 0).all():
            break
        level = np.where(best > 0, after, level)
        there = at_level(cost, level)
        extras.append(there - here)
        # Hull slopes fall by construction; the minimum keeps rounding from reordering steps.
        steepest = np.minimum(steepest, best)
        ratios.append(steepest)
        path.append(level)
        here = there
    if not ratios:
        return np.asarray(level)
    slope = np.stack(ratios, axis=2).reshape(rows, -1)  # [R, G * K]
    order = np.argsort(-slope, axis=1, kind="stable")
    spent = np.cumsum(np.stack(extras, axis=2).reshape(rows, -1)[row, order], axis=1)
    taken = np.zeros(slope.shape, dtype=np.bool_)
    taken[row, order] = (spent <= room[:, None]) & (slope[row, order] > 0)
    count = taken.reshape(rows, groups, -1).sum(-1)
    return at_level(np.stack(path, axis=2), count)


@dataclass(frozen=True)
class Programme:
    """The solved dynamic programme of B rows: least loss of groups t.. for every budget left."""

    value: FloatArray
    """Least loss of groups t.. with r steps left [G + 1, B, R]."""
    choice: NDArray[np.int8]
    """The level group t then takes [G, B, R]."""
    steps: IntArray
    """What each level costs, in steps above the group's cheapest level [B, G, L]."""
    unit: FloatArray
    """Cost of one step [B]."""

    @staticmethod
    def solve(cost: FloatArray, loss: FloatArray, capacity: FloatArray) -> Programme:
        """Solves for cost [B, G, L], loss [B, G, L] and capacity [B] (for the sum of costs).

        A cost is rounded to the *nearest* step: always rounding up would forbid, at 30 groups,
        plans that use the last 6 % of the budget. So `plans` proposes, the true tables decide.
        """
        rows, groups = cost.shape[:2]
        above = cost - cost.min(-1, keepdims=True)
        room = capacity - cost.min(-1).sum(-1)
        # Beyond what all groups could spend there is nothing to resolve.
        room = np.clip(room, 0.0, above.max(-1).sum(-1))
        unit = np.where(room > 0, room, 1.0) / BINS
        width = BINS + MARGIN + 1
        steps = np.minimum(np.rint(above / unit[:, None, None]), width).astype(np.int64)
        value = np.empty((groups + 1, rows, width))
        value[groups] = 0.0
        choice = np.empty((groups, rows, width), dtype=np.int8)
        padded = np.full((rows, 2 * width), np.inf)  # left half: budgets below zero
        windows = np.lib.stride_tricks.sliding_window_view(padded, width, axis=1)
        for group in range(groups - 1, -1, -1):
            padded[:, width:] = value[group + 1]
            _least(windows, width - steps[:, group], loss[:, group], value[group], choice[group])
        return Programme(value, choice, steps, unit)

    def plans(self) -> IntArray:
        """Level indices [B, K, G] of the best plans at budgets around the capacity."""
        groups, rows, width = self.choice.shape
        left = np.repeat(np.arange(BINS - MARGIN, width)[None], rows, axis=0)  # [B, K]
        row = np.arange(rows)[:, None]
        plans = np.empty((*left.shape, groups), dtype=np.int64)
        for group in range(groups):
            level = self.choice[group][row, left].astype(np.int64)
            plans[..., group] = level
            left = left - self.steps[row, group, level]
        return plans


def _least(
    windows: FloatArray,
    start: IntArray,
    loss: FloatArray,
    value: FloatArray,
    choice: NDArray[np.int8],
) -> None:
    """Writes, per row and budget, the least of windows[b, start[b, l]] + loss[b, l], and its level.

    The first of equal levels wins. Two ways to the same result, each several times faster than the
    other at its end: few calls for few rows, few passes over memory for many.
    """
    row = np.arange(len(start))
    if len(start) <= 8:
        candidates = windows[row[:, None], start]  # [B, L, R]
        candidates += loss[..., None]
        choice[:] = candidates.argmin(1)
        value[:] = candidates.min(1)
        return
    value[:] = np.inf
    choice[:] = 0
    better = np.empty(value.shape, dtype=np.bool_)
    for level in range(start.shape[1]):
        candidate = windows[row, start[:, level]]
        candidate += loss[:, level, None]
        np.less(candidate, value, out=better)
        np.minimum(candidate, value, out=value)
        np.maximum(choice, better.view(np.int8) * np.int8(level), out=choice)
