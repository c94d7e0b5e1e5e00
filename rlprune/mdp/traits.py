"""The part of the observation that only the task decides: shapes, places, shares, and the device.

Shares are scaled by the number of groups: twice a fair share reads the same at any depth.
The device shows only in traits derived from its tables: a name would be memorised.
"""

from __future__ import annotations

import math

import numpy as np

from rlprune.graph.types import FloatArray, PruningGraph
from rlprune.latency.tables import LatencyTables
from rlprune.solver.costs import LevelCosts
from rlprune.solver.task import PruningTask

TASK_SLOTS = (
    "log_width",  # log2(width) / 8
    "position",  # place of the group in topological order, 0-1
    "log_group_count",  # log2(groups) / 6
    "least_keep",  # least level over width
    "level_count",  # levels / 16
    "kernel",  # greatest kernel extent among producers / 7
    "stride",  # log2 of the greatest stride among producers
    "depthwise",  # 1 where a depthwise convolution works on the group
    "producers",  # log2(1 + weighted operators that produce it) / 3
    "consumers",  # log2(1 + weighted operators that read it) / 3
    "stream",  # 1 where several operators produce it (a residual stream)
    "bypassed",  # 1 where all that reads it writes into streams: a branch beside a shortcut
    "sibling_share",  # greatest share of a reader's input that other groups make up
    "first",  # 1 where an operator that reads no group produces it: the stem
    "last",  # 1 where an operator that writes no group reads it: the classifier
    "log_cells",  # log2(positions of its feature map) / 16
    "macs_share",  # log1p(groups * share of the MACs in operators it touches) / 2; so the next two
    "params_share",
    "latency_share",
    "macs_saved_50",  # likewise, MACs that halving it saves
    "later_latency_mean",  # latency_share over the groups still to come
    "later_latency_max",
    "overhead_share",  # device: cost outside of operators, share of base
    "weightless_share",  # device: cost of operators without MACs, share of base
    "dense_rate",  # device: log of ms per MAC over the model's mean, / 2; 0 where there are none
    "depthwise_rate",
    "linear_rate",
    "reversal",  # device: share of latency steps, level to level, that go the wrong way
    "jump",  # device: greatest step of a group's latency over its mean step, log, mean over groups
    "interval",  # device: relative upper end of the prediction interval - 1
)
_WEIGHTED = ("conv", "conv_transpose", "depthwise_conv", "linear")
_EPS = 1e-12


def later(values: FloatArray, reduce: np.ufunc) -> FloatArray:
    """Reduction over the groups after each one [..., G]; 0 for the last."""
    backwards = reduce.accumulate(values[..., ::-1], axis=-1)[..., ::-1]
    later = np.zeros_like(values)
    later[..., :-1] = backwards[..., 1:]
    return later


def later_mean(values: FloatArray) -> FloatArray:
    count = np.maximum(values.shape[-1] - 1 - np.arange(values.shape[-1]), 1)
    return np.asarray(later(values, np.add) / count)


def task_block(task: PruningTask, costs: LevelCosts, base_ms: float) -> FloatArray:
    """The slots of every group [G, task slots]."""
    graph, tables = task.graph, task.tables
    groups = task.group_count
    widths = graph.widths
    latency = tables.operator_ms(widths[None])[0]  # [O]
    macs, params = _work(graph)

    def touched(amount: FloatArray) -> FloatArray:
        share = amount / max(float(amount.sum()), _EPS)
        sums = np.bincount(costs.group, weights=share[costs.operator], minlength=groups)
        return np.log1p(groups * sums) / 2

    latency_share = touched(latency)
    place = _place(graph)
    traits = _device_traits(task, costs, latency, macs, base_ms)
    columns = [
        np.log2(widths) / 8,
        (np.arange(groups) + 0.5) / max(groups, 1),
        np.full(groups, np.log2(max(groups, 1)) / 6),
        task.levels[:, 0] / widths,
        task.level_count / 16,
        *place,
        touched(macs),
        touched(params),
        latency_share,
        _macs_saved(graph, tables, costs, macs),
        later_mean(latency_share),
        later(latency_share, np.maximum),
        *(np.full(groups, trait) for trait in traits),
    ]
    return np.stack(columns, axis=-1)


def _work(graph: PruningGraph) -> tuple[FloatArray, FloatArray]:
    """MACs and parameters of every operator of the unpruned model [O]."""
    widths = graph.widths
    pairs = [(op, op.in_width.at(widths), op.out_width.at(widths)) for op in graph.operators]
    macs = [int(op.macs_at(ins, outs)) for op, ins, outs in pairs]
    params = [int(op.params_at(ins, outs)) for op, ins, outs in pairs]
    return np.array(macs, dtype=np.float64), np.array(params, dtype=np.float64)


