"""Blocks left out or narrowed, planned by single changes: all 6,561 networks of NAS-Bench-Macro.

Every network of the table (Su et al., CVPR 2021) has eight blocks of three options: left out,
expansion 3, expansion 6; each was trained three times. What single changes of the full network lose
(16, and the full network itself) is read from two runs, the knapsack adds them up within a budget
of MACs, and the plan is judged on the third run, beside the best network within that budget by the
same two runs of the whole table. The figure is by how much the plan is less accurate, in points:
the mean over 19 budgets from 38 to 92 million MACs (the full network has 106) and over the three
ways of leaving a run out; its interval is over these three, and wide. Rows with `low` are of
budgets from 12 to 36.

`singles` adds the losses up as `rlprune.plan` does: none below zero, none below that of a smaller
change. Beside it: `as_read` and `log` (of the error) without that, `clipped` at zero, `shrunk`
towards the mean of all changes of the same kind by what the two runs differ, and `chosen`: shrunk
by the weight at which one of the two runs best predicts the other. `random`: any network that uses
at least 96 % of the budget.

`pairs` reads 28 more networks, two blocks of one stage changed at once. `pairs.as_read` plans with
all terms, `pairs.excess` with those above zero only. Whether terms are believed is decided by
networks they were not read from: `pairs` takes whichever of none, all or those above zero predicts
best what is proposed by any of the three (some 20 networks more to read), `pairs.by_random` goes by
16 networks drawn at random, 20 times over. `error` is how far predictions are from all networks
between 38 and 92 million MACs that were not read, `proposed_error` from those proposed; `exact` is
for how many budgets the solver finds the least predicted loss of the whole table.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import combinations, product
from pathlib import Path

import numpy as np

from benchmarks.harness import Bench, Row, mean_and_interval
from datasets.pack import shared_data
from rlprune.graph.types import FloatArray, Group, IntArray, Operator, PruningGraph, Width
from rlprune.latency.tables import LatencyTables
from rlprune.schemes import Form, Site, Space
from rlprune.sensitivity.energy import non_increasing, shape_profiles
from rlprune.solver.knapsack import solve
from rlprune.solver.pair_terms import PairTerms
from rlprune.solver.task import PruningTask

STAGE = (0, 0, 1, 1, 1, 2, 2, 2)
"""Of each block; the first of a stage halves the resolution."""
BLOCKS, OPTIONS, RUNS = len(STAGE), 3, 3
FULL = OPTIONS - 1
BUDGETS = np.arange(38.0, 95.0, 3.0)
LOW_BUDGETS = np.arange(12.0, 38.0, 3.0)
NEAR = 0.96
"""Share of its budget that a random plan uses at least."""
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
HELD_OUT = 16
"""Networks on which pair terms are compared with singles."""
DRAWS = 20
TARGET = 0.30


@dataclass(frozen=True)
class Table:
    """The networks, by their options read as a number of base 3."""

    accuracy: FloatArray
    """Of three runs, % [N, 3]."""
    mmacs: FloatArray
    """[N]."""

    @staticmethod
    def read(folder: Path) -> Table:
        """The table as it is published."""
        found = json.loads((folder / "nas-bench-macro_cifar10.json").read_text())
        nets = [found[key] for key in sorted(found)]
        if len(nets) != OPTIONS**BLOCKS:
            raise SystemExit(f"{folder} has {len(nets)} networks, not {OPTIONS**BLOCKS}")
        return Table(
            np.array([net["test_acc"] for net in nets]),
            np.array([net["flops"] for net in nets]) / 1e6,
        )

    @cached_property
    def options(self) -> IntArray:
        """Option of every block in every network [N, 8]."""
        return np.array(list(product(range(OPTIONS), repeat=BLOCKS)))

    def at(self, choice: IntArray) -> IntArray:
        """Places of networks [..., 8] -> [...]."""
        return np.asarray(choice @ OPTIONS ** np.arange(BLOCKS)[::-1])

    def changed(self, *changes: tuple[int, int]) -> int:
        """Place of the full network with some (block, option) changed."""
        choice = np.full(BLOCKS, FULL)
        for block, option in changes:
            choice[block] = option
        return int(self.at(choice))

    @cached_property
    def task(self) -> PruningTask:
        """What the solver is given: a site a block, costs in million MACs, which add up."""
        sites = tuple(Site(f"b{i}", "channel", (0, 1, 2), (0.0, 0.5, 1.0)) for i in range(BLOCKS))
        groups = tuple(Group(site.name, FULL, ()) for site in sites)
        operators = tuple(
            Operator(site.name, "linear", "", (-1,), Width(1), Width(0, ((i, 1),)), (), ())
            for i, site in enumerate(sites)
        )
        space = Space(PruningGraph("nas-bench-macro", groups, operators, ((1, 3, 32, 32),)), sites)
        full = float(self.mmacs[self.changed()])

        def mmacs(form: Form, ins: IntArray, outs: IntArray) -> FloatArray:
            own = [self.mmacs[self.changed((form.index, option))] - full for option in outs]
            return np.array([own], dtype=np.float64)

        tables = LatencyTables.compile("macs", space, mmacs, overhead_ms=full)
        if not np.allclose(tables.latency_ms(self.options), self.mmacs):
            raise SystemExit("MACs of the table do not add up over blocks")
        return PruningTask(space, tables, shape_profiles(space))


@dataclass(frozen=True)
class Way:
    """One run left out: what is read of the two others, and how plans do on it."""

    table: Table
    told: int

    @cached_property
    def read(self) -> FloatArray:
        """Errors in the two runs that are read, % [N, 2]."""
        return 100.0 - np.delete(self.table.accuracy, self.told, axis=1)

    def singles(self, error: FloatArray) -> FloatArray:
        """What single changes lose [8, 3] by errors [N]."""
        rows = [
            [error[self.table.changed((block, option))] for option in range(OPTIONS)]
            for block in range(BLOCKS)
        ]
        return np.asarray(np.array(rows) - error[self.table.changed()])

    @cached_property
    def single(self) -> FloatArray:
        """The same by the mean of both runs."""
        return self.singles(self.read.mean(1))

    @cached_property
    def curve(self) -> FloatArray:
        """The same as a planner adds them up."""
        return fitted(self.single)

    @cached_property
    def terms(self) -> dict[tuple[int, int, int, int], float]:
        """What two changes within a stage lose beyond the curve."""
        error = self.read.mean(1)
        found = {}
        for one, two in combinations(range(BLOCKS), 2):
            if STAGE[one] == STAGE[two]:
                for i, j in product(range(FULL), repeat=2):
                    both = error[self.table.changed((one, i), (two, j))]
                    alone = self.curve[one, i] + self.curve[two, j]
                    found[one, i, two, j] = float(both - error[self.table.changed()] - alone)
        return found

    @cached_property
    def pairs(self) -> dict[str, PairTerms | None]:
        """No terms, all of them, those above zero."""
        excess = {where: max(loss, 0.0) for where, loss in self.terms.items()}
        of = partial(PairTerms.of, self.table.task.option_count)
        return {"singles": None, "as_read": of(self.terms), "excess": of(excess)}

    @cached_property
    def unread(self) -> IntArray:
        """Networks between the least and the greatest budget that no term was read from."""
        changed = self.table.options != FULL
        stages = [{STAGE[block] for block in np.flatnonzero(row)} for row in changed]
        is_read = (changed.sum(1) <= 1) | (
            (changed.sum(1) == 2) & np.array([len(own) == 1 for own in stages])
        )
        mmacs = self.table.mmacs
        return np.flatnonzero(~is_read & (mmacs >= BUDGETS[0]) & (mmacs <= BUDGETS[-1]))

    def residual(self, pairs: PairTerms | None, nets: IntArray) -> float:
        """How far predictions are from what networks lose in the runs read, but for what is alike
        for all of them, since that changes no choice; points."""
        choice = self.table.options[nets]
        return float((self.read[nets].mean(1) - self.predicted(self.curve, pairs, choice)).std())

    def predicted(self, curve: FloatArray, pairs: PairTerms | None, choice: IntArray) -> FloatArray:
        """Summed loss of choices [N, 8] -> [N]."""
        total = curve[np.arange(BLOCKS), choice].sum(-1)
        return np.asarray(total if pairs is None else total + pairs.total(choice))

    def lacks(
        self, budgets: FloatArray, curve: FloatArray, pairs: PairTerms | None = None
    ) -> tuple[float, float]:
        """How much accuracy plans lack on the run left out, points; and the share of them that no
        other network within the budget beats by the same predictions."""
        plans = solve(self.table.task, budgets, loss=curve, pairs=pairs)
        own = self.predicted(curve, pairs, plans)
        every = self.predicted(curve, pairs, self.table.options)
        least = np.array([every[self.table.mmacs <= budget].min() for budget in budgets])
        lacking = self.best(budgets) - self.table.accuracy[self.table.at(plans), self.told]
        return float(lacking.mean()), float((own <= least + 1e-6).mean())

    def best(self, budgets: FloatArray) -> FloatArray:
        """Accuracy on the run left out of what both others say is best within budgets [B]."""
        error = self.read.mean(1)
        fits = self.table.mmacs <= budgets[:, None]  # [B, N]
        return np.asarray(self.table.accuracy[np.where(fits, error, np.inf).argmin(1), self.told])

    def random(self, budgets: FloatArray) -> float:
        """What networks that use a budget up lack on average, points."""
        lacking = []
        for budget, best in zip(budgets, self.best(budgets), strict=True):
            near = (self.table.mmacs <= budget) & (self.table.mmacs >= NEAR * budget)
            lacking.append(best - self.table.accuracy[near, self.told].mean())
        return float(np.mean(lacking))

    def proposed(self, budgets: FloatArray) -> IntArray:
        """Networks that some choice of terms plans, and that no term was read from."""
        plans = [
            self.table.at(solve(self.table.task, budgets, loss=self.curve, pairs=pairs))
            for pairs in self.pairs.values()
        ]
        return np.intersect1d(np.concatenate(plans), self.unread)

    def believed(self, nets: IntArray) -> str:
        """Which choice of terms predicts networks best."""
        return min(self.pairs, key=lambda name: self.residual(self.pairs[name], nets))

    def drawn(self, seed: int) -> Iterator[IntArray]:
        """Networks drawn at random, several times."""
        for draw in range(DRAWS):
            rng = np.random.default_rng([seed, self.told, draw])
            yield rng.choice(self.unread, HELD_OUT, replace=False)


def fitted(loss: FloatArray) -> FloatArray:
    """Losses [8, 3] as a planner adds them up: none below zero nor below a smaller change's."""
    return non_increasing(loss, np.full(BLOCKS, OPTIONS))


