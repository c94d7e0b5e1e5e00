"""Several plans for one budget, and the choice between them where the weights are.

Proposed are the knapsack's plan, the policy's, samples around the policy's, and what the knapsack
would plan if single-group losses were as wrong about whole plans as they usually are; where kernels
and blocks are options, also if these lost more than they do alone, and by channels only. The
predicted losses of such plans differ by a few percent, their true losses by 5 to 15 %, and only an
evaluation tells which way; so until they are evaluated the knapsack's plan stands. `choose`
compares them by successive halving and takes the best, if it is better than the knapsack's by more
than noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rlprune.graph.types import FloatArray, IntArray
from rlprune.latency.types import IN_F32, INT8, Arithmetic
from rlprune.plans import PruningPlan
from rlprune.policy import Policy, SamplingPolicy, get_policy
from rlprune.schemes.blocks import BLOCKS
from rlprune.schemes.channels import CHANNELS
from rlprune.solver.knapsack import solve
from rlprune.solver.task import PruningTask

if TYPE_CHECKING:
    from onnx import ModelProto

    from rlprune.graph.from_onnx import OnnxTrace
    from rlprune.sensitivity.calibration import CalibrationSet
    from rlprune.sensitivity.evaluate import Evaluation, Evaluator

CURVE_ERROR = 0.2
"""Standard deviation of the log of what a group's losses are multiplied with in proposals at first;
factors that best explain recorded plans lie about so far from 1."""
DRAWS = 8
"""Turns of drawing, at most."""
DRAWN = 4
"""Times as many plans as are wanted are drawn in one turn, so many at a time: near the knapsack's
most are the same, and different ones that are near come before any that are further off. A large
network's first block has enough."""
RUNGS = ((1 / 20, 3 / 16), (1 / 5, 3 / 64))
"""Shares of the images that plans have seen, and of the plans that then go on."""
FINALISTS = 3
"""Plans that see all images, at least; the knapsack's is one."""
LEAST_SEEN = 50
"""Images that plans are told apart by, at least; with fewer all see all."""
DEFAULT_COUNT = 64
"""Where none is stated and there are images enough."""
SOLVED_COUNT = 8
"""... where plans may leave out blocks, so that their layers are solved twice to judge them."""
DEARER = (1.5, 2.5)
"""What losses of kernels and blocks are multiplied with in proposals: many small ones lose more
together than one by one, by how much differs from network to network."""
ENOUGH_IMAGES = 500
"""Calibration images from which on half of them tell plans apart at the price of some fifteen
evaluations; at 2,000, of seven."""
PENDING = "planned by: latency-constrained knapsack (until the candidates are evaluated)"


def default_count(
    images: CalibrationSet | None, schemes: Sequence[str], *, policy: str, guard: bool
) -> int:
    """How many candidates race where the caller does not say.

    Only for the policy that ships, guarded: who names another one, or takes off the guard, asks for
    that one's own plan.
    """
    enough = images is not None and len(images) >= ENOUGH_IMAGES
    if not (enough and guard and policy == "learned"):
        return 0
    return SOLVED_COUNT if BLOCKS.name in schemes else DEFAULT_COUNT


def propose(
    task: PruningTask, policy: Policy, budget_ms: float, count: int, rng: np.random.Generator
) -> list[tuple[str, IntArray]]:
    """At most `count` different plans (policy's name, choice [S]) within a budget that can be met.

    The first is the knapsack's, the second the policy's own, then what the knapsack would plan by
    losses that are wrong in ways that are known. Names of samples around the first two end in
    `~1`, `~2` ...
    """
    found: dict[tuple[int, ...], tuple[str, IntArray]] = {}
    for name, choice in _proposals(task, policy, budget_ms, count, rng):
        if len(found) == count:
            break
        if task.tables.upper_ms(choice[None])[0] <= budget_ms:
            found.setdefault(tuple(choice.tolist()), (name, choice))
    return list(found.values())


