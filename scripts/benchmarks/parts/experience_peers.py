"""Plans of `experience` by other searches, each at the price of so many evaluations.

A peer searches the same options within the same predicted latency, and judges plans as ours are
carried out, layers solved again. An evaluation of it is all images that there are: the layers of
one plan are solved on a quarter of them, and the others judge it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from benchmarks.peers.search import follow
from benchmarks.peers.searches import search_named
from rlprune.planning.describe import Decision, described
from rlprune.planning.judge import Judge, SearchImages
from rlprune.planning.local import LocalPlanner
from rlprune.planning.make import Ends
from rlprune.planning.planner import Question
from rlprune.planning.proposals import Round
from rlprune.planning.request import Unit
from rlprune.planning.tables import task_for
from rlprune.plans import PruningPlan
from rlprune.sensitivity.calibration import CalibrationSet
from rlprune.store import Store

SOLVED_SHARE = 4
"""One image in so many solves layers."""
TOLD_EVERY = 50


class PeerPlanner(LocalPlanner):
    """Plans as its base does, and from that plan on by another search."""

    def __init__(
        self, store: Store, method: str, images: CalibrationSet, count: int, seed: int
    ) -> None:
        super().__init__(store)
        self._method, self._images, self._count, self._seed = method, images, count, seed

    def answer(
        self, question: Question, budget: float, unit: Unit, search: Round | None = None
    ) -> PruningPlan:
        """See `Planner`: the best plan after so many evaluations."""
        start = super().answer(question, budget, unit, search)
        request, space = question.request, question.space
        task = task_for(space, question.profiles, self._store, question.device, request.arithmetic)
        drawn, apart = self._images.shuffled(), len(self._images) // SOLVED_SHARE
        solved = drawn.take(np.arange(apart))
        judged = drawn.take(np.arange(apart, len(drawn)))
        images = SearchImages(solved, solved, judged, judged, drawn.text())
        judge = Judge(question.trace, space, images, request.arithmetic)

        def tell(done: int, best: float) -> None:
            if done % TOLD_EVERY == 0:
                print(f"  {self._method}: {done} evaluations, best {best:.3f} nats", flush=True)

        trail = follow(
            search_named(self._method, task, start.budget_ms, self._count, self._seed),
            lambda choice: judge.evaluate(tuple(space.settings_at(choice).tolist())).divergence,
            lambda choice: bool(task.tables.upper_ms(choice[None])[0] <= start.budget_ms),
            self._count,
            tell,
        )
        best = trail.at(self._count)
        if best is None:
            return start
        choice = np.array(best[0])
        ends = Ends.of(task, question.bound, question.device)
        made = Decision(choice, ends.least, space.choice_of(start.keeps), True, self._method)
        plan = described(task, made, start.budget_ms, device=question.device)
        how = f"{self._method}: {trail.evaluation_count} evaluations of {len(drawn)} images"
        return replace(plan, note=how)
