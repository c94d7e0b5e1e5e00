"""From sums of operators to whole models: what a runtime fuses, caches and adds.

Operators measured alone add up to 0.9-1.4 times the model they make: activations are fused into
convolutions, layouts change between operators, and widths that do not fill a runtime's blocks take
other kernels. So each form of operator in a graph gets a factor, and further ones for traits of its
widths. They are fitted to whole models under several plans, from a prior (1, or 0.1 where a runtime
is apt to fuse), together, by class and by form: Gaussian regression with that prior's covariance,
factors kept at or above zero. A graph with operators that could not be measured alone (class
`other`: TopK, GridSample, a loop) gets a fixed cost that only its own plans tell of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from rlprune.graph.features import WEIGHTED
from rlprune.graph.types import FloatArray, IntArray, Operator, PruningGraph
from rlprune.latency.costs import ALIGNMENTS, OperatorCosts
from rlprune.latency.interval import MAX_HALF_WIDTH, Interval
from rlprune.latency.operators import form, known, spec_at
from rlprune.latency.types import ONE_SIDED_95, OperatorSpec
from rlprune.schemes import Form, Space, unpruned_settings, variants

FUSED_PRIOR = 0.1
ALL_SD, CLASS_SD, FORM_SD = 0.3, 0.3, 0.15
"""How far all factors, those of a class, and each by itself may move."""
TRAIT_CLASS_SD, TRAIT_FORM_SD = 0.1, 0.05
"""... and how much a trait of the widths may add to those of a class, and to each by itself."""
OVERHEAD_SD = 1.0
OTHER_SD = 0.5
"""How much of the unpruned model's latency operators of class `other` may take beyond a copy."""
PINNED_SD = 1e-4
"""Of a factor that would come out below zero."""
TRAIT_COUNT = 1 + 2 * (2 + len(ALIGNMENTS))
PLAN_SD = 0.02
"""What the sum leaves unexplained of a plan, as a share of its latency."""
BASE_SD = 0.005
"""The unpruned model is measured with every plan: predictions are ratios to it, so it must fit."""
OTHER_GRAPH_SD = 0.1
"""... of another graph's plans: they teach what this runtime fuses, and little more."""

COVERAGE = 0.9
DEFAULT_HALF_WIDTH = 0.35
"""Of the interval (natural logarithm) for a graph none of whose plans were measured."""
USUAL_SD, USUAL_COUNT = 0.08, 4
"""What plans are off by when two to eight of a network's were measured, and how many residuals it
counts for: so that 92 to 96 % of 400 plans were within the interval (five networks of held-out
families, four kinds of device), which is 15 % narrower than by the largest residual."""
MIN_HALF_WIDTH = 0.02
FIXED_SHARES = (0.0, 0.05, 0.2)
"""Candidates for the latency, as a share of the unpruned model's, at which the error that does not
grow with the latency equals the one that does."""
USUAL_SHARE = 0.05
ENOUGH_TO_CHOOSE = 15
"""Residuals from which on the share is chosen; chosen from fewer, intervals cover too little."""
OTHER = "other"
"""The class of what could not be measured alone."""

Key = tuple[str, OperatorSpec]
"""(class, form)."""


def operator_keys(graph: PruningGraph) -> list[Key]:
    """Class and form of every operator. `+` marks what a runtime may fuse into its producer: an
    addition or activation after weights, and an activation after such an addition."""
    keys: list[Key] = []
    for op in graph.operators:
        producers = [keys[index] for index in op.inputs if index >= 0]
        after_weights = any(cls in WEIGHTED for cls, _ in producers)
        after_fused_sum = any(cls == "add+" for cls, _ in producers)
        fusable = (op.kind in ("add", "activation") and after_weights) or (
            op.kind == "activation" and after_fused_sum
        )
        cls = op.kind + "+" if fusable else op.kind
        keys.append((cls if known(op.kind, op.variant) else OTHER, form(spec_at(op, 0, 0))))
    return keys


