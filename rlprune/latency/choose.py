"""Which operators and which plans tell most about the latency of a graph's plans.

Active choice instead of a full grid: the Gaussian process that interpolates an operator's cost
(`costs`) knows where it is unsure before anything is measured, and random plans say how much each
width weighs. So the next operator to measure is the one that takes most variance off the latency of
plans, until none would take much. The first is the call overhead.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

import numpy as np

from rlprune.graph.types import FloatArray, IntArray, Width
from rlprune.latency.calibrate import FUSED_PRIOR, space_keys
from rlprune.latency.costs import OperatorCosts, covariance, family, place_of, places
from rlprune.latency.macs import macs_tables
from rlprune.latency.operators import OVERHEAD, form, spec_at
from rlprune.latency.types import OperatorSpec
from rlprune.schemes import CHANNEL_ONLY, Space

STATED_COUNT = 5
"""Plans that a list of those to measure begins with: base, least and uniform ones."""
MAX_POINTS = 4
"""Candidate widths per axis: one per doubling from least to full, at most so many."""
MAX_COUNT = 150
"""Operators measured for one graph at most; with the whole models fewer than 200 measurements."""
PLAN_COUNT = 32
POINT_SD = 0.05
"""What one measured operator is uncertain by (natural logarithm)."""
LOSS_POWER = 1.5
"""How fast what a site loses grows with what is removed of it."""
PRICES = (0.01, 100.0, 60)
"""Of MACs, in units of loss: least, greatest, how many are tried."""
LEFT = (0.25, 0.9)
"""Share of the MACs that likely plans leave."""
MIN_SD = 0.005
"""Share of a plan's latency that a further operator must make certain to be worth its time."""


def operator_specs(
    space: Space,
    costs: OperatorCosts,
    measured: Collection[OperatorSpec] = (),
    *,
    most: int = MAX_COUNT,
) -> list[OperatorSpec]:
    """Operators worth measuring, the most telling first, `most` of a graph with those that were;
    empty where `measured` tells enough.

    Measuring what this returns and asking again returns little or nothing: the choice hangs on
    where the points lie, and only through `costs` on what came out.
    """
    families = _families(space, costs, measured)
    chosen = [] if OVERHEAD in measured else [OVERHEAD]
    room = most - sum(len(one.known) for one in families)
    while families and len(chosen) < room:
        best = max(families, key=lambda one: one.best_gain)
        if best.best_gain < MIN_SD**2:
            break
        chosen.append(best.take())
    return chosen


@dataclass
class _Family:
    """Operators that tell of one another (`costs.family`): what plans weigh them with, and what is
    known of their costs."""

    weights: FloatArray
    """Share of each plan's latency at each place [N, P]."""
    kernel: FloatArray
    """Covariance of log costs at the places and the candidates [P + C, P + C]."""
    candidates: list[OperatorSpec]
    known: list[OperatorSpec]
    gains: FloatArray
    """Variance of plans, as a share, that each candidate would take away [C]."""

    @property
    def best_gain(self) -> float:
        return float(self.gains.max(initial=0.0))

    def take(self) -> OperatorSpec:
        """Counts the best candidate as measured."""
        index = int(self.gains.argmax())
        self._condition(index)
        self._update()
        return self.candidates[index]

    def condition_on(self, measured: Collection[OperatorSpec]) -> None:
        for index, spec in enumerate(self.candidates):
            if spec in measured:
                self._condition(index)
        self._update()

    def _condition(self, index: int) -> None:
        row = self.kernel[self.weights.shape[1] + index].copy()
        own = row[self.weights.shape[1] + index]
        self.kernel -= np.outer(row, row) / (own + POINT_SD**2)
        self.known.append(self.candidates[index])

    def _update(self) -> None:
        count = self.weights.shape[1]
        own = np.diag(self.kernel)[count:]
        shared = self.weights @ self.kernel[:count, count:]  # [N, C]
        self.gains = np.square(shared).mean(0) / (own + POINT_SD**2)
        taken = [spec in self.known for spec in self.candidates]
        self.gains[np.array(taken, dtype=bool)] = 0.0


