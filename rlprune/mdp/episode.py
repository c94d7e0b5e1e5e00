"""The walk through one model: B plans grow in lockstep, one site per step, never over budget.

`Episode` is what training and serving share. It knows budgets, loss curves, the reference and the
observation, and turns actions into options; rewards and random draws are `PruningDynamics`'s.

Why every finished episode fits its budget, if the least plan does. Let c be the choices so far,
and call a rest (options for the sites to come) *sound* if c with that rest fits. Two rests are
tried at every step: the least plan's and the current plan's. Claim: one of them is always sound.
  - Before step 0 the current plan is the reference, and the knapsack returns only what fits.
  - At step t let a sound rest name option m for site t. Option m is then feasible: with m chosen
    and the remainder of that rest, c fits. So some option is feasible, and any that is, is so
    because one of the two remainders fits with it; once taken, that remainder is sound before step
    t + 1. The current plan's rest is exchanged only for one that fits, or where it did not fit, so
    that the least rest is the sound one.
  - After the last step the rest is empty, and c itself fits.
The current plan is never exchanged while all choices were the reference's, so taking its own option
everywhere reproduces the reference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rlprune.graph.types import FloatArray, IntArray
from rlprune.mdp.observe import Encoder, EpisodeEncoder
from rlprune.schemes import Space
from rlprune.solver.costs import MoveCosts
from rlprune.solver.knapsack import latency_limit, least_choice, solve
from rlprune.solver.reference import Reference, reference
from rlprune.solver.task import PruningTask

ActionMode = Literal["correction", "ratio"]
ACTION_SIZE: dict[ActionMode, int] = {"correction": 2, "ratio": 1}
CORRECTION_SCALE = float(np.log(4.0))
"""A correction's first action scales a site's losses by a quarter to four."""
CORRECTION_TILT = float(np.log(2.0))
"""Its second halves or doubles the loss of the extreme level against that of the mild ones."""


@dataclass(frozen=True)
class PlanningFrame:
    """What all episodes of one task share; made once per task."""

    task: PruningTask
    costs: MoveCosts
    least: IntArray
    """The choice of least latency [S]."""
    encoder: Encoder

    @staticmethod
    def of(task: PruningTask) -> PlanningFrame:
        """Takes a few milliseconds."""
        costs = MoveCosts.of(task.tables)
        least = least_choice(task)
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
    """Curves the planner is shown [B, S, L]."""
    profiled: NDArray[np.bool_]
    """Whether each row's curves were measured [B]; shown to the policy."""
    has_weight_norms: NDArray[np.bool_]
    """Whether each row's energy curves are shown [B]."""
    reference: Reference

    @staticmethod
    def of(
        frame: PlanningFrame,
        budget_ms: FloatArray,
        loss: FloatArray,
        profiled: NDArray[np.bool_],
        has_weight_norms: NDArray[np.bool_],
    ) -> Question:
        """Raises budgets to what the least plan needs, and solves for the reference."""
        budget = np.maximum(budget_ms, frame.budget_range_ms[0])
        found = reference(frame.task, budget, loss=loss)
        return Question(budget, loss, profiled, has_weight_norms, found)

    def rows(self, index: slice) -> Question:
        """Some of the rows."""
        return Question(
            self.budget_ms[index],
            self.loss[index],
            self.profiled[index],
            self.has_weight_norms[index],
            self.reference.rows(index),
        )