def form_key(key: Key, base: Operator, found: Form) -> Key:
    """Class and form of an operator in another form than its graph's, by what its own are."""
    operator = found.operator
    cls = key[0] if operator.kind == base.kind else operator.kind
    if not known(operator.kind, operator.variant):
        cls = OTHER
    return cls, form(spec_at(operator, 0, 0))


def space_keys(space: Space) -> dict[tuple[int, tuple[tuple[int, int], ...]], Key]:
    """Class and form of every form of every operator, by (operator, options)."""
    graph = space.graph
    keys = operator_keys(graph)
    return {
        (one.index, one.options): form_key(keys[one.index], graph.operators[one.index], one)
        for one in space.forms()
    }


@dataclass(frozen=True)
class PlanRows:
    """Whole-model measurements of one graph."""

    graph: PruningGraph
    settings: IntArray
    """[N, S], of all sites of `schemes`; the unpruned model's where a site was not told of."""
    schemes: tuple[str, ...]
    ms: FloatArray
    """[N], normalised by the control where there was one."""
    log_sd: FloatArray
    """[N], standard error of each."""
    trusted: FloatArray
    """[N], 1.0 where the measurement was `ok`; the interval is judged by those."""

    @property
    def base(self) -> NDArray[np.bool_]:
        """Which rows are of the unpruned model [N]."""
        return np.asarray(np.all(self.settings == self.unpruned, axis=1))

    @property
    def unpruned(self) -> IntArray:
        """Settings of the unpruned model [S]."""
        return unpruned_settings(self.graph, self.schemes)

    @cached_property
    def variants(self) -> list[tuple[PruningGraph, IntArray]]:
        """The graphs whose operators the plans have, each with the rows of its plans."""
        return variants(self.graph, self.settings, self.schemes)

    def of(self, settings: IntArray, schemes: Sequence[str]) -> IntArray:
        """The rows that measured a plan [S] of these schemes."""
        if tuple(schemes) != self.schemes:
            whole = (settings == unpruned_settings(self.graph, schemes)).all()
            return np.flatnonzero(self.base & whole)
        return np.flatnonzero(np.all(self.settings == settings, axis=1))

    @property
    def judged(self) -> NDArray[np.bool_]:
        """Which rows say how far predictions are off [N]: pruned, and trusted."""
        return ~self.base & (self.trusted > 0)

    @property
    def base_ms(self) -> float:
        """Of the unpruned model; where it was not measured, of the slowest plan."""
        return float((self.ms[self.base] if self.base.any() else self.ms).max())


@dataclass(frozen=True)
class LatencyCorrection:
    """Factors for the operators of one graph."""

    factors: dict[Key, FloatArray]
    """What each of an operator's traits counts [F]."""
    overhead_ms: float
    other_ms: float
    """What operators of class `other` take together, whatever their widths."""
    interval: Interval
    half_width: float
    """Of the 90 % interval at half of the unpruned latency (natural logarithm)."""

    def factor(self, key: Key, ins: IntArray, outs: IntArray) -> FloatArray:
        """What operators of `key` at in- and out-widths [N] are multiplied by [N]."""
        return np.maximum(_traits(ins, outs) @ self.factors[key], 0.0)


