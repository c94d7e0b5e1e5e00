"""Requests and plans as protocol messages and back.

What comes from outside is checked here as far as it can be without asking the store: what a request
says raises InputError naming the field, and a plan to be kept is checked by `check_plan`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rlprune.constraints import Constraints
from rlprune.device_keys import canonical_key
from rlprune.errors import BudgetError, InputError, PlanError
from rlprune.graph.any_trace import MAX_NAME
from rlprune.graph.types import PruningGraph
from rlprune.latency.subjects import check_settings
from rlprune.latency.types import F32, ModelSubject
from rlprune.planning.request import SEARCH, PlanRequest, Unit
from rlprune.plans import (
    Candidate,
    Certificate,
    MeasuredRound,
    PlanEntry,
    PlanFigures,
    PruningPlan,
    Unpruned,
)
from rlprune.schemes import CHANNEL_ONLY, asked_schemes
from rlprune.store.records import Asked, PlanRecord
from rlprune.v1 import plans_pb2, types_pb2

MAX_TEXT = 4096
"""Characters of a text in a plan that is kept."""
MAX_LIST = 2**14
"""Entries of a list in it."""
MAX_REQUEST = 65_536
"""Characters of what a user asked."""


def request_from(message: plans_pb2.CreatePlanRequest) -> PlanRequest:
    """The request of a message.

    Raises:
        InputError: a value that is none; names the field.
    """
    which = message.WhichOneof("budget")
    if which is None:
        raise BudgetError("give budget_ms or budget_ratio", field="budget_ms")
    unit: Unit = "ms" if which == "budget_ms" else "ratio"
    # Before 0.8 constraints stood in fields of the request itself, called alike.
    stated = message.constraints if message.HasField("constraints") else message
    return PlanRequest(
        budgets=(getattr(message, which),),
        unit=unit,
        device=message.device,
        precision=message.precision or F32,
        policy=message.policy or SEARCH,
        constraints=constraints_from(stated),
        guard=not message.unguarded,
        schemes=asked_schemes(message.schemes) or CHANNEL_ONLY,
        max_params=message.max_params or None,
    )


def request_to(request: PlanRequest, budget: float, unit: Unit) -> plans_pb2.CreatePlanRequest:
    """The message that asks for one of the request's budgets, or for another one; device, model,
    profiles and the round of a search are the sender's to add."""
    stated = request.constraints
    message = plans_pb2.CreatePlanRequest(
        policy="" if request.policy == SEARCH else request.policy,
        unguarded=not request.guard,
        max_params=request.max_params or 0,
        constraints=_constraints_to(stated),
        # Once more, for servers of 0.7.1 and before.
        round_to=stated.round_to or 0,
        min_keep=stated.min_keep,
        min_keep_ratio=stated.min_keep_ratio,
        hold=stated.hold,
        pin=stated.pin,
        # Left out where it is channels alone, for servers of 0.7.1 and before.
        schemes=() if request.schemes == CHANNEL_ONLY else request.schemes,
        precision=request.precision if request.precision != F32 else "",
    )
    setattr(message, f"budget_{unit}", budget)
    return message


def asked_from(message: plans_pb2.PutPlanRequest) -> Asked:
    """How a plan was asked for, in the user's words.

    Raises:
        InputError: longer than what is kept, or no JSON object; names the field.
    """
    name = message.model_name
    if len(name) > MAX_NAME or not name.isprintable():
        raise InputError(
            f"model_name {name[:80]!r} must have at most {MAX_NAME} characters, none of them a "
            "control character",
            field="model_name",
        )
    if len(message.request) > MAX_REQUEST:
        raise InputError(
            f"request has {len(message.request)} characters, more than {MAX_REQUEST}",
            field="request",
        )
    try:
        stated = json.loads(message.request or "{}")
    except (ValueError, RecursionError) as error:
        raise InputError(f"request is not JSON ({error})", field="request") from error
    if not isinstance(stated, dict):
        raise InputError("request is not a JSON object", field="request")
    return Asked(name, message.request)


