"""The search for a plan: rounds of proposals, evaluated where the weights are.

A planner proposes (`proposals.round_plan`, here or on a server); here the proposed plans are cut,
their layers solved again, and their answers compared with the unpruned network's. What was found
for one budget is known for the next.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from rlprune.graph.from_onnx import OnnxTrace
from rlprune.graph.types import PruningGraph
from rlprune.latency.types import INT8, Arithmetic
from rlprune.planning.effort import EVALUATION, Effort, passed_count
from rlprune.planning.planner import Planner, Question
from rlprune.planning.profiles import named
from rlprune.planning.proposals import MOST_SEEN, Round
from rlprune.planning.request import Unit
from rlprune.plans import Candidate, PruningPlan
from rlprune.runtime import get_runtime
from rlprune.schemes import Space
from rlprune.sensitivity.calibration import CalibrationSet
from rlprune.sensitivity.evaluate import Evaluation, Evaluator
from rlprune.sensitivity.one_pass import OnePass

SHARED = 0.5
"""What of a loss's standard error tells plans apart: judged on the same images they share the
rest."""
MOST_ERROR = 0.3
MOST_LOSS = 20.0
"""Nats; beyond it a plan is as bad as any."""
FINALS = 8
"""Plans that are evaluated at last, each because it is thought best of all and was not seen."""
KEPT = 64
"""Evaluated plans that stand beside the plan, the best of them."""


@dataclass(frozen=True)
class SearchImages:
    """What of a calibration set is used for what."""

    passed: CalibrationSet
    """The unpruned network's one pass."""
    solved: CalibrationSet
    """What plans' layers are solved on; among those of the pass."""
    judged: CalibrationSet
    """What plans are judged on, none of those before where there are enough."""

    @staticmethod
    def of(images: CalibrationSet, effort: Effort, graph: PruningGraph) -> SearchImages:
        """Drawn in an order that is random and always the same."""
        drawn, count = images.shuffled(), len(images)
        judged = min(effort.judged, count // 2)
        passed = min(max(passed_count(graph), effort.solved), count - judged)
        first = drawn.take(np.arange(passed))
        return SearchImages(
            first,
            first.take(np.arange(min(max(effort.solved, 1), passed))),
            drawn.take(np.arange(count - max(judged, 1), count)),
        )


class Judge:
    """Evaluates plans of one model as they will be carried out; none twice."""

    def __init__(
        self,
        trace: OnnxTrace,
        space: Space,
        images: SearchImages,
        arithmetic: Arithmetic,
        *,
        evaluates: bool = True,
    ) -> None:
        """Runs the unpruned network once.

        Args:
            evaluates: whether any plan will be evaluated.

        Raises:
            CalibrationError: it does not run on the images.
            MissingExtraError: no runtime is installed.
        """
        self._trace, self._space, self._images = trace, space, images
        self._arithmetic = arithmetic
        self.one_pass = OnePass.of(
            trace, space, images.passed, get_runtime(), hurried=not evaluates
        )
        self.image_count = len(images.passed)
        """Images that went through the network so far."""
        self._found: dict[tuple[int, ...], Evaluation] = {}

    @cached_property
    def _evaluator(self) -> Evaluator:
        self.image_count += len(self._images.judged) + len(self._images.solved)
        return Evaluator(
            self._trace,
            self._images.judged,
            runtime=get_runtime(),
            reconstruction=self.one_pass.reconstruction,
            schemes=self._space.schemes,
            int8=self._arithmetic.precision == INT8,
            keep_float=self._arithmetic.keep_float,
            again_on=self._images.solved,
        )

    def evaluate(self, keeps: tuple[int, ...]) -> Evaluation:
        """A plan of these settings [S]."""
        if keeps not in self._found:
            judge, schemes = self._evaluator, self._space.schemes
            settings = np.array(keeps, dtype=np.int64)
            model = judge.as_run(judge.corrected_model(settings, schemes, again=True))
            self._found[keeps] = judge.evaluate_model(model)
            self.image_count += len(self._images.judged) + len(self._images.solved)
        return self._found[keeps]


class Search:
    """Finds plans of one question; see the module."""

    def __init__(self, planner: Planner, question: Question, judge: Judge, effort: Effort) -> None:
        self._planner, self._question, self._judge = planner, question, judge
        self._effort = effort
        self._seen: dict[tuple[int, ...], Candidate] = {}

    def plan(self, budget: float, unit: Unit) -> PruningPlan:
        """The best plan for a budget. Ctrl+C ends the search with what was found, where that is
        anything."""
        return self._searched(budget, unit, self._effort.rounds)

    def again(self, budget_ms: float) -> PruningPlan:
        """The best plan for a budget near to one that was searched for: one more round."""
        return self._searched(budget_ms, "ms", min(1, self._effort.rounds))

    def _searched(self, budget: float, unit: Unit, rounds: int) -> PruningPlan:
        tell = named(self._question.on_progress, "evaluating plans")
        stopped, count = False, rounds * self._effort.plans
        known = len(self._seen)
        try:
            for _ in range(rounds):
                made = self._answer(budget, unit, self._effort.plans)
                if not made.candidates:
                    break
                for one in made.candidates:
                    self._look_at(one)
                    if tell is not None:
                        tell(min(len(self._seen) - known, count), count)
            made = self._answer(budget, unit, 0)
            for _ in range(FINALS if rounds and made.feasible else 0):
                if tuple(made.keeps.tolist()) in self._seen:
                    break
                self._look_at(_as_candidate(made))
                made = self._answer(budget, unit, 0)
        except KeyboardInterrupt:
            if not self._seen:
                raise
            stopped = True
            made = self._answer(budget, unit, 0)
        return self._with_seen(made, stopped=stopped)

    def _answer(self, budget: float, unit: Unit, count: int) -> PruningPlan:
        seen = list(self._seen)[-MOST_SEEN:]
        found = [self._judge.evaluate(keeps) for keeps in seen]
        asked = Round.first(len(self._question.space.sites), count)
        if found:
            asked = Round(
                np.array(seen, dtype=np.int64),
                np.array([_divergence(one) for one in found]),
                np.array([_error(one) for one in found]),
                count,
            )
        return self._planner.answer(self._question, budget, unit, asked)

    def _look_at(self, one: Candidate) -> None:
        found = self._judge.evaluate(one.keeps)
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
            f"{price:.1f} evaluations of {EVALUATION:,} images"
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
    return min(found.divergence, MOST_LOSS) if np.isfinite(found.divergence) else MOST_LOSS


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
