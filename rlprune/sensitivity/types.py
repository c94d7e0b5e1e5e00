"""How much each group loses at each keep level: the accuracy side of a planning task."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from rlprune.errors import InputError
from rlprune.graph.types import FloatArray, Group, IntArray, PruningGraph

MAX_LEVELS = 16
NARROW_STEPS = 4
"""A group of fewer steps than this gets finer ones, where the step is not the user's word."""
NARROW_LEVELS = 8
"""... about so many."""
FOLD_COUNT = 4
"""Image i lies in fold i modulo this, whatever the plan."""


@dataclass(frozen=True)
class GroupProfiles:
    """Loss curves over keep levels, for one graph.

    `levels` [G, L] ascending, padded by repeating the full width; `level_count` [G]; curves are 0
    at the full width and in the padding.
    """

    fingerprint: str
    levels: IntArray
    level_count: IntArray
    energy_loss: FloatArray | None
    """Data-free [G, L]: share (0-1) of the group's effective weight energy that is dropped; None
    where only shapes were known (a skeleton)."""
    measured_loss: FloatArray | None = None
    """[S, G, L]: divergence (nats) from the unpruned model's answers with the group alone at that
    level, after correction, on each of S disjoint folds of the calibration images."""
    base_loss: float = float("nan")
    """Cross-entropy of the unpruned model on the calibration images; NaN where not measured."""
    image_count: int = 0
    initial_loss: FloatArray | None = None
    """[G, L], of a network that was not trained: what a score at initialisation says is lost, on a
    scale of its own (`profile.initial`); None for a trained one."""
    predicted_loss: FloatArray | None = None
    """[G, L], where groups stand for several of another graph: the sum of what was foretold of
    those (`profile.predicted`); None for graphs as they are, of which it is foretold when asked."""
    initial_score: str = ""
    """What `initial_loss` goes by, as a note has it; empty where that is None."""

    @property
    def profiled(self) -> bool:
        """Whether losses measured on data are there."""
        return self.measured_loss is not None


def keep_levels(
    graph: PruningGraph,
    *,
    round_to: int = 8,
    finer: bool = False,
    min_keep: int = 1,
    min_keep_ratio: float = 0.0,
    held: Collection[int] = (),
    pins: Sequence[Sequence[int]] = (),
    max_levels: int = MAX_LEVELS,
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
