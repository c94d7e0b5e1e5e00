"""What a user writes: `Client("host:port").plan("model.onnx", device="...", budget_ms=8)`.

The model stays here: traced here, profiled here, and sent as a skeleton without weights. Importing
this imports neither torch nor ray nor a runtime nor a database.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rlprune.constraints import Constraints, bind, patterns
from rlprune.errors import BudgetError, InputError, MeasurementError, UnavailableError
from rlprune.graph.types import IntArray
from rlprune.latency.device import preferred_multiple
from rlprune.latency.types import MACS_DEVICE, Measurement, ModelSubject
from rlprune.planning import (
    check_budget,
    check_count,
    constrained_levels,
    default_count,
    profile_model,
    read_calibration,
    split_calibration,
)
from rlprune.plans import PruningPlan
from rlprune.sensitivity.types import GroupProfiles
from rlprune.service.channel import Channel
from rlprune.service.device_messages import device_from, subject_to
from rlprune.service.plan_messages import plan_from, profiles_to, record_from
from rlprune.service.waiting import OnProgress, find_job, wait_for_jobs
from rlprune.store.records import DeviceRecord, JobState, PlanRecord
from rlprune.v1 import devices_pb2, plans_pb2

if TYPE_CHECKING:
    import onnx

    from rlprune.graph.from_onnx import OnnxTrace
    from rlprune.sensitivity.sources import CalibrationSource

    Model = str | Path | bytes | onnx.ModelProto | OnnxTrace

PLAN_TIMEOUT_SEC = 120.0
"""Of one CreatePlan: a large model is traced once, and a device's tables fitted once a report."""
HEALTH_PAGE_SIZE = 8
"""Devices asked for at once with their health: a fit each, where it has measured since."""
CERTIFY_JOB_COUNT = 2
"""Measuring jobs of each round of a certificate."""


@dataclass(frozen=True, slots=True)
class PlanAnswer:
    """What a server answers to one planning question."""

    plan: PruningPlan | None
    """None while the device has measured nothing that a latency could be predicted from."""
    plan_id: str
    """Empty without a plan."""
    pending_job_ids: tuple[str, ...]
    """Jobs that the device has still to do for this model."""
    measured: bool
    """Whether the latencies come from measurements of the device."""


