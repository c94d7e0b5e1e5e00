"""From sums of operators to whole models: what a runtime fuses, caches and adds.

Operators measured alone add up to 0.9-1.4 times the model they make: activations vanish into
convolutions, layout changes appear between them. So each form of operator in a graph gets a factor,
fitted to whole models under several plans. Factors start from a prior (1, or 0.1 where a runtime is
apt to fuse), move together, then by class, then by form, as far as the data carry them: a ridge
regression whose penalty is the inverse of that prior's covariance, factors kept at or above zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlprune.graph.types import FloatArray, IntArray, Operator, PruningGraph
from rlprune.latency.costs import OperatorCosts
from rlprune.latency.operators import form, spec_at
from rlprune.latency.types import OperatorSpec

FUSED_PRIOR = 0.1
ALL_SD, CLASS_SD, FORM_SD = 0.3, 0.3, 0.15
"""How far all factors, those of a class, and each by itself may move."""
OVERHEAD_SD = 1.0
PLAN_SD = 0.02
"""What the sum leaves unexplained of a plan, as a share of its latency."""
BASE_SD = 0.005
"""The unpruned model is measured with every plan: predictions are ratios to it, so it must fit."""
OTHER_GRAPH_SD = 0.1
"""... of another graph's plans: they teach what this runtime fuses, and little more."""

COVERAGE = 0.9
DEFAULT_HALF_WIDTH = 0.35
"""Of the interval (natural logarithm) for a graph none of whose plans were measured."""
MIN_HALF_WIDTH, MAX_HALF_WIDTH = 0.02, 0.7

Key = tuple[str, OperatorSpec]
"""(class, form)."""

_WEIGHTED = ("conv", "depthwise_conv", "conv_transpose", "linear")


def operator_keys(graph: PruningGraph) -> list[Key]:
    """Class and form of every operator. `+` marks what a runtime may fuse into its producer: an
    addition or activation after weights, and an activation after such an addition."""
    keys: list[Key] = []
    for op in graph.operators:
        producers = [keys[index] for index in op.inputs if index >= 0]
        after_weights = any(cls in _WEIGHTED for cls, _ in producers)
        after_fused_sum = any(cls == "add+" for cls, _ in producers)
        fusable = (op.kind in ("add", "activation") and after_weights) or (
            op.kind == "activation" and after_fused_sum
        )
        keys.append((op.kind + "+" if fusable else op.kind, form(spec_at(op, 0, 0))))
    return keys


@dataclass(frozen=True)
class PlanRows:
    """Whole-model measurements of one graph."""

    graph: PruningGraph
    keeps: IntArray
    """[N, G]"""
    ms: FloatArray
    """[N], normalised by the control where there was one."""
    log_sd: FloatArray
    """[N], standard error of each."""
    trusted: FloatArray
    """[N], 1.0 where the measurement was `ok`; the interval is judged by those."""


@dataclass(frozen=True)
class Calibration:
    """Factors for the operators of one graph."""

    factors: dict[Key, float]
    overhead_ms: float
    half_width: float
    """Of the 90 % interval, in the natural logarithm of the latency."""

    @property
    def interval_ratio(self) -> tuple[float, float]:
        return float(np.exp(-self.half_width)), float(np.exp(self.half_width))


