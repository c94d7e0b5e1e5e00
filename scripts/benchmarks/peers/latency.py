"""What else predicts the latency of a plan, from the same measurements.

All are asked for the ratio to the unpruned model, which every control measures; so none needs an
overall factor, and only how latency falls with width is compared.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.optimize import nnls

from benchmarks.parts.latency_data import Case, fitted
from rlprune.graph.types import FloatArray, IntArray
from rlprune.latency.costs import OperatorCosts, operator_of
from rlprune.latency.operators import OVERHEAD, form, spec_at
from rlprune.latency.types import OperatorSpec

Predict = Callable[[IntArray], FloatArray]
"""Keeps [N, S] to latency in any unit [N]."""


def by_macs(case: Case) -> Predict:
    """Proportional to multiply-accumulates."""
    graph = case.trace.graph
    return lambda keeps: np.asarray(graph.macs(keeps), dtype=np.float64)


def by_roofline(case: Case) -> Predict:
    """Compute plus traffic, two rates fitted to the operators measured alone."""
    graph = case.trace.graph
    measured = [
        (one.subject, one.latency_ms)
        for one in case.fitting
        if isinstance(one.subject, OperatorSpec)
        and one.subject != OVERHEAD
        and one.status != "failed"
    ]
    work = np.array([_work(spec, [spec.in_width], [spec.out_width])[:, 0] for spec, _ in measured])
    ms = np.array([ms for _, ms in measured])
    rates, _ = nnls(work / ms[:, None], np.ones(len(ms)))  # relative errors

    def predict(keeps: IntArray) -> FloatArray:
        total = np.zeros(len(keeps))
        for op in graph.operators:
            key = form(spec_at(op, 0, 0))
            total += rates @ _work(key, op.in_width.at(keeps), op.out_width.at(keeps))
        return total

    return predict


def by_operator_table(case: Case) -> Predict:
    """The sum of operators measured alone, interpolated; no whole model corrects it."""
    costs: OperatorCosts = fitted(case, 0).costs

    def predict(keeps: IntArray) -> FloatArray:
        total = np.zeros(len(keeps))
        for op in case.trace.graph.operators:
            key = form(spec_at(op, 0, 0))
            total += costs.ms(key, op.in_width.at(keeps), op.out_width.at(keeps))
        return total

    return predict


def _work(spec: OperatorSpec, ins: IntArray | list[int], outs: IntArray | list[int]) -> FloatArray:
    """Millions of MACs and of floats moved [2, N]."""
    low, high = np.asarray(ins), np.asarray(outs)
    op = operator_of(form(spec))
    cells = [int(np.prod(extents, dtype=np.int64)) for extents in (op.in_spatial, op.out_spatial)]
    moved = low * cells[0] + high * cells[1] + op.params_at(low, high)
    return np.stack([op.macs_at(low, high) + np.zeros(len(low)), moved]) / 1e6


RIVALS = {"macs": by_macs, "roofline": by_roofline, "operator table": by_operator_table}
