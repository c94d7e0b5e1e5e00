"""A device's latency of one graph, compiled to tables: a plan's latency is a gather and a sum.

Each operator has one table over (total in-width, total out-width); the totals are an incidence
matrix times the keeps, because a concat's or padded shortcut's input is a sum of groups.
Whole-model calibration is already multiplied in, so nothing here knows how the numbers came about.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from rlprune.graph.types import FloatArray, IntArray, Operator, PruningGraph, Width
from rlprune.latency.interval import Interval

EXACT = Interval()
"""The interval of what is counted, not measured: the prediction itself."""

OperatorCost = Callable[[Operator, IntArray, IntArray], FloatArray]
"""(operator, in-widths [I], out-widths [J]) -> ms [I, J]."""


@dataclass(frozen=True)
class LatencyTables:
    """Latency of any plan over the keep levels of one graph on one device.

    `levels` [G, L] are keep counts ascending, padded by repeating the full width; `level_count`
    [G].
    """

    device: str
    levels: IntArray
    level_count: IntArray
    overhead_ms: float
    """What every plan costs besides its operators."""
    interval: Interval
    """Where the true latency lies (90 %), by what is predicted."""
    flat_ms: FloatArray
    """All operators' tables end to end, each row-major [in totals, out totals]."""
    offset: IntArray
    """Where each operator's table starts in `flat_ms` [O]."""
    out_count: IntArray
    """Columns of each operator's table [O]."""
    in_incidence: IntArray
    """Row index of operator o = in_base[o] + in_incidence[o] @ keeps; likewise columns [O, G]."""
    in_base: IntArray
    out_incidence: IntArray
    out_base: IntArray
    in_step: IntArray
    """Totals are counted in steps: index = (incidence @ keeps + base) // step [O]."""
    out_step: IntArray
    pair_operator: IntArray
    """Operators that group g touches: pair_operator[pair_start[g] : pair_start[g + 1]]."""
    pair_start: IntArray

    @property
    def widths(self) -> IntArray:
        """Full widths [G]."""
        return self.levels[:, -1]

    @cached_property
    def _places(self) -> tuple[FloatArray, FloatArray]:
        """(A [G, O], b [O]): an operator's cost stands at `flat_ms[keeps @ A + b]`.

        The two floor divisions are exact for levels, so they fold into one matrix, and floats carry
        it: numpy multiplies those by BLAS. The half in b makes truncation round.
        """
        rows = self.in_incidence / self.in_step[:, None] * self.out_count[:, None]
        columns = self.out_incidence / self.out_step[:, None]
        start = self.in_base / self.in_step * self.out_count + self.out_base / self.out_step
        return np.ascontiguousarray((rows + columns).T), self.offset + start + 0.5

    def operator_ms(self, keeps: IntArray) -> FloatArray:
        """Cost of every operator for keeps [B, G] (each a level of its group) -> [B, O]."""
        matrix, start = self._places
        index = (keeps.astype(np.float64) @ matrix + start).astype(np.int64)  # [B, O]
        return np.asarray(self.flat_ms.take(index))

    @cached_property
    def condensed(self) -> LatencyTables:
        """Tables of the same latency over fewer operators.

        Operators that hang on the same two totals are added up into one table, what hangs on one
        total into a table that has it, what no plan changes into the overhead: of a ResNet-56's 145
        operators 31 remain.
        """
        ends = np.append(self.offset, len(self.flat_ms))[1:]
        row_count = (ends - self.offset) // self.out_count
        ins = np.column_stack([self.in_incidence, self.in_base, self.in_step, row_count])
        outs = np.column_stack([self.out_incidence, self.out_base, self.out_step, self.out_count])
        constant = np.zeros_like(ins, shape=(1, ins.shape[1]))
        constant[0, -2:] = 1
        # Sorted, the total that no group changes comes first: place 0.
        totals, place = np.unique(np.vstack([constant, ins, outs]), axis=0, return_inverse=True)
        firsts, seconds = place.ravel()[1:].reshape(2, -1).tolist()
        blocks: dict[tuple[int, int], FloatArray] = {(0, 0): np.full((1, 1), self.overhead_ms)}
        for op, (first, second) in enumerate(zip(firsts, seconds, strict=True)):
            block = self.flat_ms[self.offset[op] : ends[op]].reshape(row_count[op], -1)
            if first == second:
                first, block = 0, np.diag(block)[None]
            elif first > second:
                first, second, block = second, first, block.T
            blocks[first, second] = blocks.get((first, second), 0.0) + block
        overhead = blocks.pop((0, 0))
        host = {total: pair for pair in blocks if pair[0] > 0 for total in pair}
        for total in [second for first, second in blocks if first == 0 and second in host]:
            own, pair = blocks.pop((0, total)), host[total]
            blocks[pair] = blocks[pair] + (own if total == pair[1] else own.T)
        low, high = np.array(list(blocks), dtype=np.int64).reshape(-1, 2).T
        flat_ms, offset, out_count = _end_to_end(list(blocks.values()))
        in_incidence, out_incidence = totals[low, :-3], totals[high, :-3]
        pair_operator, pair_start = _pairs(in_incidence, out_incidence)
        return replace(
            self,
            overhead_ms=float(overhead[0, 0]),
            flat_ms=flat_ms,
            offset=offset,
            out_count=out_count,
            in_incidence=in_incidence,
            in_base=totals[low, -3],
            in_step=totals[low, -2],
            out_incidence=out_incidence,
            out_base=totals[high, -3],
            out_step=totals[high, -2],
            pair_operator=pair_operator,
            pair_start=pair_start,
        )

    def latency_ms(self, keeps: IntArray) -> FloatArray:
        """Predicted ms for keeps [B, G] (each a level of its group) -> [B]."""
        tables = self.condensed
        return np.asarray(tables.operator_ms(keeps).sum(-1) + tables.overhead_ms)

    def upper_ms(self, keeps: IntArray) -> FloatArray:
        """Upper end of the 90 % interval, what budgets are held against: [B, G] -> [B]."""
        return self.interval.high_ms(self.latency_ms(keeps))

    def interval_ms(self, keeps: IntArray) -> tuple[FloatArray, FloatArray]:
        """Both ends of the 90 % interval: [B, G] -> [B], [B]."""
        predicted = self.latency_ms(keeps)
        return self.interval.low_ms(predicted), self.interval.high_ms(predicted)

    @property
    def base_interval_ratio(self) -> tuple[float, float]:
        """Ends of the unpruned model's interval over what is predicted of it."""
        base = self.latency_ms(self.widths[None])
        ends = self.interval.low_ms(base), self.interval.high_ms(base)
        low, high = (float(end[0] / base[0]) if base[0] > 0 else 1.0 for end in ends)
        return low, high

    def merged(self, per_unit: IntArray, levels: IntArray, level_count: IntArray) -> LatencyTables:
        """The same tables over groups of groups: `keeps` is `merged keeps @ per_unit.T`.

        Args:
            per_unit: units of group g in one unit of merged group m [G, M].
            levels, level_count: of the merged groups [M, L], [M]; `levels.T @ per_unit.T` are
                levels of these tables.
        """
        merged = self._regrouped(per_unit, levels, level_count)
        # Added up in one order, a merged plan costs what the expanded one does to the last bit.
        condensed = self.condensed._regrouped(per_unit, levels, level_count)
        object.__setattr__(merged, "condensed", condensed)
        return merged

    def _regrouped(
        self, per_unit: IntArray, levels: IntArray, level_count: IntArray
    ) -> LatencyTables:
        in_incidence, out_incidence = self.in_incidence @ per_unit, self.out_incidence @ per_unit
        pair_operator, pair_start = _pairs(in_incidence, out_incidence)
        return replace(
            self,
            levels=levels,
            level_count=level_count,
            in_incidence=in_incidence,
            out_incidence=out_incidence,
            pair_operator=pair_operator,
            pair_start=pair_start,
        )

    @staticmethod
    def compile(
        device: str,
        graph: PruningGraph,
        levels: IntArray,
        level_count: IntArray,
        cost: OperatorCost,
        *,
        overhead_ms: float = 0.0,
        interval: Interval = EXACT,
    ) -> LatencyTables:
        """Evaluates `cost` at every total that the levels can reach.

        `cost` is asked once per operator with all its in- and out-totals, so a fitted model answers
        in one batch. Totals that no plan reaches may be asked for too: sums fill their lattice.
        """
        groups = len(graph.groups)
        in_axes = [_axis(op.in_width, levels, level_count, groups) for op in graph.operators]
        out_axes = [_axis(op.out_width, levels, level_count, groups) for op in graph.operators]
        blocks: list[FloatArray] = []
        for op, (_, _, _, in_totals), (_, _, _, out_totals) in zip(
            graph.operators, in_axes, out_axes, strict=True
        ):
            block = np.asarray(cost(op, in_totals, out_totals), dtype=np.float64)
            if block.shape != (len(in_totals), len(out_totals)):
                raise ValueError(f"cost of {op.name!r} has shape {block.shape}")
            blocks.append(block)
        flat_ms, offset, out_count = _end_to_end(blocks)
        shape = (len(blocks), groups)
        in_incidence = np.array([a[0] for a in in_axes], dtype=np.int64).reshape(shape)
        out_incidence = np.array([a[0] for a in out_axes], dtype=np.int64).reshape(shape)
        pair_operator, pair_start = _pairs(in_incidence, out_incidence)
        return LatencyTables(
            device=device,
            levels=levels,
            level_count=level_count,
            overhead_ms=overhead_ms,
            interval=interval,
            flat_ms=flat_ms,
            offset=offset,
            out_count=out_count,
            in_incidence=in_incidence,
            in_base=np.array([a[1] for a in in_axes], dtype=np.int64),
            out_incidence=out_incidence,
            out_base=np.array([a[1] for a in out_axes], dtype=np.int64),
            in_step=np.array([a[2] for a in in_axes], dtype=np.int64),
            out_step=np.array([a[2] for a in out_axes], dtype=np.int64),
            pair_operator=pair_operator,
            pair_start=pair_start,
        )


