"""Subjects, measurements, jobs and devices as protocol messages and back.

What comes from outside is checked here as far as it can be without asking the store: each
`..._from` raises InputError naming the field; what it returns has the right shapes and no NaN.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict

from rlprune.constraints import Constraints
from rlprune.device_keys import canonical_key
from rlprune.errors import InputError
from rlprune.latency.types import (
    EXTENTS,
    F32,
    PRECISIONS,
    Measurement,
    ModelSubject,
    OperatorSpec,
    Subject,
)
from rlprune.schemes import CHANNEL_ONLY, check_schemes
from rlprune.store.encoding import check_fingerprint, check_measurement
from rlprune.store.records import DeviceHealth, DeviceRecord, Job, JobState
from rlprune.v1 import devices_pb2, types_pb2

MAX_WIDTH = 1 << 20
MAX_ELEMENTS = 1 << 28
"""Of an operator's weight or activation: 1 GiB as float32, more than any worker should be asked."""

MOST_DROPPED = 20
"""Lines told of what a device reported in vain; an answer stays small whatever it reports."""

_JOB_STATES: dict[JobState, devices_pb2.JobState] = {
    JobState.PENDING: devices_pb2.JOB_STATE_PENDING,
    JobState.LEASED: devices_pb2.JOB_STATE_LEASED,
    JobState.DONE: devices_pb2.JOB_STATE_DONE,
    JobState.FAILED: devices_pb2.JOB_STATE_FAILED,
    JobState.PARKED: devices_pb2.JOB_STATE_PARKED,
}
_STATES_OF = {number: state for state, number in _JOB_STATES.items()}


def subject_to(subject: Subject) -> types_pb2.Subject:
    """The subject's message."""
    if isinstance(subject, ModelSubject):
        model = types_pb2.ModelSubject(
            fingerprint=subject.fingerprint,
            keeps=subject.settings,
            schemes=() if subject.schemes == CHANNEL_ONLY else subject.schemes,
            precision=subject.precision if subject.precision != F32 else "",
            keep_float=subject.keep_float,
        )
        return types_pb2.Subject(model=model)
    told = asdict(subject)
    if subject.precision == F32:
        del told["precision"]
    return types_pb2.Subject(operator=types_pb2.OperatorSpec(**told))


def subject_from(message: types_pb2.Subject, *, field: str = "subject") -> Subject:
    """The subject of a message.

    Raises:
        InputError: none is given, or it is larger than any device should be asked to measure.
    """
    which = message.WhichOneof("subject")
    if which == "model":
        keeps = tuple(message.model.keeps)
        check_fingerprint(message.model.fingerprint, field=f"{field}.model.fingerprint")
        schemes = check_schemes(message.model.schemes)
        least = 1 if schemes == CHANNEL_ONLY else 0  # `latency.subjects` knows the groups
        if not all(least <= keep <= MAX_WIDTH for keep in keeps):
            raise InputError("keep counts are at least 1", field=f"{field}.model.keeps")
        return ModelSubject(
            message.model.fingerprint,
            keeps,
            schemes,
            _precision(message.model.precision, f"{field}.model.precision"),
            Constraints(keep_float=tuple(message.model.keep_float)).keep_float,
        )
    if which == "operator":
        return _operator_from(message.operator, f"{field}.operator")
    raise InputError("give an operator or a model", field=field)


def _precision(given: str, field: str) -> str:
    """The precision of a message, `f32` where it says none.

    Raises:
        InputError: it is not measured.
    """
    if given and given not in PRECISIONS:
        raise InputError(
            f"no precision {given[:40]!r} is measured; give {', '.join(PRECISIONS)}", field=field
        )
    return given or F32


def _operator_from(message: types_pb2.OperatorSpec, field: str) -> OperatorSpec:
    extents = {name: tuple(getattr(message, name)) for name in EXTENTS}
    for name, values in extents.items():
        if len(values) > 8 or not all(0 <= value <= MAX_WIDTH for value in values):
            raise InputError("at most 8 extents, none negative", field=f"{field}.{name}")
    for name in ("in_width", "out_width", "groups"):
        if not 0 <= getattr(message, name) <= MAX_WIDTH:
            raise InputError(f"must lie within 0..{MAX_WIDTH}", field=f"{field}.{name}")
    weight = message.in_width * message.out_width * math.prod(extents["kernel"])
    activations = (
        message.in_width * math.prod(extents["in_spatial"]),
        message.out_width * math.prod(extents["out_spatial"]),
    )
    if max(weight, *activations) > MAX_ELEMENTS:
        raise InputError(f"an operator of more than {MAX_ELEMENTS} elements", field=field)
    if not 1 <= len(message.kind) <= 64 or len(message.variant) > 64:
        raise InputError("kind has 1..64 characters, variant up to 64", field=f"{field}.kind")
    return OperatorSpec(
        kind=message.kind,
        variant=message.variant,
        in_width=message.in_width,
        out_width=message.out_width,
        groups=message.groups,
        precision=_precision(message.precision, f"{field}.precision"),
        **extents,
    )


def subjects_from(messages: Iterable[types_pb2.Subject], *, field: str) -> tuple[Subject, ...]:
    """`subject_from` of each."""
    return tuple(
        subject_from(message, field=f"{field}[{index}]") for index, message in enumerate(messages)
    )