def calibrate(
    graph: PruningGraph,
    costs: OperatorCosts,
    call_ms: float,
    rows: Sequence[PlanRows],
    also: Sequence[Key] = (),
) -> LatencyCorrection:
    """Factors for `graph` from its own rows and, weakly, from those of other graphs; and for `also`
    what its operators are in other forms."""
    keys = list(dict.fromkeys((*operator_keys(graph), *also)))
    blocks = [row for row in rows if len(row.ms)]
    for row in blocks:
        for variant, _ in row.variants:
            keys += [key for key in dict.fromkeys(operator_keys(variant)) if key not in keys]
    index = {key: place for place, key in enumerate(keys)}
    mean, covariance = _prior([cls for cls, _ in keys])
    if not blocks:
        wide = Interval.of(DEFAULT_HALF_WIDTH)
        return LatencyCorrection(
            dict(zip(keys, mean, strict=True)), call_ms, 0.0, wide, DEFAULT_HALF_WIDTH
        )

    designs, calls, noises, judged, fixed = [], [], [], [], []
    for row in blocks:
        # Rows in shares of what was measured, so that errors are relative and all targets 1.
        designs.append(_sums(row, costs, index) / row.ms[:, None, None])
        calls.append(call_ms / row.ms)
        mine = row.graph.fingerprint == graph.fingerprint
        model_sd = np.where(row.base, BASE_SD, PLAN_SD) if mine else OTHER_GRAPH_SD
        noises.append(np.hypot(model_sd, row.log_sd))
        judged.append(mine & row.judged)
        unknown = any(cls == OTHER for cls, _ in operator_keys(row.graph))
        fixed.append(row.base_ms / row.ms * unknown)
    design, call, noise = map(np.concatenate, (designs, calls, noises))
    block = np.repeat(np.arange(len(blocks)), [len(row.ms) for row in blocks])
    others = np.concatenate(fixed)[:, None] * (block[:, None] == np.arange(len(blocks)))  # [N, B]
    chosen = np.flatnonzero(np.concatenate(judged))

    # How fast the device is as a whole is no matter for a prior: a donor may be many times faster.
    scale = 1.0 / float(np.median(np.einsum("nkf,kf->n", design, mean) + call))
    mean, covariance, call_var = mean * scale, covariance * scale**2, (OVERHEAD_SD * scale) ** 2
    target = np.ones(len(design))
    while True:
        reach = np.einsum("nkf,fkl->nlf", design, covariance)
        gram = np.einsum("nkf,mkf->nm", design, reach) + call_var * np.outer(call, call)
        gram += OTHER_SD**2 * others @ others.T
        inverse = np.linalg.inv(gram + np.diag(noise**2))
        pull = inverse @ (target - np.einsum("nkf,kf->n", design, mean) - scale * call)
        factors = mean + np.einsum("n,nkf->kf", pull, reach)
        fixed_ratio = OTHER_SD**2 * (pull @ others)  # [B], of the unpruned latency
        negative = np.flatnonzero(factors[:, 0] < -2.0 * PINNED_SD)
        below = np.flatnonzero(fixed_ratio < -2.0 * PINNED_SD)
        count = len(negative) + len(below)
        if not count:
            break
        # Told that these are zero, as if measured.
        pins = np.zeros((count, *design.shape[1:]))
        pins[np.arange(len(negative)), negative, 0] = 1.0
        more = np.zeros((count, others.shape[1]))
        more[np.arange(len(negative), count), below] = 1.0
        design, others = np.concatenate([design, pins]), np.concatenate([others, more])
        noise = np.append(noise, np.full(count, PINNED_SD))
        call, target = np.append(call, np.zeros(count)), np.append(target, np.zeros(count))

    # What each row would be off by, had it been left out: no refitting needed.
    left_out = np.abs(pull / np.diag(inverse))[chosen]
    place = {row.graph.fingerprint: n for n, row in enumerate(blocks)}.get(graph.fingerprint)
    interval, other_ms, width = Interval.of(DEFAULT_HALF_WIDTH), 0.0, DEFAULT_HALF_WIDTH
    if place is not None:
        own = blocks[place]
        interval = fit_interval(left_out, own.ms[own.judged], own.base_ms)
        other_ms = max(float(fixed_ratio[place]), 0.0) * own.base_ms
        width = interval.half_width_at(own.base_ms / 2)
    return LatencyCorrection(
        factors=dict(zip(keys, factors, strict=True)),
        overhead_ms=(scale + call_var * float(pull @ call)) * call_ms,
        other_ms=other_ms,
        interval=interval,
        half_width=width,
    )