def _families(
    space: Space, costs: OperatorCosts, measured: Collection[OperatorSpec]
) -> list[_Family]:
    choices = _choices(space, count=PLAN_COUNT)  # [N, S]
    plans = space.settings_at(choices)[:, : space.group_count]  # [N, G]
    keys = space_keys(space)
    shared = form if space.schemes == CHANNEL_ONLY else family  # as `LatencyModel.compile` fits
    drafts: dict[OperatorSpec, _Draft] = {}
    for found in space.forms():
        kind, key = keys[found.index, found.options]
        factor = FUSED_PRIOR if kind.endswith("+") else 1.0
        rows = np.flatnonzero(found.holds(choices))
        ins, outs = (w.at(plans[rows]) for w in (found.operator.in_width, found.operator.out_width))
        draft = drafts.setdefault(shared(key), _Draft())
        draft.add(rows, key, ins, outs, factor * costs.ms(key, ins, outs))
    grid = operator_grid(space)
    for spec in itertools.chain(grid, sorted(set(measured) - set(grid))):
        if shared(spec) in drafts:
            drafts[shared(spec)].candidates.append(spec)
    total = np.zeros(len(plans))
    for draft in drafts.values():
        np.add.at(total, draft.rows, draft.ms)
    families = [draft.family(total) for draft in drafts.values()]
    for one in families:
        one.condition_on(measured)
    return families


class _Draft:
    """Operators of a family as they are collected, plan by plan."""

    def __init__(self) -> None:
        self.candidates: list[OperatorSpec] = []
        self._parts: list[tuple[IntArray, FloatArray, FloatArray]] = []

    def add(
        self, rows: IntArray, key: OperatorSpec, ins: IntArray, outs: IntArray, ms: FloatArray
    ) -> None:
        """An operator that is of a form in the plans `rows` [n], at widths [n], for ms [n]."""
        self._parts.append((rows, places(ins, outs, key.kernel), ms))

    @property
    def rows(self) -> IntArray:
        """Plan of every operator [M]."""
        return np.concatenate([rows for rows, _, _ in self._parts])

    @property
    def ms(self) -> FloatArray:
        """What each takes [M]."""
        return np.concatenate([ms for _, _, ms in self._parts])

    def family(self, total: FloatArray) -> _Family:
        """What they are in shares of what plans take in `total` [N]."""
        spots = np.concatenate([spots for _, spots, _ in self._parts])  # [M, D]
        distinct, where = np.unique(spots, axis=0, return_inverse=True)  # [P, D]
        weights = np.zeros((len(total), len(distinct)))
        np.add.at(weights, (self.rows, where.ravel()), self.ms)
        all_spots = np.concatenate([distinct, *map(place_of, self.candidates)])
        return _Family(
            weights / total[:, None],
            covariance(all_spots, all_spots),
            self.candidates,
            [],
            np.zeros(len(self.candidates)),
        )


def operator_grid(space: Space) -> list[OperatorSpec]:
    """The candidates: a small grid of widths per form of operator.

    Least to full, about one point per doubling; only totals that plans reach.
    """
    pairs: dict[OperatorSpec, set[tuple[int, int]]] = {}
    tied: dict[OperatorSpec, bool] = {}
    for op in (one.operator for one in space.forms()):
        if op.absent:
            continue
        key = form(spec_at(op, 0, 0))
        ins, outs = _reachable(op.in_width, space), _reachable(op.out_width, space)
        pairs.setdefault(key, set()).update(zip(ins, outs, strict=True))
        # A depthwise convolution's, an addition's, a pad's out-width follows from its in-width.
        tied[key] = tied.get(key, True) and op.in_width.terms == op.out_width.terms
    specs = []
    for key, reached in pairs.items():
        if tied[key]:
            chosen = _spread_out({low for low, _ in reached})
            points = sorted(pair for pair in reached if pair[0] in chosen)
        else:
            points = sorted(
                itertools.product(
                    _spread_out({low for low, _ in reached}),
                    _spread_out({out for _, out in reached}),
                )
            )
        specs += [
            replace(key, in_width=low, out_width=out)
            for low, out in points
            if key.groups <= 1 or (low % key.groups == 0 and out % key.groups == 0)
        ]
    return specs


