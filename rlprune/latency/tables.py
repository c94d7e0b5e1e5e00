"""A device's latency of one network, compiled to tables: a plan's latency is a gather and a sum.

Each operator has one table over its in-width, its out-width and its form, as far as options change
them. In that table every option moves the place that is looked up by a step of its own, whatever
the other sites' options are: so places are sums over sites, and nothing here knows what an option
does. Whole-model calibration is already multiplied in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from rlprune.graph.types import FloatArray, IntArray, Width
from rlprune.latency.interval import Interval
from rlprune.schemes import Form, Space

EXACT = Interval()
"""The interval of what is counted, not measured: the prediction itself."""

FormCost = Callable[[Form, IntArray, IntArray], FloatArray]
"""(an operator's form, in-widths [I], out-widths [J]) -> ms [I, J]."""


@dataclass(frozen=True, eq=False)
class Cells:
    """Tables end to end, and what every site's options add to the place looked up in each."""

    flat_ms: FloatArray
    start: IntArray
    """Place in `flat_ms` of every table with all sites at their first option [T]."""
    site: IntArray
    """Site of every (site, table that it moves in) pair, ascending [P]."""
    table: IntArray
    """Table of every pair [P]."""
    step: IntArray
    """What each of the site's options adds to the place [P, L]."""
    kept: dict[str, object] = field(default_factory=dict, repr=False)
    """What a search has made of these tables, for as long as they are kept."""

    @cached_property
    def by_table(self) -> IntArray:
        """Permutation that orders the pairs by table [P]."""
        return np.argsort(self.table, kind="stable")

    @cached_property
    def moved(self) -> tuple[IntArray, IntArray]:
        """The tables that some site moves in, ascending, and where each one's pairs start in
        `by_table`."""
        tables, starts = np.unique(self.table[self.by_table], return_index=True)
        return tables, starts

    def places(self, choice: IntArray) -> tuple[IntArray, IntArray]:
        """Place in every table [B, T] for choices [B, S], and what every pair adds to it [B, P]."""
        own = self.step[np.arange(len(self.site)), choice[:, self.site]]  # [B, P]
        total = np.repeat(self.start[None], len(choice), axis=0)
        tables, starts = self.moved
        if len(tables):
            total[:, tables] += np.add.reduceat(own[:, self.by_table], starts, axis=1)
        return total, own

    def ms(self, choice: IntArray) -> FloatArray:
        """What stands in every table [B, T] for choices [B, S]."""
        return np.asarray(self.flat_ms[self.places(choice)[0]])

    def scaled(self, ratio: float) -> Cells:
        """The same with everything `ratio` times as dear."""
        return replace(self, flat_ms=self.flat_ms * ratio, kept={})

    def merged(self, place: IntArray) -> Cells:
        """The same over sites that stand for several: site s is now part of site `place[s]`."""
        pairs, own = np.unique(
            np.column_stack([place[self.site], self.table]), axis=0, return_inverse=True
        )
        step = np.zeros((len(pairs), self.step.shape[1]), dtype=np.int64)
        np.add.at(step, own.ravel(), self.step)
        return replace(self, site=pairs[:, 0], table=pairs[:, 1], step=step, kept={})


@dataclass(frozen=True)
class LatencyTables:
    """Latency of any choice [S] of options for one network on one device."""

    device: str
    option_count: IntArray
    """Options of each site [S]."""
    overhead_ms: float
    """What every plan costs besides its operators."""
    interval: Interval
    """Where the true latency lies (90 %), by what is predicted."""
    operators: Cells
    """A table for every operator of the graph, in its order."""
    condensed: Cells
    """The same latency in fewer tables: operators that hang on the same two widths are added up,
    what hangs on one width goes into a table that has it, what no plan changes into
    `condensed_overhead_ms`. Of a ResNet-56's 145 operators 31 tables remain."""
    condensed_overhead_ms: float

    def operator_ms(self, choice: IntArray) -> FloatArray:
        """Cost of every operator [B, O] for choices [B, S]."""
        return self.operators.ms(choice)

    def latency_ms(self, choice: IntArray) -> FloatArray:
        """Predicted ms [B] for choices [B, S]."""
        return np.asarray(self.condensed.ms(choice).sum(-1) + self.condensed_overhead_ms)

    def upper_ms(self, choice: IntArray) -> FloatArray:
        """Upper end of the 90 % interval, what budgets are held against: [B, S] -> [B]."""
        return self.interval.high_ms(self.latency_ms(choice))

    def interval_ms(self, choice: IntArray) -> tuple[FloatArray, FloatArray]:
        """Both ends of the 90 % interval: [B, S] -> [B], [B]."""
        predicted = self.latency_ms(choice)
        return self.interval.low_ms(predicted), self.interval.high_ms(predicted)

    @property
    def base_ms(self) -> float:
        """Predicted latency of the unpruned model."""
        return float(self.latency_ms(self.option_count[None] - 1)[0])

    @property
    def base_interval_ratio(self) -> tuple[float, float]:
        """Ends of the unpruned model's interval over what is predicted of it."""
        ends = self.interval_ms(self.option_count[None] - 1)
        base = self.base_ms
        low, high = (float(end[0] / base) if base > 0 else 1.0 for end in ends)
        return low, high

    def scaled(self, ratio: float) -> LatencyTables:
        """The tables of a device that takes `ratio` times as long for everything."""
        return replace(
            self,
            overhead_ms=self.overhead_ms * ratio,
            condensed_overhead_ms=self.condensed_overhead_ms * ratio,
            operators=self.operators.scaled(ratio),
            condensed=self.condensed.scaled(ratio),
        )

    def merged(self, place: IntArray, option_count: IntArray) -> LatencyTables:
        """The same tables over sites that stand for several: site s is now part of `place[s]`,
        whose options [M] are those of all its sites at once."""
        return replace(
            self,
            option_count=option_count,
            operators=self.operators.merged(place),
            condensed=self.condensed.merged(place),
        )

    @staticmethod
    def compile(
        device: str,
        space: Space,
        cost: FormCost,
        *,
        overhead_ms: float = 0.0,
        interval: Interval = EXACT,
    ) -> LatencyTables:
        """Evaluates `cost` at every width and form that the options can reach.

        `cost` is asked once per form of an operator with all its in- and out-widths, so a fitted
        model answers in one batch. Widths that no plan reaches may be asked for too: sums fill
        their lattice.
        """
        lattice = _Lattice.of(space)
        tables = []
        for index, op in enumerate(space.graph.operators):
            ins, outs = lattice.totals(op.in_width), lattice.totals(op.out_width)
            blocks = []
            for form in space.forms_of(index):
                block = np.asarray(cost(form, ins, outs), dtype=np.float64)
                if block.shape != (len(ins), len(outs)):
                    raise ValueError(f"cost of {op.name!r} has shape {block.shape}")
                blocks.append(block)
            axes = lattice.axis(op.in_width), lattice.axis(op.out_width)
            tables.append(_Table(*axes, space.form_sites.get(index, ()), np.stack(blocks)))
        condensed, fixed_ms = _condensed(tables, lattice)
        return LatencyTables(
            device=device,
            option_count=space.option_count,
            overhead_ms=overhead_ms,
            interval=interval,
            operators=lattice.cells(tables),
            condensed=lattice.cells(condensed),
            condensed_overhead_ms=overhead_ms + fixed_ms,
        )


@dataclass(frozen=True)
class _Table:
    """One table: over two axes of widths (numbers of the lattice's), and forms."""

    rows: int
    columns: int
    forms: tuple[int, ...]
    """The sites whose options decide on the form."""
    ms: FloatArray
    """[forms, rows, columns]."""


@dataclass(frozen=True)
class _Lattice:
    """The widths that a space's options reach, along axes that are numbered; 0 is the axis of what
    no plan changes."""

    space: Space
    terms: tuple[tuple[tuple[int, int], ...], ...]
    """Of each axis: (group, channels per kept unit)."""
    number: dict[tuple[tuple[int, int], ...], int]

    @staticmethod
    def of(space: Space) -> _Lattice:
        """Axes are numbered by the groups they hang on, the last groups first."""
        found: set[tuple[tuple[int, int], ...]] = {()}
        for op in space.graph.operators:
            found |= {op.in_width.terms, op.out_width.terms}

        def dense(terms: tuple[tuple[int, int], ...]) -> list[int]:
            row = [0] * space.group_count
            for group, repeat in terms:
                row[group] = repeat
            return row

        ordered = tuple(sorted(found, key=dense))
        return _Lattice(space, ordered, {terms: place for place, terms in enumerate(ordered)})

    def axis(self, width: Width) -> int:
        """Number of a width's axis."""
        return self.number[width.terms]

    def _units(self, terms: tuple[tuple[int, int], ...]) -> tuple[int, int, int]:
        """Least and greatest sum over the terms, and the step that all sums are multiples of."""
        low = high = step = 0
        for group, repeat in terms:
            own = self.space.settings[group, : self.space.option_count[group]]
            low, high = low + repeat * int(own[0]), high + repeat * int(own[-1])
            step = int(np.gcd.reduce(np.append(np.diff(own) * repeat, step)))
        return low, high, max(step, 1)

    def totals(self, width: Width) -> IntArray:
        """The lengths of an axis that plans reach, ascending."""
        low, high, step = self._units(width.terms)
        return np.arange(width.const + low, width.const + high + 1, step, dtype=np.int64)

    def steps(self, axis: int) -> dict[int, IntArray]:
        """By how many places each group's options move along an axis [L]."""
        terms = self.terms[axis]
        step = self._units(terms)[2]
        settings = self.space.settings
        return {
            group: (settings[group] - settings[group, 0]) * repeat // step
            for group, repeat in terms
        }

    def cells(self, tables: Sequence[_Table]) -> Cells:
        """Tables end to end."""
        starts = np.cumsum([0, *(table.ms.size for table in tables)], dtype=np.int64)[:-1]
        longest = self.space.settings.shape[1]
        site, place, step = [], [], []
        for index, table in enumerate(tables):
            own: dict[int, IntArray] = {}
            row_length = table.ms.shape[2]
            for group, moves in self.steps(table.rows).items():
                own[group] = moves * row_length
            for group, moves in self.steps(table.columns).items():
                own[group] = own.get(group, 0) + moves
            size = table.ms[0].size
            for one in reversed(table.forms):
                count = int(self.space.option_count[one])
                own[one] = np.minimum(np.arange(longest), count - 1) * size
                size *= count
            site += list(own)
            place += [index] * len(own)
            step += list(own.values())
        order = np.lexsort((place, site))
        return Cells(
            flat_ms=np.concatenate([np.zeros(0), *(table.ms.ravel() for table in tables)]),
            start=starts,
            site=np.array(site, dtype=np.int64)[order],
            table=np.array(place, dtype=np.int64)[order],
            step=np.array(step, dtype=np.int64).reshape(len(site), longest)[order],
        )


def _condensed(tables: Sequence[_Table], lattice: _Lattice) -> tuple[list[_Table], float]:
    """Fewer tables of the same sum, and what no plan changes, ms."""
    blocks: dict[tuple[int, int, tuple[int, ...]], FloatArray] = {}
    for table in tables:
        rows, columns, ms = table.rows, table.columns, table.ms
        if rows == columns:
            rows, ms = 0, np.diagonal(ms, axis1=1, axis2=2)[:, None]
        elif rows > columns:
            rows, columns, ms = columns, rows, ms.swapaxes(1, 2)
        key = (rows, columns, table.forms)
        blocks[key] = blocks[key] + ms if key in blocks else ms
    fixed = blocks.pop((0, 0, ()), np.zeros((1, 1, 1)))
    host = {axis: key for key in blocks if key[0] > 0 and not key[2] for axis in key[:2]}
    for key in [key for key in blocks if key[0] == 0 and not key[2] and key[1] in host]:
        ms, pair = blocks.pop(key), host[key[1]]
        blocks[pair] = blocks[pair] + (ms if key[1] == pair[1] else ms.swapaxes(1, 2))
    return [_Table(*key, ms) for key, ms in blocks.items()], float(fixed[0, 0, 0])
