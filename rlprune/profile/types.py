"""How much each group loses at each keep level: the accuracy side of a planning task."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rlprune.graph.types import FloatArray, IntArray, PruningGraph

MAX_LEVELS = 16


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
    """[S, G, L]: increase of cross-entropy (nats) with the group alone at that level, after
    statistics correction, on each of S disjoint folds of the calibration images."""
    base_loss: float = float("nan")
    """Cross-entropy of the unpruned model on the calibration images; NaN where not measured."""
    image_count: int = 0

    @property
    def profiled(self) -> bool:
        """Whether losses measured on data are there."""
        return self.measured_loss is not None


def keep_levels(
    graph: PruningGraph, *, round_to: int = 8, min_keep: int = 1, max_levels: int = MAX_LEVELS
) -> tuple[IntArray, IntArray]:
    """Keep counts each group may take: multiples the runtime likes, and the full width.

    `round_to` counts channels, so a group whose unit stands for several channels on every axis has
    a finer step in units. Where a group has more than `max_levels` multiples, evenly spaced ones
    are kept.

    Returns:
        levels [G, L] ascending, padded by repeating the full width; level_count [G].

    Raises:
        ValueError: round_to or min_keep below 1.
    """
    if round_to < 1 or min_keep < 1:
        raise ValueError(f"round_to {round_to} and min_keep {min_keep} must be at least 1")
    rows: list[IntArray] = []
    for group in graph.groups:
        repeat = min((member.repeat for member in group.members), default=1)
        step = max(1, round_to // int(np.gcd(round_to, repeat)))
        own = np.arange(step, group.width, step, dtype=np.int64)
        own = np.append(own[own >= min(min_keep, group.width)], group.width)
        if len(own) > max_levels:
            own = own[np.unique(np.linspace(0, len(own) - 1, max_levels).round().astype(np.int64))]
        rows.append(own)
    longest = max((len(row) for row in rows), default=1)
    levels = np.array(
        [np.append(row, np.full(longest - len(row), row[-1])) for row in rows], dtype=np.int64
    ).reshape(len(rows), longest)
    return levels, np.array([len(row) for row in rows], dtype=np.int64)