def plan_to(plan: PruningPlan) -> types_pb2.PruningPlan:
    """The plan's message."""
    return types_pb2.PruningPlan(
        fingerprint=plan.fingerprint,
        policy=plan.policy,
        profiled=plan.profiled,
        device=plan.device,
        precision=plan.precision if plan.precision != F32 else "",
        budget_ms=plan.budget_ms,
        feasible=plan.feasible,
        base_latency_ms=plan.base_latency_ms,
        least_latency_ms=plan.least_latency_ms,
        predicted_latency_ms=plan.predicted_latency_ms,
        predicted_interval_ms=_interval(plan.predicted_interval_ms),
        groups=[
            types_pb2.PlanEntry(
                name=entry.name,
                scheme=entry.scheme,
                width=entry.width,
                keep=entry.keep,
                members=entry.members,
                constraint=entry.constraint,
            )
            for entry in plan.groups
        ],
        macs=plan.macs,
        params=plan.params,
        reference=None if plan.reference is None else _figures_to(plan.reference),
        note=plan.note,
        constraints=_constraints_to(plan.constraints),
        unpruned=[types_pb2.Unpruned(**asdict(one)) for one in plan.unpruned],
        candidates=[_candidate_to(one) for one in plan.candidates],
        expected_divergence=plan.expected_divergence,
        certificate=None if plan.certificate is None else _certificate_to(plan.certificate),
    )


def plan_from(message: types_pb2.PruningPlan) -> PruningPlan:
    """The plan of a message."""
    return PruningPlan(
        fingerprint=message.fingerprint,
        policy=message.policy,
        profiled=message.profiled,
        device=canonical_key(message.device),
        precision=message.precision or F32,
        unpruned=tuple(Unpruned(one.precision, one.latency_ms) for one in message.unpruned),
        budget_ms=message.budget_ms,
        feasible=message.feasible,
        base_latency_ms=message.base_latency_ms,
        least_latency_ms=message.least_latency_ms,
        predicted_latency_ms=message.predicted_latency_ms,
        predicted_interval_ms=_pair(message.predicted_interval_ms),
        groups=tuple(
            PlanEntry(
                entry.name,
                entry.scheme,
                entry.width,
                entry.keep,
                tuple(entry.members),
                entry.constraint,
            )
            for entry in message.groups
        ),
        macs=message.macs,
        params=message.params,
        reference=PlanFigures(**_figures_from(message.reference))
        if message.HasField("reference")
        else None,
        note=message.note,
        constraints=constraints_from(message.constraints),
        candidates=tuple(_candidate_from(one) for one in message.candidates),
        expected_divergence=_optional(message, "expected_divergence"),
        certificate=_certificate_from(message.certificate)
        if message.HasField("certificate")
        else None,
    )


def check_plan(plan: PruningPlan, graph: PruningGraph) -> None:
    """Refuses a plan that cannot be kept: not of the graph, NaN or infinite figures, endless texts.

    Raises:
        PlanError: names the part at fault.
    """
    plan.check(graph)
    _check_part(asdict(plan), "plan")
    rounds = () if plan.certificate is None else plan.certificate.rounds
    reference = () if plan.reference is None else (plan.reference,)
    for keeps in (one.keeps for one in (*reference, *plan.candidates, *rounds)):
        try:
            check_settings(
                graph, ModelSubject(graph.fingerprint, keeps, plan.schemes, plan.precision)
            )
        except InputError as error:
            raise PlanError(str(error), field="plan.keeps") from error
    if rounds == () and plan.certificate is not None:
        raise PlanError("a certificate without a measurement", field="plan.certificate.rounds")
    if not plan.budget_ms > 0:
        raise PlanError(f"the budget is {plan.budget_ms}", field="plan.budget_ms")


def _check_part(part: Any, field: str) -> None:
    if isinstance(part, Mapping):
        for name, value in part.items():
            _check_part(value, f"{field}.{name}")
    elif isinstance(part, str):
        if len(part) > MAX_TEXT:
            raise PlanError(f"{len(part)} characters, more than {MAX_TEXT}", field=field)
    elif isinstance(part, Sequence):
        if len(part) > MAX_LIST:
            raise PlanError(f"{len(part)} entries, more than {MAX_LIST}", field=field)
        for index, value in enumerate(part):
            _check_part(value, f"{field}[{index}]")
    elif isinstance(part, float):
        if not math.isfinite(part):
            raise PlanError(f"{part} is not a finite number", field=field)
    elif isinstance(part, int) and part < 0:
        raise PlanError(f"{part} is negative", field=field)


def _constraints_to(constraints: Constraints) -> types_pb2.Constraints:
    return types_pb2.Constraints(
        round_to=constraints.round_to or 0,
        min_keep=constraints.min_keep,
        min_keep_ratio=constraints.min_keep_ratio,
        hold=constraints.hold,
        pin=constraints.pin,
        keep_float=constraints.keep_float,
    )


