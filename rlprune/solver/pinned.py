"""Groups that keep one ratio, as one group of a smaller task.

A set of pinned groups becomes one group whose unit stands for `width / units` channels of each of
them, `units` being the greatest common divisor of their widths. Pinned groups have the same options
in the same order, so the smaller task's latency tables are exact, not a model of the larger ones,
and its choices are the larger one's; losses add up as a planner would add them. Every policy plans
the smaller task and knows nothing of pins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from rlprune.graph.features import group_features
from rlprune.graph.types import Group, IntArray, PruningGraph, Width
from rlprune.schemes import Space
from rlprune.sensitivity.energy import loss_curve
from rlprune.sensitivity.predicted import energy_curve
from rlprune.sensitivity.types import GroupProfiles
from rlprune.solver.task import PruningTask


@dataclass(frozen=True)
class PinnedTask:
    """A task with one site per pinned set, and the way back."""

    task: PruningTask
    place: IntArray
    """Which of the smaller task's sites each of the whole one's belongs to [S]."""
    first: IntArray
    """The first of the whole task's sites that belong to each of the smaller one's [M]."""

    def expand(self, choice: IntArray) -> IntArray:
        """Choices of the smaller task [..., M] -> of the whole one [..., S]."""
        return np.asarray(choice[..., self.place])

    def shrink(self, choice: IntArray) -> IntArray:
        """The way back of `expand`: of a set that is pinned its first site tells."""
        return np.asarray(choice[..., self.first])

    @staticmethod
    def of(task: PruningTask, pins: Sequence[Sequence[int]]) -> PinnedTask:
        """The smaller task; without pins the task itself.

        Args:
            task: its options are as `schemes.channels.keep_levels(..., pins=pins)` makes them.
            pins: disjoint sets of group indices, ascending.

        Raises:
            ValueError: groups of one set differ in their ratios at an option.
        """
        leader = np.arange(task.site_count)
        for own in pins:
            leader[list(own)] = own[0]
            if (task.shares[list(own)] != task.shares[own[0]]).any():
                raise ValueError("pinned groups have options of different ratios")
        first, place = np.unique(leader, return_inverse=True)
        if not len(pins):
            return PinnedTask(task, place, first)
        space = _space(task.space, first, place)
        smaller = PruningTask(
            space,
            task.tables.merged(place, space.option_count),
            _profiles(task, space, first, place),
        )
        return PinnedTask(smaller, place, first)


def _space(space: Space, first: IntArray, place: IntArray) -> Space:
    """The space over merged sites; values of merged groups count units."""
    widths = space.graph.widths
    groups = place[: space.group_count]
    units = np.array(
        [np.gcd.reduce(widths[groups == merged]) for merged in range(len(set(groups.tolist())))],
        dtype=np.int64,
    )
    per_unit = widths // units[groups]  # [G], channels that a unit of the merged group stands for
    sites = []
    for one in first.tolist():
        site = space.sites[one]
        if one < space.group_count:
            values = tuple(value // int(per_unit[one]) for value in site.values)
            site = replace(site, values=values)
        sites.append(site)
    return Space(_graph(space.graph, groups, per_unit, units), tuple(sites))


def _graph(
    graph: PruningGraph, place: IntArray, per_unit: IntArray, units: IntArray
) -> PruningGraph:
    """The graph over merged groups; the fingerprint stays that of the model it is of."""

    def merge(width: Width) -> Width:
        many: dict[int, int] = {}
        for group, repeat in width.terms:
            merged = int(place[group])
            many[merged] = many.get(merged, 0) + repeat * int(per_unit[group])
        return Width(width.const, tuple(sorted(many.items())))

    groups = []
    for merged, width in enumerate(units.tolist()):
        own = np.flatnonzero(place == merged)
        members = tuple(
            replace(member, repeat=member.repeat * int(per_unit[group]))
            for group in own
            for member in graph.groups[group].members
        )
        groups.append(Group(graph.groups[own[0]].name, width, members))
    return replace(
        graph,
        groups=tuple(groups),
        operators=tuple(
            replace(op, in_width=merge(op.in_width), out_width=merge(op.out_width))
            for op in graph.operators
        ),
        weights=tuple(
            replace(weight, axes=tuple(merge(axis) for axis in weight.axes))
            for weight in graph.weights
        ),
    )


def _profiles(task: PruningTask, space: Space, first: IntArray, place: IntArray) -> GroupProfiles:
    """Losses summed; energies such that their curves are the sum of the curves."""
    profiles = task.profiles
    merged = (place[:, None] == np.arange(len(first))).astype(np.float64)  # [S, M]
    measured, energy, initial = profiles.measured_loss, profiles.energy_loss, profiles.initial_loss
    if measured is not None:
        measured = np.einsum("fsl,sm->fml", measured, merged)
    if energy is not None:
        groups, count = task.space.group_count, space.group_count
        own = merged[:groups, :count]
        # Twice the logarithm of what passes, for a group that twice as many layers feel.
        felt = energy_curve(task.graph, energy[:groups])
        summed = 1.0 - np.exp(-(own.T @ felt) / group_features(space.graph).layers[:, None])
        single = own.sum(0)[:, None] == 1
        together = np.where(single, own.T @ energy[:groups], summed)
        energy = np.concatenate([together, energy[groups:]])
    alone = replace(profiles, measured_loss=None, initial_loss=None)
    return replace(
        profiles,
        levels=space.settings,
        level_count=space.option_count,
        energy_loss=energy,
        measured_loss=measured,
        initial_loss=None if initial is None else merged.T @ initial,
        predicted_loss=merged.T @ loss_curve(alone, task.space),
    )
