"""Groups that keep one ratio, as one group of a smaller task.

A set of pinned groups becomes one group whose unit stands for `width / units` channels of each of
them, `units` being the greatest common divisor of their widths. Widths stay linear in what is kept,
so the smaller graph and its latency tables are exact, not a model of the larger ones; losses add up
as a planner would add them. Every policy plans the smaller task and knows nothing of pins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from rlprune.graph.types import FloatArray, Group, IntArray, PruningGraph, Width
from rlprune.sensitivity.energy import loss_curve
from rlprune.sensitivity.predicted import energy_curve, layer_count
from rlprune.sensitivity.types import GroupProfiles
from rlprune.solver.task import Objective, PruningTask


@dataclass(frozen=True)
class PinnedTask:
    """A task with one group per pinned set, and the way back."""

    task: PruningTask
    per_unit: IntArray
    """Channels of group g that one unit of the smaller task's group m stands for [G, M]."""

    def expand(self, keeps: IntArray) -> IntArray:
        """Keeps of the smaller task [..., M] -> of the whole one [..., G]."""
        return np.asarray(keeps @ self.per_unit.T)

    @staticmethod
    def of(task: PruningTask, pins: Sequence[Sequence[int]]) -> PinnedTask:
        """The smaller task; without pins the task itself.

        Args:
            task: its levels are as `keep_levels(..., pins=pins)` makes them.
            pins: disjoint sets of group indices, ascending.

        Raises:
            ValueError: groups of one set differ in their ratios at a level.
        """
        per_unit, first = _units(task, pins)
        if not len(pins):
            return PinnedTask(task, per_unit)
        levels = task.levels[first] // per_unit[first, np.arange(len(first))][:, None]
        if (levels.T @ per_unit.T != task.levels.T).any():
            raise ValueError("pinned groups have levels of different ratios")
        count = task.level_count[first]
        graph = _graph(task.graph, per_unit, levels[:, -1])
        smaller = PruningTask(
            graph,
            task.tables.merged(per_unit, levels, count),
            _profiles(task, graph, per_unit, levels, count),
            None if task.objective is None else _Expanded(task.objective, per_unit),
        )
        return PinnedTask(smaller, per_unit)


@dataclass(frozen=True)
class _Expanded:
    """The whole task's objective, asked in the smaller task's keeps."""

    objective: Objective
    per_unit: IntArray

    def loss(self, keeps: IntArray) -> FloatArray:
        return self.objective.loss(keeps @ self.per_unit.T)


def _units(task: PruningTask, pins: Sequence[Sequence[int]]) -> tuple[IntArray, IntArray]:
    """Channels per unit [G, M], and the first group of each smaller group [M]."""
    leader = np.arange(task.group_count)
    for own in pins:
        leader[list(own)] = own[0]
    first, merged = np.unique(leader, return_inverse=True)
    widths = task.graph.widths
    per_unit = np.zeros((len(widths), len(first)), dtype=np.int64)
    for group, place in enumerate(merged):
        per_unit[group, place] = widths[group] // np.gcd.reduce(widths[merged == place])
    return per_unit, first


def _graph(graph: PruningGraph, per_unit: IntArray, widths: IntArray) -> PruningGraph:
    """The graph over merged groups; the fingerprint stays that of the model it is of."""

    def merge(width: Width) -> Width:
        many = np.zeros(per_unit.shape[1], dtype=np.int64)
        for group, repeat in width.terms:
            many += repeat * per_unit[group]
        return Width(width.const, tuple((int(m), int(many[m])) for m in np.flatnonzero(many)))

    groups = []
    for place, width in enumerate(widths):
        own = np.flatnonzero(per_unit[:, place])
        members = tuple(
            replace(member, repeat=member.repeat * int(per_unit[group, place]))
            for group in own
            for member in graph.groups[group].members
        )
        groups.append(Group(graph.groups[own[0]].name, int(width), members))
    operators = tuple(
        replace(op, in_width=merge(op.in_width), out_width=merge(op.out_width))
        for op in graph.operators
    )
    return replace(graph, groups=tuple(groups), operators=operators)


def _profiles(
    task: PruningTask, graph: PruningGraph, per_unit: IntArray, levels: IntArray, count: IntArray
) -> GroupProfiles:
    """Losses summed; energies such that their curves are the sum of the curves."""
    profiles = task.profiles
    merged = (per_unit > 0).astype(np.float64)  # [G, M]
    measured, energy, initial = profiles.measured_loss, profiles.energy_loss, profiles.initial_loss
    if measured is not None:
        measured = np.einsum("sgl,gm->sml", measured, merged)
    if energy is not None:
        # Twice the logarithm of what passes, for a group that twice as many layers feel.
        felt = energy_curve(task.graph, energy)
        summed = 1.0 - np.exp(-(merged.T @ felt) / layer_count(graph)[:, None])
        single = merged.sum(0)[:, None] == 1
        energy = np.where(single, merged.T @ energy, summed)
    foretold = loss_curve(replace(profiles, measured_loss=None, initial_loss=None), task.graph)
    return replace(
        profiles,
        levels=levels,
        level_count=count,
        energy_loss=energy,
        measured_loss=measured,
        initial_loss=None if initial is None else merged.T @ initial,
        predicted_loss=merged.T @ foretold,
    )
