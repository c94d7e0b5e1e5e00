"""What the objectives promise: they rank plans nobody fitted them to, and come back from disk."""

from __future__ import annotations

import numpy as np
import pytest
from synthetic import evaluations_of, random_task, resnet_like, task_of

from rlprune.graph.types import FloatArray, IntArray
from rlprune.mdp.objective import AdditiveObjective, SurrogateObjective, curve_at, reward_scale
from rlprune.recording.model_dir import RecordedModel, objective_of
from rlprune.solver.task import PruningTask


def true_loss(task: PruningTask, keeps: IntArray) -> FloatArray:
    """Profile losses, with neighbours that lose more together and groups that profiles misjudge."""
    own = curve_at(task.space.settings, task.curve, keeps)
    misjudged = np.exp(np.random.default_rng(5).normal(0, 0.5, task.site_count))
    own = own * misjudged
    return np.asarray(own.sum(-1) ** 1.2 + 2 * (own[:, 1:] * own[:, :-1]).sum(-1))


def recorded(
    task: PruningTask, count: int, seed: int, noise: float = 0.02
) -> tuple[IntArray, FloatArray]:
    rng = np.random.default_rng(seed)
    lean = rng.uniform(0.2, 1.0, (count, 1))
    drawn = np.clip(lean + rng.normal(0, 0.2, (count, task.site_count)), 0, 1)
    choice = np.rint(drawn * (task.option_count - 1)).astype(np.int64)
    keeps = task.space.settings_at(choice)
    return keeps, true_loss(task, keeps) * np.exp(noise * rng.standard_normal(count))


def ranks(values: FloatArray) -> FloatArray:
    return np.argsort(np.argsort(values)).astype(float)


@pytest.fixture(scope="module")
def task() -> PruningTask:
    return task_of(resnet_like((2, 2, 2)), seed=3)


@pytest.fixture(scope="module")
def fitted(task: PruningTask) -> SurrogateObjective:
    keeps, increase = recorded(task, 300, 0)
    curve = task.curve
    return SurrogateObjective.fit(task.space.settings, curve, keeps, increase)


def test_surrogate_ranks_unseen_plans_better_than_the_sum(
    task: PruningTask, fitted: SurrogateObjective
) -> None:
    keeps, _ = recorded(task, 200, 1)
    truth = ranks(true_loss(task, keeps))
    additive = AdditiveObjective(task.space.settings, task.curve)
    surrogate_rank = np.corrcoef(ranks(fitted.loss(keeps)), truth)[0, 1]
    additive_rank = np.corrcoef(ranks(additive.loss(keeps)), truth)[0, 1]
    assert surrogate_rank > 0.97
    assert surrogate_rank > additive_rank


def test_surrogate_is_pessimistic_where_it_is_unsure(
    task: PruningTask, fitted: SurrogateObjective
) -> None:
    keeps, _ = recorded(task, 200, 2)
    hopeful = SurrogateObjective.fit(
        task.space.settings, fitted.curve, *recorded(task, 300, 0), pessimism=0.0
    )
    assert (fitted.loss(keeps) >= hopeful.loss(keeps)).all()


def test_a_plan_unlike_any_on_record_is_not_promised_the_moon(
    task: PruningTask, fitted: SurrogateObjective
) -> None:
    alternating = np.where(
        np.arange(task.site_count) % 2, task.space.settings[:, 0], task.graph.widths
    )
    low, high = np.exp(fitted.recorded[:, 1]).min(), np.exp(fitted.recorded[:, 1]).max()
    loss = fitted.loss(alternating[None])[0] + fitted.offset
    assert low / 2 <= loss <= high * 3


def test_loss_is_answered_row_by_row(task: PruningTask, fitted: SurrogateObjective) -> None:
    keeps, _ = recorded(task, 20, 3)
    apart = np.concatenate([fitted.loss(keeps[row : row + 1]) for row in range(20)])
    assert np.allclose(fitted.loss(keeps), apart)


def test_too_few_evaluations_fall_back_to_the_sum(task: PruningTask) -> None:
    keeps, increase = recorded(task, 10, 0)
    some = evaluations_of(keeps, increase)
    assert isinstance(
        objective_of(RecordedModel(task.graph, task.profiles, some)), AdditiveObjective
    )
    assert isinstance(
        objective_of(RecordedModel(task.graph, task.profiles, None)), AdditiveObjective
    )
    with pytest.raises(ValueError, match="too few"):
        SurrogateObjective.fit(task.space.settings, task.curve, keeps, increase)


def test_enough_evaluations_make_a_surrogate(task: PruningTask) -> None:
    keeps, increase = recorded(task, 100, 0)
    some = evaluations_of(keeps, increase)
    found = objective_of(RecordedModel(task.graph, task.profiles, some))
    assert isinstance(found, SurrogateObjective)


def test_scale_of_rewards_is_positive_and_grows_with_the_loss(
    task: PruningTask, fitted: SurrogateObjective
) -> None:
    mild, harsh = task.graph.widths, task.space.settings[:, 0]
    for objective in (fitted, AdditiveObjective(task.space.settings, fitted.curve)):
        scale = reward_scale(objective, np.stack([mild, harsh]))
        assert scale[0] > 0 and scale[1] > scale[0]


def test_curves_are_interpolated_between_levels() -> None:
    task = random_task(0)
    curve = task.curve
    assert np.allclose(curve_at(task.space.settings, curve, task.space.settings.T), curve.T)
    middle = (task.space.settings[:, 0] + task.space.settings[:, 1]) // 2
    between = curve_at(task.space.settings, curve, middle[None])[0]
    assert (between <= curve[:, 0] + 1e-12).all() and (between >= curve[:, 1] - 1e-12).all()
