"""Loss curves from weights, shapes and measurements."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from calibrated import traced
from onnx import numpy_helper
from sklearn.isotonic import IsotonicRegression
from small_onnx import small_onnx
from synthetic import channel_space

from rlprune.graph.from_onnx import OnnxTrace, trace_onnx
from rlprune.schemes import Space
from rlprune.sensitivity.energy import energy_profiles, loss_curve, non_increasing, shape_profiles
from rlprune.sensitivity.types import GroupProfiles


@pytest.fixture(scope="module")
def trace() -> OnnxTrace:
    return trace_onnx(small_onnx())


@pytest.fixture(scope="module")
def space(trace: OnnxTrace) -> Space:
    return channel_space(trace.graph)


@pytest.fixture(scope="module")
def profiles(trace: OnnxTrace, space: Space) -> GroupProfiles:
    return energy_profiles(trace, space)


def test_energy_is_the_share_that_passes_through_the_units_that_go(
    trace: OnnxTrace, profiles: GroupProfiles
) -> None:
    weights = {t.name: numpy_helper.to_array(t) for t in trace.model.graph.initializer}
    made, read = (np.square(weights[name].astype(np.float64)) for name in ("w1", "w2"))
    energy = made.sum((1, 2, 3)) * read.sum((0, 2, 3))
    expected = np.sort(energy)[:-16].sum() / energy.sum()

    assert profiles.energy_loss is not None
    level = list(profiles.levels[0]).index(16)
    assert profiles.energy_loss[0, level] == pytest.approx(expected)
    assert (profiles.energy_loss[profiles.levels == trace.graph.widths[:, None]] == 0.0).all()


def test_every_curve_falls_to_zero_at_full_width(space: Space, profiles: GroupProfiles) -> None:
    shapes = shape_profiles(space)
    assert not shapes.profiled and shapes.energy_loss is None
    for given in (profiles, shapes):
        curve = loss_curve(given, space)
        assert curve.shape == profiles.levels.shape
        assert (np.diff(curve, axis=-1) <= 0.0).all()
        assert (curve[:, -1] == 0.0).all() and (curve[:, 0] > 0.0).all()


def test_measured_losses_are_averaged_over_folds_and_win_over_energy(
    space: Space, profiles: GroupProfiles
) -> None:
    folds = np.zeros((2, *profiles.levels.shape))
    folds[:, 0, 0] = (0.2, 0.4)
    folds[:, 1, 0] = -0.1  # a loss that noise made negative

    curve = loss_curve(replace(profiles, measured_loss=folds), space)

    assert curve[0, 0] == pytest.approx(0.3)
    assert (curve[1] == 0.0).all()


def test_noisy_curves_become_their_nearest_non_increasing_ones() -> None:
    rng = np.random.default_rng(0)
    noisy = rng.normal(1.0, 1.0, (40, 9))
    level_count = rng.integers(1, 10, 40)
    for row, count in enumerate(level_count):
        noisy[row, count - 1 :] = 0.0

    fitted = non_increasing(noisy, level_count)

    for row, count in enumerate(level_count):
        below = np.arange(count - 1)
        assert (fitted[row, count - 1 :] == 0.0).all()
        if len(below):
            nearest = IsotonicRegression(increasing=False).fit_transform(below, noisy[row, below])
            np.testing.assert_allclose(fitted[row, below], np.maximum(nearest, 0.0), atol=1e-12)


def test_curves_of_a_batch_are_fitted_each_for_itself() -> None:
    noisy = np.random.default_rng(1).normal(1.0, 1.0, (3, 2, 5))
    level_count = np.array([5, 3])
    together = non_increasing(noisy, level_count)
    for index in range(3):
        np.testing.assert_array_equal(together[index], non_increasing(noisy[index], level_count))


def test_a_residual_stream_weighs_more_than_a_blocks_own_channels() -> None:
    stream_trace = traced("resnet_b")
    space = channel_space(stream_trace.graph)
    curve = loss_curve(shape_profiles(space), space)
    members = np.array([len(group.members) for group in stream_trace.graph.groups])
    same_width = stream_trace.graph.widths == 32
    stream, own = members == members[same_width].max(), members == members[same_width].min()
    assert curve[same_width & stream, 0].min() > curve[same_width & own, 0].max()
