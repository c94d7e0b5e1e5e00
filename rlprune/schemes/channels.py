"""Channels: how many units of each group of channels stay (structured pruning).

A site is a group of the graph, an option a number of units to keep, a chain from few to all.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from rlprune.constraints import BoundConstraints
from rlprune.errors import InputError
from rlprune.graph.types import FloatArray, Group, IntArray, Operator, PruningGraph
from rlprune.schemes.base import Site

if TYPE_CHECKING:
    from rlprune.graph.from_onnx import OnnxTrace
    from rlprune.surgery.removal import Removal

MAX_OPTIONS = 16
"""Of one group."""
NARROW_STEPS = 4
"""A group of fewer steps than this gets finer ones, where the step is not the user's word."""
NARROW_LEVELS = 8
"""... about so many."""


class Channels:
    """The scheme `channel`; see `schemes.base.Scheme`."""

    name = "channel"

    def sites(self, graph: PruningGraph, bound: BoundConstraints | None = None) -> list[Site]:
        """One for every group; without constraints every count from 1 on is an option."""
        if bound is None:
            rows = [np.arange(1, group.width + 1) for group in graph.groups]
        else:
            levels, level_count = constrained_levels(graph, bound)
            rows = [own[:count] for own, count in zip(levels, level_count, strict=True)]
        return channel_sites(graph, rows)

    def accepts(self, graph: PruningGraph, site: Site, value: int) -> bool:
        """Any count from 1 to the group's width."""
        return 1 <= value <= site.values[-1]

    def describe(self, site: Site, value: int) -> str:
        """`48 of 64 channels`."""
        return f"{value} of {site.values[-1]} channels"

    def form(self, operator: Operator, value: int) -> Operator:
        """The operator itself: widths are functions of what the groups keep."""
        return operator

    def dropped(self, trace: OnnxTrace, site: Site) -> FloatArray:
        """Of the weights that make and read the group's units, times each other."""
        from rlprune.surgery.importance import unit_scores

        names = [group.name for group in trace.graph.groups]
        return dropped_energy(unit_scores(trace)[names.index(site.name)], np.array(site.values))

    def predicted_loss(self, graph: PruningGraph, site: Site, dropped: FloatArray) -> FloatArray:
        """Of shapes alone; `sensitivity.predicted` knows better where there are weights."""
        return np.asarray(-np.log(np.array(site.shares)))

    def remove(
        self, trace: OnnxTrace, sites: list[Site], values: IntArray, removal: Removal
    ) -> Removal:
        """Of every group all but so many units, those of most energy."""
        from rlprune.surgery.importance import unit_scores
        from rlprune.surgery.onnx import kept_units

        return replace(removal, kept=kept_units(unit_scores(trace), values))


CHANNELS = Channels()


def dropped_energy(units: FloatArray, keeps: IntArray) -> FloatArray:
    """Share (0-1) of the energy of `units` [width] that goes where the best `keeps` [L] stay [L].

    A group without energy (dead, or produced by nothing with weights) is judged by its counts.
    """
    passed = np.cumsum(np.sort(units)[::-1])
    if not passed[-1] > 0.0:
        passed = np.arange(1.0, len(units) + 1.0)
    return np.asarray(np.clip(1.0 - passed[keeps - 1] / passed[-1], 0.0, 1.0))


def channel_sites(graph: PruningGraph, rows: Sequence[IntArray]) -> list[Site]:
    """The sites of a graph's groups with these numbers of units, ascending, as options."""
    return [
        Site(
            name=group.name,
            scheme=CHANNELS.name,
            values=tuple(int(keep) for keep in own),
            shares=tuple(float(keep) / group.width for keep in own),
        )
        for group, own in zip(graph.groups, rows, strict=True)
    ]


def constrained_levels(graph: PruningGraph, bound: BoundConstraints) -> tuple[IntArray, IntArray]:
    """`keep_levels` within constraints on the same graph.

    Raises:
        InputError: pinned groups share no ratio.
    """
    return keep_levels(
        graph,
        round_to=bound.round_to,
        finer=bound.requested.round_to is None,
        min_keep=bound.requested.min_keep,
        min_keep_ratio=bound.requested.min_keep_ratio,
        held=bound.held,
        pins=bound.pins,
    )


