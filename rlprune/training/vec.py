"""The vectorised environment as SB3 wants it: one adapter, no copies of the dynamics.

Gymnasium's vector env reports in arrays; SB3 wants a list of dicts with `terminal_observation`, an
`episode` entry at each end, and observations that nobody overwrites later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv

from rlprune.mdp.episode import ActionMode
from rlprune.policy.network import Float32Array, Normalizer
from rlprune.solver.task import PruningTask
from rlprune_envs import ChannelPruningVectorEnv


class TaskVecEnv(VecEnv):
    """Batched pruning episodes over `tasks`, observations normalised where a normaliser is set."""

    def __init__(
        self,
        tasks: Sequence[PruningTask],
        rows: int,
        action: ActionMode,
        *,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self._env = ChannelPruningVectorEnv(
            tasks=tasks, num_envs=rows, action=action, **(options or {})
        )
        self.normalizer: Normalizer | None = None
        self._seed: int | None = None
        self._actions: NDArray[np.float32] = np.zeros(0, np.float32)
        self._returns = np.zeros(rows)
        self._lengths = np.zeros(rows, dtype=np.int64)
        super().__init__(rows, self._env.single_observation_space, self._env.single_action_space)

    def _seen(self, observations: Any) -> Float32Array:
        raw = np.array(observations, dtype=np.float32)  # a copy: SB3 keeps it across steps
        return raw if self.normalizer is None else self.normalizer(raw)

    def reset(self) -> Float32Array:
        observations, _ = self._env.reset(seed=self._seed)
        self._seed = None
        self._returns[:] = 0.0
        self._lengths[:] = 0
        return self._seen(observations)

    def step_async(self, actions: NDArray[np.float32]) -> None:
        self._actions = actions

    def step_wait(
        self,
    ) -> tuple[Float32Array, NDArray[np.float32], NDArray[np.bool_], list[dict[str, Any]]]:
        observations, rewards, ended, truncated, arrays = self._env.step(self._actions)
        done = ended | truncated
        self._returns += rewards
        self._lengths += 1
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        rows = np.flatnonzero(done)
        if len(rows):
            last = self._seen(np.stack([arrays["final_obs"][row] for row in rows]))
            for row, observation in zip(rows, last, strict=True):
                infos[row] = {
                    "terminal_observation": observation,
                    "TimeLimit.truncated": bool(truncated[row] and not ended[row]),
                    "episode": {"r": float(self._returns[row]), "l": int(self._lengths[row])},
                }
            self._returns[rows] = 0.0
            self._lengths[rows] = 0
        return self._seen(observations), np.asarray(rewards, np.float32), done, infos

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        self._seed = seed
        return [seed] * self.num_envs

    def close(self) -> None:
        self._env.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        value = getattr(self._env, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise NotImplementedError("rows of one batched environment cannot differ")

    def env_method(
        self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any
    ) -> list[Any]:
        value = getattr(self._env, method_name)(*method_args, **method_kwargs)
        return [value for _ in self._get_indices(indices)]

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: Any = None
    ) -> list[bool]:
        return [False for _ in self._get_indices(indices)]
