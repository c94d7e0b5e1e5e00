"""Measured loss curves: what each group costs when it alone is pruned.

The cost is how far the pruned network's answers diverge from the unpruned one's, in nats: where the
network is calibrated that is the expected rise of its cross-entropy, and no label's noise is in it.
In a trial the knapsack's plans of ResNet-20 (MACs, reconstructed) at b 0.85 / 0.7 / 0.55 / 0.4 lost
0.38 / 0.44 / 0.67 / 1.06 nats with it, 0.43 / 0.47 / 0.72 / 1.30 with the rise of the cross-entropy
itself on the same 500 images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from rlprune.graph.types import FloatArray, IntArray
from rlprune.sensitivity.energy import energy_profiles
from rlprune.sensitivity.types import FOLD_COUNT, GroupProfiles

if TYPE_CHECKING:
    from rlprune.sensitivity.evaluate import Evaluator

MOST_EVALUATED = 8
"""Levels of one group that are evaluated; those between are interpolated."""


def measure_profiles(
    evaluator: Evaluator,
    levels: IntArray,
    level_count: IntArray,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> GroupProfiles:
    """Energy curves and measured losses of every group, one evaluation per group and level.

    `on_progress(done, of)` is called after each evaluation.
    """
    plans = single_group_plans(levels, level_count)
    evaluations = []
    for index, keeps in enumerate(plans):
        evaluations.append(evaluator.evaluate(keeps))
        if on_progress is not None:
            on_progress(index + 1, len(plans))
    profiles = energy_profiles(evaluator.trace, levels, level_count)
    return with_losses(
        profiles,
        plans,
        np.array([evaluation.fold_divergences for evaluation in evaluations]),
        base_loss=evaluator.base.loss,
        image_count=len(evaluator.calibration),
    )


def single_group_plans(levels: IntArray, level_count: IntArray) -> IntArray:
    """The plans to evaluate [N, G]: each prunes one group to one of at most `MOST_EVALUATED`
    levels."""
    widths = levels[:, -1]
    plans = []
    for group, count in enumerate(level_count):
        below = np.arange(count - 1)
        if len(below) > MOST_EVALUATED:
            below = np.unique(np.linspace(0, count - 2, MOST_EVALUATED).round().astype(np.int64))
        for level in below:
            keeps = widths.copy()
            keeps[group] = levels[group, level]
            plans.append(keeps)
    return np.array(plans, dtype=np.int64).reshape(len(plans), len(widths))


def with_losses(
    profiles: GroupProfiles,
    plans: IntArray,
    fold_divergences: FloatArray,
    *,
    base_loss: float,
    image_count: int,
) -> GroupProfiles:
    """`profiles` with the losses of `single_group_plans` [N, S], interpolated in keep, per fold
    [S, G, L]."""
    widths = profiles.levels[:, -1]
    fold_count = fold_divergences.shape[1] if len(plans) else FOLD_COUNT
    loss: FloatArray = np.zeros((fold_count, *profiles.levels.shape))
    for group, width in enumerate(widths):
        own = plans[:, group] < width
        at = np.append(plans[own, group], width)
        for fold in range(fold_count):
            values = np.append(fold_divergences[own, fold], 0.0)
            loss[fold, group] = np.interp(profiles.levels[group], at, values)
    return replace(profiles, measured_loss=loss, base_loss=base_loss, image_count=image_count)
