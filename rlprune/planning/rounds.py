"""From a planning question to its plans; the same steps whoever answers.

The calibration set is read or made up and the constraints are bound. What options lose is told by
one pass of the network, and plans are proposed and evaluated (`search`); or it is measured or
predicted, and a policy answers by it alone. Each budget is answered (`Planner.answer`), the plan
certified on the device if asked, and kept. Budgets of one request share all that does not depend on
them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from rlprune.constraints import bind
from rlprune.errors import CalibrationError, InputError, MissingExtraError
from rlprune.graph.from_onnx import OnnxTrace
from rlprune.graph.types import IntArray
from rlprune.latency.types import Measurement
from rlprune.planning.certify import MAX_ROUNDS, certify_plan
from rlprune.planning.effort import DEFAULT_EFFORT, EFFORTS, Effort, passed_count
from rlprune.planning.judge import Judge, SearchImages
from rlprune.planning.planner import Planner, Question
from rlprune.planning.profiles import (
    OnProgress,
    named,
    profile_model,
    read_calibration,
)
from rlprune.planning.request import PlanRequest
from rlprune.planning.search import Search
from rlprune.plans import PruningPlan
from rlprune.runtime import get_runtime
from rlprune.schemes import space_of
from rlprune.sensitivity.initial import InitialScores, initial_profiles
from rlprune.sensitivity.sources import few_made_up

if TYPE_CHECKING:
    from rlprune.graph.from_torch import TorchTrace
    from rlprune.sensitivity.calibration import CalibrationSet
    from rlprune.sensitivity.sources import CalibrationSource

HURRIED_COUNT = 64
"""Made-up inputs of an instant plan, at most: of 256 its plans are no better (five networks)."""


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
    traced = trace if isinstance(trace, OnnxTrace) else trace.onnx
    device = planner.resolve(request, traced.graph)
    scores = _initial_scores(trace, request, calibration)
    named_effort = effort_of(request, calibration)
    effort = None if named_effort is None else EFFORTS[named_effort].fitted(traced.graph)
    images = None if scores is not None else _images(traced, request, effort, calibration)
    if request.effort is not None and images is None:
        raise InputError(
            "effort judges by inputs; give some, or leave calibration out", field="effort"
        )
    request = request.with_schemes(device, measured=images is not None)
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
    if effort is not None and images is not None:
        used = SearchImages.of(images, effort, traced.graph)
        try:
            judge = Judge(traced, space, used, request.arithmetic, evaluates=effort.rounds > 0)
        except CalibrationError:
            if request.effort is not None or calibration is not None:
                raise
            images = None  # a network that does not run on made-up inputs
    if judge is not None:
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
        deadline=time.monotonic() + (planner.default_timeout_sec if left_sec is None else left_sec),
        model_name=model_name,
        on_progress=on_progress,
        few=None if effort is None or request.certify else effort.few,
    )
    if effort is not None and judge is not None:
        search = Search(planner, question, judge, effort)
        plan_for, again = search.plan, search.again
    else:
        plan_for = partial(planner.answer, question)
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


def effort_of(request: PlanRequest, calibration: CalibrationSource | None) -> str | None:
    """How much a search for its plans does; None where there is none: what options lose is then
    measured on the calibration data one by one, or predicted."""
    if not request.searches:
        return None
    if request.effort is None and calibration is None:
        try:
            get_runtime()
        except MissingExtraError:
            return None
    return request.effort or DEFAULT_EFFORT


def _images(
    trace: OnnxTrace,
    request: PlanRequest,
    effort: Effort | None,
    calibration: CalibrationSource | None,
) -> CalibrationSet | None:
    """The calibration set, made up for a search without one; None where there is none.

    Raises:
        CalibrationError: it is refused.
    """
    if calibration is not None or effort is None:
        return read_calibration(trace, calibration)
    try:
        if effort.rounds:
            needed = SearchImages.needed(effort, trace.graph)
            return few_made_up(trace, needed, choose=True)
        return few_made_up(trace, min(passed_count(trace.graph), HURRIED_COUNT))
    except CalibrationError:
        if request.effort is not None:
            raise
        return None  # a network that takes no made-up inputs


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