def _end_to_end(blocks: Sequence[FloatArray]) -> tuple[FloatArray, IntArray, IntArray]:
    """All blocks in one array, where each starts in it, and how many columns each has."""
    starts = np.cumsum([0, *(block.size for block in blocks)], dtype=np.int64)[:-1]
    columns = np.array([block.shape[1] for block in blocks], dtype=np.int64)
    return np.concatenate([np.zeros(0), *(block.ravel() for block in blocks)]), starts, columns


def _pairs(in_incidence: IntArray, out_incidence: IntArray) -> tuple[IntArray, IntArray]:
    """`pair_operator` and `pair_start` of incidences [O, G]."""
    touched = ((in_incidence != 0) | (out_incidence != 0)).T  # [G, O]
    return np.nonzero(touched)[1], np.cumsum([0, *touched.sum(1)], dtype=np.int64)


def _axis(
    width: Width, levels: IntArray, level_count: IntArray, group_count: int
) -> tuple[IntArray, int, int, IntArray]:
    """Incidence [G], base, step: (incidence @ keeps + base) // step counts from 0; the totals."""
    incidence = np.zeros(group_count, dtype=np.int64)
    least = greatest = width.const
    step = 0
    for group, repeat in width.terms:
        own = levels[group, : level_count[group]]
        incidence[group] = repeat
        least += repeat * int(own[0])
        greatest += repeat * int(own[-1])
        step = int(np.gcd.reduce(np.append(np.diff(own) * repeat, step)))
    step = max(step, 1)
    totals: NDArray[np.int64] = np.arange(least, greatest + 1, step, dtype=np.int64)
    return incidence, width.const - least, step, totals