def constraints_from(
    message: types_pb2.Constraints | plans_pb2.CreatePlanRequest,
) -> Constraints:
    """The constraints of a message, or of a request, whose fields are called alike.

    Raises:
        InputError: a value that is none; names the field.
    """
    return Constraints(
        message.round_to or None,
        message.min_keep or 1,
        message.min_keep_ratio,
        tuple(message.hold),
        tuple(message.pin),
        tuple(getattr(message, "keep_float", ())),  # requests of 0.7 have no such field
    )


def record_to(record: PlanRecord) -> plans_pb2.StoredPlan:
    """A stored plan's message."""
    return plans_pb2.StoredPlan(
        plan_id=record.plan_id,
        plan=plan_to(record.plan),
        created_sec=record.created_sec,
        model_name=record.model_name,
        request=record.request,
    )


def record_from(message: plans_pb2.StoredPlan) -> PlanRecord:
    """The stored plan of a message."""
    return PlanRecord(
        message.plan_id,
        plan_from(message.plan),
        message.created_sec,
        model_name=message.model_name,
        request=message.request,
    )


def _figures_to(figures: PlanFigures) -> types_pb2.PlanFigures:
    return types_pb2.PlanFigures(
        keeps=figures.keeps,
        predicted_latency_ms=figures.predicted_latency_ms,
        predicted_interval_ms=_interval(figures.predicted_interval_ms),
        macs=figures.macs,
        params=figures.params,
    )


def _figures_from(message: types_pb2.PlanFigures) -> dict[str, Any]:
    """What `PlanFigures` holds."""
    return {
        "keeps": tuple(message.keeps),
        "predicted_latency_ms": message.predicted_latency_ms,
        "predicted_interval_ms": _pair(message.predicted_interval_ms),
        "macs": message.macs,
        "params": message.params,
    }


def _candidate_to(candidate: Candidate) -> types_pb2.Candidate:
    return types_pb2.Candidate(
        policy=candidate.policy,
        figures=_figures_to(candidate),
        divergence=candidate.divergence,
        gain_se=candidate.gain_se,
        loss=candidate.loss,
        loss_se=candidate.loss_se,
        image_count=candidate.image_count,
        chosen=candidate.chosen,
    )


def _candidate_from(message: types_pb2.Candidate) -> Candidate:
    return Candidate(
        **_figures_from(message.figures),
        policy=message.policy,
        divergence=_optional(message, "divergence"),
        gain_se=_optional(message, "gain_se"),
        loss=_optional(message, "loss"),
        loss_se=_optional(message, "loss_se"),
        image_count=message.image_count,
        chosen=message.chosen,
    )


def _certificate_to(certificate: Certificate) -> types_pb2.Certificate:
    return types_pb2.Certificate(
        within=certificate.within,
        measured_latency_ms=certificate.measured_latency_ms,
        measured_interval_ms=_interval(certificate.measured_interval_ms),
        rounds=[
            types_pb2.MeasuredRound(
                keeps=one.keeps,
                predicted_latency_ms=one.predicted_latency_ms,
                measured_latency_ms=one.measured_latency_ms,
                measured_interval_ms=_interval(one.measured_interval_ms),
                status=one.status,
                reason=one.reason,
            )
            for one in certificate.rounds
        ],
    )


def _certificate_from(message: types_pb2.Certificate) -> Certificate:
    return Certificate(
        within=message.within,
        measured_latency_ms=message.measured_latency_ms,
        measured_interval_ms=_pair(message.measured_interval_ms),
        rounds=tuple(
            MeasuredRound(
                keeps=tuple(one.keeps),
                predicted_latency_ms=one.predicted_latency_ms,
                measured_latency_ms=one.measured_latency_ms,
                measured_interval_ms=_pair(one.measured_interval_ms),
                status=one.status,
                reason=one.reason,
            )
            for one in message.rounds
        ),
    )


def _optional(message: Any, name: str) -> float | None:
    """A field that may be absent."""
    return float(getattr(message, name)) if message.HasField(name) else None


def _interval(pair: tuple[float, float]) -> types_pb2.Interval:
    return types_pb2.Interval(low=pair[0], high=pair[1])


def _pair(message: types_pb2.Interval) -> tuple[float, float]:
    return message.low, message.high
