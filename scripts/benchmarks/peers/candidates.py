"""Several plans for one budget, proposed at once and compared by successive halving: how rlprune
planned until 0.8, over widths alone.

Proposed are the knapsack's plan, the policy's, samples around the policy's, and what the knapsack
would plan if single-group losses were wrong. The best is taken if it is better than the knapsack's
by more than noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from rlprune.graph.types import IntArray
from rlprune.policy import Policy, SamplingPolicy, get_policy
from rlprune.sensitivity.evaluate import Evaluation
from rlprune.solver.knapsack import solve
from rlprune.solver.task import PruningTask

Keeps = tuple[int, ...]

CURVE_ERROR = 0.2
"""Standard deviation of the log of what a group's losses are multiplied with in proposals at first;
factors that best explain recorded plans lie about so far from 1."""
DRAWS = 8
"""Turns of drawing, at most."""
DRAWN = 4
"""Times as many plans as are wanted are drawn in one turn, so many at a time."""
RUNGS = ((1 / 20, 3 / 16), (1 / 5, 3 / 64))
"""Shares of the images that plans have seen, and of the plans that then go on."""
FINALISTS = 3
"""Plans that see all images, at least; the knapsack's is one."""
LEAST_SEEN = 50
"""Images that plans are told apart by, at least; with fewer all see all."""


def propose(
    task: PruningTask, policy: Policy, budget_ms: float, count: int, rng: np.random.Generator
) -> list[Keeps]:
    """At most `count` different plans within a budget that can be met, the knapsack's first."""
    found: dict[Keeps, None] = {}
    for choice in _proposals(task, policy, budget_ms, count, rng):
        if len(found) == count:
            break
        if task.tables.upper_ms(choice[None])[0] <= budget_ms:
            found.setdefault(tuple(task.space.settings_at(choice).tolist()))
    return list(found)


def _proposals(
    task: PruningTask, policy: Policy, budget_ms: float, count: int, rng: np.random.Generator
) -> Iterator[IntArray]:
    asked, budgets = np.array([budget_ms]), np.full(count, budget_ms)
    for one in (get_policy("knapsack"), policy):
        yield one.plan(task, asked)[0]
    yield solve(task, asked, loss=task.data_free.curve)[0]
    for block in range(DRAWS * DRAWN):
        # Further off every turn: where few plans are near, those are soon all found.
        sd = (1 + block // DRAWN) * CURVE_ERROR
        wrong = np.exp(sd * rng.standard_normal((count, task.site_count, 1)))
        drawn = [solve(task, budgets, loss=task.curve * wrong)]
        if isinstance(policy, SamplingPolicy):
            drawn = [policy.sample(task, budget_ms, count, rng), *drawn]
        for index in range(count):
            for plans in drawn:
                yield plans[index]


def rungs(plan_count: int, image_count: int) -> list[tuple[int, int, int]]:
    """How plans are compared: per rung the images (start, stop), and how many plans see them.

    Successive halving (Jamieson and Talwalkar 2016, section 2): what is clearly worse shows on a
    twentieth of the images. 64 plans on 1,000 images cost 7.4 runs over all of them.
    """
    found = []
    start, left = 0, plan_count
    for images, survivors in RUNGS:
        stop = round(images * image_count)
        kept = max(FINALISTS, round(survivors * plan_count))
        if stop >= LEAST_SEEN and kept < left:
            found.append((start, stop, left))
            start, left = stop, kept
    return [*found, (start, image_count, left)]


def choose(
    plans: Sequence[Keeps], evaluate: Callable[[Keeps, int, int], Evaluation], image_count: int
) -> tuple[Keeps, int]:
    """The best of some plans, and how many images they saw.

    That is the one whose answers diverge least from the unpruned network's on all images. It is
    taken over the first, which always reaches the end, only where the mean difference, image by
    image, is more than its standard error.

    Args:
        evaluate: a plan by the images from one number to another, in an order that is random to
            begin with.
    """
    found: dict[Keeps, Evaluation] = {}
    left = list(plans)
    for start, stop, count in rungs(len(plans), image_count):
        if count < len(left):
            left = [plans[0], *(own for own in left if own != plans[0])][:count]
        for own in left:
            part = evaluate(own, start, stop)
            found[own] = found[own].merged_with(part) if own in found else part
        left.sort(key=lambda own: float(np.nan_to_num(found[own].divergence, nan=np.inf)))
    best = left[0]
    less = found[plans[0]].image_divergences - found[best].image_divergences
    better = less.mean() > less.std(ddof=1) / np.sqrt(len(less))
    return best if better else plans[0], sum(len(one.image_losses) for one in found.values())
