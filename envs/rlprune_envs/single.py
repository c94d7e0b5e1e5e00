"""The single environment: `rlprune.mdp.dynamics` with one row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from rlprune.mdp.dynamics import (
    BUDGET_RANGE,
    WITHHELD_RATIO,
    LatencyMode,
    Measure,
    PruningDynamics,
)
from rlprune.mdp.episode import ACTION_SIZE, ActionMode
from rlprune.mdp.observe import LIMIT, SLOTS
from rlprune.solver.task import PruningTask
from rlprune_envs.example import example_task
from rlprune_envs.render import bars, table

Observation = NDArray[np.float32]


class ChannelPruningEnv(gymnasium.Env[Observation, Observation]):
    r"""Decide, layer group by layer group, how many channels a network keeps within a latency budget.

    ## Description

    A *task* is one network on one device: its prunable groups (channels that live or die together),
    what every keep count costs in ms, and how much each group is thought to lose. An episode draws a
    task and a budget, and walks the groups in topological order, one step each. A *reference plan*,
    the latency knapsack's, is known from the start; what is learned is where to depart from it.
    Whatever the actions, the finished plan's predicted latency (upper end of its interval) is within
    the budget.

    ## Action Space

    A `Box(-1, 1, (A,), float32)`; values outside are clipped.

    | `action` | A | num | -1 | 0 | +1 |
    | --- | --- | --- | --- | --- | --- |
    | `"offset"` | 1 | 0 level | the group's least level | the reference's level | full width |
    | `"correction"` | 2 | 0 factor | the group's losses / 4 | as profiled | times 4 |
    | | | 1 tilt | extreme levels / 2, mild ones x 2 | as profiled | extreme x 2, mild / 2 |
    | `"ratio"` | 1 | 0 keep ratio | keep as little as possible | keep half | keep all |

    `offset` is piecewise linear in the level's index, rounded to the nearest level; after a departure
    the reference for the rest is looked up anew. `ratio` takes the level nearest to (a + 1) / 2 of the
    width. Both are then moved to the nearest level from which the rest can still meet the budget.
    `correction` collects the bends of all groups' loss curves and solves one knapsack with them at the
    last step. With `offset` and `correction`, action 0 at every step gives the reference plan.

    ## Observation Space

    A `Box(-5, 5, (D,), float32)`, D = `len(rlprune.mdp.observe.SLOTS)`, whatever the network's depth.
    Slots have no unit and are clipped; `rlprune.mdp.observe` gives name and formula of each.

    | slots | what | changes with |
    | --- | --- | --- |
    | `log_width` .. `later_latency_max` | the group's shape, place, and share of MACs and ms | task |
    | `overhead_share` .. `interval` | traits of the device, derived from its tables | task |
    | `profiled`, `energetic` | 0 or 1: which curves are shown | episode |
    | `loss_*`, `energy_*`, `log_loss_scale` | the group's loss and energy curve | episode |
    | `budget_*`, `floor_ratio` | the budget against base and least latency | episode |
    | `reference_*`, `later_*` | the reference's choice, price, and the groups to come | episode |
    | `saved_*` | latency that each level saves, given the choices so far | step |
    | `plan_*`, `price`, `loss_to_go`, `*_value` | the reference as it would go on from here | step |
    | `slack`, `headroom`, `*_delta` | budget left, and how far the choices departed so far | step |

    ## Rewards

    With L(s) the objective's loss of "choices so far, the reference for the rest" in state s,

        r_t = (L(s_t) - L(s_t+1)) / scale

    so an episode's return is (L(reference) - L(final)) / scale, undiscounted: use gamma = 1. `scale` is
    how far recorded plans like the reference lie apart (`rlprune.mdp.objective.reward_scale`). In
    `correction` all of it comes with the last step. With `latency="measured"` the last reward also
    loses 20 max(0, measured / budget - 1).

    ## Starting State

    A task is drawn uniformly from `tasks`; the budget is least + b (base - least) of the task's upper
    latencies, b uniform in `budget_range`. The profile's folds are reweighted by a Bayesian bootstrap;
    with probability `withheld_ratio` the measured losses are not shown, and in a third of those
    episodes the weight energies neither.
    `reset(options=...)` takes `{"task": index}` and `{"budget_ms": ms}` (raised to the least), and
    no others. The info of a reset holds `task` and `budget_ms`.

    ## Episode End

    Termination: when every group has been decided, after exactly as many steps as the task has groups.
    Truncation: never. The last step's `info` holds `keeps`, `budget_ms`, `latency_ms` (predicted upper
    end, or measured), `loss`, `reference_loss` and `scale`.

    ## Arguments

        gymnasium.make("rlprune_envs:rlprune/ChannelPruning-v0", tasks=tasks, action="correction")

    | argument | default | what |
    | --- | --- | --- |
    | `tasks` | a small built-in one, in MACs | sequence of `rlprune.solver.task.PruningTask`; no folder |
    | `action` | `"offset"` | see Action Space |
    | `latency` | `"predicted"` | or `"measured"`: see Rewards; needs `measure` |
    | `measure` | None | `(task, keeps [B, G]) -> ms [B]`, usually a device worker |
    | `budget_range` | (0.1, 0.9) | range of b |
    | `withheld_ratio` | 0.3 | share of episodes that show no measured losses |
    | `terminal_reward` | False | all of the reward with the last step |
    | `render_mode` | None | `"ansi"`, a table of groups, or `"rgb_array"`, a bar for each group |

    Recorded models of a folder become tasks so:

        from rlprune.training.run import load_models, model_dirs, training_tasks
        named, _ = training_tasks(load_models(model_dirs(DIR)), store=None, devices=())
        tasks = [one.task for one in named]

    ## Vectorized environment

    `gymnasium.make_vec(..., num_envs=256)` gives `ChannelPruningVectorEnv`, batched in numpy. Wrappers
    that keep statistics want `autoreset_mode=AutoresetMode.NEXT_STEP`, e.g.
    `gymnasium.wrappers.vector.NormalizeObservation`.

    ## Version History

    * v0: initial version

    ## Citation

    The reference follows HALP (Shen et al., *HALP: Hardware-Aware Latency Pruning*, 2021); layer by
    layer pruning by reinforcement learning is from AMC (He et al., *AMC: AutoML for Model Compression*,
    ECCV 2018).
    """  # noqa: E501

    metadata: dict[str, Any] = {"render_modes": ["ansi", "rgb_array"], "render_fps": 4}  # noqa: RUF012

    def __init__(
        self,
        tasks: Sequence[PruningTask] | None = None,
        *,
        action: ActionMode = "offset",
        latency: LatencyMode = "predicted",
        measure: Measure | None = None,
        budget_range: tuple[float, float] = BUDGET_RANGE,
        withheld_ratio: float = WITHHELD_RATIO,
        terminal_reward: bool = False,
        render_mode: str | None = None,
    ) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(
                f"render_mode {render_mode!r} is none of {', '.join(self.metadata['render_modes'])}"
            )
        self.render_mode = render_mode
        self._dynamics = [
            PruningDynamics(
                task,
                action=action,
                latency=latency,
                measure=measure,
                budget_range=budget_range,
                withheld_ratio=withheld_ratio,
                terminal_reward=terminal_reward,
            )
            for task in checked_tasks(tasks)
        ]
        self._current = self._dynamics[0]
        self._begun = False
        self.action_space = action_space(action)
        self.observation_space = observation_space()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begins an episode; `options` may name a `task` index and a `budget_ms`.

        Raises:
            ValueError: other options, or values that are none; nothing begins.
        """
        chosen, budget = checked_options(options, len(self._dynamics))
        super().reset(seed=seed)
        index = 0
        if len(self._dynamics) > 1:
            index = int(self.np_random.integers(len(self._dynamics)))
        index = index if chosen is None else chosen
        self._current = self._dynamics[index]
        observation = self._current.reset(
            [self.np_random], budget_ms=None if budget is None else np.array([budget])
        )
        self._begun = True
        return observation[0], {
            "task": index,
            "budget_ms": float(self._current.episode.budget_ms[0]),
        }

    def step(self, action: Observation) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Decides one group."""
        observation, reward, over = self._current.step(np.asarray(action)[None])
        info: dict[str, Any] = {}
        if over:
            info = {name: float(value[0]) for name, value in self._current.outcome().items()}
            info["keeps"] = self._current.episode.keeps[0]
        return observation[0], float(reward[0]), over, False, info

    def render(self) -> str | NDArray[np.uint8] | None:
        """The episode as `render_mode` has it; None, with a warning, where that is None.

        Raises:
            RuntimeError: before the first reset.
        """
        if self.render_mode is None:
            gymnasium.logger.warn(
                "render() needs a render_mode: give one to make(), ansi or rgb_array"
            )
            return None
        if not self._begun:
            raise RuntimeError("no episode has begun; call reset() before render()")
        episode = self._current.episode
        return table(episode) if self.render_mode == "ansi" else bars(episode)


def checked_tasks(tasks: Sequence[PruningTask] | None) -> Sequence[PruningTask]:
    """The tasks, or the example where none were named.

    Raises:
        ValueError: an empty sequence, or no sequence of tasks, such as a folder's name.
    """
    if tasks is None:
        return [example_task()]
    if not isinstance(tasks, Sequence) or isinstance(tasks, str):
        raise ValueError(
            f"tasks is {tasks!r}; give a sequence of PruningTask, which "
            "rlprune.training.run.training_tasks makes of a folder's recorded models"
        )
    if not tasks:
        raise ValueError("tasks is empty; give at least one PruningTask, or leave it out")
    for index, task in enumerate(tasks):
        if not isinstance(task, PruningTask):
            raise ValueError(f"tasks[{index}] is a {type(task).__name__}; give a PruningTask")
    return tasks


def checked_options(
    options: dict[str, Any] | None, task_count: int
) -> tuple[int | None, float | None]:
    """The index of the task and the budget in ms that were asked for; None where not.

    Raises:
        ValueError: other options, no such task, or a budget that is not positive and finite.
    """
    options = options or {}
    if unknown := sorted(str(name) for name in set(options) - {"task", "budget_ms"}):
        raise ValueError(f"unknown option {unknown[0]!r}; reset takes task and budget_ms")
    index, budget = options.get("task"), options.get("budget_ms")
    if index is not None and (
        not isinstance(index, int | np.integer)
        or isinstance(index, bool)
        or not 0 <= index < task_count
    ):
        raise ValueError(f"option task is {index!r}; give an index from 0 to {task_count - 1}")
    if budget is not None and not (
        isinstance(budget, int | float | np.number)
        and not isinstance(budget, bool)
        and 0 < float(budget) < np.inf
    ):
        raise ValueError(f"option budget_ms is {budget!r}; give a positive number of ms")
    return None if index is None else int(index), None if budget is None else float(budget)


def action_space(action: ActionMode) -> gymnasium.spaces.Box[np.float32]:
    """The actions of one row."""
    if action not in ACTION_SIZE:
        raise ValueError(f"action {action!r} is none of {', '.join(ACTION_SIZE)}")
    return gymnasium.spaces.Box(-1.0, 1.0, (ACTION_SIZE[action],), np.float32)


def observation_space() -> gymnasium.spaces.Box[np.float32]:
    """The observations of one row."""
    return gymnasium.spaces.Box(-LIMIT, LIMIT, (len(SLOTS),), np.float32)
