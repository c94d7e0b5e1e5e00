"""Loss curves of a network that nothing was measured on: of its weights, corrected by others.

The energy of a unit is what the effective weights that make and read it pass through it
(`surgery.importance`). A group that keeps its best units loses the share of its energy that lay in
the others; `-log(1 - share)` makes the shares of groups in series add, as the sum's exponential is
the product of what passes; and a group that more layers make or read is felt as often.

What measuring says differs from that by much the same in all networks on record
(`rlprune-recordings`), by where a group is and how deep the cut: a factor, log-linear in
a few traits. It is fitted with a ridge, which draws it to 1 where the record says nothing. Only
ratios within one network matter to a planner, so every network's mean is taken out. Products of the
traits fit the record better and unseen block types worse. `scripts/data fit_curves` fits, and says
what plans are worth that go by it on block types left out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path

import numpy as np

from rlprune.graph.types import FloatArray, IntArray, PruningGraph

DEFAULT_CURVES = Path(__file__).parent / "data" / "curves.json"
FORMAT = "rlprune.curves/1"
WEIGHTED = ("conv", "depthwise_conv", "conv_transpose", "linear", "matmul")
"""Kinds of operators whose weights shrink with a group."""
PLACE = ("depth", "depth_squared", "width", "extent", "stream", "strided", "share")
"""Of a group beside its graph's others; see `group_features`."""
TRAITS = (
    "log_dropped",
    "log_kept_ratio",
    "log_kept",
    *PLACE,
    "log_width",
    "log_fan_in",
    "log_fan_out",
    "depthwise",
    "log_layers",
)
"""Of a group at a level; see `traits`."""
MOST_SHARE = 0.999
"""A share of 1 would make a level infinitely bad; nothing a planner could add up."""
LEAST_NATS = 2e-3
"""Added before the logarithm: smaller divergences are noise."""
LEAST_ENERGY = 1e-4
"""The same of curves by energy."""
RIDGE = 0.3
"""Of 0.05, 0.3, 1, 3 and 10 the best on block types left out, in a trial."""


@dataclass(frozen=True)
class CurveModel:
    """log of what is measured over what energy says, linear in standardised traits."""

    mean: tuple[float, ...]
    """Of the traits on record [T]."""
    deviation: tuple[float, ...]
    low: tuple[float, ...]
    """Least and greatest on record [T]: nothing is known beyond."""
    high: tuple[float, ...]
    weights: tuple[float, ...]
    """[T]."""
    level: float
    """Mean log over networks: so that curves come in about nats."""
    trained_on: tuple[str, ...] = ()

    def curve(self, graph: PruningGraph, levels: IntArray, share: FloatArray | None) -> FloatArray:
        """Loss of each group at each level [G, L], about nats; not yet monotone.

        Args:
            levels: [G, L].
            share: of the energy that is dropped [G, L]; None where only shapes are known, and
                units are then taken for equal.
        """
        known = np.clip(traits(graph, levels), np.array(self.low), np.array(self.high))
        scaled = (known - np.array(self.mean)) / np.array(self.deviation)
        factor = np.exp(self.level + scaled @ np.array(self.weights))
        if share is None:
            share = 1.0 - levels / graph.widths[:, None]
        return np.asarray(factor * energy_curve(graph, share))

    def save(self, path: str | Path) -> None:
        """Writes JSON."""
        data = {"format": FORMAT, "traits": list(TRAITS), **asdict(self)}
        Path(path).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")

    @staticmethod
    def load(path: str | Path) -> CurveModel:
        """Reads what `save` wrote.

        Raises:
            ValueError: of other traits.
        """
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        if data["format"] != FORMAT or tuple(data["traits"]) != TRAITS:
            raise ValueError(f"{path} is of other traits; run scripts/data fit_curves again")
        names = (field.name for field in fields(CurveModel) if field.name != "level")
        return CurveModel(level=data["level"], **{name: tuple(data[name]) for name in names})


@dataclass(frozen=True)
class Example:
    """One network whose losses were measured."""

    name: str
    graph: PruningGraph
    levels: IntArray
    level_count: IntArray
    share: FloatArray
    """[G, L]."""
    loss: FloatArray
    """Measured, monotone [G, L], nats."""


@cache
def default_curves() -> CurveModel:
    """The one that ships."""
    return CurveModel.load(DEFAULT_CURVES)


def energy_curve(graph: PruningGraph, share: FloatArray) -> FloatArray:
    """What a planner can add up of the weights alone, share of energy dropped [G, L] -> [G, L].

    Without the number of layers the channels of a residual stream, which every block reads and adds
    to, look as cheap as a block's own.
    """
    return np.asarray(-np.log1p(-np.minimum(share, MOST_SHARE)) * layer_count(graph)[:, None])


