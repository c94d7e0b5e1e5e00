"""The walk through one model: B plans grow in lockstep, one group per step, never over budget.

`Episode` is what training and serving share. It knows budgets, loss curves, the reference and the
observation, and turns actions into levels; rewards and random draws are `PruningDynamics`'s.

Why every finished episode fits its budget, if the least plan does. Let c be the choices so far,
and call a rest (levels for the groups to come) *sound* if c with that rest fits. Two rests are
tried at every step: the least plan's and the current plan's. Claim: one of them is always sound.
  - Before step 0 the current plan is the reference, and the knapsack returns only what fits.
  - At step t let a sound rest name level m for group t. Level m is then feasible: with m chosen and
    the remainder of that rest, c fits. So the set of feasible levels is not empty. Any level in it
    is there because one of the two remainders fits with it; once taken, that remainder is sound
    before step t + 1. The current plan's rest is exchanged only for one that fits, or where it did
    not fit, so that the least rest is the sound one.
  - After the last step the rest is empty, and c itself fits.
Action 0 takes the current plan's own level, so it stays sound and is never exchanged while all
choices were the reference's: action 0 everywhere reproduces the reference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rlprune.graph.types import FloatArray, IntArray
from rlprune.mdp.observe import Encoder, EpisodeEncoder
from rlprune.sensitivity.energy import loss_curve
from rlprune.solver.costs import LevelCosts
from rlprune.solver.knapsack import latency_limit, least_keeps, solve
from rlprune.solver.reference import Reference, reference
from rlprune.solver.task import PruningTask

ActionMode = Literal["offset", "correction", "ratio"]
ACTION_SIZE: dict[ActionMode, int] = {"offset": 1, "correction": 2, "ratio": 1}
BEND_FACTOR = float(np.log(4.0))
"""A correction's first action scales a group's losses by a quarter to four."""
BEND_TILT = float(np.log(2.0))
"""Its second halves or doubles the loss of the extreme level against that of the mild ones."""


@dataclass(frozen=True)
class PlanningFrame:
    """What all episodes of one task share; made once per task."""

    task: PruningTask
    costs: LevelCosts
    least: IntArray
    """Level indices of the least plan [G]."""
    encoder: Encoder

    @staticmethod
    def of(task: PruningTask) -> PlanningFrame:
        """Takes a few milliseconds."""
        costs = LevelCosts.of(task.tables)
        least = task.choice_of(least_keeps(task)[None])[0]
        return PlanningFrame(task, costs, least, Encoder.of(task, costs, least))

    @property
    def budget_range_ms(self) -> tuple[float, float]:
        """`upper_ms` of the least and of the full plan: budgets between them are a question."""
        ends = np.array([self.encoder.least_ms, self.encoder.base_ms])
        least, base = self.task.tables.interval.high_ms(ends)
        return float(least), float(base)


@dataclass(frozen=True)
class Question:
    """What B episodes of one task start from."""

    budget_ms: FloatArray
    """[B], none below the least plan's need."""
    loss: FloatArray
    """Curves the planner is shown [B, G, L]."""
    profiled: NDArray[np.bool_]
    """Whether each row's curves were measured [B]; shown to the policy."""
    energetic: NDArray[np.bool_]
    """Whether each row's energy curves are shown [B]."""
    reference: Reference

    @staticmethod
    def of(
        frame: PlanningFrame,
        budget_ms: FloatArray,
        loss: FloatArray,
        profiled: NDArray[np.bool_],
        energetic: NDArray[np.bool_],
    ) -> Question:
        """Raises budgets to what the least plan needs, and solves for the reference."""
        budget = np.maximum(budget_ms, frame.budget_range_ms[0])
        found = reference(frame.task, budget, loss=loss)
        return Question(budget, loss, profiled, energetic, found)

    def rows(self, index: slice) -> Question:
        """Some of the rows."""
        return Question(
            self.budget_ms[index],
            self.loss[index],
            self.profiled[index],
            self.energetic[index],
            self.reference.rows(index),
        )


