"""Loss curves: what a planner adds up over groups, from what was measured or is foretold."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rlprune.graph.types import FloatArray, IntArray, PruningGraph
from rlprune.sensitivity.predicted import default_curves
from rlprune.sensitivity.types import GroupProfiles
from rlprune.surgery.importance import unit_scores

if TYPE_CHECKING:
    from rlprune.graph.from_onnx import OnnxTrace


def energy_profiles(trace: OnnxTrace, levels: IntArray, level_count: IntArray) -> GroupProfiles:
    """Data-free curves: the share of energy dropped where surgery keeps its `keep` best units.

    `levels` [G, L], `level_count` [G] as from `keep_levels`.
    """
    share = np.zeros(levels.shape, dtype=np.float64)
    for group, energy in enumerate(unit_scores(trace)):
        passed = np.cumsum(np.sort(energy)[::-1])
        whole = passed[-1]
        # A group without energy (dead, or produced by nothing with weights) is judged by its
        # counts.
        if not whole > 0.0:
            passed, whole = np.arange(1.0, len(energy) + 1.0), float(len(energy))
        share[group] = 1.0 - passed[levels[group] - 1] / whole
    full = levels == trace.graph.widths[:, None]
    return GroupProfiles(
        fingerprint=trace.graph.fingerprint,
        levels=levels,
        level_count=level_count,
        energy_loss=np.where(full, 0.0, np.clip(share, 0.0, 1.0)),
    )


def shape_profiles(graph: PruningGraph, levels: IntArray, level_count: IntArray) -> GroupProfiles:
    """Profiles of a model whose weights are not known: no curves, only what levels there are."""
    return GroupProfiles(graph.fingerprint, levels, level_count, energy_loss=None)


def loss_curve(profiles: GroupProfiles, graph: PruningGraph) -> FloatArray:
    """What a planner adds up over groups [G, L]: non-increasing in the level, 0 at full width.

    In nats where losses were measured; of a network that was not trained, what a score at
    initialisation says (`profile.initial`); otherwise what the weights, or shapes alone, and other
    networks' losses foretell (`profile.predicted`).
    """
    if profiles.measured_loss is not None:
        loss = profiles.measured_loss.mean(0)
    elif profiles.initial_loss is not None:
        loss = profiles.initial_loss
    elif profiles.predicted_loss is not None:
        loss = profiles.predicted_loss
    else:
        loss = default_curves().curve(graph, profiles.levels, profiles.energy_loss)
    return non_increasing(loss, profiles.level_count)


def non_increasing(loss: FloatArray, level_count: IntArray) -> FloatArray:
    """The nearest non-increasing curves (least squares), none below 0, 0 at full width and padding.

    loss [..., G, L], level_count [G] -> [..., G, L]. Isotonic regression by its min-max formula:
    f(i) = min over j <= i of max over k >= i of mean(loss[j..k]).
    """
    length = loss.shape[-1]
    below = np.arange(length) < level_count[:, None] - 1  # [G, L], the levels that prune
    start, end = np.tril_indices(length)[::-1]
    total = np.concatenate([np.zeros((*loss.shape[:-1], 1)), np.cumsum(loss, -1)], -1)
    means = np.full((*loss.shape, length), -np.inf)  # [..., G, from, to]
    means[..., start, end] = (total[..., end + 1] - total[..., start]) / (end - start + 1)
    means = np.where(below[:, None, :], means, -np.inf)
    most = np.maximum.accumulate(means[..., ::-1], -1)[..., ::-1]
    most = np.where(np.tri(length, dtype=bool).T, most, np.inf)  # only from <= i
    fitted = np.minimum.accumulate(most, -2)[..., np.arange(length), np.arange(length)]
    return np.where(below, np.maximum(fitted, 0.0), 0.0)
