"""Which plans are worth an evaluation: those that planners choose, and those around them.

The knapsack with bent curves, a learned policy and samples around its plans, uniform plans, random
ones for breadth, and children of the best so far (evolution), which alone show what lies above the
knapsack. Budgets are drawn on several devices: plans of equal MACs are not plans of equal ms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rlprune.graph.types import FloatArray, IntArray
from rlprune.policy.base import Policy, SamplingPolicy
from rlprune.recording.evaluations import Evaluations
from rlprune.sensitivity.energy import loss_curve
from rlprune.solver.knapsack import least_keeps, solve
from rlprune.solver.task import PruningTask

MIX = {"knapsack": 0.25, "policy": 0.2, "uniform": 0.05, "random": 0.1, "evolution": 0.4}
"""Share of the plans that each source proposes; without a policy the others share its part."""
TRIES = 50
"""Proposals in a row that were all seen before; then there are no more plans worth asking for."""
SAMPLES = 3
"""Samples of a policy that one is taken of: they differ in how far from its plan they are."""
NEAR = 3
"""Parents of a crossover stand at most so far apart in the order of their cost."""


class Proposal(NamedTuple):
    """A plan, and how it came about (as in `Evaluations`)."""

    keeps: IntArray
    source: str
    device: str = ""
    budget: float = float("nan")


@dataclass(frozen=True)
class PlanProposer:
    """Proposes plans of one model, each at most once."""

    tasks: Sequence[PruningTask]
    """The model on each of the devices that plans are proposed for; they share their levels."""
    known: Evaluations
    """What was evaluated before: not proposed again, and what evolution starts from."""
    policy: Policy | None = None
    """Proposes, too, where there is one."""

    def propose(self, count: int, rng: np.random.Generator) -> list[Proposal]:
        """At most `count` new plans; none where nothing new is found."""
        seen = {tuple(keeps) for keeps in self.known.keeps}
        seen.add(tuple(self.tasks[0].graph.widths))  # the unpruned model's loss is known
        devices = [_Device(task, self.known, self.policy) for task in self.tasks]
        sources = [source for source in MIX if source != "policy" or self.policy is not None]
        shares = np.array([MIX[source] for source in sources])
        made: list[Proposal] = []
        tries = 0
        while len(made) < count and tries < TRIES:
            device = devices[rng.integers(len(devices))]
            source = str(rng.choice(sources, p=shares / shares.sum()))
            proposal = device.makers[source](rng)
            tries += 1
            if tuple(proposal.keeps) not in seen:
                seen.add(tuple(proposal.keeps))
                made.append(proposal)
                tries = 0
        return made


@dataclass(frozen=True)
class _Device:
    """Proposals by the costs of one device."""

    task: PruningTask
    known: Evaluations
    policy: Policy | None

    @property
    def makers(self) -> dict[str, Callable[[np.random.Generator], Proposal]]:
        return {
            "knapsack": self._knapsack,
            "policy": self._policy,
            "uniform": self._uniform,
            "random": self._random,
            "evolution": self._evolution,
        }

    def _knapsack(self, rng: np.random.Generator) -> Proposal:
        """The knapsack's plan with each group's curve scaled and bent at random."""
        budget = self._budget(rng)
        curve = loss_curve(self.task.profiles, self.task.graph)
        sigma = rng.choice([0.0, 0.3, 1.0])
        groups = (self.task.group_count, 1)
        top = np.maximum(curve.max(-1, keepdims=True), 1e-9)
        bent = top * (curve / top) ** np.exp(0.5 * sigma * rng.standard_normal(groups))
        bent = bent * np.exp(sigma * rng.standard_normal(groups))
        keeps = solve(self.task, np.array([budget]), loss=bent)[0]
        return Proposal(keeps, "knapsack", self.task.tables.device, budget)

    def _policy(self, rng: np.random.Generator) -> Proposal:
        """The policy's own plan one time in four, else one near to it."""
        assert self.policy is not None
        budget = self._budget(rng)
        if isinstance(self.policy, SamplingPolicy) and rng.uniform() < 0.75:
            samples = self.policy.sample(self.task, budget, SAMPLES, rng)
            keeps = samples[rng.integers(SAMPLES)]
        else:
            keeps = self.policy.plan(self.task, np.array([budget]))[0]
        return Proposal(keeps, f"policy:{self.policy.name}", self.task.tables.device, budget)

    def _uniform(self, rng: np.random.Generator) -> Proposal:
        """Every group's level nearest to one ratio of its width."""
        wanted = rng.uniform(0.1, 1.0) * self.task.graph.widths
        choice = np.abs(self.task.levels - wanted[:, None]).argmin(-1)
        return Proposal(self._keeps(choice), "uniform")

    def _random(self, rng: np.random.Generator) -> Proposal:
        """Single levels down, at random, until a budget is met."""
        budget = self._budget(rng)
        choice = self.task.level_count - 1
        while choice.any() and self.task.tables.upper_ms(self._keeps(choice)[None])[0] > budget:
            group = rng.choice(np.flatnonzero(choice))
            choice[group] = rng.integers(0, choice[group])
        return Proposal(self._keeps(choice), "random", self.task.tables.device, budget)

    def _evolution(self, rng: np.random.Generator) -> Proposal:
        """A child of one or two parents: each group of either one's, or some moved a little."""
        first = int(rng.integers(len(self._parents)))
        if len(self._parents) > 1 and rng.uniform() < 0.4:
            near = np.arange(max(0, first - NEAR), min(len(self._parents), first + NEAR + 1))
            second = int(rng.choice(near[near != first]))
            mixed = rng.uniform(size=self.task.group_count) < 0.5
            child = np.where(mixed, self._parents[first], self._parents[second])
        else:
            child = self._mutated(self._parents[first], rng)
        return Proposal(child, "evolution", self.task.tables.device)

    def _mutated(self, keeps: IntArray, rng: np.random.Generator) -> IntArray:
        """One to three groups' levels moved by one or two."""
        choice = self.task.choice_of(keeps)
        count = min(int(rng.integers(1, 4)), self.task.group_count)
        for group in rng.choice(self.task.group_count, size=count, replace=False):
            step = rng.choice([-2, -1, 1, 2])
            choice[group] = np.clip(choice[group] + step, 0, self.task.level_count[group] - 1)
        return self._keeps(choice)

    def _keeps(self, choice: IntArray) -> IntArray:
        keeps: IntArray = self.task.keeps_at(choice[None])[0]
        return keeps

    def _budget(self, rng: np.random.Generator) -> float:
        """Between least and base; mostly above the floor, for below it plans only guess."""
        least, most = self._ends
        if rng.uniform() < 0.8:
            least = float(np.clip(0.9 * self._floor, least, most))
        return float(rng.uniform(least, most))

    @cached_property
    def _ends(self) -> tuple[float, float]:
        """The least cost and the unpruned model's."""
        plans = np.stack([least_keeps(self.task), self.task.graph.widths])
        least, most = self.task.tables.upper_ms(plans)
        return float(least), float(most)

    @cached_property
    def _cost(self) -> FloatArray:
        """Of every known plan [N]."""
        return self.task.tables.upper_ms(self.known.keeps)

    @cached_property
    def _useful(self) -> NDArray[np.bool_]:
        """Which known plans still answer half as well as the best [N]."""
        accuracy = self.known.accuracy
        return np.asarray(accuracy > 0.5 * accuracy.max(initial=0.0))

    @cached_property
    def _floor(self) -> float:
        """The least cost of a useful plan; 0 while none is known."""
        return float(self._cost[self._useful].min()) if self._useful.any() else 0.0

    @cached_property
    def _parents(self) -> IntArray:
        """Useful plans that no cheaper one beats, by cost, and the unpruned model [P, G]."""
        order = np.lexsort((self.known.loss, self._cost))
        best = np.minimum.accumulate(self.known.loss[order])
        front = order[self.known.loss[order] <= best]
        front = front[self._useful[front]]
        return np.concatenate([self.known.keeps[front], self.task.graph.widths[None]])
