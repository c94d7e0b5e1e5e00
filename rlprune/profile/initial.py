"""Loss curves of a network that has not been trained, from what a score says its units are worth.

At initialisation the units of a group are much alike, so a score says how much the group matters
and among how many units that is spread, and hardly which of them to keep (Frankle et al., ICLR
2021: shuffling a mask within layers does no harm). Two things follow.

The curve is of counts: with units worth s, sorted, the first k of them are as good as
n(k) = (sum s)^2 / sum s^2 equal ones, and the group loses S (1 / n(k) - 1 / n(width)). That is how
the random fluctuations of a network's output and gradients grow with the inverse of its widths, the
sum over layers of 1/n (Hanin and Nica, 2020). The last units of a wide layer are nearly free, those
of a narrow one dear, and no layer collapses, as it does when units are ranked across layers once;
SynFlow's authors score again after every few units for the same end.

S is the group's share of the score. SynFlow, which every layer of a chain carries alike, gives one
share to each layer that makes or reads the group; SNIP and GraSP tell layers apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlprune.graph.types import FloatArray, IntArray, PruningGraph
from rlprune.profile.types import GroupProfiles


@dataclass(frozen=True)
class InitialScores:
    """What the units of an untrained network are worth."""

    name: str
    """Of the score, as the plan's note has it."""
    units: Sequence[FloatArray]
    """Per group [width], none below 0."""


def initial_profiles(
    graph: PruningGraph, scores: InitialScores, levels: IntArray, level_count: IntArray
) -> GroupProfiles:
    """Curves over `levels` [G, L], `level_count` [G] as from `keep_levels`; mean S is 1."""
    totals = np.array([units.sum() for units in scores.units], dtype=np.float64)
    mean = totals.mean() if totals.size else 0.0
    loss = np.zeros(levels.shape, dtype=np.float64)
    for group, units in enumerate(scores.units):
        share = totals[group] / mean if mean > 0.0 else 0.0
        if share == 0.0:  # carries nothing yet, so nothing is known of it but its counts
            share, units = 1.0, np.ones_like(units)
        spread = 1.0 / _effective_count(units)
        loss[group] = share * (spread[levels[group] - 1] - spread[-1])
    return GroupProfiles(
        fingerprint=graph.fingerprint,
        levels=levels,
        level_count=level_count,
        energy_loss=None,
        initial_loss=loss,
        initial_score=scores.name,
    )


def _effective_count(units: FloatArray) -> FloatArray:
    """Of the first k units, best first, how many equal ones they are as good as [width]."""
    best = np.sort(units)[::-1]
    return np.asarray(np.cumsum(best) ** 2 / np.cumsum(best**2))
