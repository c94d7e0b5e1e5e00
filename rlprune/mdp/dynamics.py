"""The decision process: episodes drawn, walked and rewarded, B rows of one task in lockstep.

Reward: let L(s) be the objective's loss of the current plan (choices so far, the reference's rest).
    r_t = (L(s_t) - L(s_t+1)) / scale
which telescopes, undiscounted, to (L(reference) - L(final)) / scale: how much better than the
knapsack, in units of how far apart plans of that size lie (`objective.reward_scale`).

With latency="measured" the last reward also pays for real milliseconds over the budget:
    r_T -= OVERSHOOT_WEIGHT * max(0, measured_ms / budget_ms - 1)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rlprune.graph.types import FloatArray, IntArray
from rlprune.mdp.episode import ACTION_SIZE, ActionMode, Episode, PlanningFrame, Question
from rlprune.mdp.objective import AdditiveObjective, reward_scale
from rlprune.mdp.observe import SLOTS
from rlprune.sensitivity.energy import loss_curve, non_increasing
from rlprune.solver.task import Objective, PruningTask

LatencyMode = Literal["predicted", "measured"]
Measure = Callable[[PruningTask, IntArray], FloatArray]
"""(task, keeps [B, G]) -> real latency of every plan [B], ms; a device worker, or a stand-in."""

BUDGET_RANGE = (0.1, 0.9)
"""Budgets are `least + b (base - least)` of the upper latencies, b uniform within this."""
WITHHELD_RATIO = 0.3
"""Share of episodes that show no measured losses; a third of them no weight energies either."""
OVERSHOOT_WEIGHT = 20.0
"""Reward lost per unit of relative overshoot: 5 % over the budget costs as much as one scale."""


class PruningDynamics:
    """Batched episodes over one task; every row draws from a generator of its own.

    So a row's episode depends on its generator and its actions, never on the batch it runs in. For
    one thread.
    """

    observation_size = len(SLOTS)

    def __init__(
        self,
        task: PruningTask,
        *,
        action: ActionMode = "offset",
        latency: LatencyMode = "predicted",
        measure: Measure | None = None,
        budget_range: tuple[float, float] = BUDGET_RANGE,
        withheld_ratio: float = WITHHELD_RATIO,
        terminal_reward: bool = False,
        ahead: int = 1,
    ) -> None:
        """Prepares a task; its own objective rewards, or the sum of its profile's losses.

        `ahead` episodes are drawn, and their references solved, at a time: with few rows that is
        much faster, and a row's generator still draws the same in the same order. With
        `terminal_reward` all of an episode's reward comes with its last step.

        Raises:
            ValueError: an unknown mode, a range outside 0..1, no groups, or no way to measure.
        """
        if action not in ACTION_SIZE:
            raise ValueError(f"action {action!r} is none of {', '.join(ACTION_SIZE)}")
        if latency not in ("predicted", "measured"):
            raise ValueError(f"latency {latency!r} is neither 'predicted' nor 'measured'")
        if latency == "measured" and measure is None:
            raise ValueError("latency='measured' needs `measure`, which asks a device for ms")
        if not 0.0 <= budget_range[0] <= budget_range[1] <= 1.0:
            raise ValueError(f"budget_range {budget_range} is not a range within 0..1")
        if not task.group_count:
            raise ValueError("the task has no groups to prune")
        self.task = task
        self.action: ActionMode = action
        self.action_size = ACTION_SIZE[action]
        self.frame = PlanningFrame.of(task)
        self._measure = measure if latency == "measured" else None
        self._budget_range = budget_range
        self._withheld_ratio = withheld_ratio
        # A correction changes the plan at the end only, so there is nothing to evaluate before.
        self._terminal = terminal_reward or action == "correction"
        self._objective: Objective = task.objective or AdditiveObjective(
            task.levels, loss_curve(task.profiles, task.graph)
        )
        # What data-free and shape-only requests are shown.
        data_free = task.data_free.profiles
        self._energy_curve = loss_curve(data_free, task.graph)
        self._shape_curve = loss_curve(replace(data_free, energy_loss=None), task.graph)
        self._folds = 0 if task.profiles.measured_loss is None else len(task.profiles.measured_loss)
        self._energetic = task.profiles.energy_loss is not None
        self._ahead = ahead
        self._questions: list[Question] = []
        self._drawn_by: list[np.random.Generator] = []
        self._episode: Episode | None = None

    @property
    def episode(self) -> Episode:
        """The one under way."""
        if self._episode is None:
            raise RuntimeError("call reset before step")
        return self._episode

    def reset(
        self,
        generators: Sequence[np.random.Generator],
        *,
        budget_ms: FloatArray | None = None,
    ) -> NDArray[np.float32]:
        """Begins one episode per generator; the first observations [B, D].

        Each draws its budget (unless given [B]), which profiles are shown, and a Bayesian bootstrap
        over the profile's folds: calibration noise should not be learned by heart.
        """
        if budget_ms is not None:
            question = self._ask([self._draw(generators)], np.asarray(budget_ms, np.float64))
        else:
            known = len(self._drawn_by) == len(generators)
            if not known or any(
                a is not b for a, b in zip(self._drawn_by, generators, strict=True)
            ):
                self._questions = []  # drawn by others: these rows have been seeded anew
            if not self._questions:
                self._drawn_by = list(generators)
                draws = [self._draw(generators) for _ in range(self._ahead)]
                asked = self._ask(draws, None)
                edges = range(0, len(asked.budget_ms), len(generators))
                self._questions = [asked.rows(slice(e, e + len(generators))) for e in edges]
            question = self._questions.pop(0)
        self._episode = Episode(self.frame, question, action=self.action)
        self._loss = self._objective.loss(self._episode.keeps)
        self._reference_loss = self._loss
        self._scale = reward_scale(self._objective, self._episode.reference.keeps)
        self._latency: FloatArray | None = None
        return self._episode.observe()

    def _draw(self, generators: Sequence[np.random.Generator]) -> FloatArray:
        """Place of the budget, what is withheld, and fold weights [B, 2 + S]; three draws a row."""
        folds = self._folds
        return np.array(
            [
                [
                    rng.uniform(*self._budget_range),
                    rng.random(),
                    *(rng.dirichlet(np.ones(folds)) if folds else ()),
                ]
                for rng in generators
            ]
        )

    def _ask(self, draws: Sequence[FloatArray], budget_ms: FloatArray | None) -> Question:
        """The question of all draws, one after the other."""
        drawn = np.concatenate(draws)
        least, base = self.frame.budget_range_ms
        budget = least + drawn[:, 0] * (base - least) if budget_ms is None else budget_ms
        profiled = (drawn[:, 1] >= self._withheld_ratio) & (self._folds > 0)
        energetic = (drawn[:, 1] >= self._withheld_ratio / 3) & self._energetic
        loss = np.where(energetic[:, None, None], self._energy_curve, self._shape_curve)
        measured = self.task.profiles.measured_loss
        if measured is not None:
            # einsum and not a matrix product: its sums do not depend on the size of the batch.
            mixed = np.einsum("bs,sgl->bgl", drawn[:, 2:], measured)
            curves = non_increasing(mixed, self.task.level_count)
            loss = np.where(profiled[:, None, None], curves, loss)
        return Question.of(self.frame, budget, loss, profiled, energetic)

    def step(
        self, actions: NDArray[np.floating[Any]]
    ) -> tuple[NDArray[np.float32], FloatArray, bool]:
        """Takes actions [B, A]; observations [B, D], rewards [B], and whether all rows are over."""
        episode = self.episode
        episode.act(actions)
        before = self._loss
        if not self._terminal or episode.over:
            self._loss = self._objective.loss(episode.keeps)
        reward = (before - self._loss) / self._scale
        if episode.over:
            keeps = episode.keeps
            if self._measure is None:
                self._latency = self.task.tables.upper_ms(keeps)
            else:
                self._latency = np.asarray(self._measure(self.task, keeps), dtype=np.float64)
                over = np.maximum(self._latency / episode.budget_ms - 1.0, 0.0)
                reward = reward - OVERSHOOT_WEIGHT * over
        return episode.observe(), reward, episode.over

    def outcome(self) -> dict[str, FloatArray]:
        """How the finished episodes ended, each [B]: what an env puts into `info`."""
        if self._latency is None:
            raise RuntimeError("the episode is not over")
        return {
            "budget_ms": self.episode.budget_ms,
            "latency_ms": self._latency,
            "loss": self._loss,
            "reference_loss": self._reference_loss,
            "scale": self._scale,
        }