def measurement_to(measurement: Measurement) -> types_pb2.Measurement:
    """The measurement's message."""
    return types_pb2.Measurement(
        device=measurement.device,
        subject=subject_to(measurement.subject),
        cpu=_sessions_to(measurement.cpu_ms),
        wall=_sessions_to(measurement.wall_ms),
        control_cpu=_sessions_to(measurement.control_cpu_ms),
        control_wall=_sessions_to(measurement.control_wall_ms),
        thread_count=measurement.thread_count,
        warmup_count=measurement.warmup_count,
        status=measurement.status,
        reason=measurement.reason,
        conditions=[
            types_pb2.Condition(name=name, value=value) for name, value in measurement.conditions
        ],
    )


def measurement_from(message: types_pb2.Measurement, *, field: str = "measurement") -> Measurement:
    """The measurement of a message.

    Raises:
        InputError: what no device can have measured, named by field.
    """
    measurement = Measurement(
        device=canonical_key(message.device),
        subject=subject_from(message.subject, field=f"{field}.subject"),
        cpu_ms=_sessions_from(message.cpu),
        wall_ms=_sessions_from(message.wall),
        control_cpu_ms=_sessions_from(message.control_cpu),
        control_wall_ms=_sessions_from(message.control_wall),
        thread_count=message.thread_count,
        warmup_count=message.warmup_count,
        status=message.status,
        reason=message.reason,
        conditions=tuple((condition.name, condition.value) for condition in message.conditions),
    )
    check_measurement(measurement, field=field)
    return measurement


def _sessions_to(sessions: Sequence[Sequence[float]]) -> list[types_pb2.Session]:
    return [types_pb2.Session(samples_ms=samples) for samples in sessions]


def _sessions_from(messages: Iterable[types_pb2.Session]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(message.samples_ms) for message in messages)


def job_to(
    job: Job, measurements: Sequence[Measurement] = (), *, reported_count: int = 0
) -> devices_pb2.Job:
    """The job's message."""
    return devices_pb2.Job(
        job_id=job.job_id,
        device=job.device,
        state=state_to(job.state),
        subjects=[subject_to(subject) for subject in job.subjects],
        fingerprint=job.fingerprint,
        failure_count=job.failure_count,
        reason=job.reason,
        measurements=[measurement_to(measurement) for measurement in measurements],
        reported_count=reported_count,
    )


def job_from(message: devices_pb2.Job) -> tuple[Job, list[Measurement]]:
    """The job of a message, and what was reported for it."""
    job = Job(
        job_id=message.job_id,
        device=message.device,
        subjects=subjects_from(message.subjects, field="job.subjects"),
        fingerprint=message.fingerprint,
        state=state_from(message.state),
        failure_count=message.failure_count,
        reason=message.reason,
    )
    return job, [measurement_from(measurement) for measurement in message.measurements]


def state_to(state: JobState) -> devices_pb2.JobState:
    """The state's number."""
    return _JOB_STATES[state]


def state_from(number: devices_pb2.JobState) -> JobState:
    """The state of a number; UNKNOWN where this version does not know it."""
    return _STATES_OF.get(number, JobState.UNKNOWN)


def device_to(record: DeviceRecord, open_job_count: int) -> devices_pb2.Device:
    """The device's message."""
    message = devices_pb2.Device(
        key=record.key,
        description=record.description,
        first_seen_sec=record.first_seen_sec,
        last_seen_sec=record.last_seen_sec,
        measurement_count=record.measurement_count,
        generation=record.generation,
        open_job_count=open_job_count,
        last_measured_sec=record.last_measured_sec,
    )
    if record.health is not None:
        known = {k: v for k, v in asdict(record.health).items() if v == v}  # NaN is left out
        known["dropped"] = _few(record.health.dropped)
        message.health.CopyFrom(devices_pb2.DeviceHealth(**known))
    return message


def _few(dropped: Sequence[str]) -> list[str]:
    """The first of many lines, and how many more there are."""
    if len(dropped) <= MOST_DROPPED:
        return list(dropped)
    return [*dropped[: MOST_DROPPED - 1], f"{len(dropped) - MOST_DROPPED + 1} more"]


def device_from(message: devices_pb2.Device) -> DeviceRecord:
    """The device of a message."""
    return DeviceRecord(
        key=message.key,
        description=dict(message.description),
        first_seen_sec=message.first_seen_sec,
        last_seen_sec=message.last_seen_sec,
        measurement_count=message.measurement_count,
        generation=message.generation,
        last_measured_sec=message.last_measured_sec
        if message.HasField("last_measured_sec")
        else None,
        health=_health_from(message.health) if message.HasField("health") else None,
    )


def _health_from(message: devices_pb2.DeviceHealth) -> DeviceHealth:
    nan = float("nan")
    return DeviceHealth(
        error_ratio=message.error_ratio if message.HasField("error_ratio") else nan,
        drift_ratio=message.drift_ratio if message.HasField("drift_ratio") else nan,
        stale=message.stale,
        parked_job_count=message.parked_job_count,
        dropped=tuple(message.dropped),
    )