class Episode:
    """B budgets over one task, from the first group to the last; for one thread."""

    def __init__(self, frame: PlanningFrame, question: Question, *, action: ActionMode) -> None:
        """Starts with the reference as the current plan; `action` is how actions are meant."""
        self.frame = frame
        self.action: ActionMode = action
        self.loss = question.loss
        self.budget_ms = question.budget_ms
        self.reference = question.reference
        self._limit = latency_limit(frame.task, self.budget_ms)
        self.plan = self.reference.choice.copy()
        """Level indices [B, G]: choices so far, and the rest as the reference would now have it."""
        self.group = 0
        """Whose turn it is; equal to the group count when the episode is over."""
        self._encoder = EpisodeEncoder.of(
            frame.encoder,
            self.reference,
            self.loss,
            self._limit,
            question.profiled,
            question.energetic,
        )
        self._on_reference = np.ones(len(self.plan), dtype=np.bool_)
        self._bends = np.zeros((*self.plan.shape, 2))
        self._look()

    @property
    def over(self) -> bool:
        return self.group == self.frame.task.group_count

    @property
    def keeps(self) -> IntArray:
        """Units kept by the current plan [B, G]."""
        return self.frame.task.keeps_at(self.plan)

    def observe(self) -> NDArray[np.float32]:
        """What the policy sees [B, D]; after the end, what it saw at the last group, updated."""
        return self._encoder.observe(
            min(self.group, self.frame.task.group_count - 1),
            self.plan,
            self._latency,
            self._moves,
            self._least_latency,
        )

    def act(self, actions: NDArray[np.floating]) -> None:
        """Takes one step of all rows with actions [B, A] in -1..1 (clipped to that)."""
        if self.over:
            raise RuntimeError("the episode is over; start another")
        bounded = np.clip(np.nan_to_num(np.asarray(actions, dtype=np.float64)), -1.0, 1.0)
        if self.action == "correction":
            self._bends[:, self.group] = bounded
        else:
            self._take(self._levels_of(bounded[:, 0]))
        self.group += 1
        if self.over:
            if self.action == "correction":
                bent = bend(self.loss, self._bends, self.frame.task.levels)
                self.plan = self.frame.task.choice_of(
                    solve(self.frame.task, self.budget_ms, loss=bent)
                )
            self._settle()
        self._look()

    def _look(self) -> None:
        """Latencies around the current plan at the group whose turn it is."""
        group = min(self.group, self.frame.task.group_count - 1)
        self._latency, self._moves = self.frame.costs.group_moves_ms(self.plan, group)
        least = self._with_least_rest(group)
        self._least_latency, self._least_moves = self.frame.costs.group_moves_ms(least, group)

    def _with_least_rest(self, group: int) -> IntArray:
        plan = self.plan.copy()
        plan[:, group:] = self.frame.least[group:]
        return plan

    def _levels_of(self, action: FloatArray) -> IntArray:
        """The feasible level nearest to what the actions [B] ask for."""
        task, group = self.frame.task, self.group
        count = int(task.level_count[group])
        levels = np.arange(count)
        if self.action == "offset":
            now = self.plan[:, group]
            target = np.where(action < 0, now * (1 + action), now + (count - 1 - now) * action)
            distance = np.abs(levels - np.rint(target)[:, None])
        else:
            ratio = (action + 1) / 2
            distance = np.abs(task.levels[group, :count] / task.levels[group, -1] - ratio[:, None])
        least = self._least_latency[:, None] + self._least_moves[:, :count]
        current = self._latency[:, None] + self._moves[:, :count]
        latency = np.minimum(least, current)
        fits = latency <= self._limit[:, None]
        # Feasible by the proof above, but sums rounded differently may disagree in the last digit.
        fits |= ~fits.any(1, keepdims=True) & (latency <= latency.min(1, keepdims=True))
        return np.asarray(np.where(fits, distance, np.inf).argmin(1))

    def _take(self, level: IntArray) -> None:
        """Chooses levels [B] for the group, and replans the rest where that pays."""
        group = self.group
        self._on_reference &= level == self.reference.choice[:, group]
        self.plan[:, group] = level
        rows = np.flatnonzero(~self._on_reference)
        if not len(rows) or group + 1 == self.frame.task.group_count:
            return
        latency = self.frame.costs.latency_ms(self.plan[rows])
        limit = self._limit[rows]
        rest = self.reference.rest_ms(group + 1, self.plan)[rows]
        other = self.plan[rows]
        other[:, group + 1 :] = self.reference.complete(group + 1, rest + limit - latency, rows)
        other_latency = self.frame.costs.latency_ms(other)
        fits, other_fits = latency <= limit, other_latency <= limit
        # Of two that fit the better; of two that do not the nearer: then it is but a potential.
        better = np.where(
            fits,
            other_fits & (self.loss_of(other, rows) < self.loss_of(self.plan[rows], rows)),
            other_fits | (other_latency < latency),
        )
        self.plan[rows[better]] = other[better]

    def loss_of(self, plan: IntArray, rows: IntArray) -> FloatArray:
        """Summed loss, as shown to the planner, of plans [N, G] of some rows [N]."""
        groups = np.arange(plan.shape[1])
        return np.asarray(self.loss[rows[:, None], groups, plan].sum(1))

    def _settle(self) -> None:
        """The reference in place of a plan that rounding, and nothing else, put over its budget."""
        over = self.frame.task.tables.upper_ms(self.keeps) > self.budget_ms
        self.plan[over] = self.reference.choice[over]


