"""The search for a plan: rounds of proposals, evaluated where the weights are.

A planner proposes (`proposals.round_plan`, here or on a server); here the proposed plans are cut,
their layers solved again, and their answers compared with the unpruned network's. Few images do for
that, but of many plans the best by few images is the luckiest as well; so the last few are looked
at more closely before one is taken. What was found for one budget is known for the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rlprune.graph.types import FloatArray
from rlprune.planning.effort import EVALUATING, EVALUATION, Effort
from rlprune.planning.judge import Judge, Keeps
from rlprune.planning.planner import Planner, Question
from rlprune.planning.profiles import named
from rlprune.planning.proposals import MOST_SEEN, Round
from rlprune.planning.request import Unit
from rlprune.plans import Candidate, PruningPlan
from rlprune.sensitivity.evaluate import Evaluation

SHARED = 0.5
"""What of a loss's standard error tells plans apart: judged on the same images they share the
rest."""
MOST_ERROR = 0.3
LEAST_LOSS, MOST_LOSS = 1e-6, 20.0
"""Nats; below plans are equally good, beyond as bad as any."""
LAST = 3
"""Plans that are looked at closely because they are thought best of all and were not, at most."""
KEPT = 64
"""Evaluated plans that stand beside the plan, the best of them."""


class Search:
    """Finds plans of one question; see the module."""

    def __init__(self, planner: Planner, question: Question, judge: Judge, effort: Effort) -> None:
        self._planner, self._question, self._judge = planner, question, judge
        self._effort = effort
        self._seen: dict[Keeps, Candidate] = {}

    def plan(self, budget: float, unit: Unit) -> PruningPlan:
        """The best plan for a budget. Ctrl+C ends the search with what was found, where that is
        anything."""
        return self._searched(budget, unit, self._effort.rounds)

    def again(self, budget_ms: float) -> PruningPlan:
        """The best plan for a budget near to one that was searched for: one more round."""
        return self._searched(budget_ms, "ms", min(1, self._effort.rounds))

    def _searched(self, budget: float, unit: Unit, rounds: int) -> PruningPlan:
        tell = named(self._question.on_progress, EVALUATING)
        stopped, count = False, rounds * self._effort.plans
        known = len(self._seen)
        first: Keeps = ()
        try:
            for _ in range(rounds):
                made = self._answer(budget, unit, self._effort.plans)
                first = first or tuple(made.keeps.tolist())
                if not made.candidates:
                    if not self._seen:
                        return made  # there is nothing to choose from
                    break
                if tell is not None:
                    tell(min(len(self._seen) - known, count), count)
                self._planner.learn(self._question, made.keeps)
                for one in made.candidates:
                    self._look_at(one)
                    if tell is not None:
                        tell(min(len(self._seen) - known, count), count)
            made = self._answer(budget, unit, 0)
            if rounds and made.feasible:
                made = self._best_looked_at(made.budget_ms, first)
        except KeyboardInterrupt:
            if not self._seen:
                raise
            stopped = True
            made = self._answer(budget, unit, 0)
        return self._with_seen(made, stopped=stopped)

    def _answer(self, budget: float, unit: Unit, count: int) -> PruningPlan:
        seen = list(self._seen)[-MOST_SEEN:]
        asked = Round.first(len(self._question.space.sites), count)
        if seen:
            loss, error = self._known(seen)
            asked = Round(np.array(seen, dtype=np.int64), loss, error, count)
        return self._planner.answer(self._question, budget, unit, asked)

    def _known(self, seen: Sequence[Keeps]) -> tuple[FloatArray, FloatArray]:
        """Losses of evaluated plans [N], nats, and their standard errors as shares of them [N]; of
        those that were looked at closely by more images.

        Solved on more images, plans lose less: by how much on average, the others are taken to.
        """
        first = [self._judge.evaluate(keeps) for keeps in seen]
        closer = [self._judge.seen_closer(keeps) for keeps in seen]
        found = [more or own for own, more in zip(first, closer, strict=True)]
        near = np.array([more is not None for more in closer])
        loss = np.array([_divergence(own) for own in found])
        if near.any():
            few = np.array([_divergence(own) for own in first])
            loss[~near] *= np.exp(np.log(loss[near] / few[near]).mean())
        return loss, np.array([_error(own) for own in found])

    def _best_looked_at(self, budget_ms: float, first: Keeps) -> PruningPlan:
        """The best after a closer look at it, at the best by few images within its budget, and at
        what was thought best first."""
        within = [
            keeps for keeps, one in self._seen.items() if one.predicted_interval_ms[1] <= budget_ms
        ]
        best = sorted(within, key=lambda keeps: _divergence(self._judge.evaluate(keeps)))
        finalists = dict.fromkeys([first, *best[: self._effort.finals - 2]])
        for keeps in (own for own in finalists if own in self._seen):
            self._judge.look_closer(keeps)
            self._look_at(self._seen[keeps])
        made = self._answer(budget_ms, "ms", 0)
        for _ in range(LAST):
            keeps = tuple(made.keeps.tolist())
            if self._judge.seen_closer(keeps) is not None:
                break
            self._judge.look_closer(keeps)
            self._look_at(_as_candidate(made))
            made = self._answer(budget_ms, "ms", 0)
        return made

    def _look_at(self, one: Candidate) -> None:
        first = self._judge.evaluate(one.keeps)
        found = self._judge.seen_closer(one.keeps) or first
        self._seen[one.keeps] = replace(
            one,
            divergence=_divergence(found),
            loss=found.loss if np.isfinite(found.loss) else None,
            loss_se=found.loss_se if np.isfinite(found.loss_se) else None,
            image_count=len(found.image_divergences),
        )

    def _with_seen(self, plan: PruningPlan, *, stopped: bool = False) -> PruningPlan:
        """A plan with the evaluated ones beside it, and how it was found."""
        if not (self._seen and plan.feasible):
            return plan
        own = tuple(plan.keeps.tolist())
        best = sorted(self._seen.values(), key=lambda one: (one.divergence or 0.0, one.keeps))
        stand = [one for place, one in enumerate(best) if place < KEPT - 1 or one.keeps == own]
        price = self._judge.image_count / EVALUATION
        how = (
            f"planned by: posterior race, {len(self._seen)} plans evaluated at the price of "
            f"{price:.1f} evaluations of {EVALUATION:,} images, on {self._judge.source}"
        )
        if stopped:
            how += ", stopped before its end"
        return replace(
            plan,
            candidates=tuple(replace(one, chosen=one.keeps == own) for one in stand),
            note="; ".join(part for part in (how, plan.note) if part),
        )


def _divergence(found: Evaluation) -> float:
    """Nats; of a network that answers with NaN it is the most."""
    own = found.divergence if np.isfinite(found.divergence) else MOST_LOSS
    return float(np.clip(own, LEAST_LOSS, MOST_LOSS))


def _error(found: Evaluation) -> float:
    """Of a loss, as a share of it, as far as it tells plans apart."""
    each = found.image_divergences
    if len(each) < 2:
        return MOST_ERROR
    standard = float(each.std(ddof=1) / np.sqrt(len(each)))
    return float(min(SHARED * standard / max(_divergence(found), 1e-6), MOST_ERROR))


def _as_candidate(plan: PruningPlan) -> Candidate:
    return Candidate(
        keeps=tuple(plan.keeps.tolist()),
        predicted_latency_ms=plan.predicted_latency_ms,
        predicted_interval_ms=plan.predicted_interval_ms,
        macs=plan.macs,
        params=plan.params,
        policy=plan.policy,
    )
