"""The latency knapsack: least summed loss within a latency budget (HALP, Shen et al., 2021).

An operator's cost depends on its in- *and* out-width, so the cost of a site's option depends on its
neighbours' options. `solve` linearises the tables at the current plan, solves the separable
knapsack, and repeats; the outcome is held against the true tables, repaired, and improved by
exchanges.
Every row is solved for itself: a row's answer does not depend on the others in its batch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rlprune.graph.types import FloatArray, IntArray
from rlprune.solver.costs import MoveCosts
from rlprune.solver.pair_terms import PairTerms
from rlprune.solver.separable import MARGIN, Programme, at_option, greedy
from rlprune.solver.task import PruningTask

ROUNDS = 6
"""Linearisations from each start, and half as many programmes; most tasks settle in three."""
EXCHANGES = 24
"""Exchanges of one or two sites' options at most, after the last programme."""
TIE = 1e-7
"""Share of the loss range that decides between plans of equal loss: the one that keeps more."""


def solve(
    task: PruningTask,
    budget_ms: FloatArray,
    *,
    loss: FloatArray | None = None,
    pairs: PairTerms | None = None,
) -> IntArray:
    """The choices [B, S] of least summed loss whose `upper_ms` is within each budget [B].

    Args:
        budget_ms: [B]; a row below what `least_choice` needs gets `least_choice`.
        loss: curves [S, L] or [B, S, L] over the options, in any unit; by default the task's own
            (`sensitivity.energy.loss_curve`).
        pairs: what two sites lose beyond their curves, in the same unit; alike for all rows.
    """
    budget = np.asarray(budget_ms, dtype=np.float64)
    if not task.site_count or not len(budget):
        return np.zeros((len(budget), task.site_count), dtype=np.int64)
    return _solve(_Problem.of(task, budget, loss, pairs))


def least_choice(task: PruningTask) -> IntArray:
    """The choice [S] of the least `upper_ms` found; where fewer channels never cost more, of the
    least.

    Fewer channels need not be cheaper: a count that does not fill a runtime's blocks can be slower.
    Where they are not, single sites are moved, from their first options and from their last, until
    none helps.
    """
    return MoveCosts.of(task.tables).least


def budgets_at(task: PruningTask, shares: FloatArray) -> FloatArray:
    """Budgets `least + b (base - least)` on the upper end of the interval, for shares b [B]."""
    ends = task.tables.upper_ms(np.stack([least_choice(task), task.space.unpruned]))
    return np.asarray(ends[0] + np.asarray(shares) * (ends[1] - ends[0]))


def latency_limit(task: PruningTask, budget_ms: FloatArray) -> FloatArray:
    """The greatest latencies [B] whose upper end is within the budgets."""
    return task.tables.interval.limit_ms(budget_ms)


def summed_curves(task: PruningTask, loss: FloatArray | None, rows: int) -> FloatArray:
    """What is summed [B, S, L]: `loss`, or the task's own curve; of equal options the fuller wins.

    A loss clipped at zero is common where the calibration images are few; that nothing was seen to
    be lost is no reason to drop channels that the budget has room for. The difference is `TIE` of
    the curves' range.
    """
    curve = task.curve if loss is None else np.asarray(loss)
    curve = np.broadcast_to(curve, (rows, *curve.shape[-2:]))
    spread = np.maximum(np.ptp(curve, axis=(1, 2)), 1e-12)
    hair: FloatArray = TIE * spread[:, None, None] * (1.0 - task.shares)
    return curve + hair


