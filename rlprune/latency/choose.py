"""Which operators and which plans tell most about the latency of a graph's plans.

Active choice instead of a full grid: the Gaussian process that interpolates an operator's cost
(`costs`) knows where it is unsure before anything is measured, and random plans say how much each
width weighs. So the next operator to measure is the one that takes most variance off the latency of
plans, until none would take much. The first is the call overhead.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np

from rlprune.graph.types import FloatArray, IntArray, Operator, Width
from rlprune.latency.calibrate import FUSED_PRIOR, space_keys
from rlprune.latency.costs import OperatorCosts, covariance, places
from rlprune.latency.operators import OVERHEAD, form, spec_at
from rlprune.latency.types import OperatorSpec
from rlprune.schemes import Space

MAX_POINTS = 4
"""Candidate widths per axis: one per doubling from least to full, at most so many."""
MAX_COUNT = 150
"""Operators measured for one graph at most; with the whole models fewer than 200 measurements."""
PLAN_COUNT = 32
POINT_SD = 0.05
"""What one measured operator is uncertain by (natural logarithm)."""
MIN_SD = 0.005
"""Share of a plan's latency that a further operator must make certain to be worth its time."""


def operator_specs(
    space: Space, costs: OperatorCosts, measured: Collection[OperatorSpec] = ()
) -> list[OperatorSpec]:
    """Operators worth measuring, the most telling first; empty where `measured` tells enough.

    Measuring what this returns and asking again returns little or nothing: the choice hangs on
    where the points lie, and only through `costs` on what came out.
    """
    forms = _forms(space, costs, measured)
    chosen = [] if OVERHEAD in measured else [OVERHEAD]
    room = MAX_COUNT - sum(len(one.known) for one in forms)
    while forms and len(chosen) < room:
        best = max(forms, key=lambda one: one.best_gain)
        if best.best_gain < MIN_SD**2:
            break
        chosen.append(best.take())
    return chosen


@dataclass
class _Form:
    """Operators of one form: what plans weigh them with, and what is known of their costs."""

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


def _forms(space: Space, costs: OperatorCosts, measured: Collection[OperatorSpec]) -> list[_Form]:
    choices = _choices(space, count=PLAN_COUNT)  # [N, S]
    plans = space.settings_at(choices)[:, : space.group_count]  # [N, G]
    operators: dict[OperatorSpec, list[tuple[Operator, FloatArray]]] = {}
    keys = space_keys(space)
    for found in space.forms():
        kind, key = keys[found.index, found.options]
        factor = FUSED_PRIOR if kind.endswith("+") else 1.0
        operators.setdefault(key, []).append(
            (found.operator, factor * found.holds(choices).astype(np.float64))
        )
    grid = operator_grid(space)
    by_form: dict[OperatorSpec, list[OperatorSpec]] = {}
    for spec in itertools.chain(grid, sorted(set(measured) - set(grid))):
        by_form.setdefault(form(spec), []).append(spec)
    total = np.zeros(len(plans))
    drafts = []
    for key, ops in operators.items():
        ins = np.stack([op.in_width.at(plans) for op, _ in ops])  # [ops, N]
        outs = np.stack([op.out_width.at(plans) for op, _ in ops])
        pairs, where = np.unique(
            np.stack([ins.ravel(), outs.ravel()], 1), axis=0, return_inverse=True
        )
        ms = costs.ms(key, pairs[:, 0], pairs[:, 1])
        factors = np.array([factor for _, factor in ops])  # [ops, N]
        weights = np.zeros((len(plans), len(pairs)))
        for row, factor in zip(where.reshape(ins.shape), factors, strict=True):
            np.add.at(weights, (np.arange(len(plans)), row), factor * ms[row])
        total += weights.sum(1)
        candidates = by_form.get(key, [])
        where_all = np.concatenate(
            [pairs, np.array([(s.in_width, s.out_width) for s in candidates]).reshape(-1, 2)]
        ).astype(np.int64)
        spots = places(where_all[:, 0], where_all[:, 1])
        drafts.append((weights, covariance(spots, spots), candidates))
    forms = []
    for weights, kernel, candidates in drafts:
        one = _Form(weights / total[:, None], kernel, candidates, [], np.zeros(len(candidates)))
        one.condition_on(measured)
        forms.append(one)
    return forms


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
    """Distinct choices [N, S]: the base, the least, uniform ones, random ones.

    A longer list begins with the shorter one. Fewer than `count` rows where there are not so many
    plans. Every other random plan scatters the groups around a common fraction, the others draw
    each group by itself: those cost about the same and say little about cheap and dear, but without
    them what is wide beside what is narrow was predicted 5 % off, outside the interval.
    """
    rng = np.random.default_rng(seed)
    top = space.unpruned
    choices = [top, np.zeros_like(top)]
    choices += [np.rint(fraction * top).astype(np.int64) for fraction in (0.5, 0.75, 0.25)]
    chosen: dict[tuple[int, ...], None] = {}
    for attempt in range(20 * count + len(choices)):
        if attempt < len(choices):
            choice = choices[attempt]
        else:
            share = rng.uniform(0.0, 1.0, len(top))
            if attempt % 2:
                share = np.clip(rng.uniform() + rng.normal(0.0, 0.35, len(top)), 0.0, 1.0)
            choice = np.rint(share * top).astype(np.int64)
        chosen.setdefault(tuple(choice.tolist()))
        if len(chosen) >= count:
            break
    return np.array(list(chosen), dtype=np.int64).reshape(len(chosen), len(top))[:count]
