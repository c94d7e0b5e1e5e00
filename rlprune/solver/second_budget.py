"""The latency knapsack within a number of parameters too: memory is the other budget of a device.

Parameters, like latency, are sums over pairs of groups. A price per parameter joins the loss
(Everett's Lagrange multipliers, 1963), linearised at the current plan, and `knapsack.solve` does
the rest; the least price whose plan is small enough is sought, and what room is left is filled by
moving single groups.
"""

from __future__ import annotations

import numpy as np

from rlprune.graph.types import FloatArray, IntArray
from rlprune.sensitivity.energy import loss_curve
from rlprune.solver.knapsack import least_keeps, solve
from rlprune.solver.task import PruningTask

ROUNDS = 5
"""Linearisations; the span of prices narrows with each."""
PRICES = 16
"""Solved for at once."""
DEAREST = 1e4
"""Price of all parameters together, in ranges of the dearest group's curve; the least is one
`DEAREST`th."""


def solve_within(task: PruningTask, budget_ms: float, max_params: int) -> IntArray | None:
    """Keeps [G] of little loss, `upper_ms` within the budget and at most `max_params` parameters.

    None where nothing that small was found; the least widths of all may still be.
    """
    budget = np.full(PRICES, budget_ms)
    best: IntArray = solve(task, budget[:1])[0]
    if task.graph.params(best) <= max_params:
        return best
    if not task.group_count:
        return None
    loss = loss_curve(task.profiles, task.graph)
    dearest = max(float(np.ptp(loss, axis=1).max()), 1e-12)
    unit = dearest / float(task.graph.params(task.graph.widths))
    low, high = np.log(unit / DEAREST), np.log(unit * DEAREST)
    at, moves, found = best, np.zeros_like(loss), least_keeps(task)
    for turn in range(ROUNDS):
        fresh = _params_of_moves(task, at)
        # Both ends of a layer shrink at once: a fresh linearisation oversteps (as in `knapsack`).
        moves = fresh if turn == 0 else (moves + fresh) / 2
        price = np.exp(np.linspace(low, high, PRICES))
        plans = solve(task, budget, loss=loss + price[:, None, None] * moves)  # [PRICES, G]
        small = task.graph.params(plans) <= max_params
        first = int(small.argmax()) if small.any() else PRICES - 1
        at = plans[first]
        found = _better(task, loss, np.concatenate([found[None], plans]), budget_ms, max_params)
        step = (high - low) / (PRICES - 1)
        low, high = np.log(price[first]) - 2 * step, np.log(price[first]) + step
    if not _fits(task, found[None], budget_ms, max_params)[0]:
        return None
    return _filled(task, loss, found, budget_ms, max_params)


def _params_of_moves(task: PruningTask, keeps: IntArray) -> FloatArray:
    """Parameters [G, L] with one group at each of its levels and the others at `keeps` [G]."""
    return np.asarray(task.graph.params(_moved(task, keeps)), dtype=np.float64)


def _moved(task: PruningTask, keeps: IntArray) -> IntArray:
    """`keeps` [G] with each group at each of its levels [G, L, G]."""
    groups, levels = task.levels.shape
    plans = np.tile(keeps, (groups, levels, 1))
    own = np.arange(groups)
    plans[own, :, own] = task.levels
    return plans


def _fits(
    task: PruningTask, plans: IntArray, budget_ms: float, max_params: int
) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    return np.asarray(
        (task.tables.upper_ms(plans) <= budget_ms) & (task.graph.params(plans) <= max_params)
    )


def _better(
    task: PruningTask, loss: FloatArray, plans: IntArray, budget_ms: float, max_params: int
) -> IntArray:
    """Of plans [N, G] the one of least loss that fits; the first where none does."""
    total = loss[np.arange(task.group_count), task.choice_of(plans)].sum(1)
    total[~_fits(task, plans, budget_ms, max_params)] = np.inf
    return np.asarray(plans[total.argmin()])


def _filled(
    task: PruningTask, loss: FloatArray, keeps: IntArray, budget_ms: float, max_params: int
) -> IntArray:
    """Moves of single groups while one lowers the loss and fits."""
    for _ in range(4 * task.group_count):
        moved = _moved(task, keeps).reshape(-1, task.group_count)
        after = _better(task, loss, np.concatenate([keeps[None], moved]), budget_ms, max_params)
        if (after == keeps).all():
            break
        keeps = after
    return keeps
