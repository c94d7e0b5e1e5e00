"""The part of the observation that only the task decides: shapes, places, shares, and the device.

Shares are scaled by the number of groups: twice a fair share reads the same at any depth.
The device shows only in traits derived from its tables: a name would be memorised.
"""

from __future__ import annotations

import numpy as np

from rlprune.graph.features import group_features
from rlprune.graph.types import FloatArray, PruningGraph
from rlprune.latency.tables import Cells
from rlprune.solver.costs import MoveCosts
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


def task_block(task: PruningTask, costs: MoveCosts, base_ms: float) -> FloatArray:
    """The slots of every site [S, task slots]."""
    graph, tables, cells = task.graph, task.tables, costs.cells
    sites = task.site_count
    latency = tables.operator_ms(task.space.unpruned[None])[0]  # [O]
    macs, params = _work(graph)

    def touched(amount: FloatArray) -> FloatArray:
        share = amount / max(float(amount.sum()), _EPS)
        # Tables are numbered among the condensed ones, operators among all: shares are those of
        # other operators than meant. The policy that ships learned on them as they are.
        sums = np.bincount(cells.site, weights=share[cells.table], minlength=sites)
        return np.log1p(sites * sums) / 2

    latency_share = touched(latency)
    place = [np.append(own, np.zeros(sites - len(own))) for own in _place(graph)]
    traits = _device_traits(task, costs, latency, macs, base_ms)
    columns = [
        np.log2(task.space.settings[:, -1]) / 8,
        (np.arange(sites) + 0.5) / max(sites, 1),
        np.full(sites, np.log2(max(sites, 1)) / 6),
        task.shares[:, 0],
        task.option_count / 16,
        *place,
        touched(macs),
        touched(params),
        latency_share,
        _macs_saved(task, cells, macs),
        later_mean(latency_share),
        later(latency_share, np.maximum),
        *(np.full(sites, trait) for trait in traits),
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
    found = group_features(graph)
    return [
        found.kernel / 7,
        np.log2(found.stride),
        found.depthwise,
        np.log2(1 + found.producers) / 3,
        np.log2(1 + found.consumers) / 3,
        found.stream,
        found.bypassed,
        found.siblings,
        found.first,
        found.last,
        np.log2(found.cells) / 16,
    ]


def _macs_saved(task: PruningTask, cells: Cells, macs: FloatArray) -> FloatArray:
    """The slot macs_saved_50 [S]; of operators numbered as in `task_block`."""
    graph, operator, site = task.graph, cells.table, cells.site
    half = task.space.settings[site, -1] / 2
    reads, writes = np.zeros((2, len(graph.operators), task.site_count))  # [O, S]
    for index, op in enumerate(graph.operators):
        for repeats, width in ((reads, op.in_width), (writes, op.out_width)):
            for group, repeat in width.terms:
                repeats[index, group] = repeat
    in_total = np.array([op.in_width.at(graph.widths) for op in graph.operators])
    out_total = np.array([op.out_width.at(graph.widths) for op in graph.operators])
    dense = np.array([op.kind != "depthwise_conv" for op in graph.operators], dtype=np.bool_)
    fewer_in = half * reads[operator, site] / np.maximum(in_total[operator], 1)
    fewer_out = half * writes[operator, site] / np.maximum(out_total[operator], 1)
    left = (1 - fewer_in * dense[operator]) * (1 - fewer_out)
    share = macs[operator] * (1 - left) / max(float(macs.sum()), _EPS)
    saved = np.bincount(site, weights=share, minlength=task.site_count)
    return np.asarray(np.log1p(task.site_count * saved) / 2)


def _device_traits(
    task: PruningTask, costs: MoveCosts, latency: FloatArray, macs: FloatArray, base_ms: float
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

    _, moves = costs.moves_ms((task.option_count - 1)[None])
    step = np.diff(moves[0], axis=1)  # [G, L-1]; 0 in the padding
    travelled = np.abs(step).sum()
    reversal = float(np.maximum(-step, 0).sum() / max(travelled, _EPS))
    count = np.maximum(task.option_count - 1, 1)
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