def calibrate(
    graph: PruningGraph, costs: OperatorCosts, call_ms: float, rows: Sequence[PlanRows]
) -> Calibration:
    """Factors for `graph` from its own rows and, weakly, from those of other graphs."""
    keys = list(dict.fromkeys(operator_keys(graph)))
    blocks = [row for row in rows if len(row.ms)]
    for row in blocks:
        keys += [key for key in dict.fromkeys(operator_keys(row.graph)) if key not in keys]
    index = {key: place for place, key in enumerate(keys)}
    prior, precision = _prior([cls for cls, _ in keys])

    designs, noises, own, judged = [], [], [], []
    for row in blocks:
        sums = _sums(row.graph, costs, row.keeps, index)
        sums[:, -1] = call_ms
        mine = row.graph.fingerprint == graph.fingerprint
        base = np.all(row.keeps == row.graph.widths, axis=1)
        model_sd = np.where(base, BASE_SD, PLAN_SD) if mine else np.full(len(base), OTHER_GRAPH_SD)
        designs.append(sums / row.ms[:, None])  # rows in shares, so that errors are relative
        noises.append(np.hypot(model_sd, row.log_sd))
        own.append(np.full(len(base), mine))
        judged.append(mine & ~base & (row.trusted > 0))
    if not blocks:
        return Calibration(
            dict(zip(keys, prior[:-1].tolist(), strict=True)), call_ms, DEFAULT_HALF_WIDTH
        )

    design, weight = np.concatenate(designs), np.concatenate(noises) ** -2.0
    # How fast the device is as a whole is no matter for a prior: a donor may be many times faster.
    scale = 1.0 / float(np.median(design @ prior))
    prior, precision = prior * scale, precision / scale**2
    normal = design.T @ (weight[:, None] * design) + precision
    right = design.T @ weight + precision @ prior
    free = np.ones(len(prior), dtype=bool)
    factors = np.zeros(len(prior))
    while True:
        inverse = np.linalg.inv(normal[np.ix_(free, free)])
        factors = np.zeros(len(prior))
        factors[free] = inverse @ right[free]
        if np.all(factors >= 0.0):
            break
        free &= factors >= 0.0

    # Leave-one-out residuals without refitting: e / (1 - h), h the leverage of the row.
    chosen = np.concatenate(judged)
    rows_free = design[chosen][:, free]
    leverage = np.einsum("nk,kl,nl->n", rows_free, inverse, rows_free) * weight[chosen]
    error = 1.0 - design[chosen] @ factors
    left_out = np.abs(error / np.maximum(1.0 - leverage, 0.05))
    return Calibration(
        dict(zip(keys, factors[:-1].tolist(), strict=True)),
        float(factors[-1]) * call_ms,
        half_width(left_out),
    )


def half_width(left_out: FloatArray) -> float:
    """The conformal quantile of absolute left-out residuals [N], never narrower than N can tell.

    The ceil((N + 1) * 0.9)-th smallest covers a new plan with 90 %; below nine residuals there is
    no such one, and the largest is widened instead.
    """
    count = len(left_out)
    if count == 0:
        return DEFAULT_HALF_WIDTH
    ordered = np.sort(left_out)
    rank = int(np.ceil((count + 1) * COVERAGE))
    width = float(ordered[rank - 1]) if rank <= count else float(ordered[-1]) * (1.0 + 2.0 / count)
    floor = MIN_HALF_WIDTH + (0.2 / count if count < 9 else 0.0)
    return float(np.clip(width, floor, MAX_HALF_WIDTH))


def _sums(
    graph: PruningGraph, costs: OperatorCosts, keeps: IntArray, index: dict[Key, int]
) -> FloatArray:
    """Uncalibrated ms per key for keeps [N, G] -> [N, K + 1]; the last column is left at 0."""
    sums = np.zeros((len(keeps), len(index) + 1))
    by_key: dict[Key, list[Operator]] = {}
    for key, op in zip(operator_keys(graph), graph.operators, strict=True):
        by_key.setdefault(key, []).append(op)
    for key, ops in by_key.items():
        ins = np.stack([op.in_width.at(keeps) for op in ops])  # [ops, N]
        outs = np.stack([op.out_width.at(keeps) for op in ops])
        ms = costs.ms(key[1], ins.ravel(), outs.ravel()).reshape(ins.shape)
        sums[:, index[key]] = ms.sum(0)
    return sums


def _prior(classes: list[str]) -> tuple[FloatArray, FloatArray]:
    """Mean [K + 1] and inverse covariance [K + 1, K + 1] of the factors; the last is the call's."""
    count = len(classes)
    same = np.array([[float(a == b) for b in classes] for a in classes]).reshape(count, count)
    covariance = np.zeros((count + 1, count + 1))
    covariance[:count, :count] = ALL_SD**2 + CLASS_SD**2 * same + FORM_SD**2 * np.eye(count)
    covariance[count, count] = OVERHEAD_SD**2
    mean = np.array([FUSED_PRIOR if cls.endswith("+") else 1.0 for cls in classes] + [1.0])
    return mean, np.asarray(np.linalg.inv(covariance), dtype=np.float64)
