"""A small task that needs no model file: what the environment runs on when given nothing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rlprune.graph.types import FloatArray, Group, IntArray, Operator, PruningGraph, Width
from rlprune.latency.macs import macs_tables
from rlprune.mdp.objective import curve_at
from rlprune.sensitivity.types import GroupProfiles, keep_levels
from rlprune.solver.task import PruningTask

_SIDE = 16


@dataclass(frozen=True)
class CoupledObjective:
    """Single-group losses plus what no profile of single groups shows: neighbours thinned together
    lose more than the sum. So there is something to learn beyond the knapsack."""

    levels: IntArray
    curve: FloatArray
    coupling: float = 2.0
    """Loss per product of two neighbours' losses."""

    def loss(self, keeps: IntArray) -> FloatArray:
        """As `rlprune.solver.task.Objective.loss`."""
        own = curve_at(self.levels, self.curve, keeps)  # [B, G]
        return np.asarray(own.sum(-1) + self.coupling * (own[:, 1:] * own[:, :-1]).sum(-1))


def example_task() -> PruningTask:
    """A stem, two residual blocks and a classifier; costs are millions of MACs."""
    graph = _graph()
    levels, level_count = keep_levels(graph, round_to=4)
    dropped = 1.0 - levels / levels[:, -1:]
    height = np.array([0.8, 0.15, 0.5, 0.3])[:, None]
    power = np.array([1.5, 2.5, 2.0, 3.0])[:, None]
    curve = height * dropped**power
    folds = np.array([0.8, 0.9, 1.1, 1.2])[:, None, None]
    profiles = GroupProfiles(
        fingerprint=graph.fingerprint,
        levels=levels,
        level_count=level_count,
        energy_loss=dropped**1.5,
        measured_loss=curve * folds,
        base_loss=0.3,
        image_count=1024,
    )
    return PruningTask(
        graph=graph,
        tables=macs_tables(graph, levels, level_count),
        profiles=profiles,
        objective=CoupledObjective(levels, curve),
    )


def _graph() -> PruningGraph:
    groups = [("stem", 32), ("block1.conv1", 32), ("block2.conv1", 48), ("expand", 64)]
    stem, first, second, wide = (Width(0, ((index, 1),)) for index in range(len(groups)))
    operators = (
        _conv("stem", -1, Width(3), stem),
        _conv("block1.conv1", 0, stem, first),
        _conv("block1.conv2", 1, first, stem),
        _add("block1.add", (2, 0), stem),
        _conv("block2.conv1", 3, stem, second),
        _conv("block2.conv2", 4, second, stem),
        _add("block2.add", (5, 3), stem),
        _conv("expand", 6, stem, wide),
        Operator("head", "linear", "", (7,), wide, Width(10), (), ()),
    )
    return PruningGraph(
        fingerprint="example",
        groups=tuple(Group(name, width, ()) for name, width in groups),
        operators=operators,
        input_shapes=((1, 3, _SIDE, _SIDE),),
    )


def _conv(name: str, source: int, in_width: Width, out_width: Width) -> Operator:
    return Operator(
        name=name,
        kind="conv",
        variant="",
        inputs=(source,),
        in_width=in_width,
        out_width=out_width,
        in_spatial=(_SIDE, _SIDE),
        out_spatial=(_SIDE, _SIDE),
        kernel=(3, 3),
        stride=(1, 1),
        pads=(1, 1, 1, 1),
        dilation=(1, 1),
    )


def _add(name: str, sources: tuple[int, int], width: Width) -> Operator:
    return Operator(name, "add", "", sources, width, width, (_SIDE, _SIDE), (_SIDE, _SIDE))