def shrunk(way: Way) -> FloatArray:
    """Losses drawn to the mean of all changes of their kind, by what both runs differ."""
    runs = [way.singles(way.read[:, run]) for run in range(RUNS - 1)]
    noise = float(((runs[0] - runs[1])[:, :FULL] ** 2).mean()) / 4  # variance of their mean
    mean = way.single.mean(0)
    spread = np.maximum(way.single.var(0, ddof=1) - noise, 0.0)
    return fitted(mean + (way.single - mean) * spread / (spread + noise))


def chosen(way: Way) -> FloatArray:
    """Losses drawn to the mean of their kind, of all blocks or of those that are alike (first of a
    stage or not), by the weight at which one run best predicts the other."""
    first = np.array([block == STAGE.index(stage) for block, stage in enumerate(STAGE)])
    runs = [way.singles(way.read[:, run]) for run in range(RUNS - 1)]

    def drawn(loss: FloatArray, alike: Sequence[IntArray], weight: float) -> FloatArray:
        mean = np.empty_like(loss)
        for blocks in alike:
            mean[blocks] = loss[blocks].mean(0)
        return fitted(weight * mean + (1 - weight) * loss)

    everything = [np.arange(BLOCKS)]
    by_place = [np.flatnonzero(first), np.flatnonzero(~first)]
    ways = [(alike, weight) for alike in (everything, by_place) for weight in WEIGHTS]
    wrong = [
        sum(float(((drawn(a, *how) - b) ** 2).mean()) for a, b in (runs, runs[::-1]))
        for how in ways
    ]
    return drawn(way.single, *ways[int(np.argmin(wrong))])


