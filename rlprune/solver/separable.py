"""The separable multiple-choice knapsack: one option per site, costs and losses that just add up.

Two solvers, both over many rows at once. `greedy` walks the lower convex hull of every site (the
linear relaxation's optimum, rounded down): fast, off by at most one hull step. `Programme` is the
exact dynamic programme over a discretised budget; one table answers for every site to start at and
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


def at_option(values: NDArray[Scalar], option: IntArray) -> NDArray[Scalar]:
    """values [R, S, L] at option [R, S] -> [R, S]."""
    rows, sites = option.shape
    return values[np.arange(rows)[:, None], np.arange(sites), option]


def greedy(cost: FloatArray, loss: FloatArray, capacity: FloatArray) -> IntArray:
    """Options [R, S] of nearly least loss with summed cost within capacity, where any are.

    Args:
        cost: [R, S, L] in any unit, by any offset per site.
        loss: [R, S, L].
        capacity: [R], for the sum of costs; below the cheapest plan gives the cheapest plan.
    """
    rows, sites, options = cost.shape
    row = np.arange(rows)[:, None]
    option = cost.argmin(-1)  # [R, S]
    here = at_option(cost, option)
    room = capacity - here.sum(-1)
    path, ratios, extras = [option], [], []
    steepest = np.full((rows, sites), np.inf)
    for _ in range(options - 1):
        extra = cost - here[..., None]
        gain = at_option(loss, option)[..., None] - loss
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where((gain > 0) & (extra > 0), gain / extra, -1.0)
        after = ratio.argmax(-1)
        best = at_option(ratio, after)
        if (best < 0).all():
            break
        option = np.where(best > 0, after, option)
        there = at_option(cost, option)
        extras.append(there - here)
        # Hull slopes fall by construction; the minimum keeps rounding from reordering steps.
        steepest = np.minimum(steepest, best)
        ratios.append(steepest)
        path.append(option)
        here = there
    if not ratios:
        return np.asarray(option)
    slope = np.stack(ratios, axis=2).reshape(rows, -1)  # [R, S * K]
    order = np.argsort(-slope, axis=1, kind="stable")
    spent = np.cumsum(np.stack(extras, axis=2).reshape(rows, -1)[row, order], axis=1)
    taken = np.zeros(slope.shape, dtype=np.bool_)
    taken[row, order] = (spent <= room[:, None]) & (slope[row, order] > 0)
    count = taken.reshape(rows, sites, -1).sum(-1)
    return at_option(np.stack(path, axis=2), count)


@dataclass(frozen=True)
class Programme:
    """The solved dynamic programme of B rows: least loss of sites t.. for every budget left."""

    value: FloatArray
    """Least loss of sites t.. with r steps left [S + 1, B, R]."""
    choice: NDArray[np.int8]
    """The option site t then takes [S, B, R]."""
    steps: IntArray
    """What each option costs, in steps above the site's cheapest option [B, S, L]."""
    unit: FloatArray
    """Cost of one step [B]."""

    @staticmethod
    def solve(cost: FloatArray, loss: FloatArray, capacity: FloatArray) -> Programme:
        """Solves for cost [B, S, L], loss [B, S, L] and capacity [B] (for the sum of costs).

        A cost is rounded to the *nearest* step: always rounding up would forbid, at 30 sites,
        plans that use the last 6 % of the budget. So `plans` proposes, the true tables decide.
        """
        rows, sites = cost.shape[:2]
        above = cost - cost.min(-1, keepdims=True)
        room = capacity - cost.min(-1).sum(-1)
        # Beyond what all sites could spend there is nothing to resolve.
        room = np.clip(room, 0.0, above.max(-1).sum(-1))
        unit = np.where(room > 0, room, 1.0) / BINS
        width = BINS + MARGIN + 1
        steps = np.minimum(np.rint(above / unit[:, None, None]), width).astype(np.int64)
        value = np.empty((sites + 1, rows, width))
        value[sites] = 0.0
        choice = np.empty((sites, rows, width), dtype=np.int8)
        padded = np.full((rows, 2 * width), np.inf)  # left half: budgets below zero
        windows = np.lib.stride_tricks.sliding_window_view(padded, width, axis=1)
        for site in range(sites - 1, -1, -1):
            padded[:, width:] = value[site + 1]
            _least(windows, width - steps[:, site], loss[:, site], value[site], choice[site])
        return Programme(value, choice, steps, unit)

    def plans(self) -> IntArray:
        """Choices [B, K, S] of the best plans at budgets around the capacity."""
        sites, rows, width = self.choice.shape
        left = np.repeat(np.arange(BINS - MARGIN, width)[None], rows, axis=0)  # [B, K]
        row = np.arange(rows)[:, None]
        plans = np.empty((*left.shape, sites), dtype=np.int64)
        for site in range(sites):
            option = self.choice[site][row, left].astype(np.int64)
            plans[..., site] = option
            left = left - self.steps[row, site, option]
        return plans


def _least(
    windows: FloatArray,
    start: IntArray,
    loss: FloatArray,
    value: FloatArray,
    choice: NDArray[np.int8],
) -> None:
    """Writes, per row and budget, the least of windows[b, start[b, l]] + loss[b, l]; its option.

    The first of equal options wins. Two ways to the same result, each several times faster than the
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
    for option in range(start.shape[1]):
        candidate = windows[row, start[:, option]]
        candidate += loss[:, option, None]
        np.less(candidate, value, out=better)
        np.minimum(candidate, value, out=value)
        np.maximum(choice, better.view(np.int8) * np.int8(option), out=choice)
