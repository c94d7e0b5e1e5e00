"""`scripts/bench figure`: which plans are near, how a figure ranks them, what is trained first."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from benchmarks.parts.figure_local import blocks_of, divergence, train_blocks
from benchmarks.parts.figure_plans import exchanges
from benchmarks.parts.figure_stats import (
    Outcome,
    between_seeds,
    further,
    near,
    over_plans,
    rank_correlation,
    regret,
    regret_of_any,
)
from benchmarks.parts.figure_training import trainings
from datasets.nets import bottleneck, resnet
from rlprune.constraints import Constraints, bind
from rlprune.graph.from_torch import TorchTrace, trace_torch
from rlprune.latency.macs import macs_tables
from rlprune.schemes import Space, removal_of, space_of, unpruned_settings
from rlprune.schemes.blocks import BLOCKS
from rlprune.sensitivity.calibration import CalibrationSet
from rlprune.sensitivity.energy import energy_profiles
from rlprune.solver.knapsack import solve
from rlprune.solver.task import PruningTask
from rlprune.surgery.torch import cut_torch

SCHEMES = ("channel", "block", "shape")


def outcome(noise: float, seed: int = 0) -> Outcome:
    """Thirty plans, of which `right` is known and `wrong` is not; two seeds."""
    rng = np.random.default_rng(seed)
    loss = np.linspace(0.2, 0.23, 30)
    accuracy = 80 - 100 * loss + noise * rng.standard_normal((2, 30))
    return Outcome({"right": loss, "wrong": rng.permutation(loss)}, accuracy)


def test_less_loss_with_more_accuracy_correlates_by_one() -> None:
    loss = np.array([0.3, 0.1, 0.2])
    assert rank_correlation(loss, np.array([70.0, 90.0, 71.0])) == pytest.approx(1)
    assert rank_correlation(loss, loss) == pytest.approx(-1)
    assert np.isnan(rank_correlation(loss, np.ones(3)))


def test_ties_share_their_rank() -> None:
    found = rank_correlation(np.array([1.0, 1.0, 2.0, 3.0]), np.array([4.0, 3.0, 2.0, 1.0]))
    assert found == pytest.approx(4.5 / np.sqrt(4.5 * 5))


def test_regret_is_what_the_least_figure_misses() -> None:
    accuracy = np.array([80.0, 82.0, 81.0])
    assert regret(np.array([0.1, 0.2, 0.3]), accuracy) == pytest.approx(2)
    assert regret(np.array([0.2, 0.1, 0.3]), accuracy) == 0
    assert regret_of_any(accuracy, accuracy) == pytest.approx(1)


def test_intervals_hold_the_value_and_shrink_over_networks() -> None:
    outcomes = [outcome(1.0, seed) for seed in range(3)]
    one, all_three = (
        over_plans(own, "right", rank_correlation) for own in (outcomes[:1], outcomes)
    )
    assert one.interval[0] < one.value < one.interval[1]
    assert np.ptp(all_three.interval) < np.ptp(one.interval)
    assert (one.count, all_three.count) == (30, 90)
    assert over_plans(outcomes, "right", rank_correlation) == all_three


def test_a_figure_that_knows_more_is_above_one_that_does_not() -> None:
    found = further([outcome(0.1)], "right", "wrong", rank_correlation)
    assert found.interval[0] > 0


def test_seeds_agree_as_far_as_noise_lets_them() -> None:
    assert between_seeds([outcome(0.0)]).value == pytest.approx(1)
    assert between_seeds([outcome(5.0)]).value < 0.6


def test_plans_within_the_band_are_taken_evenly_with_the_best() -> None:
    values = np.linspace(1.0, 1.3, 61)[::-1]
    taken, reached = near(values, 11)
    assert len(set(taken.tolist())) == 11
    assert values[taken[0]] == 1.0 and values[taken].max() <= 1.15
    assert np.ptp(np.diff(values[taken])) < 0.011
    assert reached == pytest.approx(0.15)


def test_one_that_is_asked_for_is_taken_where_it_is_within() -> None:
    values = np.linspace(1.0, 1.3, 61)
    for first in (1, 7, 30):
        taken, _ = near(values, 11, first=first)
        assert first in taken and taken[0] == 0 and len(set(taken.tolist())) == 11
    assert 40 not in near(values, 11, first=40)[0]


def test_band_is_widened_to_as_many_as_are_wanted() -> None:
    taken, reached = near(np.array([1.5, 1.0, 1.1, 2.0]), 3)
    assert taken.tolist() == [1, 2, 0]
    assert reached == pytest.approx(0.5)


def test_every_beginning_of_the_trainings_is_balanced_over_networks() -> None:
    order = list(trainings(("a", "b", "c"), 30, 2))
    assert len(set(order)) == len(order) == 3 * 30 * 2 * 2
    for end in (10, 31, 200):
        counts = Counter(one.net for one in order[:end])
        assert max(counts.values()) - min(counts.values()) <= 1
    assert {one.plan for one in order[:90]} == set(range(30))


@pytest.fixture(scope="module")
def trace() -> TorchTrace:
    torch.manual_seed(0)
    return trace_torch(
        resnet(8, bottleneck, (1, 8), (1, 8), (2, 16)).eval(), torch.zeros(1, 3, 16, 16)
    )


def space_for(trace: TorchTrace) -> Space:
    """All that can be decided, as `figure` has it."""
    bound = bind(trace.graph, Constraints(), round_to=1, device="macs")
    return space_of(trace.graph, bound, SCHEMES)


def test_exchanges_use_the_budget_and_change_at_most_two_options(trace: TorchTrace) -> None:
    space = space_for(trace)
    task = PruningTask(space, macs_tables(space), energy_profiles(trace.onnx, space))
    budget = 0.5 * task.base_ms
    [choice] = solve(task, np.array([budget]))
    found = exchanges(task, choice, budget, 20, np.random.default_rng(0))
    assert 0 < len(found) <= 20
    assert ((found != choice).sum(1) <= 2).all()
    cost = task.tables.upper_ms(found)
    assert (cost <= budget).all() and (cost >= 0.98 * budget).all()


def test_blocks_are_trained_in_the_channels_that_are_left(trace: TorchTrace) -> None:
    settings = unpruned_settings(trace.graph, SCHEMES)
    settings[: len(trace.graph.groups)] //= 2
    schemes = [site.scheme for site in space_for(trace).sites]
    settings[schemes.index(BLOCKS.name)] = 0
    removal = removal_of(trace.onnx, settings, SCHEMES)
    small = cut_torch(trace, removal)
    x = torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    blocks = blocks_of(small, trace, removal, x[:2])
    whole = blocks_of(trace.module, trace, removal, x[:2])
    assert len(blocks) == len(whole) - 1  # the one that is left out
    images = CalibrationSet.single(x.numpy())
    before = divergence(small, trace.module, images)
    stays = small.state_dict()["fc.bias"].clone()
    train_blocks(small, trace, removal, images)
    assert not torch.equal(small.state_dict()["fc.bias"], stays)
    assert divergence(small, trace.module, images) != before
    assert divergence(trace.module, trace.module, images) == 0
