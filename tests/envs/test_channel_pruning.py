"""What the environments promise to anyone who knows Gymnasium."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.env_checker import check_env as check_for_sb3
from stable_baselines3.common.env_util import make_vec_env
from synthetic import random_task

from rlprune.mdp.episode import ActionMode
from rlprune.solver.knapsack import solve
from rlprune.solver.task import PruningTask
from rlprune_envs import ChannelPruningEnv, ChannelPruningVectorEnv, example_task

NAME = "rlprune_envs:rlprune/ChannelPruning-v0"
MODES: tuple[ActionMode, ...] = ("correction", "ratio")


@pytest.mark.parametrize("mode", MODES)
def test_made_by_name_it_passes_both_checkers(mode: ActionMode) -> None:
    env = gymnasium.make(NAME, action=mode).unwrapped
    check_env(env, skip_render_check=True)
    check_for_sb3(env)


def test_made_by_name_without_arguments_it_runs() -> None:
    env = gymnasium.make(NAME)
    _, info = env.reset(seed=1)
    assert info["budget_ms"] > 0
    over = False
    while not over:
        _, _, over, truncated, info = env.step(env.action_space.sample())
        assert not truncated
    assert info["latency_ms"] <= info["budget_ms"]
    assert info["keeps"].shape == (4,)


def test_same_seed_same_episode() -> None:
    env = ChannelPruningEnv([random_task(0), random_task(1)])
    first, _ = env.reset(seed=5)
    again, _ = env.reset(seed=5)
    other, _ = env.reset(seed=6)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_action_zero_keeps_what_the_knapsack_keeps() -> None:
    task = random_task(2)
    env = ChannelPruningEnv([task], action="correction", withheld_ratio=0.0)
    _, info = env.reset(seed=0, options={"budget_ms": 1.0})
    over, total = False, 0.0
    while not over:
        _, reward, over, _, info = env.step(np.zeros(2, np.float32))
        total += reward
    assert total == 0.0
    budget = np.array([info["budget_ms"]])
    curve = env._current.episode.loss
    choice = solve(task, budget, loss=curve)[0]
    assert np.array_equal(info["keeps"], task.space.settings_at(choice))


def test_options_choose_task_and_budget() -> None:
    tasks = [random_task(0), random_task(1)]
    env = ChannelPruningEnv(tasks)
    _, info = env.reset(seed=0, options={"task": 1, "budget_ms": 1e9})
    assert info == {"task": 1, "budget_ms": 1e9}


def test_no_tasks_at_all_are_refused() -> None:
    with pytest.raises(ValueError, match="tasks is empty"):
        ChannelPruningEnv([])


def rollout_single(
    task: PruningTask, seed: int, mode: ActionMode, actions: np.ndarray
) -> list[tuple[np.ndarray, float, bool, dict[str, Any]]]:
    """Steps of one env under actions [T, A], reset whenever an episode ends."""
    env = ChannelPruningEnv([task], action=mode)
    observation, _ = env.reset(seed=seed)
    seen: list[tuple[np.ndarray, float, bool, dict[str, Any]]] = [(observation, 0.0, False, {})]
    for action in actions:
        observation, reward, over, _, info = env.step(action)
        if over:
            info["last"] = observation
            observation, _ = env.reset()
        seen.append((observation, reward, over, info))
    return seen


@pytest.mark.parametrize("mode", MODES)
def test_vector_equals_single_step_for_step(mode: ActionMode) -> None:
    tasks = [random_task(0, group_count=4), random_task(1, group_count=6, noise=0.2)]
    vector = ChannelPruningVectorEnv(tasks, num_envs=6, action=mode, batch_count=2)
    size = vector.single_action_space.shape[0]
    actions = np.random.default_rng(0).uniform(-1, 1, (15, 6, size)).astype(np.float32)
    singles = [
        rollout_single(tasks[0 if row < 3 else 1], 40 + row, mode, actions[:, row])
        for row in range(6)
    ]
    observations, _ = vector.reset(seed=40)
    assert np.allclose(observations, [steps[0][0] for steps in singles], atol=1e-5)
    for turn, action in enumerate(actions, start=1):
        observations, rewards, ended, truncated, infos = vector.step(action)
        assert not truncated.any()
        for row, steps in enumerate(singles):
            observation, reward, over, info = steps[turn]
            assert np.allclose(observations[row], observation, atol=1e-5)
            assert rewards[row] == pytest.approx(reward, abs=1e-9)
            assert ended[row] == over
            if over:
                assert infos["_final_obs"][row] and infos["_final_info"][row]
                assert np.allclose(infos["final_obs"][row], info["last"], atol=1e-5)
                assert np.array_equal(infos["final_info"]["keeps"][row], info["keeps"])
                for name in ("loss", "budget_ms", "latency_ms", "scale", "reference_loss"):
                    assert infos["final_info"][name][row] == pytest.approx(info[name])
            elif "_final_obs" in infos:
                assert not infos["_final_obs"][row]


def test_rows_of_one_task_end_together_and_begin_again_in_the_same_step() -> None:
    tasks = [random_task(0, group_count=3), random_task(1, group_count=5)]
    vector = ChannelPruningVectorEnv(tasks, num_envs=4, batch_count=2)
    assert vector.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    vector.reset(seed=0)
    ends = np.array([vector.step(np.zeros((4, 1), np.float32))[2] for _ in range(15)])
    assert np.array_equal(np.flatnonzero(ends[:, 0]), [2, 5, 8, 11, 14])
    assert np.array_equal(np.flatnonzero(ends[:, 3]), [4, 9, 14])
    assert np.array_equal(ends[:, 0], ends[:, 1]) and np.array_equal(ends[:, 2], ends[:, 3])


def test_more_tasks_than_rows_are_served_in_turn() -> None:
    tasks = [random_task(seed, group_count=2 + seed) for seed in range(3)]
    vector = ChannelPruningVectorEnv(tasks, num_envs=1)
    vector.reset(seed=0)
    ends = [bool(vector.step(np.zeros((1, 1), np.float32))[2][0]) for _ in range(9)]
    assert np.flatnonzero(ends).tolist() == [1, 4, 8]  # after 2, then 3, then 4 steps


def test_made_as_vector_it_has_the_right_spaces() -> None:
    vector = gymnasium.make_vec(NAME, num_envs=5)
    single = gymnasium.make(NAME)
    assert vector.single_observation_space == single.observation_space
    assert vector.action_space.shape == (5, 1)
    observations, _ = vector.reset(seed=2)
    assert observations in vector.observation_space


def test_measured_latency_reaches_the_reward_of_both() -> None:
    def twice(task: PruningTask, keeps: np.ndarray) -> np.ndarray:
        return task.tables.upper_ms(task.space.choice_of(keeps)) * 2

    task = example_task()
    measured: dict[str, Any] = {"action": "correction", "latency": "measured", "measure": twice}
    env = ChannelPruningEnv([task], **measured)
    env.reset(seed=0)
    for _ in range(3):
        assert env.step(np.zeros(2, np.float32))[1] == 0.0
    assert env.step(np.zeros(2, np.float32))[1] < -1.0
    vector = ChannelPruningVectorEnv([task], num_envs=3, **measured)
    vector.reset(seed=0)
    rewards = [vector.step(np.zeros((3, 2), np.float32))[1] for _ in range(4)]
    assert (rewards[-1] < -1.0).all()


def test_seeds_that_do_not_match_the_rows_are_refused() -> None:
    vector = ChannelPruningVectorEnv(num_envs=2)
    with pytest.raises(ValueError, match="3 seeds for 2"):
        vector.reset(seed=[1, 2, 3])


def test_statistics_wrappers_take_the_vector_environment_that_resets_in_the_next_step() -> None:
    vector = gymnasium.make_vec(NAME, num_envs=3, autoreset_mode=AutoresetMode.NEXT_STEP)
    assert vector.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    wrapped = gymnasium.wrappers.vector.NormalizeObservation(vector)
    observations, _ = wrapped.reset(seed=0)
    for _ in range(12):
        observations, *_ = wrapped.step(wrapped.action_space.sample())
    assert np.isfinite(observations).all()


def test_next_step_reset_ends_with_the_last_observation_and_then_begins() -> None:
    task = random_task(0, group_count=3)
    same = ChannelPruningVectorEnv([task], num_envs=2)
    after = ChannelPruningVectorEnv([task], num_envs=2, autoreset_mode="NEXT_STEP")
    same.reset(seed=4)
    after.reset(seed=4)
    action = np.full((2, 1), 0.3, np.float32)
    for _ in range(2):
        same.step(action)
        after.step(action)
    first, rewards, ended, _, infos = same.step(action)
    last, their_rewards, their_ended, _, their_infos = after.step(action)
    assert ended.all() and their_ended.all() and np.array_equal(rewards, their_rewards)
    assert np.array_equal(last, np.stack(infos["final_obs"]))
    assert np.array_equal(their_infos["loss"], infos["final_info"]["loss"])
    begun, nothing, over, _, begins = after.step(action)
    assert np.array_equal(begun, first) and not nothing.any() and not over.any()
    assert np.array_equal(begins["budget_ms"], infos["budget_ms"])


def test_reset_tells_task_and_budget_alike_in_both() -> None:
    tasks = [random_task(0, group_count=3), random_task(1, group_count=4)]
    vector = ChannelPruningVectorEnv(tasks, num_envs=2, batch_count=2)
    _, infos = vector.reset(seed=7)
    for row, task in enumerate(tasks):
        _, info = ChannelPruningEnv([task]).reset(seed=7 + row)
        assert infos["budget_ms"][row] == info["budget_ms"]
    assert infos["task"].tolist() == [0, 1] and infos["_task"].all()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"budget": 5}, "unknown option 'budget'; reset takes task and budget_ms"),
        ({"task": 5}, "option task is 5; give an index from 0 to 0"),
        ({"task": -1}, "option task is -1"),
        ({"task": "stem"}, "option task is 'stem'"),
        ({"budget_ms": 0}, "option budget_ms is 0; give a positive number"),
        ({"budget_ms": float("nan")}, "option budget_ms is nan"),
        ({"budget_ms": "5"}, "option budget_ms is '5'"),
    ],
)
def test_reset_options_that_mean_nothing_are_refused(options: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        ChannelPruningEnv().reset(options=options)


@pytest.mark.parametrize("tasks", ["tasks", [3]])
def test_what_is_no_sequence_of_tasks_is_refused_in_one_line(tasks: Any) -> None:
    for make in (gymnasium.make, gymnasium.make_vec):
        with pytest.raises(ValueError, match=r"^tasks.* PruningTask") as refused:
            make(NAME, tasks=tasks)
        assert "\n" not in str(refused.value)


def test_it_renders_a_table_or_bars_and_stable_baselines_makes_it_without_a_warning() -> None:
    env = gymnasium.make(NAME, render_mode="ansi")
    env.reset(seed=0)
    env.step(env.action_space.sample())
    text: Any = env.render()
    assert isinstance(text, str) and text.count("\n") == 5 and text.count(" decided") == 1
    picture = make_vec_env(NAME, n_envs=2)  # warnings are errors here
    picture.reset()
    image = picture.render()
    assert image is not None and image.dtype == np.uint8 and image.ndim == 3
    with pytest.raises(ValueError, match="render_mode 'human' is none of ansi, rgb_array"):
        ChannelPruningEnv(render_mode="human")


@pytest.mark.parametrize("mode", ["ansi", "rgb_array"])
def test_with_a_render_mode_it_passes_both_checkers(mode: str) -> None:
    env = gymnasium.make(NAME, render_mode=mode).unwrapped
    check_env(env)
    check_for_sb3(env)