@dataclass(frozen=True)
class _Problem:
    """B budgets over one task."""

    costs: MoveCosts
    shares: FloatArray
    """How much of its site each option leaves [S, L]."""
    option_count: IntArray
    """[S]"""
    loss: FloatArray
    """[B, S, L], ties broken."""
    limit: FloatArray
    """What the predicted latency may be [B], ms."""
    pairs: PairTerms | None
    """None where losses just add up."""
    edges: IntArray
    """The two sites of moves that are looked at together [E, 2]: they share an operator, or have
    pair terms."""

    @staticmethod
    def of(
        task: PruningTask,
        budget_ms: FloatArray,
        loss: FloatArray | None,
        pairs: PairTerms | None,
    ) -> _Problem:
        costs = MoveCosts.of(task.tables)
        edges = costs.edges
        if pairs is not None:
            edges = np.unique(np.concatenate([edges, pairs.edges]), axis=0)
        return _Problem(
            costs=costs,
            shares=task.shares,
            option_count=task.option_count,
            loss=summed_curves(task, loss, len(budget_ms)),
            limit=latency_limit(task, budget_ms),
            pairs=pairs,
            edges=edges,
        )

    def rows(self, index: IntArray) -> _Problem:
        """The problems of some rows."""
        return replace(self, loss=self.loss[index], limit=self.limit[index])

    def total(self, choice: IntArray) -> FloatArray:
        """Summed loss of plans [B, ..., S] -> [B, ...]."""
        rows, sites = len(choice), choice.shape[-1]
        row = np.arange(rows).reshape(rows, *[1] * (choice.ndim - 1))
        total = np.asarray(self.loss[row, np.arange(sites), choice].sum(-1))
        return total if self.pairs is None else total + self.pairs.total(choice)

    def around(self, choice: IntArray) -> FloatArray:
        """Losses that add up [B, S, L], with pair terms as the other sites of plans [B, S] have
        them."""
        return self.loss if self.pairs is None else self.loss + self.pairs.around(choice)

    def edge_moves(
        self, choice: IntArray, moves_ms: FloatArray, added: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """What moving both sites of every edge costs and adds to the loss, both [B, E, L, L].

        moves_ms and added [B, S, L] are of moving one site alone. Losses are exact, costs too but
        where sites share so many tables that `costs` does not look at pairs.
        """
        left, right = self.edges.T
        loss = added[:, left, :, None] + added[:, right, None, :]
        if self.pairs is None:
            return self.costs.edge_moves_ms(choice, moves_ms), loss
        loss[:, self._place(self.pairs.edges)] += self.pairs.beyond(choice)
        cost = moves_ms[:, left, :, None] + moves_ms[:, right, None, :]
        if len(self.costs.edges):
            shared = self._place(self.costs.edges)
            cost[:, shared] = self.costs.edge_moves_ms(choice, moves_ms)
        return cost, loss

    def _place(self, edges: IntArray) -> IntArray:
        """Which of `edges` these [N, 2] are."""
        sites = len(self.option_count)
        keys, wanted = self.edges @ [sites, 1], edges @ [sites, 1]
        return np.asarray(np.searchsorted(keys, wanted))


def _solve(problem: _Problem) -> IntArray:
    """Choices [B, S]."""
    rows = len(problem.limit)
    least = np.repeat(problem.costs.least[None], rows, axis=0)
    full = np.broadcast_to(problem.option_count - 1, least.shape)
    settled = _settle(problem, np.stack([least, full, _uniform(problem, least)]))  # [S, B, S]
    # Different starts often reach the same plan, which is then improved only once.
    fresh = np.ones(settled.shape[:2], dtype=np.bool_)
    for start in range(1, len(settled)):
        fresh[start] = ~(settled[start] == settled[:start]).all(-1).any(0)
    owner = np.nonzero(fresh)[1]  # [N]
    part = problem.rows(owner)
    plans = _improve(part, _best_of(part, least[owner], settled[fresh][:, None]))
    order = np.lexsort((part.total(plans), owner))
    return np.asarray(plans[order[np.unique(owner[order], return_index=True)[1]]])


def _improve(problem: _Problem, best: IntArray) -> IntArray:
    """Programmes around plans [N, S], then exchanges, until neither helps."""
    best = best.copy()
    active = np.arange(len(best))
    for _ in range(ROUNDS // 2):
        part, now = problem.rows(active), best[active]
        latency, moves = part.costs.moves_ms(now)
        plans = Programme.solve(moves, part.around(now), part.limit - latency).plans()  # [N, K, S]
        repaired = _shrink(part, plans[:, MARGIN])[:, None]
        after = _exchange(part, _best_of(part, now, np.concatenate([plans, repaired], axis=1)))
        best[active] = after
        active = active[(after != now).any(1)]
        if not len(active):
            break
    return best


def _uniform(problem: _Problem, least: IntArray) -> IntArray:
    """The largest share kept by all, rounded, within each budget [B, S]; else `least`."""
    ratios = np.linspace(0.05, 1.0, 20)
    plans = np.abs(problem.shares[None] - ratios[:, None, None]).argmin(-1)  # [20, S]
    fits: NDArray[np.bool_] = np.less_equal(
        problem.costs.latency_ms(plans)[None], problem.limit[:, None]
    )  # [B, 20]
    largest = len(ratios) - 1 - fits[:, ::-1].argmax(1)
    return np.where(fits.any(1, keepdims=True), plans[largest], least)


def _settle(problem: _Problem, starts: IntArray) -> IntArray:
    """Linearise and solve from starts [S, B, S] until nothing moves; repaired plans [S, B, S]."""
    count, rows, sites = starts.shape
    wide = problem.rows(np.tile(np.arange(rows), count))
    choice = starts.reshape(-1, sites)
    model = np.zeros((len(choice), *problem.shares.shape))
    losses = wide.loss if wide.pairs is None else np.zeros_like(wide.loss)
    active = np.arange(len(choice))
    for turn in range(ROUNDS):
        now = choice[active]
        latency, moves = wide.costs.moves_ms(now)
        moves -= moves[..., -1:]
        # Both ends of a layer shrink at once, so a fresh linearisation oversteps; the mean with the
        # ones before it does not cycle.
        model[active] = moves if turn == 0 else (model[active] + moves) / 2
        if wide.pairs is not None:
            fresh = wide.rows(active).around(now)
            losses[active] = fresh if turn == 0 else (losses[active] + fresh) / 2
        own = model[active]
        spent = at_option(own, now).sum(1)
        after = greedy(own, losses[active], wide.limit[active] - latency + spent)
        choice[active] = after
        active = active[(after != now).any(1)]
        if not len(active):
            break
    return _shrink(wide, choice).reshape(starts.shape)


def _shrink(problem: _Problem, choice: IntArray) -> IntArray:
    """Drops channels, least loss per ms saved first, until plans [R, S] fit or nothing helps."""
    choice = choice.copy()
    active = np.arange(len(choice))
    for _ in range(4 * choice.shape[1]):
        latency, moves = problem.costs.moves_ms(choice[active])
        over = latency - problem.limit[active]
        active, over, moves = active[over > 0], over[over > 0], moves[over > 0]
        if not len(active):
            break
        now = choice[active]
        loss = problem.rows(active).around(now)
        added = loss - at_option(loss, now)[..., None]
        saved = np.minimum(-moves, over[:, None, None])  # saving more than is over earns nothing
        with np.errstate(divide="ignore", invalid="ignore"):
            price = np.where(saved > 0, added / saved, np.inf).reshape(len(active), -1)
        move = price.argmin(1)
        helps = np.isfinite(price[np.arange(len(active)), move])
        active, move = active[helps], move[helps]
        choice[active, move // loss.shape[2]] = move % loss.shape[2]
    return choice


def _exchange(problem: _Problem, best: IntArray) -> IntArray:
    """Moves one or two sites at a time while that lowers the loss of plans [B, S] that fit."""
    best = best.copy()
    options = problem.shares.shape[1]
    active = np.arange(len(best))
    for _ in range(EXCHANGES):
        now = best[active]
        part = problem.rows(active)
        latency, moves = part.costs.moves_ms(now)
        slack = part.limit - latency
        losses = part.around(now)
        added = losses - at_option(losses, now)[..., None]
        first, second = _pairs(
            moves.reshape(len(now), -1), added.reshape(len(now), -1), slack, options
        )
        row = np.arange(len(now))[:, None]
        plans = np.repeat(now[:, None], first.shape[1], axis=1)  # [A, K, S]
        slot = np.arange(first.shape[1])[None]
        plans[row, slot, first // options] = first % options
        plans[row, slot, second // options] = second % options
        after = _best_of(part, now, plans)
        moved = (after != now).any(1)
        if len(part.edges) and not moved.all():
            stuck = np.flatnonzero(~moved)
            after[stuck] = _move_neighbours(
                part.rows(stuck), now[stuck], slack[stuck], added[stuck], moves[stuck]
            )
            moved = (after != now).any(1)
        best[active] = after
        active = active[moved]
        if not len(active):
            break
    return best


def _move_neighbours(
    problem: _Problem, now: IntArray, slack: FloatArray, added: FloatArray, moves: FloatArray
) -> IntArray:
    """Plans [A, S] with the best move of two sites that share an operator or have pair terms, where
    one helps."""
    cost, total = problem.edge_moves(now, moves, added)  # [A, E, L, L]
    left, right = problem.edges.T
    total = np.where(cost <= slack[:, None, None, None], total, np.inf).reshape(len(now), -1)
    edge, one, two = np.unravel_index(total.argmin(1), cost.shape[1:])
    plans = now.copy()
    row = np.arange(len(now))
    plans[row, left[edge]] = one
    plans[row, right[edge]] = two
    return _best_of(problem, now, plans[:, None])


def _pairs(
    cost: FloatArray, added: FloatArray, slack: FloatArray, options: int, count: int = 8
) -> tuple[IntArray, IntArray]:
    """The most promising pairs of moves [A, count] each, costs taken to add up.

    Every move is paired with the best move that leaves the pair within the slack. A move to where a
    site already is costs and adds nothing, so single moves are among the pairs.
    """
    rows, moves = cost.shape
    row = np.arange(rows)[:, None]
    order = np.argsort(cost, axis=1, kind="stable")
    sorted_cost = cost[row, order]
    sorted_added = added[row, order]
    least = np.minimum.accumulate(sorted_added, axis=1)
    fresh = np.concatenate([np.ones((rows, 1), bool), sorted_added[:, 1:] < least[:, :-1]], axis=1)
    holder = np.maximum.accumulate(np.where(fresh, np.arange(moves), 0), axis=1)
    room = slack[:, None] - cost
    within = np.stack([np.searchsorted(sorted_cost[r], room[r], side="right") for r in range(rows)])
    at = np.maximum(within - 1, 0)
    partner = order[row, holder[row, at]]  # [A, M]
    total = added + added[row, partner]
    possible = (within > 0) & (partner // options != np.arange(moves) // options)
    total = np.where(possible, total, np.inf)
    first = np.argsort(total, axis=1, kind="stable")[:, :count]
    return first, partner[row, first]


def _best_of(problem: _Problem, best: IntArray, plans: IntArray) -> IntArray:
    """Of best [B, S] and plans [B, K, S], the one of least loss within the limit."""
    rows, count, sites = plans.shape
    latency = problem.costs.latency_ms(plans.reshape(-1, sites)).reshape(rows, count)
    total = np.where(latency <= problem.limit[:, None], problem.total(plans), np.inf)
    pick = total.argmin(1)
    row = np.arange(rows)
    # Strictly less by more than rounding, or exchanges could go round in circles.
    gain = problem.total(best) - total[row, pick]
    better = gain > 1e-12 * np.ptp(problem.loss, axis=(1, 2))
    return np.where(better[:, None], plans[row, pick], best)