def fit_curves(examples: Sequence[Example]) -> CurveModel:
    """Ridge regression; every network weighs the same."""
    found, targets = [], []
    for one in examples:
        below = np.arange(one.levels.shape[1]) < one.level_count[:, None] - 1
        energy = np.maximum(energy_curve(one.graph, one.share), LEAST_ENERGY)
        found.append(traits(one.graph, one.levels)[below])  # [n, T]
        targets.append(np.log((one.loss + LEAST_NATS) / energy)[below])
    known = np.concatenate(found)
    mean, deviation = known.mean(0), known.std(0) + 1e-9
    rows, rights = [], []
    for own, target in zip(found, targets, strict=True):
        table = (own - mean) / deviation
        weight = 1.0 / np.sqrt(len(table))
        rows.append((table - table.mean(0)) * weight)
        rights.append((target - target.mean()) * weight)
    left, right = np.concatenate(rows), np.concatenate(rights)
    ridge = RIDGE * len(examples) * np.eye(left.shape[1])
    weights = np.linalg.solve(left.T @ left + ridge, left.T @ right)
    levels = [
        (target - (own - mean) / deviation @ weights).mean()
        for own, target in zip(found, targets, strict=True)
    ]

    def plain(values: FloatArray) -> tuple[float, ...]:
        return tuple(float(f"{value:.7g}") for value in values)

    return CurveModel(
        plain(mean),
        plain(deviation),
        plain(known.min(0)),
        plain(known.max(0)),
        plain(weights),
        float(np.mean(levels)),
        tuple(one.name for one in examples),
    )


def traits(graph: PruningGraph, levels: IntArray) -> FloatArray:
    """What a factor is foretold by: of the cut, then of the group [G, L, T]."""
    widths = graph.widths
    ratio = levels / widths[:, None]
    fan_in, fan_out = np.ones(len(widths)), np.ones(len(widths))
    depthwise = np.zeros(len(widths))
    for op in graph.operators:
        mixes = op.kind in WEIGHTED and op.kind != "depthwise_conv"
        for group, _ in op.out_width.terms:
            if mixes:
                fan_in[group] = max(fan_in[group], op.in_width.at(widths))
            elif op.kind == "depthwise_conv":
                depthwise[group] = 1.0
        for group, _ in op.in_width.terms:
            if mixes:
                fan_out[group] = max(fan_out[group], op.out_width.at(widths))
    own = np.column_stack(
        [
            group_features(graph),
            np.log2(widths),
            np.log2(fan_in),
            np.log2(fan_out),
            depthwise,
            np.log2(layer_count(graph)),
        ]
    )
    cut = np.stack(
        [
            np.log(np.maximum(1.0 - ratio, 1e-3)),
            np.log(ratio),
            np.log2(levels),
        ],
        axis=-1,
    )
    spread = np.broadcast_to(own[:, None], (*levels.shape, own.shape[1]))
    return np.concatenate([cut, spread], axis=-1)


def group_features(graph: PruningGraph) -> FloatArray:
    """What tells a graph's groups apart [G, P], centred per graph so that none shifts the whole."""
    count = len(graph.groups)
    if count == 0:
        return np.zeros((0, len(PLACE)))
    widths = graph.widths
    extent, writers = np.ones(count), np.zeros(count)
    strided = np.zeros(count)
    macs = np.zeros(count)
    for op in graph.operators:
        op_macs = float(op.macs_at(op.in_width.at(widths), op.out_width.at(widths)))
        for group, _ in op.out_width.terms:
            extent[group] = max(extent[group], float(np.prod(op.out_spatial)))
            if op.kind in ("conv", "conv_transpose", "linear"):
                writers[group] += 1
                strided[group] = max(strided[group], float(any(step > 1 for step in op.stride)))
        for group in {group for group, _ in (*op.in_width.terms, *op.out_width.terms)}:
            macs[group] += op_macs
    depth = (np.arange(count) - (count - 1) / 2) / max(count - 1, 1) * 2  # -1..1
    columns = [
        depth,
        depth**2,
        np.log2(widths),
        np.log2(extent),
        (writers > 1).astype(np.float64),  # a residual stream: several convolutions write into it
        strided,
        np.log2(macs + 1.0),
    ]
    features = np.stack(columns, axis=1)
    return np.asarray(features - features.mean(0))


def layer_count(graph: PruningGraph) -> IntArray:
    """How many weighted layers read or write channels of each group [G]."""
    count = np.zeros(len(graph.groups), dtype=np.int64)
    for operator in graph.operators:
        if operator.kind in WEIGHTED:
            for width in (operator.in_width, operator.out_width):
                for group, _ in width.terms:
                    count[group] += 1
    return np.maximum(count, 1)
