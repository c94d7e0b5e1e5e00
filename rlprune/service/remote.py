"""Planning by a server: it plans, its workers measure, and the weights stay here.

A model is named by its fingerprint; only a server that does not know it is sent the skeleton. What
the server plans on the way is provisional: it keeps what the user is given (PutPlan). A server of
0.7.1 or before keeps every plan that it makes, and knows neither.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

from rlprune.errors import (
    InputError,
    MeasurementError,
    NotFoundError,
    NotServedError,
    RlpruneError,
    UnavailableError,
)
from rlprune.graph.types import IntArray, PruningGraph
from rlprune.latency.device import preferred_multiple, with_threads
from rlprune.latency.types import MACS_DEVICE, Measurement, ModelSubject
from rlprune.planning.planner import Question
from rlprune.planning.request import PlanRequest, Unit
from rlprune.plans import PruningPlan
from rlprune.policy.race import NAME
from rlprune.progress import OnProgress
from rlprune.service.channel import Channel
from rlprune.service.device_messages import subject_to
from rlprune.service.plan_messages import plan_from, plan_to, request_to
from rlprune.service.profile_messages import profiles_to
from rlprune.service.search_messages import round_to_message
from rlprune.service.waiting import LONG_TIMEOUT_SEC, find_job, wait_for_jobs
from rlprune.store.records import JobState
from rlprune.v1 import devices_pb2, plans_pb2

if TYPE_CHECKING:
    from rlprune.graph.from_onnx import OnnxTrace
    from rlprune.planning.proposals import Round

LOG = logging.getLogger("rlprune.planning")

CERTIFY_JOB_COUNT = 2
"""Measuring jobs of each round of a certificate; a worker gives each a process of its own."""

T = TypeVar("T")


class SentModel:
    """A traced model as a server is told of it."""

    def __init__(self, trace: OnnxTrace) -> None:
        self.fingerprint = trace.graph.fingerprint
        self._trace = trace

    @cached_property
    def skeleton(self) -> bytes:
        """The model without its weights; stripped once."""
        from rlprune.graph.skeleton import strip

        return strip(self._trace.model)

    def tell(self, call: Callable[[bytes], T]) -> T:
        """`call` without a skeleton, and again with it where the server does not know the model."""
        try:
            return call(b"")
        except NotFoundError as error:
            if error.field != "fingerprint":
                raise
        return call(self.skeleton)


class RemotePlanner:
    """Plans by asking a server; see `planning.Planner`. For one question after the other."""

    default_timeout_sec = 600.0

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._model: SentModel | None = None
        self._keeps_all = False
        """Whether the server is of an earlier version, which keeps every plan that it makes."""

    def resolve(self, request: PlanRequest, graph: PruningGraph) -> str:
        """See `Planner`."""
        self._model = None
        if request.device is None:
            raise InputError(
                "which device? give a key that the server knows (`rlprune devices --server`), or "
                "macs",
                field="device",
            )
        if request.threads is not None:
            return with_threads(request.device, request.threads)
        return request.device

    def round_to(self, request: PlanRequest, device: str) -> int:
        """See `Planner`: by the key, since nobody tells what was measured of multiples there."""
        return preferred_multiple(device, request.precision)

    def answer(
        self, question: Question, budget: float, unit: Unit, search: Round | None = None
    ) -> PruningPlan:
        """See `Planner`."""
        request, device = question.request, question.device
        asked = request_to(request, budget, unit)
        asked.device, asked.provisional = device, True
        if search is not None:
            asked.candidates = search.count
            asked.search.CopyFrom(round_to_message(search))
        asked.profiles.CopyFrom(profiles_to(question.profiles))
        while True:
            found = self._create_plan(question, asked)
            pending = tuple(found.pending_job_ids)
            if question.few is not None and found.HasField("awaited_job_count"):
                pending = pending[: found.awaited_job_count]
            if request.effort == "instant" and found.HasField("plan"):
                pending = ()
            if not pending or not request.wait or question.out_of_time:
                break
            wait_for_jobs(self._channel, pending, device, question.deadline, question.on_progress)
        if not found.HasField("plan"):
            raise UnavailableError(
                f"device {device!r} has not measured this model yet; {len(pending)} jobs wait for "
                "its worker",
                field="device",
            )
        self._keeps_all = bool(found.plan_id)
        if self._keeps_all:
            for field in ("max_params", "at_init"):
                if getattr(request, field) is not None:
                    raise InputError(
                        f"{self._channel.target} is of an earlier version, which knows no {field}; "
                        "plan on this machine, or update the server",
                        field=field,
                    )
        plan = plan_from(found.plan)
        plan.check(question.graph)
        old = self._keeps_all or any(one.policy != NAME for one in plan.candidates)
        if search is not None and old:
            if request.effort is not None:
                raise InputError(
                    f"{self._channel.target} is of an earlier version, which knows no effort; plan "
                    "on this machine, or update the server",
                    field="effort",
                )
            plan = replace(plan, candidates=())  # its plan, by what one pass tells
        if plan.precision != request.precision:
            raise InputError(
                f"{self._channel.target} is of an earlier version, which plans in f32 only; plan "
                "on this machine, or update the server",
                field="precision",
            )
        return plan

    def learn(self, question: Question, keeps: IntArray) -> None:
        """See `Planner`: a server's workers measure what it asks them to."""

    def measure(self, question: Question, keeps: IntArray) -> Measurement:
        """See `Planner`."""
        from rlprune.planning.fresh import pooled

        parts: list[Measurement] = []
        for _ in range(CERTIFY_JOB_COUNT):
            parts += measure_on(
                self._channel,
                self._sent(question),
                [question.subject(keeps)],
                question.device,
                deadline=question.deadline,
                on_progress=question.on_progress,
            )
        return pooled(parts)

    def put(self, question: Question, plan: PruningPlan) -> None:
        """See `Planner`."""
        if self._keeps_all:
            return
        request = plans_pb2.PutPlanRequest(
            plan=plan_to(plan),
            model_name=question.model_name,
            request=question.request.to_json(),
            request_id=uuid.uuid4().hex,
        )
        try:
            self._channel.call("PlanService/PutPlan", request, plans_pb2.StoredPlan)
        except NotServedError:
            pass  # an earlier version
        except RlpruneError as error:
            LOG.warning("the plan is not kept by %s: %s", self._channel.target, error)

    def _sent(self, question: Question) -> SentModel:
        if self._model is None or self._model.fingerprint != question.graph.fingerprint:
            self._model = SentModel(question.trace)
        return self._model

    def _create_plan(
        self, question: Question, asked: plans_pb2.CreatePlanRequest
    ) -> plans_pb2.CreatePlanResponse:
        """One call; tried again until the deadline where the server has answered before."""
        model = self._sent(question)

        def call(skeleton: bytes) -> plans_pb2.CreatePlanResponse:
            if skeleton:
                asked.skeleton = skeleton
            else:
                asked.fingerprint = model.fingerprint
            asked.request_id = uuid.uuid4().hex
            return self._channel.call(
                "PlanService/CreatePlan",
                asked,
                plans_pb2.CreatePlanResponse,
                timeout_sec=LONG_TIMEOUT_SEC,
                until=question.deadline if question.request.wait else None,
            )

        return model.tell(call)


def measure_on(
    channel: Channel,
    model: SentModel,
    subjects: Sequence[ModelSubject],
    device: str,
    *,
    deadline: float,
    on_progress: OnProgress | None = None,
) -> list[Measurement]:
    """Has a device measure variants of a model, and waits until the deadline; see
    `Client.measure`."""
    if device == MACS_DEVICE:
        raise InputError("'macs' is counted, not measured; give a device", field="device")

    def call(skeleton: bytes) -> devices_pb2.Job:
        request = devices_pb2.RequestMeasurementRequest(
            device=device,
            subjects=[subject_to(subject) for subject in dict.fromkeys(subjects)],
            skeleton=skeleton,
            request_id=uuid.uuid4().hex,
        )
        return channel.call(
            "DeviceService/RequestMeasurement", request, devices_pb2.Job, until=deadline
        )

    job_id = model.tell(call).job_id
    wait_for_jobs(channel, [job_id], device, deadline, on_progress)
    job, _, measurements = find_job(channel, job_id, until=deadline, with_measurements=True)
    if job.state is JobState.PARKED:
        raise MeasurementError(f"device {device!r} gave up: {job.reason}", field="device")
    found = {measurement.subject: measurement for measurement in measurements}
    return [found[subject] for subject in subjects]
