"""The latency knapsack within a number of parameters too: memory is the other budget of a device.

Parameters, like latency, are sums over pairs of sites. A price per parameter joins the loss
(Everett's Lagrange multipliers, 1963), linearised at the current plan, and `knapsack.solve` does
the rest; the least price whose plan is small enough is sought, and what room is left is filled by
moving single sites.
"""

from __future__ import annotations

import numpy as np

from rlprune.graph.types import FloatArray, IntArray
from rlprune.solver.knapsack import least_choice, solve
from rlprune.solver.task import PruningTask

ROUNDS = 5
"""Linearisations; the span of prices narrows with each."""
MULTIPLIERS = 16
"""Solved for at once."""
MAX_MULTIPLIER = 1e4
"""Price of all parameters together, in ranges of the dearest site's curve; the least is one
`MAX_MULTIPLIER`th."""


def solve_within(task: PruningTask, budget_ms: float, max_params: int) -> IntArray | None:
    """A choice [S] of little loss, `upper_ms` within the budget, at most `max_params` parameters.

    None where nothing that small was found; the choice of least latency may still be.
    """
    budget = np.full(MULTIPLIERS, budget_ms)
    best: IntArray = solve(task, budget[:1])[0]
    if task.space.params(best) <= max_params:
        return best
    if not task.site_count:
        return None
    loss = task.curve
    dearest = max(float(np.ptp(loss, axis=1).max()), 1e-12)
    unit = dearest / float(task.space.params(task.space.unpruned))
    low, high = np.log(unit / MAX_MULTIPLIER), np.log(unit * MAX_MULTIPLIER)
    at, moves, found = best, np.zeros_like(loss), least_choice(task)
    for turn in range(ROUNDS):
        fresh = _params_of_moves(task, at)
        # Both ends of a layer shrink at once: a fresh linearisation oversteps (as in `knapsack`).
        moves = fresh if turn == 0 else (moves + fresh) / 2
        price = np.exp(np.linspace(low, high, MULTIPLIERS))
        plans = solve(task, budget, loss=loss + price[:, None, None] * moves)  # [MULTIPLIERS, S]
        small = task.space.params(plans) <= max_params
        first = int(small.argmax()) if small.any() else MULTIPLIERS - 1
        at = plans[first]
        found = _better(task, loss, np.concatenate([found[None], plans]), budget_ms, max_params)
        step = (high - low) / (MULTIPLIERS - 1)
        low, high = np.log(price[first]) - 2 * step, np.log(price[first]) + step
    if not _fits(task, found[None], budget_ms, max_params)[0]:
        return None
    return _filled(task, loss, found, budget_ms, max_params)


def _params_of_moves(task: PruningTask, choice: IntArray) -> FloatArray:
    """Parameters [S, L] with one site at each of its options and the others as in `choice` [S]."""
    return np.asarray(task.space.params(_moved(task, choice)), dtype=np.float64)


def _moved(task: PruningTask, choice: IntArray) -> IntArray:
    """`choice` [S] with each site at each of its options [S, L, S]."""
    sites, options = task.shares.shape
    plans = np.tile(choice, (sites, options, 1))
    own = np.arange(sites)
    plans[own, :, own] = np.minimum(np.arange(options), task.option_count[:, None] - 1)
    return plans


def _fits(
    task: PruningTask, plans: IntArray, budget_ms: float, max_params: int
) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    return np.asarray(
        (task.tables.upper_ms(plans) <= budget_ms) & (task.space.params(plans) <= max_params)
    )


def _better(
    task: PruningTask, loss: FloatArray, plans: IntArray, budget_ms: float, max_params: int
) -> IntArray:
    """Of plans [N, S] the one of least loss that fits; the first where none does."""
    total = loss[np.arange(task.site_count), plans].sum(1)
    total[~_fits(task, plans, budget_ms, max_params)] = np.inf
    return np.asarray(plans[total.argmin()])


def _filled(
    task: PruningTask, loss: FloatArray, choice: IntArray, budget_ms: float, max_params: int
) -> IntArray:
    """Moves of single sites while one lowers the loss and fits."""
    for _ in range(4 * task.site_count):
        moved = _moved(task, choice).reshape(-1, task.site_count)
        after = _better(task, loss, np.concatenate([choice[None], moved]), budget_ms, max_params)
        if (after == choice).all():
            break
        choice = after
    return choice