CURVES: dict[str, Callable[[Way], FloatArray]] = {
    "singles": lambda way: way.curve,
    "singles.as_read": lambda way: way.single,
    "singles.log": lambda way: way.singles(np.log(way.read.mean(1))),
    "singles.clipped": lambda way: np.maximum(way.single, 0.0),
    "singles.shrunk": shrunk,
    "singles.chosen": chosen,
}


def main() -> None:
    bench = Bench("macro", __doc__)
    options = bench.parse()
    table = Table.read(shared_data(options.shared) / "nas_bench_macro")
    ways = [Way(table, told) for told in range(RUNS)]
    step = 3 if options.quick else 1
    budgets = {"": BUDGETS[::step], "low.": LOW_BUDGETS[::step]}

    def row(
        name: str, values: Sequence[float], target: float | None = None, unit: str = "points"
    ) -> Row:
        mean, interval = mean_and_interval(values)
        return Row(f"options.blocks.macro.{name}", mean, unit, target, "min", len(values), interval)

    def by_singles() -> Iterator[Row]:
        for name, curve in CURVES.items():
            target = TARGET if name == "singles" else None
            yield row(name, [way.lacks(budgets[""], curve(way))[0] for way in ways], target)

    def by_chance() -> Iterator[Row]:
        yield row("random", [way.random(budgets[""]) for way in ways])

    def by_pairs() -> Iterator[Row]:
        each = {
            name: [way.lacks(budgets[""], way.curve, way.pairs[name]) for way in ways]
            for name in ways[0].pairs
        }
        proposed = [way.proposed(budgets[""]) for way in ways]
        own = [
            each[way.believed(nets)][way.told][0] for way, nets in zip(ways, proposed, strict=True)
        ]
        yield row("pairs", own)
        singles = [lacking for lacking, _ in each["singles"]]
        yield row("pairs.over_singles", np.subtract(own, singles).tolist())
        by_random = [
            np.mean([each[way.believed(nets)][way.told][0] for nets in way.drawn(options.seed)])
            for way in ways
        ]
        yield row("pairs.by_random", np.array(by_random).tolist())
        for name in ("as_read", "excess"):
            yield row(f"pairs.{name}", [lacking for lacking, _ in each[name]])
        for name in each:
            errors = [way.residual(way.pairs[name], way.unread) for way in ways]
            yield row(f"pairs.error.{name}", errors)
        for name in each:
            errors = [
                way.residual(way.pairs[name], nets)
                for way, nets in zip(ways, proposed, strict=True)
            ]
            yield row(f"pairs.proposed_error.{name}", errors)
        counts = [float(len(nets)) for nets in proposed]
        yield row("pairs.proposed", counts, unit="networks")
        for name, found in each.items():
            exact = [share for _, share in found]
            label = f"options.blocks.macro.pairs.exact.{name}"
            yield Row(label, float(np.mean(exact)), "of plans", None, "max", len(exact), None)

    def when_low() -> Iterator[Row]:
        low = budgets["low."]
        for name in ways[0].pairs:
            own = [way.lacks(low, way.curve, way.pairs[name])[0] for way in ways]
            yield row(f"low.{name if name == 'singles' else f'pairs.{name}'}", own)
        yield row("low.random", [way.random(low) for way in ways])

    with bench.measuring():
        bench.cell("singles", by_singles)
        bench.cell("random", by_chance)
        bench.cell("pairs", by_pairs)
        bench.cell("low", when_low)


if __name__ == "__main__":
    main()