def _reachable(width: Width, space: Space) -> list[int]:
    """Totals with every group at the same fraction of its options, for a ladder of fractions."""
    totals = []
    for fraction in np.linspace(0.0, 1.0, 17):
        total = width.const
        for group, repeat in width.terms:
            choice = round(fraction * (int(space.option_count[group]) - 1))
            total += repeat * int(space.settings[group, choice])
        totals.append(total)
    return totals


def _spread_out(totals: set[int]) -> list[int]:
    """Least, greatest and, evenly between in the logarithm, about one per doubling."""
    least, greatest = max(1, min(totals)), max(totals)
    count = int(np.clip(1 + np.ceil(np.log2(greatest / least)), 1, MAX_POINTS))
    targets = np.geomspace(least, greatest, count)
    ordered = np.array(sorted(totals))
    nearest = np.abs(np.log(np.maximum(ordered, 1)[:, None] / targets)).argmin(0)
    return sorted({int(ordered[index]) for index in nearest})


def calibration_plans(space: Space, *, count: int, seed: int = 0) -> IntArray:
    """Settings of distinct plans to measure whole [N, S]; see `_choices`."""
    return space.settings_at(_choices(space, count=count, seed=seed))


def _choices(space: Space, *, count: int, seed: int = 0) -> IntArray:
    """Distinct choices [N, S]: the base, the least, uniform ones, then likely and random ones.

    A longer list begins with the shorter one. Fewer than `count` rows where there are not so many
    plans. Two of three are such as planners choose (`_likely`): by them alone those are told as
    well as by twice as many random ones, which were 5 to 8 % off (networks with concatenations).
    Of the random ones every other scatters the groups around a common fraction, the others draw
    each group by itself: those say little about cheap and dear, but without them what is wide
    beside what is narrow was predicted 5 % off, outside the interval.
    """
    rng = np.random.default_rng(seed)
    top = space.unpruned
    choices = [top, np.zeros_like(top)]
    choices += [np.rint(fraction * top).astype(np.int64) for fraction in (0.5, 0.75, 0.25)]
    likely = _likely(space, np.random.default_rng((seed, 1)))
    chosen: dict[tuple[int, ...], None] = {}
    for attempt in range(20 * count + len(choices)):
        if attempt < len(choices):
            choice = choices[attempt]
        elif attempt % 3 != 1:
            choice = next(likely)
        else:
            share = rng.uniform(0.0, 1.0, len(top))
            if attempt % 2:
                share = np.clip(rng.uniform() + rng.normal(0.0, 0.35, len(top)), 0.0, 1.0)
            choice = np.rint(share * top).astype(np.int64)
        chosen.setdefault(tuple(choice.tolist()))
        if len(chosen) >= count:
            break
    return np.array(list(chosen), dtype=np.int64).reshape(len(chosen), len(top))[:count]


def _likely(space: Space, rng: np.random.Generator) -> Iterator[IntArray]:
    """Choices [S] such as planners make: of random losses, against the MACs that options save, so
    dear that a random share of the MACs is left."""
    top = space.unpruned
    while not len(top):
        yield top
    longest = int(space.option_count.max(initial=1))
    singles = np.minimum(np.arange(longest)[:, None, None], np.diag(top)[None])  # [L, S, S]
    singles = np.where(np.eye(len(top), dtype=bool), singles, top)
    tables = macs_tables(space)
    base = tables.base_ms
    cost = tables.latency_ms(singles.reshape(-1, len(top))).reshape(longest, -1).T / max(base, 1e-9)
    removed = 1.0 - space.shares  # [S, L]
    beyond = np.arange(longest) >= space.option_count[:, None]
    size = np.sqrt(np.maximum(1.0 - cost.min(1, initial=1.0), 0.0))  # [S]
    while True:
        worth = size * np.exp(rng.standard_normal(len(top)))
        loss = worth[:, None] * removed**LOSS_POWER
        total = loss + np.geomspace(*PRICES)[:, None, None] * cost  # [P, S, L]
        choices = np.where(beyond, np.inf, total).argmin(-1)
        left = tables.latency_ms(choices) / max(base, 1e-9)
        yield choices[int(np.abs(left - rng.uniform(*LEFT)).argmin())]
