"""Many environments at once: the rows of one task step through numpy together."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from rlprune.graph.types import FloatArray
from rlprune.task.dynamics import (
    BUDGET_RANGE,
    WITHHELD_RATIO,
    LatencyMode,
    Measure,
    PruningDynamics,
)
from rlprune.task.episode import ActionMode
from rlprune.task.task import PruningTask
from rlprune_envs.single import Observation, action_space, checked_tasks, observation_space

_BATCH_ROWS = 32
_SOLVED_ROWS = 128
"""References are solved for about this many rows of a task at once."""


class _SubBatch:
    """Neighbouring rows that walk one task in lockstep, and the tasks they take in turn."""

    def __init__(self, rows: slice, dynamics: Sequence[PruningDynamics]) -> None:
        self.rows = rows
        self._dynamics = dynamics
        self._turn = -1

    @property
    def current(self) -> PruningDynamics:
        return self._dynamics[self._turn % len(self._dynamics)]

    def rewind(self) -> None:
        self._turn = -1

    def reset(self, generators: Sequence[np.random.Generator]) -> Observation:
        self._turn += 1
        return self.current.reset(generators)


class ChannelPruningVectorEnv(gymnasium.vector.VectorEnv[Observation, Observation, NDArray[Any]]):
    """`ChannelPruningEnv` N times: per row the same spaces, rewards, and draws from a seed.

    The rows are split into S sub-batches. Sub-batch s serves tasks s, s + S, .. in turn, one per
    episode; its rows share the task, and so end together, while budgets and profiles are each row's
    own. Where a sub-batch serves one task, row i behaves exactly as a `ChannelPruningEnv` of that
    task seeded with seed + i; where it serves several, draws come in another order.

    Autoreset is `AutoresetMode.SAME_STEP`: the step that ends an episode already returns the next
    one's first observation. `infos["final_obs"]` and `infos["final_info"]` (with masks `_final_obs`
    and `_final_info`) hold what the single environment would have returned, `keeps` as objects
    because tasks differ in their number of groups.

    Arguments are those of `ChannelPruningEnv`, `num_envs`, and `batch_count`: how many sub-batches,
    by default as many as there are tasks, but of at least 32 rows each, since small ones are slow.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012
        "render_modes": [],
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(
        self,
        tasks: Sequence[PruningTask] | None = None,
        num_envs: int = 1,
        *,
        batch_count: int | None = None,
        action: ActionMode = "offset",
        latency: LatencyMode = "predicted",
        measure: Measure | None = None,
        budget_range: tuple[float, float] = BUDGET_RANGE,
        withheld_ratio: float = WITHHELD_RATIO,
        terminal_reward: bool = False,
        render_mode: None = None,
    ) -> None:
        super().__init__()
        self.num_envs = num_envs
        self.render_mode = render_mode
        tasks = checked_tasks(tasks)
        count = batch_count or max(1, num_envs // _BATCH_ROWS)
        count = min(len(tasks), num_envs, count)
        dynamics = [
            PruningDynamics(
                task,
                action=action,
                latency=latency,
                measure=measure,
                budget_range=budget_range,
                withheld_ratio=withheld_ratio,
                terminal_reward=terminal_reward,
                ahead=max(1, _SOLVED_ROWS * count // num_envs),
            )
            for task in tasks
        ]
        edges = np.linspace(0, num_envs, count + 1).round().astype(int)
        self._batches = [
            _SubBatch(slice(int(low), int(high)), dynamics[index::count])
            for index, (low, high) in enumerate(itertools.pairwise(edges))
        ]
        self._generators = [np.random.default_rng() for _ in range(num_envs)]
        self.single_action_space = action_space(action)
        self.single_observation_space = observation_space()
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Observation, dict[str, Any]]:
        """Begins an episode in every row, each sub-batch with its first task; no options are known.

        An int seeds row i with seed + i; None keeps the rows' generators as they are.

        Raises:
            ValueError: not one seed per row, or options.
        """
        if options:
            raise ValueError(
                f"unknown options {sorted(options)}; the vector environment takes none"
            )
        if isinstance(seed, int):
            seed = [seed + row for row in range(self.num_envs)]
        if seed is not None:
            if len(seed) != self.num_envs:
                raise ValueError(f"{len(seed)} seeds for {self.num_envs} environments")
            for row, one in enumerate(seed):
                if one is not None:
                    self._generators[row] = gymnasium.utils.seeding.np_random(one)[0]
        observations = np.empty(self.observation_space.shape or (), dtype=np.float32)
        for batch in self._batches:
            batch.rewind()
            observations[batch.rows] = batch.reset(self._generators[batch.rows])
        return observations, {}

    def step(
        self, actions: Observation
    ) -> tuple[Observation, FloatArray, NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Decides one group per row."""
        observations = np.empty(self.observation_space.shape or (), dtype=np.float32)
        rewards = np.empty(self.num_envs)
        ended = np.zeros(self.num_envs, dtype=np.bool_)
        infos: dict[str, Any] = {}
        for batch in self._batches:
            rows, dynamics = batch.rows, batch.current
            observations[rows], rewards[rows], over = dynamics.step(np.asarray(actions)[rows])
            if over:
                ended[rows] = True
                self._report(infos, rows, dynamics, observations[rows])
                observations[rows] = batch.reset(self._generators[rows])
        return observations, rewards, ended, np.zeros(self.num_envs, dtype=np.bool_), infos

    def _report(
        self, infos: dict[str, Any], rows: slice, dynamics: PruningDynamics, last: Observation
    ) -> None:
        """Adds how a sub-batch's episodes ended, laid out as Gymnasium's vector environments do."""

        def put(into: dict[str, Any], name: str, values: Any, kind: type) -> None:
            into.setdefault(name, np.zeros(self.num_envs, dtype=kind))[rows] = values
            into.setdefault(f"_{name}", np.zeros(self.num_envs, dtype=np.bool_))[rows] = True

        objects = np.empty((2, len(last)), dtype=object)
        for row, (one, keeps) in enumerate(zip(last.copy(), dynamics.episode.keeps, strict=True)):
            objects[:, row] = one, keeps
        put(infos, "final_obs", objects[0], object)
        final = infos.setdefault("final_info", {})
        for name, values in dynamics.outcome().items():
            put(final, name, values, float)
        put(final, "keeps", objects[1], object)
        infos["_final_info"] = infos["_final_obs"]
