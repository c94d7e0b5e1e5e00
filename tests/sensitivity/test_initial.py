"""Loss curves at initialisation: from what units are worth to how many stay."""

from __future__ import annotations

import numpy as np
import pytest
from small_onnx import small_onnx
from synthetic import channel_space

from rlprune.graph.from_onnx import OnnxTrace, trace_onnx
from rlprune.graph.types import FloatArray
from rlprune.latency.macs import macs_tables
from rlprune.planning import make_plan
from rlprune.policy import get_policy
from rlprune.schemes import space_with
from rlprune.schemes.channels import keep_levels
from rlprune.sensitivity.energy import loss_curve
from rlprune.sensitivity.initial import InitialScores, initial_profiles
from rlprune.solver.pinned import PinnedTask
from rlprune.solver.task import PruningTask


@pytest.fixture(scope="module")
def trace() -> OnnxTrace:
    return trace_onnx(small_onnx())


def alike(trace: OnnxTrace) -> list[FloatArray]:
    """What SynFlow gives fresh layers: each group the same, spread evenly over its units."""
    return [np.full(width, 2.0 / width) for width in trace.graph.widths]


def test_of_equal_units_a_group_loses_by_the_inverse_square_of_its_width(trace: OnnxTrace) -> None:
    space = channel_space(trace.graph)
    profiles = initial_profiles(space, InitialScores("synflow", alike(trace)))
    widths = trace.graph.widths[:, None].astype(float)
    expected = space.settings.astype(float) ** -2 - widths**-2
    np.testing.assert_allclose(loss_curve(profiles, space), expected, atol=1e-12)


def test_units_worth_nothing_are_free_and_groups_count_by_their_share(trace: OnnxTrace) -> None:
    space = channel_space(trace.graph)
    scores = alike(trace)
    scores[0][scores[0].size // 2 :] = 0.0  # in place of half the units, nothing
    scores[1] = 3.0 * scores[1]
    curve = loss_curve(initial_profiles(space, InitialScores("snip", scores)), space)
    assert curve[0][space.settings[0] >= scores[0].size // 2] == pytest.approx(0.0)
    assert curve[0, 0] > 0.0
    even = loss_curve(initial_profiles(space, InitialScores("snip", alike(trace))), space)
    ratio = curve[1, 0] / even[1, 0]
    totals = np.array([units.sum() for units in scores])
    assert ratio == pytest.approx(totals[1] / totals.mean())


def test_a_group_that_carries_nothing_yet_is_judged_by_its_counts(trace: OnnxTrace) -> None:
    scores = alike(trace)
    scores[0][:] = 0.0
    space = channel_space(trace.graph)
    curve = initial_profiles(space, InitialScores("snip", scores)).initial_loss
    assert curve is not None and np.isfinite(curve).all() and curve[0, 0] > 0.0


def test_plans_fit_the_budget_keep_the_least_ratio_and_say_what_they_are_for(
    trace: OnnxTrace,
) -> None:
    """A score that puts nearly all worth into one group tempts to collapse the others."""
    scores = alike(trace)
    scores[0] *= 1e6
    for least in (0.0, 0.5):
        space = space_with(trace.graph, *keep_levels(trace.graph, min_keep_ratio=least))
        profiles = initial_profiles(space, InitialScores("snip", scores))
        task = PruningTask(space, macs_tables(space), profiles)
        budget = 0.6 * task.base_ms
        for name in ("knapsack", "global", "uniform", "learned"):
            plan = make_plan(task, get_policy(name), budget, device="macs")
            assert plan.feasible and plan.predicted_interval_ms[1] <= budget, name
            assert (plan.keeps >= np.ceil(least * trace.graph.widths)).all(), name
            assert (plan.keeps >= 1).all() and "by snip at initialisation" in plan.note
        learned = make_plan(task, get_policy("learned"), budget, device="macs")
        assert "learned on trained networks only" in learned.note


def test_pinned_groups_lose_together_what_they_lose_alone(trace: OnnxTrace) -> None:
    space = space_with(trace.graph, *keep_levels(trace.graph, pins=[(0, 1)]))
    profiles = initial_profiles(space, InitialScores("synflow", alike(trace)))
    task = PruningTask(space, macs_tables(space), profiles)
    pinned = PinnedTask.of(task, ((0, 1),)).task
    alone, together = (one.curve for one in (task, pinned))
    np.testing.assert_allclose(together[0], alone[0] + alone[1])
    assert pinned.profiles.initial_score == "synflow at initialisation"
