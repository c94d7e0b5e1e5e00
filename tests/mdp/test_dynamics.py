"""What an episode promises: action 0 is the reference, any fits the budget, rewards add up."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import random_task, resnet_like, task_of

from rlprune.graph.types import FloatArray, IntArray
from rlprune.mdp.dynamics import OVERSHOOT_WEIGHT, PruningDynamics
from rlprune.mdp.episode import ActionMode, PlanningFrame, plan_with, rescale_losses
from rlprune.mdp.objective import AdditiveObjective
from rlprune.solver.knapsack import least_choice, solve
from rlprune.solver.reference import reference
from rlprune.solver.task import PruningTask

MODES: tuple[ActionMode, ...] = ("correction", "ratio")


def generators(rows: int, seed: int = 0) -> list[np.random.Generator]:
    return [np.random.default_rng((seed, row)) for row in range(rows)]


def walk(
    dynamics: PruningDynamics, rows: int, seed: int, actions: np.random.Generator | None
) -> tuple[FloatArray, IntArray]:
    """One episode under random actions (None: action 0): summed rewards [B] and choices [B, S]."""
    dynamics.reset(generators(rows, seed))
    total = np.zeros(rows)
    over = False
    steps = 0
    while not over:
        size = (rows, dynamics.action_size)
        action = np.zeros(size) if actions is None else actions.uniform(-1.3, 1.3, size)
        observation, reward, over = dynamics.step(action)
        assert np.isfinite(observation).all()
        total += reward
        steps += 1
    assert steps == dynamics.task.site_count
    return total, dynamics.episode.plan


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_corrections_of_zero_reproduce_the_knapsack(noise: float) -> None:
    for seed in range(12):
        dynamics = PruningDynamics(
            random_task(seed, group_count=7, noise=noise), action="correction"
        )
        total, choice = walk(dynamics, 6, seed, None)
        episode = dynamics.episode
        again = solve(dynamics.task, episode.budget_ms, loss=episode.loss)
        assert np.array_equal(choice, again)
        assert np.allclose(total, 0.0)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    groups=st.integers(1, 9),
    noise=st.sampled_from([0.0, 0.1, 0.6]),
    mode=st.sampled_from(MODES),
    folds=st.sampled_from([0, 3]),
)
def test_every_finished_episode_is_within_its_budget(
    seed: int, groups: int, noise: float, mode: ActionMode, folds: int
) -> None:
    task = random_task(seed, group_count=groups, noise=noise, folds=folds)
    dynamics = PruningDynamics(task, action=mode, budget_range=(0.0, 1.0))
    _, choice = walk(dynamics, 5, seed, np.random.default_rng(seed))
    assert (task.tables.upper_ms(choice) <= dynamics.episode.budget_ms).all()


@pytest.mark.parametrize("mode", MODES)
def test_rewards_telescope_to_the_gain_over_the_reference(mode: ActionMode) -> None:
    for seed in range(6):
        task = random_task(seed, group_count=6)
        dynamics = PruningDynamics(task, action=mode)
        total, choice = walk(dynamics, 8, seed, np.random.default_rng(seed))
        outcome = dynamics.outcome()
        objective = AdditiveObjective(task.space.settings, task.curve)
        before = objective.loss(task.space.settings_at(dynamics.episode.reference.choice))
        assert np.allclose(outcome["loss"], objective.loss(task.space.settings_at(choice)))
        assert np.allclose(outcome["reference_loss"], before)
        assert np.allclose(total, (before - outcome["loss"]) / outcome["scale"])


def test_correction_is_paid_at_the_last_step_only() -> None:
    dynamics = PruningDynamics(random_task(1), action="correction")
    dynamics.reset(generators(4))
    rng = np.random.default_rng(0)
    for _ in range(dynamics.task.site_count - 1):
        assert (dynamics.step(rng.uniform(-1, 1, (4, 2)))[1] == 0.0).all()
    assert (dynamics.step(rng.uniform(-1, 1, (4, 2)))[1] != 0.0).any()


def test_ratio_reaches_least_and_full_levels_where_the_budget_lets_it() -> None:
    task = random_task(2, group_count=5)
    dynamics = PruningDynamics(task)
    frame = PlanningFrame.of(task)
    dynamics.reset(generators(1), budget_ms=np.array([frame.budget_range_ms[1] * 2]))
    for _ in range(task.site_count):
        dynamics.step(np.array([[-1.0]]))
    assert np.array_equal(dynamics.episode.keeps[0], task.space.settings[:, 0])
    dynamics.reset(generators(1), budget_ms=np.array([frame.budget_range_ms[1] * 2]))
    for _ in range(task.site_count):
        dynamics.step(np.array([[1.0]]))
    assert np.array_equal(dynamics.episode.keeps[0], task.graph.widths)


def test_ratio_takes_the_nearest_level() -> None:
    task = random_task(2, group_count=5)
    dynamics = PruningDynamics(task, action="ratio")
    dynamics.reset(generators(1), budget_ms=np.array([1e9]))
    for _ in range(task.site_count):
        dynamics.step(np.array([[0.0]]))  # half
    wanted = np.abs(task.shares - 0.5)
    taken = np.take_along_axis(wanted, dynamics.episode.plan[0][:, None], 1)[:, 0]
    assert np.array_equal(taken, wanted.min(1))


def as_planned(dynamics: PruningDynamics) -> FloatArray:
    """The ratio actions [B, 1] that keep what the current plan keeps."""
    episode = dynamics.episode
    kept = dynamics.task.shares[episode.site, episode.plan[:, episode.site]]
    return 2 * kept[:, None] - 1


def test_ratios_of_the_current_plan_reproduce_the_knapsack() -> None:
    for seed in range(6):
        dynamics = PruningDynamics(random_task(seed, group_count=7, noise=0.2))
        dynamics.reset(generators(4, seed))
        while not dynamics.step(as_planned(dynamics))[2]:
            pass
        assert np.array_equal(dynamics.episode.plan, dynamics.episode.reference.choice)


def test_budget_freed_by_a_departure_is_spent_by_the_reference_on_the_rest() -> None:
    freed = 0
    for seed in range(10):
        task = random_task(seed, group_count=8)
        dynamics = PruningDynamics(task, withheld_ratio=0.0)
        dynamics.reset(generators(1, seed), budget_ms=None)
        dynamics.step(np.array([[-1.0]]))
        while not dynamics.step(as_planned(dynamics))[2]:
            pass
        before, after = dynamics.episode.reference.choice[0], dynamics.episode.plan[0]
        freed += bool((after[1:] > before[1:]).any())
    assert freed >= 5


def test_same_seed_same_episode_and_rows_do_not_see_each_other() -> None:
    task = task_of(resnet_like((2, 2, 2)), seed=4, noise=0.1)
    actions = np.random.default_rng(0).uniform(-1, 1, (task.site_count, 6, 1))

    def run(rows: list[int]) -> list[tuple[FloatArray, FloatArray]]:
        dynamics = PruningDynamics(task)
        first = dynamics.reset([np.random.default_rng((7, row)) for row in rows])
        steps = [(first.astype(float), np.zeros(len(rows)))]
        for action in actions[:, rows]:
            observation, reward, _ = dynamics.step(action)
            steps.append((observation.astype(float), reward))
        return steps

    together, again = run([0, 1, 2, 3, 4, 5]), run([0, 1, 2, 3, 4, 5])
    for one, other in zip(together, again, strict=True):
        assert np.array_equal(one[0], other[0]) and np.array_equal(one[1], other[1])
    for row in range(6):
        for one, other in zip(run([row]), together, strict=True):
            assert np.allclose(one[0][0], other[0][row], atol=1e-6)
            assert np.allclose(one[1][0], other[1][row])


def test_measured_latency_over_the_budget_is_penalised_at_the_end() -> None:
    task = random_task(3)

    def slow(asked: PruningTask, keeps: IntArray) -> FloatArray:
        assert asked is task
        upper = asked.tables.upper_ms(asked.space.choice_of(keeps))
        return upper * np.array([1.0, 1.3])

    predicted = PruningDynamics(task, action="correction")
    measured = PruningDynamics(task, action="correction", latency="measured", measure=slow)
    free, _ = walk(predicted, 2, 5, None)
    paid, _ = walk(measured, 2, 5, None)
    outcome = measured.outcome()
    over = np.maximum(outcome["latency_ms"] / outcome["budget_ms"] - 1, 0)
    assert over[0] == 0.0 and over[1] > 0.0
    assert np.allclose(paid, free - OVERSHOOT_WEIGHT * over)


def test_measuring_needs_something_that_measures() -> None:
    with pytest.raises(ValueError, match="measure"):
        PruningDynamics(random_task(0), latency="measured")


@pytest.mark.parametrize(
    "options", [{"action": "jump"}, {"latency": "guessed"}, {"budget_range": (0.5, 1.5)}]
)
def test_unknown_options_are_refused_by_name(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        PruningDynamics(random_task(0), **options)  # type: ignore[arg-type]


def test_profiles_are_resampled_and_sometimes_withheld() -> None:
    task = random_task(4)
    dynamics = PruningDynamics(task, withheld_ratio=0.5)
    dynamics.reset(generators(200))
    curves = dynamics.episode.loss
    data_free = np.isclose(curves, curves[0]).all((1, 2)).sum()
    assert 1 <= data_free < 200
    assert len(np.unique(curves.round(12), axis=0)) > 80
    assert (np.diff(curves, axis=2) <= 1e-12).all()


def test_rescaling_by_nothing_changes_nothing_and_curves_stay_monotone() -> None:
    task = random_task(5)
    curve = task.curve[None]
    zero = np.zeros((1, task.site_count, 2))
    assert np.array_equal(rescale_losses(curve, zero, task.space), curve)
    rng = np.random.default_rng(0)
    scaled = rescale_losses(curve, rng.uniform(-1, 1, (50, task.site_count, 2)), task.space)
    assert (np.diff(scaled, axis=2) <= 0).all()


@pytest.mark.parametrize("mode", MODES)
def test_serving_does_what_training_did(mode: ActionMode) -> None:
    task = random_task(6, folds=1)  # one fold: a bootstrap of it is itself
    rng = np.random.default_rng(1)
    dynamics = PruningDynamics(task, action=mode, withheld_ratio=0.0)
    weights = rng.normal(0, 0.3, (dynamics.observation_size, dynamics.action_size))

    def act(observation: np.ndarray) -> np.ndarray:
        return np.tanh(observation @ weights)

    observation = dynamics.reset(generators(5, 3))
    budget_ms = dynamics.episode.budget_ms
    over = False
    while not over:
        observation, _, over = dynamics.step(act(observation))
    assert np.array_equal(plan_with(task, budget_ms, act, mode), dynamics.episode.plan)


def test_serving_a_budget_below_the_least_gives_the_least_plan() -> None:
    task = random_task(7)
    least, base = PlanningFrame.of(task).budget_range_ms
    plans = plan_with(task, np.array([least / 2, base]), lambda o: np.ones((len(o), 1)), "ratio")
    assert np.array_equal(plans[0], least_choice(task))


def test_reference_is_the_knapsack_and_more_budget_leaves_less_to_lose() -> None:
    task = random_task(8, group_count=8)
    least, base = PlanningFrame.of(task).budget_range_ms
    budget_ms = least + (base - least) * np.linspace(0.1, 0.9, 9)
    found = reference(task, budget_ms)
    assert np.array_equal(found.choice, solve(task, budget_ms))
    remaining = found.rest_ms(0, found.choice)
    _, to_go, price = found.lookup(0, remaining)
    curve = task.curve
    loss = curve[np.arange(8), found.choice].sum(1)
    assert (to_go <= loss + 0.02 * curve[:, 0].sum()).all()
    assert (price >= 0).all()
    richer = found.lookup(0, remaining * 1.5 + 0.01)
    assert (richer[1] <= to_go + 1e-12).all()


@dataclass(frozen=True)
class Coupled:
    """Dropping from the first two groups together costs extra; no single-group profile shows it."""

    inner: AdditiveObjective

    def loss(self, keeps: IntArray) -> FloatArray:
        dropped = 1 - keeps / self.inner.levels[:, -1]
        return self.inner.loss(keeps) + 5 * dropped[:, 0] * dropped[:, 1]


def test_a_departure_that_the_objective_likes_is_rewarded() -> None:
    base = random_task(9, group_count=6)
    objective = Coupled(AdditiveObjective(base.space.settings, base.curve))
    task = PruningTask(base.space, base.tables, base.profiles, objective)
    dynamics = PruningDynamics(
        task, action="correction", budget_range=(0.5, 0.5), withheld_ratio=0.0
    )
    rng = np.random.default_rng(0)
    total, _ = walk(dynamics, 256, 0, rng)
    assert total.max() > 0.0


def test_a_terminal_reward_is_the_same_gain_paid_at_the_end() -> None:
    task = random_task(3, group_count=6)
    totals = []
    for terminal in (False, True):
        dynamics = PruningDynamics(task, terminal_reward=terminal)
        dynamics.reset(generators(5))
        actions, rewards, over = np.random.default_rng(1), [], False
        while not over:
            _, reward, over = dynamics.step(actions.uniform(-1, 1, (5, 1)))
            rewards.append(reward)
        assert np.any(rewards[:-1]) != terminal
        totals.append(np.sum(rewards, axis=0))
    np.testing.assert_allclose(totals[0], totals[1], atol=1e-12)
    assert np.any(totals[0])
