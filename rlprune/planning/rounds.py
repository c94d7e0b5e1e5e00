"""From a planning question to its plans; the same steps whoever answers.

The calibration set is read, the constraints are bound, sensitivity is measured or predicted where
the weights are; then each budget is answered (`Planner.answer`), the best of its candidates chosen
on images that no profile was measured on, the plan certified on the device if asked, and kept.
Budgets of one request share all that does not depend on them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from rlprune.constraints import bind
from rlprune.errors import InputError
from rlprune.graph.from_onnx import OnnxTrace
from rlprune.graph.types import IntArray
from rlprune.latency.types import Arithmetic, Measurement
from rlprune.planning.candidates import chooser, default_count
from rlprune.planning.certify import MAX_ROUNDS, certify_plan
from rlprune.planning.effort import EFFORTS, passed_count
from rlprune.planning.planner import Planner, Question
from rlprune.planning.profiles import (
    OnProgress,
    named,
    profile_model,
    read_calibration,
)
from rlprune.planning.request import PlanRequest, Unit
from rlprune.planning.search import Judge, Search, SearchImages
from rlprune.plans import PruningPlan
from rlprune.schemes import space_of
from rlprune.sensitivity.initial import InitialScores, initial_profiles
from rlprune.sensitivity.sources import MADE_UP, few_made_up

if TYPE_CHECKING:
    from rlprune.graph.from_torch import TorchTrace
    from rlprune.sensitivity.calibration import CalibrationSet
    from rlprune.sensitivity.sources import CalibrationSource

Pick = Callable[[PruningPlan], PruningPlan]
"""Of a plan with candidates, the best of them."""


def make_plans(
    planner: Planner,
    trace: OnnxTrace | TorchTrace,
    request: PlanRequest,
    *,
    calibration: CalibrationSource | None = None,
    model_name: str = "",
    on_progress: OnProgress | None = None,
) -> list[PruningPlan]:
    """A plan for each budget of the request, in its order.

    Raises:
        InputError: what was given does not go together; the subclass or `field` says what.
        CalibrationError: the calibration data is refused.
        NotFoundError, MissingExtraError, MeasurementError, UnavailableError: as `Planner` has them.
    """
    if request.candidates and calibration is None:
        raise InputError(
            "candidates are evaluated on calibration images; give calibration", field="candidates"
        )
    traced = trace if isinstance(trace, OnnxTrace) else trace.onnx
    effort = None if request.effort is None else EFFORTS[request.effort]
    if effort is not None and calibration is None:
        calibration = MADE_UP if effort.rounds else few_made_up(traced, passed_count(traced.graph))
    device = planner.resolve(request, traced.graph)
    scores = _initial_scores(trace, request, calibration)
    images = None if scores is not None else read_calibration(traced, calibration)
    request = request.with_schemes(device, measured=images is not None)
    count = _candidate_count(request, images)
    stated = request.constraints.round_to
    multiple = planner.round_to(request, device) if stated is None else stated
    bound = bind(
        traced.graph,
        request.constraints,
        round_to=multiple,
        device=device,
        precision=request.precision,
    )
    space = space_of(traced.graph, bound, request.schemes)
    judge: Judge | None = None
    images, pick = _halved(traced, images, count, request.arithmetic, on_progress)
    if effort is not None and images is not None:
        used = SearchImages.of(images, effort, traced.graph)
        judge = Judge(traced, space, used, request.arithmetic, evaluates=effort.rounds > 0)
        profiles = judge.one_pass.profiles(space)
    elif scores is not None:
        profiles = initial_profiles(space, scores)
    else:
        profiles = profile_model(traced, space, images, on_progress=on_progress)
    left_sec = request.timeout_sec
    question = Question(
        request=request,
        trace=traced,
        device=device,
        bound=bound,
        space=space,
        profiles=profiles,
        candidate_count=count,
        deadline=time.monotonic() + (planner.default_timeout_sec if left_sec is None else left_sec),
        model_name=model_name,
        on_progress=on_progress,
    )
    if effort is not None and judge is not None:
        search = Search(planner, question, judge, effort)
        plan_for, again = search.plan, search.again
    else:

        def plan_for(budget: float, unit: Unit) -> PruningPlan:
            return pick(planner.answer(question, budget, unit))

        again = partial(plan_for, unit="ms")
    made = []
    for budget in request.budgets:
        plan = plan_for(budget, request.unit)
        if request.certify:
            plan = _certified(planner, question, plan, again)
        planner.put(question, plan)
        made.append(plan)
    return made


def _initial_scores(
    trace: OnnxTrace | TorchTrace, request: PlanRequest, calibration: CalibrationSource | None
) -> InitialScores | None:
    """What the units of an untrained module are worth; None of a trained one."""
    if request.at_init is None:
        return None
    if isinstance(trace, OnnxTrace):
        raise InputError(
            "at_init needs a torch module: an ONNX file cannot be trained", field="at_init"
        )
    from rlprune.sensitivity.at_init import score_units

    return score_units(trace, request.at_init, calibration)


def _candidate_count(request: PlanRequest, images: CalibrationSet | None) -> int:
    if request.effort is not None:
        return 0
    if request.candidates is not None:
        return request.candidates
    if request.max_params is not None:  # candidates are proposed by latency alone
        return 0
    return default_count(images, request.schemes, policy=request.policy, guard=request.guard)


def _halved(
    trace: OnnxTrace,
    images: CalibrationSet | None,
    candidates: int,
    arithmetic: Arithmetic,
    on_progress: OnProgress | None = None,
) -> tuple[CalibrationSet | None, Pick]:
    """What to profile on, and how a plan with candidates is chosen from.

    Without candidates all images are profiled on, and plans stay as they are made. With them the
    images are halved.

    Raises:
        CalibrationError: they are too few to halve.
    """
    if not candidates or images is None:
        return images, lambda plan: plan
    for_profile, for_choice = images.halves()
    tell = named(on_progress, "evaluating candidates")
    return for_profile, chooser(trace, for_choice.shuffled(), arithmetic, on_progress=tell)


def _certified(
    planner: Planner, question: Question, plan: PruningPlan, again: Callable[[float], PruningPlan]
) -> PruningPlan:
    """The plan, or a better one for the same budget, with a certificate; a plan of too many
    parameters gets none.

    Args:
        again: plans for another budget, ms.
    """
    most = question.request.max_params
    if most is not None and plan.params > most:
        return plan
    tell, done = named(question.on_progress, "certifying"), 0

    def measure(keeps: IntArray) -> Measurement:
        nonlocal done
        if tell is not None:
            tell(done, MAX_ROUNDS)
        done += 1
        return planner.measure(question, keeps)

    made = certify_plan(
        again,
        measure,
        plan,
        go_on=lambda: not question.out_of_time,
    )
    if most is not None and made.params > most:
        why = f"{made.note}; {made.params:,} parameters, of which {most:,} may stay"
        return replace(made, feasible=False, note=why)
    return made
