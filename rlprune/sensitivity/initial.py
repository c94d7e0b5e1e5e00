"""Sensitivity of a network that has not been trained, from a score of its units.

At initialisation a score says how much a group matters and over how many units that is spread, and
hardly which of them to keep (Frankle et al., ICLR 2021). With units worth s, sorted, the first k
are as good as n(k) = (sum s)^2 / sum s^2 equal ones, and the group loses S (n(k)^-2 - n(width)^-2),
a power of the inverse width, as outputs and gradients fluctuate with the sum over layers of 1/n
(Hanin and Nica, 2020). So the last units of a wide layer are nearly free and no layer collapses. S
is the group's share of the score: alike for all layers with SynFlow, not so with SNIP and GraSP.

In networks of separable convolutions (MobileNet) that ranks plans of one cost *against* what they
reach after training (rank correlation -0.50 over the recorded networks of a public MobileNet
space). There every group loses -log of the share it keeps, whatever its score (+0.58). On networks
of dense convolutions it is the other way round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlprune.graph.types import FloatArray, PruningGraph
from rlprune.schemes import Space
from rlprune.sensitivity.types import GroupProfiles

BY_SHARES = "the shares that groups keep (-sum log keep)"
"""What the curves are by where the score is not asked."""
POWER = 2
"""Of 1/n. Three plans of one predicted latency for the VGG of `scripts/bench atinit`, by SynFlow,
trained for 5 epochs with one seed: 78.8 % with 277,000 weights at 2, 78.6 % with 442,000 at 1,
77.3 % with 740,000 by the logarithm of the share. Accuracies within 0.6 are noise: it is 2 for the
size."""


@dataclass(frozen=True)
class InitialScores:
    """What the units of an untrained network are worth."""

    name: str
    """Of the score, as the plan's note has it."""
    units: Sequence[FloatArray]
    """Per group [width], none below 0."""


def initial_profiles(space: Space, scores: InitialScores) -> GroupProfiles:
    """Curves over the options of a space.

    By the scores, whose mean S is 1; where the graph is `separable` by the shares kept alone.
    """
    graph, levels = space.graph, space.settings
    by_shares = separable(graph)
    totals = np.array([units.sum() for units in scores.units], dtype=np.float64)
    mean = totals.mean() if totals.size else 0.0
    loss = -np.log(space.shares)
    if not by_shares:
        loss[: space.group_count] = 0.0
    for group, units in enumerate(() if by_shares else scores.units):
        share = totals[group] / mean if mean > 0.0 else 0.0
        if share == 0.0:  # carries nothing yet, so nothing is known of it but its counts
            share, units = 1.0, np.ones_like(units)
        spread = _effective_count(units) ** -POWER
        loss[group] = share * (spread[levels[group] - 1] - spread[-1])
    return GroupProfiles(
        fingerprint=graph.fingerprint,
        levels=levels,
        level_count=space.option_count,
        energy_loss=None,
        initial_loss=loss,
        initial_score=BY_SHARES if by_shares else f"{scores.name} at initialisation",
    )


def separable(graph: PruningGraph) -> bool:
    """Whether most convolutions that look at more than one position are depthwise: what mixes
    positions and what mixes channels are then operators of their own."""
    depthwise = sum(op.kind == "depthwise_conv" for op in graph.operators)
    dense = sum(op.kind == "conv" and max(op.kernel, default=1) > 1 for op in graph.operators)
    return depthwise > dense


def _effective_count(units: FloatArray) -> FloatArray:
    """Of the first k units, best first, how many equal ones they are as good as [width]."""
    best = np.sort(units)[::-1]
    return np.asarray(np.cumsum(best) ** 2 / np.cumsum(best**2))
