"""What an operator costs at any widths, from what it cost at a few.

A regression over everything measured on the device (log-linear in MACs, bytes and kind) gives the
shape; what each operator departs from it is interpolated between measured points by a Gaussian
process in the logarithms of the widths and of the kernel: a 1x3 over a layer's extents departs much
as the 3x3 does. So measured points are reproduced to within their noise, and a form that was never
measured still gets an answer. A device that has measured little starts from the costs of one that
has measured much, its donor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from rlprune.graph.types import ABSENT, FloatArray, IntArray, Operator, Width
from rlprune.latency.device import BLOCK
from rlprune.latency.operators import form
from rlprune.latency.types import FORM_FIELDS, OperatorSpec

PRIOR_MACS_PER_MS = 1e7
PRIOR_BYTES_PER_MS = 5e6
"""A modest core, for the regression to start from; data overrule it."""
PRIOR_FIXED_MS = 5e-4
MIN_MS = 1e-5
"""No operator costs less: a nanosecond's hundredth keeps logarithms finite."""

OFFSET_SD = 1.0
"""How far a family may depart from the regression as a whole (natural logarithm)."""
SHAPE_SD = 0.3
"""... and how far at one width relative to another."""
SHAPE_LENGTH = 1.5
"""Doublings of a width over which a departure fades."""
OFFSET_OWN, SHAPE_OWN = 0.1, 0.5
"""Shares of these variances that are a kernel's own. Chosen with `KERNEL_LENGTH` by leaving points
out: forms that were measured once are predicted 0.18 off, and were 0.34 off when each form stood by
itself (three networks in f32; in int8 0.14 and 0.39)."""
KERNEL_LENGTH = 2.0
"""Doublings of a kernel's extents over which what is its own fades."""
WIDTH_PLACES = 4
"""Numbers that say where an operator's widths lie (`places`)."""
ALIGNMENTS = (16, 8, 4)
"""Widths that are whole multiples of these run on other kernels than the rest (ORT: 44 channels
0.76 ms, 45 channels 1.21 ms, 48 channels 0.75 ms); a point says little about another alignment."""
RIDGE = 0.1


@dataclass(frozen=True)
class CostPoint:
    """One measured operator, net of the call overhead."""

    spec: OperatorSpec
    ms: float
    log_sd: float
    """Standard error of the logarithm of `ms`."""


class Costs(Protocol):
    """Who tells what operators cost."""

    def ms(self, key: OperatorSpec, ins: IntArray, outs: IntArray) -> FloatArray:
        """ms of a form of operator at pairs of in- and out-widths, [N] and [N] -> [N]."""
        ...


@dataclass(frozen=True)
class OperatorCosts:
    """Milliseconds of operators on one device, not yet calibrated to whole models."""

    kinds: tuple[str, ...]
    weights: FloatArray
    """Of the regression's features."""
    residuals: Mapping[OperatorSpec, _Residual]
    """By form, or by family where kernels tell of one another."""
    donor: Costs | None = None
    """Another device's costs, which take the roofline's place as what is known beforehand."""
    across_kernels: bool = False
    """Whether what one kernel takes tells of others over the same extents: where kernels are to
    be chosen from. Otherwise every form stands by itself."""

    @staticmethod
    def fit(
        points: Sequence[CostPoint],
        donor: Costs | None = None,
        *,
        across_kernels: bool = False,
    ) -> OperatorCosts:
        """Points in any order; equal points, equal costs."""
        ordered = sorted(points, key=lambda point: (point.spec, point.ms))
        kinds = tuple(sorted({point.spec.kind for point in ordered}))
        by_form: dict[OperatorSpec, list[CostPoint]] = {}
        for point in ordered:
            by_form.setdefault(form(point.spec), []).append(point)
        empty = OperatorCosts(kinds, np.zeros(3 + len(kinds)), {}, donor)
        if not ordered:
            return empty
        designs, targets = [], []
        for key, own in by_form.items():
            ins, outs = _widths(own)
            prior, features = empty._features(key, ins, outs)
            designs.append(features)
            targets.append(np.log([max(point.ms, MIN_MS) for point in own]) - prior)
        design, target = np.concatenate(designs), np.concatenate(targets)
        noise = np.array([point.log_sd for own in by_form.values() for point in own])
        trust = SHAPE_SD**2 / (SHAPE_SD**2 + noise**2)
        gram = design.T @ (trust[:, None] * design) + RIDGE * np.eye(design.shape[1])
        weights = np.asarray(np.linalg.solve(gram, design.T @ (trust * target)), dtype=np.float64)
        start = OperatorCosts(kinds, weights, {}, donor)
        departures: dict[OperatorSpec, list[FloatArray]] = {}
        families: dict[OperatorSpec, list[CostPoint]] = {}
        for key, own in by_form.items():
            ins, outs = _widths(own)
            off = _monotone(ins, outs, own) - start.regression(key, ins, outs)
            shared = family(key) if across_kernels else key
            departures.setdefault(shared, []).append(off)
            families.setdefault(shared, []).extend(own)
        residuals = {
            key: _Residual.fit(own, np.concatenate(departures[key]))
            for key, own in families.items()
        }
        return OperatorCosts(kinds, weights, residuals, donor, across_kernels)

    def ms(self, key: OperatorSpec, ins: IntArray, outs: IntArray) -> FloatArray:
        """ms of a form of operator at pairs of in- and out-widths, [N] and [N] -> [N]."""
        if key.variant == ABSENT:
            return np.zeros(len(ins))
        log_ms = self.regression(key, ins, outs)
        residual = self.residuals.get(family(key) if self.across_kernels else key)
        if residual is not None:
            log_ms = log_ms + residual.at(places(ins, outs, key.kernel))
        return np.exp(log_ms)

    def regression(self, key: OperatorSpec, ins: IntArray, outs: IntArray) -> FloatArray:
        """Log ms by the regression alone, without what each form departs from it [N]."""
        prior, features = self._features(key, ins, outs)
        return np.asarray(prior + features @ self.weights)

    def _features(
        self, key: OperatorSpec, ins: IntArray, outs: IntArray
    ) -> tuple[FloatArray, FloatArray]:
        """Log ms of the donor or a roofline [N], and what the regression corrects it by [N, F]."""
        op = operator_of(key)
        macs = op.macs_at(_aligned(ins), _aligned(outs)) + np.zeros(len(ins))
        weights = op.params_at(ins, outs)
        cells = (
            int(np.prod(key.in_spatial, dtype=np.int64)),
            int(np.prod(key.out_spatial, dtype=np.int64)),
        )
        traffic = 4.0 * (ins * cells[0] + outs * cells[1] + weights)
        compute, memory = macs / PRIOR_MACS_PER_MS, traffic / PRIOR_BYTES_PER_MS
        prior = np.log(PRIOR_FIXED_MS + compute + memory)
        one_hot = np.array([float(kind == key.kind) for kind in self.kinds])
        features = np.column_stack(
            [
                np.ones(len(ins)),
                prior - np.log(0.02),
                np.log((PRIOR_FIXED_MS + compute) / (PRIOR_FIXED_MS + memory)),
                np.broadcast_to(one_hot, (len(ins), len(one_hot))),
            ]
        )
        if self.donor is not None:
            prior = np.log(self.donor.ms(key, ins, outs))
        return prior, features


