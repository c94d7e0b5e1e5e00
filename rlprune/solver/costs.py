"""A task's latency tables, indexed by level instead of keep count, for searches over plans.

`LatencyTables` answers for keep counts; a search asks thousands of times what every group at every
level would cost. Level by level an operator's table index is linear in the groups' shifts, so one
addition and one gather per (operator that a group touches, level) answer for all groups at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rlprune.graph.types import FloatArray, IntArray
from rlprune.latency.tables import LatencyTables

GREATEST_SHARED = 256
"""Where more pairs of groups share operators, as in a DenseNet, there are no edges to look at."""


@dataclass(frozen=True)
class LevelCosts:
    """What plans cost, as functions of level indices [R, G]; values equal the tables' own."""

    flat_ms: FloatArray
    overhead_ms: float
    start: IntArray
    """Table index of every operator with all groups at their least level [O]."""
    operator: IntArray
    """Operator of every (group, operator it touches) pair, ordered by group [P]."""
    group: IntArray
    """Group of every pair, ascending [P]."""
    index: IntArray
    """What the pair adds to the operator's table index, per level [P, L]."""
    by_operator: IntArray
    """Permutation that orders the pairs by operator [P]."""
    operator_start: IntArray
    """Where each touched operator's pairs start in that order."""
    touched: IntArray
    """The operators that some group touches, ascending."""
    group_start: IntArray
    """Where the pairs of each group that touches any operator start."""
    costly: IntArray
    """The groups that touch any operator, ascending."""
    shared: IntArray
    """Two pairs of one operator, where costs do not add up [X, 2]; ordered by groups."""
    edges: IntArray
    """The groups of each run of `shared` [E, 2]."""
    edge_start: IntArray
    """Where each run starts [E]."""

    @staticmethod
    def of(tables: LatencyTables) -> LevelCosts:
        """Takes well under a millisecond, so it is made anew wherever it is needed."""
        tables = tables.condensed
        counts = np.diff(tables.pair_start)
        operator = tables.pair_operator
        group = np.repeat(np.arange(len(counts)), counts)
        shift = tables.levels[group] - tables.levels[group, :1]  # [P, L]
        rows = shift * tables.in_incidence[operator, group][:, None]
        columns = shift * tables.out_incidence[operator, group][:, None]
        # Levels lie on the lattice of `step`, so both divisions leave no remainder.
        rows = rows // tables.in_step[operator][:, None]
        columns = columns // tables.out_step[operator][:, None]
        least = tables.levels[:, 0]
        first_row = (tables.in_incidence @ least + tables.in_base) // tables.in_step
        first_column = (tables.out_incidence @ least + tables.out_base) // tables.out_step
        by_operator = np.argsort(operator, kind="stable")
        touched, operator_start = np.unique(operator[by_operator], return_index=True)
        costly = np.flatnonzero(counts)
        shared = _shared(operator[by_operator], by_operator)
        shared = shared[np.lexsort((group[shared[:, 1]], group[shared[:, 0]]))]
        edges, edge_start = np.unique(group[shared], axis=0, return_index=True)
        return LevelCosts(
            flat_ms=tables.flat_ms,
            overhead_ms=tables.overhead_ms,
            start=tables.offset + first_row * tables.out_count + first_column,
            operator=operator,
            group=group,
            index=rows * tables.out_count[operator][:, None] + columns,
            by_operator=by_operator,
            operator_start=operator_start,
            touched=touched,
            group_start=tables.pair_start[:-1][costly],
            costly=costly,
            shared=shared,
            edges=edges,
            edge_start=edge_start,
        )

    def _table_index(self, choice: IntArray) -> tuple[IntArray, IntArray]:
        """Table index of every operator [R, O], and what every pair adds to it [R, P]."""
        own = self.index[np.arange(len(self.group)), choice[:, self.group]]  # [R, P]
        total = np.repeat(self.start[None], len(choice), axis=0)
        if len(self.touched):
            ordered = own[:, self.by_operator]
            total[:, self.touched] += np.add.reduceat(ordered, self.operator_start, axis=1)
        return total, own

    def latency_ms(self, choice: IntArray) -> FloatArray:
        """Predicted ms [R]; the same sum in the same order as `LatencyTables.latency_ms`."""
        return np.asarray(self.flat_ms[self._table_index(choice)[0]].sum(-1) + self.overhead_ms)

    def moves_ms(self, choice: IntArray) -> tuple[FloatArray, FloatArray]:
        """Latency of plans [R], and exactly what moving one group alone adds [R, G, L]."""
        total, own = self._table_index(choice)
        latency = self.flat_ms[total].sum(-1) + self.overhead_ms
        moves = np.zeros((*choice.shape, self.index.shape[1]))
        if len(self.costly):
            rest = total[:, self.operator] - own
            cost = self.flat_ms[rest[:, :, None] + self.index]  # [R, P, L]
            moves[:, self.costly] = np.add.reduceat(cost, self.group_start, axis=1)
            rows, groups = choice.shape
            moves -= moves[np.arange(rows)[:, None], np.arange(groups), choice][..., None]
        return latency, moves

    def edge_moves_ms(self, choice: IntArray, moves_ms: FloatArray) -> FloatArray:
        """What moving the two groups of every edge adds, exactly [R, E, L, L].

        moves_ms [R, G, L] as from `moves_ms`.
        """
        total, own = self._table_index(choice)
        one, two = self.shared.T
        rest = total[:, self.operator[one]] - own[:, one] - own[:, two]  # [R, X]
        index = rest[..., None, None] + self.index[one][:, :, None] + self.index[two][:, None]
        cost = self.flat_ms[index]  # [R, X, L, L]
        here, there = choice[:, self.group[one]], choice[:, self.group[two]]
        first = np.take_along_axis(cost, there[..., None, None], 3)
        second = np.take_along_axis(cost, here[..., None, None], 2)
        both = np.take_along_axis(first, here[..., None, None], 2)
        beyond = np.add.reduceat(cost - first - second + both, self.edge_start, axis=1)
        left, right = self.edges.T
        return np.asarray(beyond + moves_ms[:, left, :, None] + moves_ms[:, right, None, :])

    def group_moves_ms(self, choice: IntArray, group: int) -> tuple[FloatArray, FloatArray]:
        """As `moves_ms`, for one group: latency [R], and what moving it adds [R, L]."""
        total, own = self._table_index(choice)
        latency = self.flat_ms[total].sum(-1) + self.overhead_ms
        first, last = np.searchsorted(self.group, [group, group + 1])
        rest = total[:, self.operator[first:last]] - own[:, first:last]
        cost = self.flat_ms[rest[:, :, None] + self.index[first:last]].sum(1)  # [R, L]
        return latency, cost - cost[np.arange(len(choice)), choice[:, group], None]


def _shared(operator: IntArray, pairs: IntArray) -> IntArray:
    """All two-element subsets of the pairs of one operator [X, 2]; none where they are too many.

    operator [P] ascending, of pairs [P], which ascend by group within one operator.
    """
    counts = np.unique(operator, return_counts=True)[1]
    if int((counts * (counts - 1) // 2).sum()) > GREATEST_SHARED:
        return np.zeros((0, 2), dtype=np.int64)
    one, two = np.nonzero(np.triu(operator[:, None] == operator, 1))
    return np.stack([pairs[one], pairs[two]], axis=1)
