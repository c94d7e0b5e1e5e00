"""Measurements and their subjects as text, and what a measurement must be to enter a store."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from rlprune.errors import InputError, StoreError
from rlprune.latency.limits import fault_of
from rlprune.latency.types import MACS_DEVICE, Measurement, ModelSubject, OperatorSpec

Subject = OperatorSpec | ModelSubject

_DEVICE = re.compile(r"[a-z0-9._-]{1,120}")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
MAX_ID = 200
_ID = re.compile(rf"[^\x00-\x1f\x7f\ud800-\udfff]{{0,{MAX_ID}}}")
_STATUSES = ("ok", "unstable", "failed")
_SAMPLES = ("cpu_ms", "wall_ms", "control_cpu_ms", "control_wall_ms")


@contextmanager
def stored(what: str) -> Iterator[None]:
    """Around the reading of what the store itself wrote: where that makes no sense, the store is
    damaged.

    Raises:
        StoreError: names `what` was read.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, InputError) as e:
        why = str(e).splitlines()[0][:200] if str(e) else type(e).__name__
        raise StoreError(
            f"the store is damaged: {what} cannot be read ({why}); restore it from a backup"
        ) from e


def check_device(device: str, *, field: str = "device") -> str:
    """The device key itself; InputError unless it is one that a real device may have."""
    if not _DEVICE.fullmatch(device):
        raise InputError(
            f"device key {device[:130]!r} must match [a-z0-9._-]{{1,120}}", field=field
        )
    if device == MACS_DEVICE:
        raise InputError(f"{device!r} is built in and measures nothing", field=field)
    return device


def check_request_id(request_id: str, *, field: str = "request_id") -> str:
    """The request id itself; InputError unless it matches [A-Za-z0-9._-]{1,64}."""
    if not _REQUEST_ID.fullmatch(request_id):
        raise InputError(
            f"request_id {request_id[:80]!r} must match [A-Za-z0-9._-]{{1,64}}", field=field
        )
    return request_id


def check_id(given: str, *, field: str) -> str:
    """The id of a plan, job, lease, worker or device as somebody gave it; InputError where none can
    be like that. Most databases would not take it: PostgreSQL no NUL, nobody half a letter."""
    if not _ID.fullmatch(given):
        raise InputError(
            f"{field} {given[:80]!r} must have at most {MAX_ID} characters, none of them a control "
            "character",
            field=field,
        )
    return given


def check_fingerprint(fingerprint: str, *, field: str = "fingerprint") -> str:
    """The fingerprint itself; InputError unless it is 64 hex digits."""
    if not _FINGERPRINT.fullmatch(fingerprint):
        raise InputError(f"fingerprint {fingerprint[:80]!r} is not 64 hex digits", field=field)
    return fingerprint


def check_measurement(measurement: Measurement, *, field: str = "measurement") -> None:
    """Refuses what no device can have measured (`latency.limits`): NaN, times below nanoseconds or
    above a quarter of an hour, missing samples, unknown kinds of operators, unknown status.

    Raises:
        InputError: naming `field` and the part of the measurement at fault.
    """
    check_device(measurement.device, field=f"{field}.device")
    if isinstance(measurement.subject, ModelSubject):
        check_fingerprint(measurement.subject.fingerprint, field=f"{field}.subject.fingerprint")
    if measurement.status not in _STATUSES:
        raise InputError(
            f"status {measurement.status[:80]!r} is none of {', '.join(_STATUSES)}",
            field=f"{field}.status",
        )
    fault = fault_of(measurement)
    if fault is not None:
        raise InputError(fault[1], field=f"{field}.{fault[0]}")


def subject_key(subject: Subject) -> str:
    """One canonical line of JSON; equal subjects, equal keys."""
    if isinstance(subject, OperatorSpec):
        return subject.key()
    return json.dumps(
        {"fingerprint": subject.fingerprint, "keeps": list(subject.keeps)}, separators=(",", ":")
    )


def subject_from_key(key: str) -> Subject:
    """The inverse of `subject_key`.

    Raises:
        InputError: not the key of a subject.
    """
    if not key.startswith('{"fingerprint"'):
        return OperatorSpec.from_key(key)
    try:
        data = json.loads(key)
        return ModelSubject(str(data["fingerprint"]), tuple(int(keep) for keep in data["keeps"]))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"not a subject key: {key[:80]!r} ({error})") from error


def measurement_to_json(measurement: Measurement) -> str:
    """Everything but the subject, which has a column of its own; floats survive exactly."""
    data = {
        f.name: getattr(measurement, f.name) for f in fields(measurement) if f.name != "subject"
    }
    return json.dumps(data, separators=(",", ":"))


def measurement_from_json(subject: str, body: str) -> Measurement:
    """The inverse of `measurement_to_json`, given the subject's key."""
    data: dict[str, Any] = json.loads(body)
    for name in _SAMPLES:
        data[name] = tuple(tuple(session) for session in data[name])
    data["conditions"] = tuple((str(name), str(value)) for name, value in data["conditions"])
    return Measurement(subject=subject_from_key(subject), **data)
