"""What a search over plans asks of latency tables: what every site at every option would cost.

One addition and one gather per (site, table that it moves in) and option answer for all sites at
once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from rlprune.graph.types import FloatArray, IntArray
from rlprune.latency.tables import Cells, LatencyTables

MAX_SHARED = 256
"""Where more pairs of sites share tables, as in a DenseNet, there are no edges to look at."""


@dataclass(frozen=True, eq=False)
class MoveCosts:
    """What plans cost, and what moving one site or two of them adds."""

    cells: Cells
    overhead_ms: float
    option_count: IntArray
    """[S]"""
    site_start: IntArray
    """Where the pairs of each site that moves in any table start."""
    costly: IntArray
    """The sites that move in any table, ascending."""
    shared: IntArray
    """Two pairs of one table, where costs do not add up [X, 2]; ordered by sites."""
    edges: IntArray
    """The sites of each run of `shared` [E, 2]."""
    edge_start: IntArray
    """Where each run starts [E]."""

    @staticmethod
    def of(tables: LatencyTables) -> MoveCosts:
        """Made once for tables, and kept as long as they are."""
        cells = tables.condensed
        known = cells.kept.get("moves")
        if isinstance(known, MoveCosts):
            return known
        costly, site_start = np.unique(cells.site, return_index=True)
        shared = _shared(cells.table[cells.by_table], cells.by_table)
        shared = shared[np.lexsort((cells.site[shared[:, 1]], cells.site[shared[:, 0]]))]
        edges, edge_start = np.unique(cells.site[shared], axis=0, return_index=True)
        made = MoveCosts(
            cells=cells,
            overhead_ms=tables.condensed_overhead_ms,
            option_count=tables.option_count,
            site_start=site_start,
            costly=costly,
            shared=shared,
            edges=edges,
            edge_start=edge_start,
        )
        cells.kept["moves"] = made
        return made

    @cached_property
    def least(self) -> IntArray:
        """The choice [S] of the least latency that moving single sites finds from both ends."""
        count = len(self.option_count)
        choice = np.zeros((1, count), dtype=np.int64)
        if not count or self.moves_ms(choice)[1].min() >= 0.0:
            return np.asarray(choice[0])  # as on most devices, fewer channels are cheaper
        choice = np.concatenate([choice, self.option_count[None] - 1])
        options = self.cells.step.shape[1]
        for _ in range(4 * count):
            latency, moves = self.moves_ms(choice)
            flat = moves.reshape(2, -1)
            move = flat.argmin(1)
            helps = flat[[0, 1], move] < -1e-12 * latency
            if not helps.any():
                break
            row = np.flatnonzero(helps)
            choice[row, move[row] // options] = move[row] % options
        return np.asarray(choice[self.latency_ms(choice).argmin()])

    def latency_ms(self, choice: IntArray) -> FloatArray:
        """Predicted ms of choices [R, S] -> [R]; the same as `LatencyTables.latency_ms`."""
        return np.asarray(self.cells.ms(choice).sum(-1) + self.overhead_ms)

    def moves_ms(self, choice: IntArray) -> tuple[FloatArray, FloatArray]:
        """Latency of choices [R], and exactly what moving one site alone adds [R, S, L]."""
        total, own = self.cells.places(choice)
        latency = self.cells.flat_ms[total].sum(-1) + self.overhead_ms
        moves = np.zeros((*choice.shape, self.cells.step.shape[1]))
        if len(self.costly):
            rest = total[:, self.cells.table] - own
            cost = self.cells.flat_ms[rest[:, :, None] + self.cells.step]  # [R, P, L]
            moves[:, self.costly] = np.add.reduceat(cost, self.site_start, axis=1)
            rows, sites = choice.shape
            moves -= moves[np.arange(rows)[:, None], np.arange(sites), choice][..., None]
        return latency, moves

    def edge_moves_ms(self, choice: IntArray, moves_ms: FloatArray) -> FloatArray:
        """What moving the two sites of every edge adds, exactly [R, E, L, L].

        moves_ms [R, S, L] as from `moves_ms`.
        """
        total, own = self.cells.places(choice)
        one, two = self.shared.T
        rest = total[:, self.cells.table[one]] - own[:, one] - own[:, two]  # [R, X]
        index = (
            rest[..., None, None] + self.cells.step[one][:, :, None] + self.cells.step[two][:, None]
        )
        cost = self.cells.flat_ms[index]  # [R, X, L, L]
        here, there = choice[:, self.cells.site[one]], choice[:, self.cells.site[two]]
        first = np.take_along_axis(cost, there[..., None, None], 3)
        second = np.take_along_axis(cost, here[..., None, None], 2)
        both = np.take_along_axis(first, here[..., None, None], 2)
        beyond = np.add.reduceat(cost - first - second + both, self.edge_start, axis=1)
        left, right = self.edges.T
        return np.asarray(beyond + moves_ms[:, left, :, None] + moves_ms[:, right, None, :])

    def site_moves_ms(self, choice: IntArray, site: int) -> tuple[FloatArray, FloatArray]:
        """As `moves_ms`, for one site: latency [R], and what moving it adds [R, L]."""
        total, own = self.cells.places(choice)
        latency = self.cells.flat_ms[total].sum(-1) + self.overhead_ms
        first, last = np.searchsorted(self.cells.site, [site, site + 1])
        rest = total[:, self.cells.table[first:last]] - own[:, first:last]
        cost = self.cells.flat_ms[rest[:, :, None] + self.cells.step[first:last]].sum(1)  # [R, L]
        return latency, cost - cost[np.arange(len(choice)), choice[:, site], None]


def _shared(table: IntArray, pairs: IntArray) -> IntArray:
    """All two-element subsets of the pairs of one table [X, 2]; none where they are too many.

    table [P] ascending, of pairs [P], which ascend by site within one table.
    """
    counts = np.unique(table, return_counts=True)[1]
    if int((counts * (counts - 1) // 2).sum()) > MAX_SHARED:
        return np.zeros((0, 2), dtype=np.int64)
    one, two = np.nonzero(np.triu(table[:, None] == table, 1))
    return np.stack([pairs[one], pairs[two]], axis=1)