def _proposals(
    task: PruningTask, policy: Policy, budget_ms: float, count: int, rng: np.random.Generator
) -> Iterator[tuple[str, IntArray]]:
    asked = np.array([budget_ms])
    knapsack = get_policy("knapsack")
    for one in (knapsack, policy):
        yield one.name, one.plan(task, asked)[0]
    curve = task.curve  # [S, L]
    other = np.array([site.scheme != CHANNELS.name for site in task.space.sites])
    if other.any():
        yield f"{knapsack.name}/channels", solve(task, asked, loss=_held(task, curve, other))[0]
        for factor in DEARER:
            dearer = np.where(other[:, None], factor * curve, curve)
            yield f"{knapsack.name}/dearer~{factor:g}", solve(task, asked, loss=dearer)[0]
    predicted = task.data_free.curve
    yield f"{knapsack.name}/predicted", solve(task, asked, loss=predicted)[0]
    budgets = np.full(count, budget_ms)
    for block in range(DRAWS * DRAWN):
        # Further off every turn: where few plans are near, those are soon all found.
        sd = (1 + block // DRAWN) * CURVE_ERROR
        wrong = np.exp(sd * rng.standard_normal((count, len(curve), 1)))
        drawn = {knapsack.name: solve(task, budgets, loss=curve * wrong)}
        if isinstance(policy, SamplingPolicy):
            drawn = {policy.name: policy.sample(task, budget_ms, count, rng), **drawn}
        for index in range(count):
            for name, plans in drawn.items():
                yield f"{name}~{block * count + index + 1}", plans[index]


def _held(task: PruningTask, curve: FloatArray, sites: NDArray[np.bool_]) -> FloatArray:
    """Losses [S, L] by which these sites [S] stay as they are wherever a plan can do without."""
    as_it_is = np.arange(curve.shape[1]) >= task.option_count[:, None] - 1
    worst = 1.0 + float(curve.max(-1).sum())
    return np.where(sites[:, None] & ~as_it_is, worst, curve)


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
    plan: PruningPlan, evaluate: Callable[[tuple[int, ...], int, int], Evaluation], image_count: int
) -> PruningPlan:
    """`plan` with its candidates evaluated, and the best of them as the plan.

    They are compared by successive halving (`rungs`). The best is the one whose answers diverge
    least from the unpruned network's on all images: that predicts the loss on other images better
    than the loss itself does, since the labels' noise is not in it. It is taken over the knapsack's
    plan, which always reaches the end, only where the mean difference, image by image, is more than
    its standard error. A plan without candidates comes back as it is.

    Args:
        evaluate: a plan's keeps by the images from one number to another, in an order that is
            random to begin with.
    """
    if not plan.candidates:
        return plan
    assert plan.reference is not None
    plans = [one.keeps for one in plan.candidates]
    first = plans.index(plan.reference.keeps)
    found, left = _race(plans, first, evaluate, image_count)
    gains = [_gain(found[first], one) for one in found]
    best = left[0]
    gain, gain_se = gains[best]
    chosen = best if gain > gain_se else first
    candidates = tuple(
        replace(
            one,
            divergence=have.divergence,
            gain_se=se,
            loss=_known(have.loss),
            loss_se=_known(have.loss_se),
            image_count=len(have.image_losses),
            chosen=index == chosen,
        )
        for index, (one, have, (_, se)) in enumerate(
            zip(plan.candidates, found, gains, strict=True)
        )
    )
    on = f"{len(plans)} candidates on {image_count} images"
    if chosen != first:
        verdict = (
            f"best of {on}: diverges {gain:.4f} (+-{gain_se:.4f}) nats less from the unpruned "
            "answers than the latency-constrained knapsack's plan"
        )
    else:
        verdict = (
            "planned by: latency-constrained knapsack (no other of "
            f"{on} diverges less from the unpruned answers by more than a standard error)"
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
        expected_divergence=taken.divergence,
        note=plan.note.replace(PENDING, verdict),
    )


def _race(
    plans: Sequence[tuple[int, ...]],
    first: int,
    evaluate: Callable[[tuple[int, ...], int, int], Evaluation],
    image_count: int,
) -> tuple[list[Evaluation], list[int]]:
    """Every plan by the images it came to see, and those that saw all, best first; the plan
    `first` is never left behind."""
    found: dict[int, Evaluation] = {}
    left = list(range(len(plans)))

    def divergence(index: int) -> float:
        own = found[index].divergence
        return own if np.isfinite(own) else np.inf

    for start, stop, count in rungs(len(plans), image_count):
        if count < len(left):
            left = [first, *(index for index in left if index != first)][:count]
        for index in left:
            part = evaluate(plans[index], start, stop)
            found[index] = found[index].merged_with(part) if index in found else part
        left.sort(key=divergence)
    return [found[index] for index in range(len(plans))], left


def _gain(reference: Evaluation, other: Evaluation) -> tuple[float, float]:
    """How much less `other` diverges on the images it saw, and the standard error of that."""
    own = other.image_divergences
    less: FloatArray = reference.image_divergences[: len(own)] - own
    return float(less.mean()), float(less.std(ddof=1) / np.sqrt(len(less)))


def _known(value: float) -> float | None:
    """None for a loss without labels."""
    return value if np.isfinite(value) else None


def chooser(
    trace: OnnxTrace,
    images: CalibrationSet,
    arithmetic: Arithmetic = IN_F32,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> Callable[[PruningPlan], PruningPlan]:
    """`choose` on these images, in an order that is random; no plan is run twice on one. In int8
    the quantised plans are compared; bf16 decides as f32 does, and is not run.

    Raises:
        MissingExtraError: when first called without a runtime.
    """

    @cache
    def evaluator(schemes: tuple[str, ...]) -> Evaluator:
        from rlprune.runtime import get_runtime
        from rlprune.sensitivity.evaluate import Evaluator

        return Evaluator(
            trace,
            images,
            runtime=get_runtime(),
            schemes=schemes,
            int8=arithmetic.precision == INT8,
            keep_float=arithmetic.keep_float,
        )

    @cache
    def solved_again(keeps: tuple[int, ...], schemes: tuple[str, ...]) -> ModelProto:
        settings = np.array(keeps, dtype=np.int64)
        judge = evaluator(schemes)
        return judge.as_run(judge.corrected_model(settings, schemes, again=True))

    @cache
    def evaluated(
        keeps: tuple[int, ...], schemes: tuple[str, ...], start: int, stop: int
    ) -> Evaluation:
        if BLOCKS.name in schemes:
            # What a plan without a branch loses shows only once the layers behind are solved again.
            return evaluator(schemes).evaluate_model(solved_again(keeps, schemes), start, stop)
        settings = np.array(keeps, dtype=np.int64)
        return evaluator(schemes).evaluate_part(settings, start, stop, schemes)

    def pick(plan: PruningPlan) -> PruningPlan:
        done, schemes = 0, plan.schemes
        of = sum(count for _, _, count in rungs(len(plan.candidates), len(images)))

        def evaluate(keeps: tuple[int, ...], start: int, stop: int) -> Evaluation:
            nonlocal done
            found = evaluated(keeps, schemes, start, stop)
            done += 1
            if on_progress is not None:
                on_progress(done, of)
            return found

        return choose(plan, evaluate, len(images))

    return pick
