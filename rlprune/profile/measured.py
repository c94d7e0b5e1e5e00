"""Measured loss curves: what each group costs when it alone is pruned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from rlprune.graph.types import FloatArray, IntArray
from rlprune.profile.energy import energy_profiles
from rlprune.profile.types import GroupProfiles

if TYPE_CHECKING:
    from rlprune.profile.evaluate import Evaluation, Evaluator

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
    return with_losses(profiles, plans, evaluations, evaluator.base, len(evaluator.calibration))


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
    evaluations: Sequence[Evaluation],
    base: Evaluation,
    image_count: int,
) -> GroupProfiles:
    """`profiles` with the losses of `single_group_plans`, interpolated in keep, per fold [S, G,
    L]."""
    widths = profiles.levels[:, -1]
    fold_count = len(base.fold_losses)
    increase = np.array(
        [evaluation.fold_losses - base.fold_losses for evaluation in evaluations]
    ).reshape(len(plans), fold_count)
    loss: FloatArray = np.zeros((fold_count, *profiles.levels.shape))
    for group, width in enumerate(widths):
        own = plans[:, group] < width
        at = np.append(plans[own, group], width)
        for fold in range(fold_count):
            values = np.append(increase[own, fold], 0.0)
            loss[fold, group] = np.interp(profiles.levels[group], at, values)
    return replace(profiles, measured_loss=loss, base_loss=base.loss, image_count=image_count)
