"""One round of the search for a plan: by what was evaluated so far, which plan is best, and which
to evaluate next; pure.

The same round is answered in this process and by a server, which keeps nothing between rounds: a
question brings all plans that were evaluated, so that a search goes on from whatever it has.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rlprune.constraints import BoundConstraints
from rlprune.graph.types import FloatArray, IntArray
from rlprune.planning.describe import Decision, described, figures
from rlprune.planning.make import Ends
from rlprune.plans import Candidate, PruningPlan
from rlprune.policy.race import NAME, PosteriorRace
from rlprune.solver.pinned import PinnedTask
from rlprune.solver.task import PruningTask

MOST_PROPOSED = 64
"""Plans that are proposed in a round."""
MOST_SEEN = 512
"""Evaluated plans that a round is told of; of more the last ones."""


@dataclass(frozen=True)
class Round:
    """What is asked in one round."""

    keeps: IntArray
    """Settings of the plans that were evaluated [N, S]."""
    loss: FloatArray
    """Their divergence from the unpruned network's answers [N], nats."""
    error: FloatArray
    """Its standard errors, as shares of it [N]."""
    count: int
    """Plans to propose, at most; 0 where only the best is asked for."""

    def __len__(self) -> int:
        return len(self.loss)

    @staticmethod
    def first(site_count: int, count: int) -> Round:
        """Before anything was evaluated."""
        return Round(np.zeros((0, site_count), dtype=np.int64), np.zeros(0), np.zeros(0), count)


def round_plan(
    task: PruningTask,
    asked: Round,
    budget_ms: float,
    *,
    device: str,
    constraints: BoundConstraints | None = None,
) -> PruningPlan:
    """The plan that is best by what was evaluated, its candidates those to evaluate next.

    The same question has the same answer. Where the budget cannot be met it is the plan of least
    latency, `feasible` False, and nothing is proposed.

    Raises:
        InputError: the unpruned model is predicted to cost nothing.
    """
    ends = Ends.of(task, constraints, device)
    pinned = ends.pinned
    if ends.least_ms > budget_ms or not task.site_count:
        made = Decision(ends.least, ends.least, ends.least, ends.least_ms <= budget_ms, "knapsack")
        return described(task, made, budget_ms, device=device, constraints=constraints)
    before = PosteriorRace.of(pinned.task)
    race = before.after(*_seen(task, asked, pinned))
    best = race.best(budget_ms)
    rng = np.random.default_rng(len(asked))
    made = Decision(
        choice=pinned.expand(best),
        least=ends.least,
        reference=pinned.expand(before.best(budget_ms)),
        feasible=True,
        policy=NAME if len(asked) else "knapsack",
        candidates=tuple(
            Candidate(**figures(task, pinned.expand(own)), policy=NAME)
            for own in (race.proposals(budget_ms, asked.count, rng) if asked.count else ())
        ),
        expected=race.expected_loss(best) if len(asked) else None,
    )
    return described(task, made, budget_ms, device=device, constraints=constraints)


def _seen(
    task: PruningTask, asked: Round, pinned: PinnedTask
) -> tuple[IntArray, FloatArray, FloatArray]:
    """Choices [N, S] of the smaller task that were evaluated, their losses and errors [N]; without
    those of options that were found not to pay since then."""
    known = (task.space.settings == asked.keeps[..., None]).any(-1).all(-1)  # [N]
    choice = pinned.shrink(task.space.choice_of(asked.keeps[known]))
    return choice, asked.loss[known], asked.error[known]