class Episode:
    """B budgets over one task, from the first site to the last; for one thread."""

    def __init__(self, frame: PlanningFrame, question: Question, *, action: ActionMode) -> None:
        """Starts with the reference as the current plan; `action` is how actions are meant."""
        self.frame = frame
        self.action: ActionMode = action
        self.loss = question.loss
        self.budget_ms = question.budget_ms
        self.reference = question.reference
        self._limit = latency_limit(frame.task, self.budget_ms)
        self.plan = self.reference.choice.copy()
        """Choices [B, S]: those made so far, and the rest as the reference would now have it."""
        self.site = 0
        """Whose turn it is; equal to the number of sites when the episode is over."""
        self._encoder = EpisodeEncoder.of(
            frame.encoder,
            self.reference,
            self.loss,
            self._limit,
            question.profiled,
            question.has_weight_norms,
        )
        self._on_reference = np.ones(len(self.plan), dtype=np.bool_)
        self._corrections = np.zeros((*self.plan.shape, 2))
        self._look()

    @property
    def over(self) -> bool:
        return self.site == self.frame.task.site_count

    @property
    def keeps(self) -> IntArray:
        """What every site keeps by the current plan [B, S]."""
        return self.frame.task.space.settings_at(self.plan)

    def observe(self) -> NDArray[np.float32]:
        """What the policy sees [B, D]; after the end, what it saw at the last site, updated."""
        return self._encoder.observe(
            min(self.site, self.frame.task.site_count - 1),
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
            self._corrections[:, self.site] = bounded
        else:
            self._take(self._options_of(bounded[:, 0]))
        self.site += 1
        if self.over:
            if self.action == "correction":
                task = self.frame.task
                loss = rescale_losses(self.loss, self._corrections, task.space)
                self.plan = solve(task, self.budget_ms, loss=loss)
            self._settle()
        self._look()

    def _look(self) -> None:
        """Latencies around the current plan at the site whose turn it is."""
        site = min(self.site, self.frame.task.site_count - 1)
        self._latency, self._moves = self.frame.costs.site_moves_ms(self.plan, site)
        least = self._with_least_rest(site)
        self._least_latency, self._least_moves = self.frame.costs.site_moves_ms(least, site)

    def _with_least_rest(self, site: int) -> IntArray:
        plan = self.plan.copy()
        plan[:, site:] = self.frame.least[site:]
        return plan

    def _options_of(self, action: FloatArray) -> IntArray:
        """The feasible option nearest to the share kept that the actions [B] ask for."""
        task, site = self.frame.task, self.site
        count = int(task.option_count[site])
        ratio = (action + 1) / 2
        distance = np.abs(task.shares[site, :count] - ratio[:, None])
        least = self._least_latency[:, None] + self._least_moves[:, :count]
        current = self._latency[:, None] + self._moves[:, :count]
        latency = np.minimum(least, current)
        fits = latency <= self._limit[:, None]
        # Feasible by the proof above, but sums rounded differently may disagree in the last digit.
        fits |= ~fits.any(1, keepdims=True) & (latency <= latency.min(1, keepdims=True))
        return np.asarray(np.where(fits, distance, np.inf).argmin(1))

    def _take(self, option: IntArray) -> None:
        """Chooses options [B] for the site, and replans the rest where that pays."""
        site = self.site
        self._on_reference &= option == self.reference.choice[:, site]
        self.plan[:, site] = option
        rows = np.flatnonzero(~self._on_reference)
        if not len(rows) or site + 1 == self.frame.task.site_count:
            return
        latency = self.frame.costs.latency_ms(self.plan[rows])
        limit = self._limit[rows]
        rest = self.reference.rest_ms(site + 1, self.plan)[rows]
        other = self.plan[rows]
        other[:, site + 1 :] = self.reference.complete(site + 1, rest + limit - latency, rows)
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
        """Summed loss, as shown to the planner, of choices [N, S] of some rows [N]."""
        sites = np.arange(plan.shape[1])
        return np.asarray(self.loss[rows[:, None], sites, plan].sum(1))

    def _settle(self) -> None:
        """The reference in place of a plan that rounding, and nothing else, put over its budget."""
        over = self.frame.task.tables.upper_ms(self.plan) > self.budget_ms
        self.plan[over] = self.reference.choice[over]


def rescale_losses(loss: FloatArray, actions: FloatArray, space: Space) -> FloatArray:
    """Curves [B, S, L] rescaled by actions [B, S, 2] in -1..1; zeros leave them as they are.

    An option's loss is multiplied by exp(CORRECTION_SCALE a0 + CORRECTION_TILT a1 (2 x - 1)), x = 0
    where the site is left as it is and 1 where least is left of it; then made non-increasing again
    along ordered options, as a solver may assume.
    """
    dropped = 1.0 - space.shares  # [S, L]
    most = dropped.max(1, keepdims=True)
    extreme = dropped / np.where(most > 0.0, most, 1.0)
    tilt = actions[..., 1:] * (2 * extreme - 1)
    scaled = loss * np.exp(CORRECTION_SCALE * actions[..., :1] + CORRECTION_TILT * tilt)
    chains = np.maximum.accumulate(scaled[..., ::-1], axis=-1)[..., ::-1]
    return np.where(space.ordered[:, None], chains, scaled)


def plan_with(
    task: PruningTask,
    budget_ms: FloatArray,
    act: Callable[[NDArray[np.float32]], NDArray[np.floating]],
    action_mode: ActionMode,
) -> IntArray:
    """Choices [B, S] that a learned policy decides for budgets [B]; the same code as in training.

    Args:
        task: its own loss curve is shown.
        budget_ms: a row below what `least_choice` needs gets `least_choice`.
        act: observations [B, D] to actions [B, A].
        action_mode: how the actions are meant.
    """
    budget = np.asarray(budget_ms, dtype=np.float64)
    if not task.site_count or not len(budget):
        return np.zeros((len(budget), task.site_count), dtype=np.int64)
    frame = PlanningFrame.of(task)
    curve = task.curve
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
    return np.where(enough[:, None], episode.plan, frame.least)