def bend(loss: FloatArray, actions: FloatArray, levels: IntArray) -> FloatArray:
    """Curves [B, G, L] bent by actions [B, G, 2] in -1..1; zeros leave them exactly as they are.

    A level's loss is multiplied by exp(BEND_FACTOR a0 + BEND_TILT a1 (2 x - 1)), x = 0 at the full
    width and 1 at the least level; then made non-increasing again, as a solver may assume.
    """
    width, least = levels[:, -1:], levels[:, :1]
    extreme = (width - levels) / np.maximum(width - least, 1)  # [G, L]
    exponent = BEND_FACTOR * actions[..., :1] + BEND_TILT * actions[..., 1:] * (2 * extreme - 1)
    bent = loss * np.exp(exponent)
    return np.asarray(np.maximum.accumulate(bent[..., ::-1], axis=-1)[..., ::-1])


def plan_with(
    task: PruningTask,
    budget_ms: FloatArray,
    act: Callable[[NDArray[np.float32]], NDArray[np.floating]],
    action_mode: ActionMode,
) -> IntArray:
    """Keeps [B, G] that a learned policy decides for budgets [B]; the same code as in training.

    Args:
        task: its own loss curve is shown.
        budget_ms: a row below what `least_keeps` needs gets `least_keeps`.
        act: observations [B, D] to actions [B, A].
        action_mode: how the actions are meant.
    """
    budget = np.asarray(budget_ms, dtype=np.float64)
    if not task.group_count or not len(budget):
        return np.zeros((len(budget), task.group_count), dtype=np.int64)
    frame = PlanningFrame.of(task)
    curve = loss_curve(task.profiles, task.graph)
    rows = len(budget)
    question = Question.of(
        frame,
        budget,
        np.broadcast_to(curve, (rows, *curve.shape)),
        np.full(rows, task.profiles.measured_loss is not None),
        np.full(rows, task.profiles.energy_loss is not None),
    )
    episode = Episode(frame, question, action=action_mode)
    while not episode.over:
        episode.act(act(episode.observe()))
    enough = budget >= frame.budget_range_ms[0]
    return np.where(enough[:, None], episode.keeps, task.keeps_at(frame.least[None]))