def _place(graph: PruningGraph) -> list[FloatArray]:
    """The slots kernel .. log_cells, each [G]."""
    groups = len(graph.groups)
    kernel, stride, cells = np.ones(groups), np.ones(groups), np.ones(groups)
    depthwise, siblings = np.zeros(groups), np.zeros(groups)
    producers, consumers = np.zeros(groups), np.zeros(groups)
    first, last = np.zeros(groups), np.zeros(groups)
    written: list[set[int]] = [set() for _ in range(groups)]  # by what reads each group
    for op in graph.operators:
        extent = float(math.prod(op.out_spatial))
        for group, _ in op.out_width.terms:
            cells[group] = max(cells[group], extent)
            if op.kind == "depthwise_conv":
                depthwise[group] = 1.0
            if op.kind in _WEIGHTED:
                kernel[group] = max(kernel[group], *op.kernel, 1)
                stride[group] = max(stride[group], *op.stride, 1)
                producers[group] += op.kind != "depthwise_conv"
                first[group] = max(first[group], float(not op.in_width.terms))
        whole = float(op.in_width.at(graph.widths))
        for group, count in op.in_width.terms:
            if op.kind in _WEIGHTED and op.kind != "depthwise_conv":
                consumers[group] += 1
                siblings[group] = max(siblings[group], 1 - count * graph.widths[group] / whole)
                last[group] = max(last[group], float(not op.out_width.terms))
                written[group] |= {other for other, _ in op.out_width.terms} or {-1}
    streams = set(np.flatnonzero(producers > 1).tolist())
    bypassed = [bool(others) and g not in others and others <= streams
                for g, others in enumerate(written)]  # fmt: skip
    return [
        kernel / 7,
        np.log2(stride),
        depthwise,
        np.log2(1 + producers) / 3,
        np.log2(1 + consumers) / 3,
        (producers > 1).astype(np.float64),
        np.array(bypassed, dtype=np.float64),
        siblings,
        first,
        last,
        np.log2(cells) / 16,
    ]


def _macs_saved(
    graph: PruningGraph, tables: LatencyTables, costs: LevelCosts, macs: FloatArray
) -> FloatArray:
    operator, group = costs.operator, costs.group
    half = graph.widths[group] / 2
    in_width = tables.in_incidence @ graph.widths
    in_total = np.array([op.in_width.const for op in graph.operators], dtype=np.int64) + in_width
    out_total = tables.out_incidence @ graph.widths + np.array(
        [op.out_width.const for op in graph.operators], dtype=np.int64
    )
    dense = np.array([op.kind != "depthwise_conv" for op in graph.operators], dtype=np.bool_)
    fewer_in = half * tables.in_incidence[operator, group] / np.maximum(in_total[operator], 1)
    fewer_out = half * tables.out_incidence[operator, group] / np.maximum(out_total[operator], 1)
    left = (1 - fewer_in * dense[operator]) * (1 - fewer_out)
    share = macs[operator] * (1 - left) / max(float(macs.sum()), _EPS)
    groups = len(graph.groups)
    return np.asarray(np.log1p(groups * np.bincount(group, weights=share, minlength=groups)) / 2)


def _device_traits(
    task: PruningTask, costs: LevelCosts, latency: FloatArray, macs: FloatArray, base_ms: float
) -> list[float]:
    """The slots overhead_share .. interval."""
    base = max(base_ms, _EPS)
    kinds = np.array([op.kind for op in task.graph.operators])
    mean_rate = float(latency[macs > 0].sum()) / max(float(macs.sum()), 1.0)

    def rate(*names: str) -> float:
        chosen = np.isin(kinds, names) & (macs > 0)
        if not chosen.any():
            return 0.0
        own = float(latency[chosen].sum() / macs[chosen].sum())
        return float(np.log(max(own, _EPS) / max(mean_rate, _EPS)) / 2)

    _, moves = costs.moves_ms((task.level_count - 1)[None])
    step = np.diff(moves[0], axis=1)  # [G, L-1]; 0 in the padding
    travelled = np.abs(step).sum()
    reversal = float(np.maximum(-step, 0).sum() / max(travelled, _EPS))
    count = np.maximum(task.level_count - 1, 1)
    mean_step = np.maximum(np.abs(step).sum(1) / count, _EPS)
    greatest = np.abs(step).max(1, initial=0.0)
    jump = float(np.log(np.maximum(greatest / mean_step, 1.0)).mean()) if len(count) else 0.0
    return [
        task.tables.overhead_ms / base,
        float(latency[macs == 0].sum()) / base,
        rate("conv", "conv_transpose"),
        rate("depthwise_conv"),
        rate("linear"),
        reversal,
        jump,
        task.tables.base_interval_ratio[1] - 1.0,
    ]