def keep_levels(
    graph: PruningGraph,
    *,
    round_to: int = 8,
    finer: bool = False,
    min_keep: int = 1,
    min_keep_ratio: float = 0.0,
    held: Collection[int] = (),
    pins: Sequence[Sequence[int]] = (),
    max_levels: int = MAX_OPTIONS,
) -> tuple[IntArray, IntArray]:
    """Keep counts each group may take: multiples the runtime likes, and the full width.

    `round_to` counts channels, so a group whose unit stands for several channels on every axis has
    a finer step in units. With `finer`, groups of less than four steps have steps of a power of
    two, about an eighth of their width, so that a group of 8 channels can shrink at all. Where a
    group has more than `max_levels` multiples, evenly spaced ones are kept. Groups of `held` keep
    all. Groups of one set of `pins` have the same ratio at the same level index: the ratios at
    which each of them keeps a multiple of its own step.

    Returns:
        levels [G, L] ascending, padded by repeating the full width; level_count [G].

    Raises:
        ValueError: round_to or min_keep below 1.
        InputError: groups that could shrink alone share no ratio but the full one.
    """
    if round_to < 1 or min_keep < 1:
        raise ValueError(f"round_to {round_to} and min_keep {min_keep} must be at least 1")
    steps = [_step(group, round_to, finer=finer) for group in graph.groups]
    rows: dict[int, IntArray] = {g: graph.widths[g, None] for g in held}
    together = {group for own in pins for group in own}
    alone = [(g,) for g in range(len(steps)) if g not in together and g not in rows]
    for own in (*pins, *alone):
        widths = [graph.groups[g].width for g in own]
        units = math.gcd(*widths)  # group g keeps u * width / units, u counting these
        per_unit = [width // units for width in widths]
        step = math.lcm(
            *(steps[g] // math.gcd(steps[g], n) for g, n in zip(own, per_unit, strict=True))
        )
        fewest = max(-(-min(min_keep, w) // n) for w, n in zip(widths, per_unit, strict=True))
        fewest = max(fewest, math.ceil(min_keep_ratio * units - 1e-9))
        counts = _counts(units, step, fewest, max_levels)
        if len(counts) == 1 and len(own) > 1:
            _check_none_could_shrink(graph, own, steps)
        rows.update((g, n * counts) for g, n in zip(own, per_unit, strict=True))
    longest = max((len(row) for row in rows.values()), default=1)
    levels = np.array(
        [np.append(rows[g], np.full(longest - len(rows[g]), rows[g][-1])) for g in sorted(rows)],
        dtype=np.int64,
    ).reshape(len(rows), longest)
    return levels, np.array([len(rows[g]) for g in sorted(rows)], dtype=np.int64)


def _step(group: Group, round_to: int, *, finer: bool) -> int:
    """Units that a group is narrowed by."""
    step = group.step(round_to)
    if not finer or group.width >= NARROW_STEPS * step:
        return step
    eighth = max(1, group.width // NARROW_LEVELS)
    return min(step, 1 << (eighth.bit_length() - 1))


def _counts(units: int, step: int, fewest: int, max_levels: int) -> IntArray:
    """Multiples of `step` from `fewest` on, and `units`; at most `max_levels`, evenly spaced."""
    own = np.append(np.arange(step, units, step, dtype=np.int64), units)
    if step == 1 and len(own) > max_levels:
        # Even shares of the width lie on a lattice, where latency tables are small.
        own = np.rint(np.arange(1, max_levels + 1) * (units / max_levels)).astype(np.int64)
    own = own[own >= fewest]
    if len(own) > max_levels:
        own = own[np.unique(np.linspace(0, len(own) - 1, max_levels).round().astype(np.int64))]
    return own


def _check_none_could_shrink(graph: PruningGraph, own: Sequence[int], steps: Sequence[int]) -> None:
    """Refuses to hold pinned groups whole only because no ratio suits them all."""
    if any(steps[g] < graph.groups[g].width for g in own):
        names = ", ".join(f"{graph.groups[g].name!r} ({graph.groups[g].width})" for g in own)
        raise InputError(
            f"pinned groups {names} share no keep ratio that rounds to their multiples; "
            "lower round_to or min_keep, or pin fewer",
            field="pin",
        )
