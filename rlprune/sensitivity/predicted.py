"""Sensitivity predicted without data: from weight energy, corrected by what other networks lost.

The energy of a unit is what the weights that make and read it pass through it
(`surgery.importance`). A group that drops a share of its energy loses `-log(1 - share)`, so that
losses of groups in series add up, times the number of layers that make or read it. Measured losses
differ from that by a factor that is much the same in all recorded networks: log-linear in a few
traits of the group and the cut. Only ratios within one network matter to a planner, so every
network's mean is taken out. `scripts/data fit_curves` fits, and says what such plans are worth on
block types left out.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path

import numpy as np

from rlprune.graph.features import GroupFeatures, group_features
from rlprune.graph.types import FloatArray, IntArray, PruningGraph

DEFAULT_CURVES = Path(__file__).parent / "data" / "curves.json"
FORMAT = "rlprune.curves/1"
PLACE = ("depth", "depth_squared", "width", "extent", "stream", "strided", "share")
"""Of a group beside its graph's others; see `place_features`."""
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
MAX_SHARE = 0.999
"""A share of 1 would make a level infinitely bad; nothing a planner could add up."""


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

    @staticmethod
    def load(path: str | Path) -> CurveModel:
        """Reads what `scripts/data fit_curves` wrote.

        Raises:
            ValueError: of other traits.
        """
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        if data["format"] != FORMAT or tuple(data["traits"]) != TRAITS:
            raise ValueError(
                f"{path} is of other traits; make it again with scripts/data fit_curves"
            )
        names = (field.name for field in fields(CurveModel) if field.name != "level")
        return CurveModel(level=data["level"], **{name: tuple(data[name]) for name in names})


@cache
def default_curves() -> CurveModel:
    """The one that ships."""
    return CurveModel.load(DEFAULT_CURVES)


def energy_curve(graph: PruningGraph, share: FloatArray) -> FloatArray:
    """What a planner can add up of the weights alone, share of energy dropped [G, L] -> [G, L].

    Without the number of layers the channels of a residual stream, which every block reads and adds
    to, look as cheap as a block's own.
    """
    return np.asarray(
        -np.log1p(-np.minimum(share, MAX_SHARE)) * group_features(graph).layers[:, None]
    )


def traits(graph: PruningGraph, levels: IntArray) -> FloatArray:
    """What a factor is predicted by: of the cut, then of the group [G, L, T]."""
    found, widths = group_features(graph), graph.widths
    ratio = levels / widths[:, None]
    own = np.column_stack(
        [
            place_features(graph, found),
            np.log2(widths),
            np.log2(found.fan_in),
            np.log2(found.fan_out),
            found.depthwise,
            np.log2(found.layers),
        ]
    )
    cut = np.stack([np.log(np.maximum(1.0 - ratio, 1e-3)), np.log(ratio), np.log2(levels)], axis=-1)
    spread = np.broadcast_to(own[:, None], (*levels.shape, own.shape[1]))
    return np.concatenate([cut, spread], axis=-1)


def place_features(graph: PruningGraph, found: GroupFeatures) -> FloatArray:
    """What tells a graph's groups apart [G, P], centred per graph so that none shifts the whole."""
    count = len(graph.groups)
    if count == 0:
        return np.zeros((0, len(PLACE)))
    depth = (np.arange(count) - (count - 1) / 2) / max(count - 1, 1) * 2  # -1..1
    columns = [
        depth,
        depth**2,
        np.log2(graph.widths),
        np.log2(found.cells),
        found.stream,
        (found.dense_stride > 1).astype(np.float64),
        np.log2(found.macs + 1.0),
    ]
    features = np.stack(columns, axis=1)
    return np.asarray(features - features.mean(0))
