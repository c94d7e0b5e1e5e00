"""The posterior race: which plans to evaluate next, and which is best by those that were.

What every option loses is believed to be about what the task's curve says (`solver.belief`), and
a plan to lose more than its options each alone: the errors that they leave add up, and answers
diverge by a power of these (`JOINT`).
Proposals are what the knapsack would plan by losses drawn from that belief (Thompson sampling), so
that plans are looked at as far apart as is still uncertain. One share for all widths is among the
first: where losses are too small to be told apart one by one, as in deep networks, their sum is no
guide, and it is better. Every evaluated plan tells of all its options; with nothing evaluated the
best plan is the knapsack's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from rlprune.graph.types import FloatArray, IntArray
from rlprune.policy.baselines import UniformPolicy
from rlprune.solver.belief import Belief, Spread
from rlprune.solver.knapsack import solve
from rlprune.solver.task import PruningTask

NAME = "posterior race"
MEASURED = Spread(site=0.3, option=0.15)
"""How far losses measured one by one are off in whole plans."""
ONE_PASS = Spread(site=0.7, option=0.4)
"""... losses told from one pass of the unpruned network."""
SHAPES = Spread(site=1.0, option=0.5)
"""... losses predicted from weights or shapes."""
JOINT = 1.45
"""Power of the summed errors by which answers diverge, as over single options (`one_pass.LINE`).
Where it is 1, as in a sum of losses, many small changes look cheaper than they are together: with
it, plans of ResNet-32 lost 6 % less and of MobileNetV2 4 %, of VGG as much."""
CAUTION = 1.0
"""A plan is taken at what it is believed to lose and so many standard deviations more: one that was
evaluated before one that only should be as good."""
DRAWS = 4
"""Turns of drawing at most, where the first ones find plans that are known."""


@dataclass(frozen=True)
class PosteriorRace:
    """What is believed of one task's options; immutable."""

    task: PruningTask
    belief: Belief
    """Of errors: losses to the power of 1 / `JOINT`."""

    @staticmethod
    def of(task: PruningTask) -> PosteriorRace:
        """Before anything was evaluated: by the task's own curves."""
        profiles = task.profiles
        told = ONE_PASS if profiles.passed_count else SHAPES
        spread = MEASURED if profiles.profiled else told
        belief = Belief.of(task.space, np.maximum(task.curve, 0.0) ** (1 / JOINT), spread)
        return PosteriorRace(task, belief)

    def after(self, choice: IntArray, loss: FloatArray, error: FloatArray) -> PosteriorRace:
        """Once plans were evaluated, too; arguments as of `Belief.after`."""
        if not len(choice):
            return self
        errors = np.maximum(loss, 0.0) ** (1 / JOINT)
        return replace(self, belief=self.belief.after(choice, errors, error / JOINT))

    def proposals(self, budget_ms: float, count: int, rng: np.random.Generator) -> IntArray:
        """At most `count` plans [K, S] within a budget that can be met, none of them seen before:
        the one that is best by the mean, the uniform one, then those by draws."""
        known = {tuple(row) for row in self.belief.seen.choice.tolist()}
        found: dict[tuple[int, ...], IntArray] = {}
        for plans in self._drawn(budget_ms, count, rng):
            within = self.task.tables.upper_ms(plans) <= budget_ms
            for row in plans[within]:
                key = tuple(row.tolist())
                if key not in known and len(found) < count:
                    found.setdefault(key, row)
            if len(found) == count:
                break
        return np.array(list(found.values()), dtype=np.int64).reshape(-1, self.task.site_count)

    def best(self, budget_ms: float) -> IntArray:
        """The plan [S] that is best by what is believed now: one that was evaluated, or what the
        knapsack makes of the mean."""
        seen = self.belief.seen.choice
        plans = self._solved(budget_ms, self.belief.curve[None])
        if len(seen):
            within = self.task.tables.upper_ms(seen) <= budget_ms
            plans = np.concatenate([seen[within], plans])
        log_loss, deviation = self.belief.expected(plans)
        return np.asarray(plans[(log_loss + CAUTION * deviation).argmin()])

    def expected_loss(self, choice: IntArray) -> float:
        """What a plan [S] is believed to lose, nats."""
        return float(self.belief.median_loss(choice[None])[0] ** JOINT)

    def _drawn(self, budget_ms: float, count: int, rng: np.random.Generator) -> Iterator[IntArray]:
        yield self._solved(budget_ms, self.belief.curve[None])
        yield UniformPolicy().plan(self.task, np.array([budget_ms]))
        for _ in range(DRAWS):
            yield self._solved(budget_ms, self.belief.draws(count, rng))

    def _solved(self, budget_ms: float, curves: FloatArray) -> IntArray:
        return np.asarray(solve(self.task, np.full(len(curves), budget_ms), loss=curves))