class Client:
    """A planning server, as a user sees it. May be used from several threads; `with` closes it."""

    def __init__(
        self,
        target: str,
        *,
        token: str | None = None,
        tls_ca: str | Path | None = None,
        patience_sec: float = 5.0,
    ) -> None:
        """See `channel.Channel`; the first call connects."""
        self._channel = Channel(target, token=token, tls_ca=tls_ca, patience_sec=patience_sec)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection."""
        self._channel.close()

    def plan(
        self,
        model: Model,
        *,
        device: str,
        budget_ms: float | None = None,
        budget_ratio: float | None = None,
        policy: str = "learned",
        calibration: CalibrationSource | None = None,
        round_to: int | None = None,
        min_keep: int = 1,
        min_keep_ratio: float = 0.0,
        hold: str | Iterable[str] = (),
        pin: str | Iterable[str] = (),
        input_shapes: Mapping[str, Sequence[int]] | None = None,
        certify: bool = False,
        guard: bool = True,
        candidates: int | None = None,
        wait: bool = True,
        timeout_sec: float = 600.0,
        on_progress: OnProgress | None = None,
    ) -> PruningPlan:
        """How many channels each group may keep, so that the model runs on `device` in time.

        Args:
            model: path, bytes or `onnx.ModelProto` of an ONNX model, or a trace of one.
            device: a key as `devices` has it, or `macs`.
            budget_ms: latency that the pruned model must not exceed; either this or
            budget_ratio: the same as a share (0-1] of the unpruned model's predicted latency.
            policy: learned, corrected, knapsack, global or uniform.
            calibration: as `rlprune.plan` takes it; losses are measured on it, on this machine.
            round_to, min_keep, min_keep_ratio, hold, pin: see `rlprune.plan`.
            input_shapes: shapes of inputs whose extents the file leaves open, by name.
            certify: have the plan measured on the device and corrected where it misses its budget
                or leaves much of it unused; `plan.certificate` says what came of it.
            guard, candidates: see `rlprune.plan`; candidates are evaluated on this machine.
            wait: for what the device has still to measure; without, the plan is what is known now.
            timeout_sec: how long to wait for that.
            on_progress: told what is being measured, here and on the device.

        Returns:
            The plan; `feasible` is False where no plan is within the budget.

        Raises:
            InputError: what was given is refused; the subclass says what (model, budget, ...).
            NotFoundError: the server does not know the device; names those it knows.
            MeasurementError: the device cannot run what would have to be measured.
            UnavailableError: no answer, or the device has not measured enough in time.
        """
        check_count(candidates or 0, calibrated=calibration is not None)
        request = plans_pb2.CreatePlanRequest(device=device, policy=policy, unguarded=not guard)
        if (budget_ms is None) == (budget_ratio is None):
            raise BudgetError("give either budget_ms or budget_ratio", field="budget_ms")
        if budget_ms is not None:
            request.budget_ms = check_budget(budget_ms)
        if budget_ratio is not None:
            request.budget_ratio = check_budget(budget_ratio, "budget_ratio")
        stated = Constraints(round_to, min_keep, min_keep_ratio, patterns(hold), patterns(pin))
        trace = _trace(model, input_shapes)
        bound = bind(trace.graph, stated, round_to=preferred_multiple(device))
        request.round_to, request.min_keep = stated.round_to or 0, min_keep
        request.min_keep_ratio = min_keep_ratio
        request.hold.extend(stated.hold)
        request.pin.extend(stated.pin)
        images = read_calibration(trace, calibration)
        if candidates is None:
            candidates = default_count(images, policy=policy, guard=guard)
        request.candidates = candidates
        images, pick = split_calibration(trace, images, candidates, on_progress)
        profiles = profile_model(
            trace, *constrained_levels(trace.graph, bound), images, on_progress=on_progress
        )
        deadline = time.monotonic() + timeout_sec if wait else 0.0
        made = pick(self._answer(trace, profiles, request, deadline, on_progress))
        if not certify:
            return made
        from rlprune.planning.certify import certify_plan
        from rlprune.planning.fresh import pooled

        def ask(budget_ms: float) -> PruningPlan:
            request.budget_ms = budget_ms
            return pick(self._answer(trace, profiles, request, deadline, on_progress))

        by = time.monotonic() + timeout_sec if deadline == 0.0 else deadline

        def measure(keeps: IntArray) -> Measurement:
            # A worker gives each job a process of its own.
            parts = [
                self.measure(
                    trace,
                    keeps,
                    device,
                    timeout_sec=max(by - time.monotonic(), 0.0),
                    on_progress=on_progress,
                )[0]
                for _ in range(CERTIFY_JOB_COUNT)
            ]
            return pooled(parts)

        return certify_plan(ask, measure, made)

    def _answer(
        self,
        trace: OnnxTrace,
        profiles: GroupProfiles,
        request: plans_pb2.CreatePlanRequest,
        deadline: float,
        on_progress: OnProgress | None,
    ) -> PruningPlan:
        """The server's plan, once the device has measured what it needs; not waited for after
        `deadline`."""
        while True:
            answer = self.create_plan(trace, profiles, request, until=deadline or None)
            if not answer.pending_job_ids or time.monotonic() > deadline:
                break
            self._wait(answer.pending_job_ids, request.device, deadline, on_progress)
        if answer.plan is None:
            raise UnavailableError(
                f"device {request.device!r} has not measured this model yet; "
                f"{len(answer.pending_job_ids)} jobs wait for its worker",
                field="device",
            )
        answer.plan.check(trace.graph)
        return answer.plan

    def create_plan(
        self,
        trace: OnnxTrace,
        profiles: GroupProfiles | None,
        request: plans_pb2.CreatePlanRequest,
        *,
        until: float | None = None,
    ) -> PlanAnswer:
        """One call of CreatePlan: `request` (budget, device, policy) about a traced model.

        Tried again `until` then, by `time.monotonic`, where the server has answered before.
        """
        from rlprune.graph.skeleton import strip

        asked = plans_pb2.CreatePlanRequest()
        asked.CopyFrom(request)
        asked.skeleton = strip(trace.model)
        if profiles is not None:
            asked.profiles.CopyFrom(profiles_to(profiles))
        asked.request_id = asked.request_id or uuid.uuid4().hex
        found = self._channel.call(
            "PlanService/CreatePlan",
            asked,
            plans_pb2.CreatePlanResponse,
            timeout_sec=PLAN_TIMEOUT_SEC,
            until=until,
        )
        return PlanAnswer(
            plan=plan_from(found.plan) if found.HasField("plan") else None,
            plan_id=found.plan_id,
            pending_job_ids=tuple(found.pending_job_ids),
            measured=found.measured,
        )

    def get_plan(self, plan_id: str) -> PruningPlan:
        """A stored plan; NotFoundError if there is none."""
        request = plans_pb2.GetPlanRequest(plan_id=plan_id)
        found = self._channel.call("PlanService/GetPlan", request, plans_pb2.StoredPlan)
        return plan_from(found.plan)

    def plans(self, *, device: str = "") -> Iterator[PlanRecord]:
        """All stored plans (for one device), newest first; fetched page by page."""
        request = plans_pb2.ListPlansRequest(device=device)
        while True:
            page = self._channel.call("PlanService/ListPlans", request, plans_pb2.ListPlansResponse)
            yield from (record_from(record) for record in page.plans)
            request.page_token = page.next_page_token
            if not request.page_token:
                return

    def devices(self, *, health: bool = False) -> list[DeviceRecord]:
        """All devices that the server knows, by key.

        With `health`, how far each one's predictions can be trusted, which the server may have to
        compute.
        """
        found: list[DeviceRecord] = []
        request = devices_pb2.ListDevicesRequest(with_health=health)
        if health:
            request.page_size = HEALTH_PAGE_SIZE
        while True:
            page = self._channel.call(
                "DeviceService/ListDevices",
                request,
                devices_pb2.ListDevicesResponse,
                timeout_sec=PLAN_TIMEOUT_SEC,
            )
            found += [device_from(device) for device in page.devices]
            request.page_token = page.next_page_token
            if not request.page_token:
                return found

    def measure(
        self,
        model: Model,
        keeps: IntArray,
        device: str,
        *,
        input_shapes: Mapping[str, Sequence[int]] | None = None,
        timeout_sec: float = 600.0,
        on_progress: OnProgress | None = None,
    ) -> list[Measurement]:
        """Has the device measure variants of a model now, and waits for it.

        Args:
            keeps: keep counts, one variant per row [N, G], or one variant [G].

        Returns:
            One measurement per row. What the device could not run has `status` "failed".

        Raises:
            NotFoundError: unknown device; names the known ones.
            MeasurementError: the device's workers gave the job up.
            UnavailableError: no answer in time.
        """
        from rlprune.graph.skeleton import strip

        if device == MACS_DEVICE:
            raise InputError("'macs' is counted, not measured; give a device", field="device")
        deadline = time.monotonic() + timeout_sec
        trace = _trace(model, input_shapes)
        rows = np.atleast_2d(np.asarray(keeps, dtype=np.int64))
        subjects = [
            ModelSubject(trace.graph.fingerprint, tuple(int(keep) for keep in row)) for row in rows
        ]
        request = devices_pb2.RequestMeasurementRequest(
            device=device,
            subjects=[subject_to(subject) for subject in dict.fromkeys(subjects)],
            skeleton=strip(trace.model),
            request_id=uuid.uuid4().hex,
        )
        job_id = self._channel.call(
            "DeviceService/RequestMeasurement", request, devices_pb2.Job, until=deadline
        ).job_id
        self._wait([job_id], device, deadline, on_progress)
        job, _, measurements = find_job(
            self._channel, job_id, until=deadline, with_measurements=True
        )
        if job.state is JobState.PARKED:
            raise MeasurementError(f"device {device!r} gave up: {job.reason}", field="device")
        found = {measurement.subject: measurement for measurement in measurements}
        return [found[subject] for subject in subjects]

    def _wait(
        self,
        job_ids: Sequence[str],
        device: str,
        deadline: float,
        on_progress: OnProgress | None,
    ) -> None:
        def last_seen_sec() -> float:
            return next((one.last_seen_sec for one in self.devices() if one.key == device), 0.0)

        wait_for_jobs(self._channel, job_ids, device, deadline, on_progress, last_seen_sec)


def _trace(model: Model, input_shapes: Mapping[str, Sequence[int]] | None) -> OnnxTrace:
    from rlprune.graph.from_onnx import OnnxTrace, trace_onnx

    if isinstance(model, OnnxTrace):
        return model
    return trace_onnx(model, input_shapes=input_shapes)
