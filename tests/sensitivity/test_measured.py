"""Measured profiles: each group pruned alone."""

from __future__ import annotations

import numpy as np
import pytest
from calibrated import own_images, traced

from rlprune.runtime import get_runtime
from rlprune.sensitivity.energy import loss_curve
from rlprune.sensitivity.evaluate import Evaluator
from rlprune.sensitivity.measured import MOST_EVALUATED, measure_profiles, single_group_plans
from rlprune.sensitivity.types import keep_levels


def test_each_group_alone_at_each_level_is_measured_on_every_fold() -> None:
    trace = traced("resnet_a")
    evaluator = Evaluator(trace, own_images(trace, 128), runtime=get_runtime())
    levels, level_count = keep_levels(trace.graph)
    progress: list[tuple[int, int]] = []

    profiles = measure_profiles(
        evaluator, levels, level_count, on_progress=lambda *at: progress.append(at)
    )

    total = len(single_group_plans(levels, level_count))
    assert progress == [(done, total) for done in range(1, total + 1)]
    assert profiles.measured_loss is not None and profiles.energy_loss is not None
    assert profiles.measured_loss.shape == (4, *levels.shape)
    assert profiles.base_loss == evaluator.base.loss and profiles.image_count == 128
    keeps = trace.graph.widths
    keeps[1] = levels[1, 0]
    alone = evaluator.evaluate(keeps).fold_divergences
    assert (alone > 0.0).all()
    np.testing.assert_allclose(profiles.measured_loss[:, 1, 0], alone)
    full = levels == trace.graph.widths[:, None]
    assert (profiles.measured_loss[:, full] == 0.0).all()
    assert loss_curve(profiles, trace.graph).max() > 0.0


def test_at_most_eight_levels_a_group_are_evaluated_and_ends_are_among_them() -> None:
    levels = np.array([np.arange(8, 136, 8), np.full(16, 8)])
    plans = single_group_plans(levels, np.array([16, 1]))
    assert len(plans) == MOST_EVALUATED == 8
    assert (plans[:, 1] == 8).all()
    assert plans[0, 0] == 8 and plans[-1, 0] == 120


def test_levels_between_are_interpolated_in_keep() -> None:
    trace = traced("vgg_flatten")
    evaluator = Evaluator(trace, own_images(trace), runtime=get_runtime())
    levels, level_count = keep_levels(trace.graph, round_to=1)
    profiles = measure_profiles(evaluator, levels, level_count)
    assert profiles.measured_loss is not None
    group = int(level_count.argmax())
    measured = np.isin(levels[group], single_group_plans(levels, level_count)[:, group]) | (
        levels[group] == trace.graph.widths[group]
    )
    between = np.flatnonzero(~measured)
    assert len(between)
    for fold in profiles.measured_loss[:, group]:
        expected = np.interp(levels[group][between], levels[group][measured], fold[measured])
        assert fold[between] == pytest.approx(expected)
