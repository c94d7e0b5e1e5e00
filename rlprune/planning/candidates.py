"""Several plans for one budget, and the choice between them where the weights are.

Planning proposes: the knapsack, the policy, samples around the policy, and what the knapsack would
be if single-group losses were as wrong about whole plans as they usually are. Such plans lose by
prediction the same to a few percent, and in truth 5-15 % more or less; which, nobody without
weights can tell, so until they are evaluated the knapsack's plan stands. `choose` takes the one of
least loss, if it is below the knapsack's by more than noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from rlprune.errors import InputError
from rlprune.graph.types import FloatArray, IntArray
from rlprune.plans import PruningPlan
from rlprune.policy import Policy, SamplingPolicy, get_policy
from rlprune.profile.energy import loss_curve
from rlprune.task.knapsack import solve
from rlprune.task.task import PruningTask

if TYPE_CHECKING:
    from rlprune.graph.from_onnx import OnnxTrace
    from rlprune.profile.calibration import Calibration
    from rlprune.profile.evaluate import Evaluation, Evaluator

MAX_CANDIDATES = 64
CURVE_ERROR = 0.2
"""Standard deviation of the log of what a group's losses are multiplied with in proposals at first;
factors that best explain recorded plans lie about so far from 1."""
DRAWS = 8
"""Times that as many plans are drawn as are wanted, at most, since many are the same."""
PENDING = "the knapsack reference, until the candidates are evaluated where the weights are"


def check_count(count: int, *, calibrated: bool) -> None:
    """Refuses a count of candidates that cannot be chosen between; 0 asks for none.

    Raises:
        InputError: 1 or negative or too many, or nothing to evaluate them on.
    """
    if count and not 2 <= count <= MAX_CANDIDATES:
        raise InputError(
            f"{count} candidates; give 2 to {MAX_CANDIDATES}, the knapsack's plan among them",
            field="candidates",
        )
    if count and not calibrated:
        raise InputError(
            "candidates are evaluated on calibration images; give calibration", field="candidates"
        )


def propose(
    task: PruningTask, policy: Policy, budget_ms: float, count: int, rng: np.random.Generator
) -> list[tuple[str, IntArray]]:
    """At most `count` different plans (policy's name, keeps [G]) within a budget that can be met.

    The first is the knapsack's, the second the policy's own. Names of samples around either end in
    `~1`, `~2` ...
    """
    found: dict[tuple[int, ...], tuple[str, IntArray]] = {}
    for name, keeps in _proposals(task, policy, budget_ms, count, rng):
        if len(found) == count:
            break
        if task.tables.upper_ms(keeps[None])[0] <= budget_ms:
            found.setdefault(tuple(keeps.tolist()), (name, keeps))
    return list(found.values())


def _proposals(
    task: PruningTask, policy: Policy, budget_ms: float, count: int, rng: np.random.Generator
) -> Iterator[tuple[str, IntArray]]:
    asked = np.array([budget_ms])
    knapsack = get_policy("knapsack")
    for one in (knapsack, policy):
        yield one.name, one.plan(task, asked)[0]
    curve = loss_curve(task.profiles, task.graph)  # [G, L]
    for turn in range(DRAWS):
        # Further off every time: where few plans are near, those are soon all found.
        wrong = np.exp((1 + turn) * CURVE_ERROR * rng.standard_normal((count, len(curve), 1)))
        drawn = {knapsack.name: solve(task, np.full(count, budget_ms), loss=curve * wrong)}
        if isinstance(policy, SamplingPolicy):
            drawn = {policy.name: policy.sample(task, budget_ms, count, rng), **drawn}
        for index in range(count):
            for name, plans in drawn.items():
                yield f"{name}~{turn * count + index + 1}", plans[index]


def choose(plan: PruningPlan, evaluate: Callable[[tuple[int, ...]], Evaluation]) -> PruningPlan:
    """`plan` with its candidates evaluated, and the best of them as the plan.

    The best has the least loss. It is taken over the knapsack's only where the mean difference,
    image by image, is more than its standard error. A plan without candidates comes back as it is.
    """
    if not plan.candidates:
        return plan
    assert plan.reference is not None
    found = [evaluate(one.keeps) for one in plan.candidates]
    [first] = [i for i, one in enumerate(plan.candidates) if one.keeps == plan.reference.keeps]
    gains = [_gain(found[first], one) for one in found]
    losses = np.array([one.loss for one in found])
    best = int(np.where(np.isfinite(losses), losses, np.inf).argmin())
    gain, gain_se = gains[best]
    chosen = best if gain > gain_se else first
    candidates = tuple(
        replace(one, loss=have.loss, loss_se=have.loss_se, gain_se=se, chosen=index == chosen)
        for index, (one, have, (_, se)) in enumerate(
            zip(plan.candidates, found, gains, strict=True)
        )
    )
    image_count = len(found[first].image_losses)
    if chosen != first:
        verdict = (
            f"best of {len(found)} candidates on {image_count} images: loses "
            f"{gain:.4f} (+-{gain_se:.4f}) nats less than the knapsack reference"
        )
    else:
        verdict = (
            f"the knapsack reference: none of {len(found)} candidates loses less by more than a "
            f"standard error on {image_count} images"
        )
    taken = candidates[chosen]
    return replace(
        plan,
        policy=taken.policy,
        groups=tuple(
            replace(entry, keep=keep) for entry, keep in zip(plan.groups, taken.keeps, strict=True)
        ),
        predicted_latency_ms=taken.predicted_latency_ms,
        predicted_interval_ms=taken.predicted_interval_ms,
        macs=taken.macs,
        params=taken.params,
        candidates=candidates,
        note=plan.note.replace(PENDING, verdict),
    )


def _gain(reference: Evaluation, other: Evaluation) -> tuple[float, float]:
    """How much less `other` loses on the same images, and the standard error of that."""
    less: FloatArray = reference.image_losses - other.image_losses
    return float(less.mean()), float(less.std(ddof=1) / np.sqrt(len(less)))


def chooser(
    trace: OnnxTrace,
    images: Calibration,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> Callable[[PruningPlan], PruningPlan]:
    """`choose` on these images, by the loss after reconstruction; each plan is run once.

    Raises:
        MissingExtraError: when first called without a runtime.
    """

    @cache
    def evaluator() -> Evaluator:
        from rlprune.profile.evaluate import Evaluator
        from rlprune.runtime import get_runtime

        return Evaluator(trace, images, runtime=get_runtime())

    @cache
    def evaluated(keeps: tuple[int, ...]) -> Evaluation:
        return evaluator().evaluate(np.array(keeps, dtype=np.int64))

    def pick(plan: PruningPlan) -> PruningPlan:
        done = 0

        def evaluate(keeps: tuple[int, ...]) -> Evaluation:
            nonlocal done
            found = evaluated(keeps)
            done += 1
            if on_progress is not None:
                on_progress(done, len(plan.candidates))
            return found

        return choose(plan, evaluate)

    return pick
