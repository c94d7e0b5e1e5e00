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
from rlprune.mdp.dynamics import (
    BUDGET_RANGE,
    WITHHELD_RATIO,
    LatencyMode,
    Measure,
    PruningDynamics,
)
from rlprune.mdp.episode import ActionMode
from rlprune.solver.task import PruningTask
from rlprune_envs.single import Observation, action_space, checked_tasks, observation_space

_BATCH_ROWS = 32
_SOLVED_ROWS = 128
"""References are solved for about this many rows of a task at once."""


class _SubBatch:
    """Neighbouring rows that walk one task in lockstep, and the tasks they take in turn."""

    def __init__(
        self, rows: slice, dynamics: Sequence[PruningDynamics], place: tuple[int, int]
    ) -> None:
        """`place`: which of how many sub-batches it is."""
        self.rows = rows
        self.ended = False
        """Whether its episodes are over and the next step begins others."""
        self._dynamics = dynamics
        self._place = place
        self._turn = -1

    @property
    def current(self) -> PruningDynamics:
        return self._dynamics[self._turn % len(self._dynamics)]

    @property
    def task(self) -> int:
        """The index of the task it serves, among all."""
        first, count = self._place
        return first + count * (self._turn % len(self._dynamics))

    def rewind(self) -> None:
        self._turn = -1

    def reset(self, generators: Sequence[np.random.Generator]) -> Observation:
        self._turn += 1
        self.ended = False
        return self.current.reset(generators)


class ChannelPruningVectorEnv(gymnasium.vector.VectorEnv[Observation, Observation, NDArray[Any]]):
    """`ChannelPruningEnv` N times: per row the same spaces, rewards, and draws from a seed.

    The rows are split into S sub-batches. Sub-batch s serves tasks s, s + S, .. in turn, one per
    episode; its rows share the task, and so end together, while budgets and profiles are each row's
    own. Where a sub-batch serves one task, row i behaves exactly as a `ChannelPruningEnv` of that
    task seeded with seed + i; where it serves several, draws come in another order.

    Autoreset is by default `AutoresetMode.SAME_STEP`: the step that ends an episode already returns
    the next one's first observation. `infos["final_obs"]` and `infos["final_info"]` (with masks
    `_final_obs` and `_final_info`) hold what the single environment would have returned, `keeps` as
    objects because tasks differ in their number of groups. With `autoreset_mode=NEXT_STEP` that
    step returns the last observation, with the single environment's info in `infos`, and the next
    one begins the episode, whatever its actions; Gymnasium's wrappers that keep statistics, such as
    `NormalizeObservation`, want this. Infos of a begun episode hold `task` and `budget_ms`.

    Arguments are those of `ChannelPruningEnv` (but it renders nothing), `num_envs`,
    `autoreset_mode`, and `batch_count`: how many sub-batches, by default as many as there are
    tasks, but of at least 32 rows each, since small ones are slow.
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
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
        action: ActionMode = "offset",
        latency: LatencyMode = "predicted",
        measure: Measure | None = None,
        budget_range: tuple[float, float] = BUDGET_RANGE,
        withheld_ratio: float = WITHHELD_RATIO,
        terminal_reward: bool = False,
        render_mode: None = None,
    ) -> None:
        super().__init__()
        self._mode = _autoreset(autoreset_mode)
        self.metadata = {**self.metadata, "autoreset_mode": self._mode}
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
            _SubBatch(slice(int(low), int(high)), dynamics[index::count], (index, count))
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
        infos: dict[str, Any] = {}
        for batch in self._batches:
            batch.rewind()
            self._begin(batch, observations, infos)
        return observations, infos

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
            if batch.ended:
                rewards[rows] = 0.0
                self._begin(batch, observations, infos)
                continue
            observations[rows], rewards[rows], over = dynamics.step(np.asarray(actions)[rows])
            if not over:
                continue
            ended[rows] = True
            if self._mode is AutoresetMode.NEXT_STEP:
                batch.ended = True
                self._report(infos, rows, dynamics)
                continue
            last = np.empty(len(observations[rows]), dtype=object)
            last[:] = list(observations[rows].copy())
            self._put(infos, rows, "final_obs", last, object)
            self._report(infos.setdefault("final_info", {}), rows, dynamics)
            infos["_final_info"] = infos["_final_obs"]
            self._begin(batch, observations, infos)
        return observations, rewards, ended, np.zeros(self.num_envs, dtype=np.bool_), infos

    def _begin(self, batch: _SubBatch, observations: Observation, infos: dict[str, Any]) -> None:
        """Begins a sub-batch's next episodes; into the observations and infos of all rows."""
        rows = batch.rows
        observations[rows] = batch.reset(self._generators[rows])
        self._put(infos, rows, "task", batch.task, int)
        self._put(infos, rows, "budget_ms", batch.current.episode.budget_ms, float)

    def _report(self, infos: dict[str, Any], rows: slice, dynamics: PruningDynamics) -> None:
        """Adds how a sub-batch's episodes ended."""
        for name, values in dynamics.outcome().items():
            self._put(infos, rows, name, values, float)
        keeps = np.empty(len(dynamics.episode.keeps), dtype=object)
        keeps[:] = list(dynamics.episode.keeps)
        self._put(infos, rows, "keeps", keeps, object)

    def _put(self, infos: dict[str, Any], rows: slice, name: str, values: Any, kind: type) -> None:
        """Lays values out as Gymnasium's vector environments do: all rows, and which have one."""
        infos.setdefault(name, np.zeros(self.num_envs, dtype=kind))[rows] = values
        infos.setdefault(f"_{name}", np.zeros(self.num_envs, dtype=np.bool_))[rows] = True


def _autoreset(mode: AutoresetMode | str) -> AutoresetMode:
    """Raises ValueError for one that is not offered."""
    offered = (AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP)
    for one in offered:
        if mode in (one, one.name, one.value):
            return one
    raise ValueError(f"autoreset_mode {mode!r} is none of {', '.join(one.name for one in offered)}")