def fit_interval(left_out: FloatArray, ms: FloatArray, base_ms: float) -> Interval:
    """The interval of absolute left-out residuals [N] of plans that take `ms` [N].

    Normalised conformal prediction (Papadopoulos et al., 2002): each residual is divided by what an
    error is expected to be at its latency, so that a few extremes do not widen what plans near the
    unpruned latency get. How the expectation runs is chosen by likelihood from
    a few candidates, where the residuals are enough to choose by.
    """
    if not len(left_out):
        return Interval.of(DEFAULT_HALF_WIDTH)

    def scaled(share: float) -> FloatArray:
        return np.asarray(np.sqrt(1.0 + np.square(share * base_ms / ms)))

    def misfit(share: float) -> float:
        expected = scaled(share)
        spread = np.sqrt(np.mean(np.square(left_out / expected)) + MIN_HALF_WIDTH**2 / 4)
        return float(np.mean(np.log(expected)) + np.log(spread))

    enough = len(left_out) >= ENOUGH_TO_CHOOSE
    share = min(FIXED_SHARES, key=misfit) if enough else USUAL_SHARE
    return Interval.of(half_width(left_out / scaled(share)), share * base_ms)


def half_width(left_out: FloatArray) -> float:
    """The conformal quantile of absolute left-out residuals [N].

    The ceil((N + 1) * 0.9)-th smallest covers a new plan with 90 %. Below nine residuals there is
    no such one; then they are taken to be normal, and to be as large as those of other networks
    unless they say otherwise (the interval of a normal variable whose variance is believed as much
    as `USUAL_COUNT` residuals would tell).
    """
    count = len(left_out)
    if count == 0:
        return DEFAULT_HALF_WIDTH
    rank = int(np.ceil((count + 1) * COVERAGE))
    if rank <= count:
        width = float(np.sort(left_out)[rank - 1])
    else:
        freedom = USUAL_COUNT + count
        square = (USUAL_COUNT * USUAL_SD**2 + float(np.square(left_out).sum())) / freedom
        width = ONE_SIDED_95 * (1.0 + 1.2 / freedom) * square**0.5  # of Student's t, about
    return float(np.clip(width, MIN_HALF_WIDTH, MAX_HALF_WIDTH))


def _sums(row: PlanRows, costs: OperatorCosts, index: dict[Key, int]) -> FloatArray:
    """Uncalibrated ms per plan, key and trait [N, K, F]."""
    sums = np.zeros((len(row.ms), len(index), TRAIT_COUNT))
    for variant, places in row.variants:
        by_key: dict[Key, list[Operator]] = {}
        for key, op in zip(operator_keys(variant), variant.operators, strict=True):
            by_key.setdefault(key, []).append(op)
        keeps = row.settings[places, : len(variant.groups)]
        for key, ops in by_key.items():
            ins = np.stack([op.in_width.at(keeps) for op in ops]).ravel()  # [ops * N]
            outs = np.stack([op.out_width.at(keeps) for op in ops]).ravel()
            ms = costs.ms(key[1], ins, outs)[:, None] * _traits(ins, outs)
            sums[places, index[key]] = ms.reshape(len(ops), len(keeps), -1).sum(0)
    return sums


def _traits(ins: IntArray, outs: IntArray) -> FloatArray:
    """What factors hang on [N, F]: 1, and of in- and out-widths [N] how wide they are (in steps of
    four times, from 32), whether less than a block, and which alignments they miss."""
    traits = [np.ones(len(ins))]
    for widths in (ins, outs):
        traits.append(0.5 * np.log2(np.maximum(widths, 1) / 32))
        traits.append((widths < max(ALIGNMENTS)).astype(np.float64))
        traits += [(widths % by != 0).astype(np.float64) for by in ALIGNMENTS]
    return np.column_stack(traits)


def _prior(classes: list[str]) -> tuple[FloatArray, FloatArray]:
    """Mean [K, F], and covariance per trait [F, K, K], of what traits count."""
    count = len(classes)
    mean = np.zeros((count, TRAIT_COUNT))
    mean[:, 0] = [FUSED_PRIOR if cls.endswith("+") else 1.0 for cls in classes]
    same = np.array([[float(a == b) for b in classes] for a in classes]).reshape(count, count)
    own = np.eye(count)
    traits = TRAIT_CLASS_SD**2 * same + TRAIT_FORM_SD**2 * own
    traits *= np.sqrt(np.outer(mean[:, 0], mean[:, 0]))
    covariance = np.repeat(traits[None], TRAIT_COUNT, axis=0)
    covariance[0] = ALL_SD**2 + CLASS_SD**2 * same + FORM_SD**2 * own
    return mean, covariance
