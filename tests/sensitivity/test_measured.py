"""Measured profiles: each group pruned alone."""

from __future__ import annotations

import numpy as np
import pytest
from calibrated import own_images, traced
from synthetic import chain_graph, channel_space

from rlprune.runtime import get_runtime
from rlprune.schemes import space_with
from rlprune.sensitivity.energy import loss_curve
from rlprune.sensitivity.evaluate import Evaluator
from rlprune.sensitivity.measured import MAX_EVALUATED, measure_profiles, single_site_plans


def test_each_group_alone_at_each_level_is_measured_on_every_fold() -> None:
    trace = traced("resnet_a")
    evaluator = Evaluator(trace, own_images(trace, 128), runtime=get_runtime())
    space = channel_space(trace.graph)
    progress: list[tuple[int, int]] = []

    profiles = measure_profiles(evaluator, space, on_progress=lambda *at: progress.append(at))

    total = len(single_site_plans(space))
    assert progress == [(done, total) for done in range(1, total + 1)]
    assert profiles.measured_loss is not None and profiles.energy_loss is not None
    assert profiles.measured_loss.shape == (4, *space.settings.shape)
    assert profiles.base_loss == evaluator.base.loss and profiles.image_count == 128
    keeps = trace.graph.widths
    keeps[1] = space.settings[1, 0]
    alone = evaluator.evaluate(keeps).fold_divergences
    assert (alone > 0.0).all()
    np.testing.assert_allclose(profiles.measured_loss[:, 1, 0], alone)
    full = space.shares == 1.0
    assert (profiles.measured_loss[:, full] == 0.0).all()
    assert loss_curve(profiles, space).max() > 0.0


def test_at_most_eight_levels_a_group_are_evaluated_and_ends_are_among_them() -> None:
    levels = np.array([np.arange(8, 136, 8), np.full(16, 8)])
    space = space_with(chain_graph([128, 8]), levels, np.array([16, 1]))
    plans = single_site_plans(space)
    assert len(plans) == MAX_EVALUATED == 8
    assert (plans[:, 1] == 0).all()
    assert plans[0, 0] == 0 and plans[-1, 0] == 14
    assert space.settings_at(plans)[[0, -1]].tolist() == [[8, 8], [120, 8]]


def test_levels_between_are_interpolated_in_keep() -> None:
    trace = traced("vgg_flatten")
    evaluator = Evaluator(trace, own_images(trace), runtime=get_runtime())
    space = channel_space(trace.graph, round_to=1)
    profiles = measure_profiles(evaluator, space)
    assert profiles.measured_loss is not None
    group = int(space.option_count.argmax())
    levels = space.settings[group]
    measured = np.isin(levels, space.settings_at(single_site_plans(space))[:, group]) | (
        levels == trace.graph.widths[group]
    )
    between = np.flatnonzero(~measured)
    assert len(between)
    for fold in profiles.measured_loss[:, group]:
        expected = np.interp(levels[between], levels[measured], fold[measured])
        assert fold[between] == pytest.approx(expected)
