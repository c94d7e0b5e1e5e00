"""From sums of operators to whole models: what a runtime fuses, caches and adds.

Operators measured alone add up to 0.9-1.4 times the model they make: activations vanish into
convolutions, layout changes appear between them, and where a width does not fill a runtime's blocks
a whole chain of operators takes another path (ONNX Runtime on AVX-512: widths that are no multiple
of 16; OpenVINO: less than 16). So each form of operator in a graph gets a factor, and further ones
for the traits of its in- and out-width: how wide, whether less than a block, which alignments are
missed. They are fitted to whole models under several plans, start from a prior (1, or 0.1 where a
runtime is apt to fuse; no trait matters), move together, then by class, then by form, as far as the
data carry them: Gaussian regression with that prior's covariance, factors kept at or above zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlprune.graph.types import FloatArray, IntArray, Operator, PruningGraph
from rlprune.latency.costs import ALIGNMENTS, OperatorCosts
from rlprune.latency.operators import form, spec_at
from rlprune.latency.types import OperatorSpec

FUSED_PRIOR = 0.1
ALL_SD, CLASS_SD, FORM_SD = 0.3, 0.3, 0.15
"""How far all factors, those of a class, and each by itself may move."""
TRAIT_CLASS_SD, TRAIT_FORM_SD = 0.1, 0.05
"""... and how much a trait of the widths may add to those of a class, and to each by itself."""
OVERHEAD_SD = 1.0
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

    factors: dict[Key, FloatArray]
    """What each of an operator's traits counts [F]."""
    overhead_ms: float
    half_width: float
    """Of the 90 % interval, in the natural logarithm of the latency."""

    def factor(self, key: Key, ins: IntArray, outs: IntArray) -> FloatArray:
        """What operators of `key` at in- and out-widths [N] are multiplied by [N]."""
        return np.maximum(_traits(ins, outs) @ self.factors[key], 0.0)

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
    mean, covariance = _prior([cls for cls, _ in keys])
    if not blocks:
        return Calibration(dict(zip(keys, mean, strict=True)), call_ms, DEFAULT_HALF_WIDTH)

    designs, calls, noises, judged = [], [], [], []
    for row in blocks:
        # Rows in shares of what was measured, so that errors are relative and all targets 1.
        designs.append(_sums(row.graph, costs, row.keeps, index) / row.ms[:, None, None])
        calls.append(call_ms / row.ms)
        mine = row.graph.fingerprint == graph.fingerprint
        base = np.all(row.keeps == row.graph.widths, axis=1)
        model_sd = np.where(base, BASE_SD, PLAN_SD) if mine else np.full(len(base), OTHER_GRAPH_SD)
        noises.append(np.hypot(model_sd, row.log_sd))
        judged.append(mine & ~base & (row.trusted > 0))
    design, call, noise = map(np.concatenate, (designs, calls, noises))
    chosen = np.flatnonzero(np.concatenate(judged))

    # How fast the device is as a whole is no matter for a prior: a donor may be many times faster.
    scale = 1.0 / float(np.median(np.einsum("nkf,kf->n", design, mean) + call))
    mean, covariance, call_var = mean * scale, covariance * scale**2, (OVERHEAD_SD * scale) ** 2
    target = np.ones(len(design))
    while True:
        reach = np.einsum("nkf,fkl->nlf", design, covariance)
        gram = np.einsum("nkf,mkf->nm", design, reach) + call_var * np.outer(call, call)
        inverse = np.linalg.inv(gram + np.diag(noise**2))
        pull = inverse @ (target - np.einsum("nkf,kf->n", design, mean) - scale * call)
        factors = mean + np.einsum("n,nkf->kf", pull, reach)
        negative = np.flatnonzero(factors[:, 0] < -2.0 * PINNED_SD)
        if not len(negative):
            break
        # Told that these are zero, as if measured.
        pins = np.zeros((len(negative), *design.shape[1:]))
        pins[np.arange(len(negative)), negative, 0] = 1.0
        design, noise = (
            np.concatenate([design, pins]),
            np.append(noise, np.full(len(pins), PINNED_SD)),
        )
        call, target = np.append(call, np.zeros(len(pins))), np.append(target, np.zeros(len(pins)))

    # What each row would be off by, had it been left out: no refitting needed.
    left_out = np.abs(pull / np.diag(inverse))[chosen]
    return Calibration(
        dict(zip(keys, factors, strict=True)),
        (scale + call_var * float(pull @ call)) * call_ms,
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
    """Uncalibrated ms per key and trait for keeps [N, G] -> [N, K, F]."""
    by_key: dict[Key, list[Operator]] = {}
    for key, op in zip(operator_keys(graph), graph.operators, strict=True):
        by_key.setdefault(key, []).append(op)
    sums = np.zeros((len(keeps), len(index), TRAIT_COUNT))
    for key, ops in by_key.items():
        ins = np.stack([op.in_width.at(keeps) for op in ops]).ravel()  # [ops * N]
        outs = np.stack([op.out_width.at(keeps) for op in ops]).ravel()
        ms = costs.ms(key[1], ins, outs)[:, None] * _traits(ins, outs)
        sums[:, index[key]] = ms.reshape(len(ops), len(keeps), -1).sum(0)
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