def family(key: OperatorSpec) -> OperatorSpec:
    """What the forms of an operator with different kernels have in common, as a form."""
    return replace(key, in_width=0, out_width=0, kernel=(0,) * len(key.kernel), pads=())


@dataclass(frozen=True)
class _Residual:
    """A Gaussian process over the widths and kernels of one family."""

    places: FloatArray
    weights: FloatArray

    @staticmethod
    def fit(points: Sequence[CostPoint], values: FloatArray) -> _Residual:
        spots = np.concatenate([place_of(point.spec) for point in points])
        noise = np.maximum([point.log_sd for point in points], 1e-3)
        kernel = covariance(spots, spots) + np.diag(np.square(noise))
        return _Residual(spots, np.linalg.solve(kernel, values))

    def at(self, spots: FloatArray) -> FloatArray:
        return np.asarray(covariance(spots, self.places) @ self.weights)


def covariance(a: FloatArray, b: FloatArray) -> FloatArray:
    """Covariance [A, B] of departures at places [A, D] and [B, D] of one family."""
    square = np.square(a[:, None, :] - b[None, :, :])  # [A, B, D]
    widths = np.exp(-0.5 * square[..., :WIDTH_PLACES].sum(-1))
    own = np.exp(-0.5 * square[..., WIDTH_PLACES:].sum(-1))
    offset = OFFSET_SD**2 * (1.0 - OFFSET_OWN + OFFSET_OWN * own)
    return np.asarray(offset + SHAPE_SD**2 * widths * (1.0 - SHAPE_OWN + SHAPE_OWN * own))


def places(ins: IntArray, outs: IntArray, kernel: tuple[int, ...]) -> FloatArray:
    """Where operators of a kernel lie for the covariance [N, 4 + axes]: logarithms of the widths,
    how well aligned they are, and logarithms of the kernel's extents."""
    columns = []
    for widths in (ins, outs):
        columns.append(np.log2(np.maximum(widths, 1)) / SHAPE_LENGTH)
        columns.append(sum((widths % by != 0).astype(np.float64) for by in ALIGNMENTS))
    columns += [np.full(len(ins), np.log2(max(extent, 1)) / KERNEL_LENGTH) for extent in kernel]
    return np.column_stack(columns)


def place_of(spec: OperatorSpec) -> FloatArray:
    """Where one operator lies [1, 4 + axes]."""
    return places(np.array([spec.in_width]), np.array([spec.out_width]), spec.kernel)


def _monotone(ins: IntArray, outs: IntArray, points: Sequence[CostPoint]) -> FloatArray:
    """Log ms, lowered where a wider operator of like alignment came out cheaper, as far as noise
    may have done that: wider is never cheaper unless it was clearly measured so."""
    logs = np.log([max(point.ms, MIN_MS) for point in points])
    noise = np.array([point.log_sd for point in points])
    spots = places(ins, outs, ())
    wider = np.all(spots[None, :, 0::2] >= spots[:, None, 0::2], axis=-1)
    alike = np.all(spots[None, :, 1::2] == spots[:, None, 1::2], axis=-1)
    least = np.where(wider & alike, logs[None, :], np.inf).min(-1)
    return np.asarray(np.maximum(least, logs - 2.0 * noise))


def _aligned(widths: IntArray) -> IntArray:
    """Widths as kernels see them: rounded up to whole blocks, where more than one block."""
    return np.where(widths > BLOCK, -(-widths // BLOCK) * BLOCK, widths)


def _widths(points: Sequence[CostPoint]) -> tuple[IntArray, IntArray]:
    return (
        np.array([point.spec.in_width for point in points], dtype=np.int64),
        np.array([point.spec.out_width for point in points], dtype=np.int64),
    )


def operator_of(key: OperatorSpec) -> Operator:
    """The form as a graph's operator, for its MACs and parameters."""
    rest = {name: getattr(key, name) for name in FORM_FIELDS}
    return Operator(name="", inputs=(), in_width=Width(), out_width=Width(), **rest)
