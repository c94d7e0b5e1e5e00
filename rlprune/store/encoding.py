"""Measurements and their subjects as text, and what a measurement must be to enter a store."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from rlprune.device_keys import canonical_key
from rlprune.errors import InputError, StoreError
from rlprune.latency.limits import SAMPLES, fault_of
from rlprune.latency.types import F32, MACS_DEVICE, Measurement, ModelSubject, OperatorSpec, Subject
from rlprune.schemes import CHANNEL_ONLY

_DEVICE = re.compile(r"[a-z0-9._-]{1,120}")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
MAX_ID = 200
_ID = re.compile(rf"[^\x00-\x1f\x7f\ud800-\udfff]{{0,{MAX_ID}}}")
_STATUSES = ("ok", "unstable", "failed")


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


def _check(form: re.Pattern[str], given: str, must: str, field: str) -> str:
    if not form.fullmatch(given):
        raise InputError(f"{given[:130]!r} {must}", field=field)
    return given


def check_device(device: str, *, field: str = "device") -> str:
    """The device key itself; InputError unless it is one that a real device may have."""
    if device == MACS_DEVICE:
        raise InputError(f"{device!r} is built in and measures nothing", field=field)
    return _check(_DEVICE, device, f"is no device key: it must match {_DEVICE.pattern}", field)


def check_request_id(request_id: str, *, field: str = "request_id") -> str:
    """The request id itself; InputError unless it matches [A-Za-z0-9._-]{1,64}."""
    must = f"is no request_id: it must match {_REQUEST_ID.pattern}"
    return _check(_REQUEST_ID, request_id, must, field)


def check_id(given: str, *, field: str) -> str:
    """The id of a plan, job, lease, worker or device as somebody gave it; InputError where none can
    be like that. Most databases would not take it: PostgreSQL no NUL, nobody half a letter."""
    must = f"is no {field}: at most {MAX_ID} characters, none of them a control character"
    return _check(_ID, given, must, field)


def check_fingerprint(fingerprint: str, *, field: str = "fingerprint") -> str:
    """The fingerprint itself; InputError unless it is 64 hex digits."""
    return _check(_FINGERPRINT, fingerprint, "is no fingerprint: not 64 hex digits", field)


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
    told = {"fingerprint": subject.fingerprint, "keeps": list(subject.settings)}
    # What is as by default is left out, so that keys of older stores are the same.
    if subject.schemes != CHANNEL_ONLY:
        told["schemes"] = list(subject.schemes)
    if subject.precision != F32:
        told["precision"] = subject.precision
    if subject.keep_float:
        told["keep_float"] = list(subject.keep_float)
    return json.dumps(told, separators=(",", ":"))


def subject_from_key(key: str) -> Subject:
    """The inverse of `subject_key`.

    Raises:
        InputError: not the key of a subject.
    """
    if not key.startswith('{"fingerprint"'):
        return OperatorSpec.from_key(key)
    try:
        data = json.loads(key)
        return ModelSubject(
            str(data["fingerprint"]),
            tuple(int(value) for value in data["keeps"]),
            tuple(str(name) for name in data.get("schemes", CHANNEL_ONLY)),
            str(data.get("precision", F32)),
            tuple(str(name) for name in data.get("keep_float", ())),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"not a subject key: {key[:80]!r} ({error})") from error


def measurement_data(measurement: Measurement) -> dict[str, Any]:
    """Everything but the subject, which has a column of its own; floats survive exactly in JSON."""
    return {
        f.name: getattr(measurement, f.name) for f in fields(measurement) if f.name != "subject"
    }


def measurement_of(subject: str, data: dict[str, Any]) -> Measurement:
    """The inverse of `measurement_data`, given the subject's key; lists may stand for tuples."""
    found = data | {"device": canonical_key(data["device"])}
    for name in SAMPLES:
        found[name] = tuple(tuple(session) for session in data[name])
    found["conditions"] = tuple((str(name), str(value)) for name, value in data["conditions"])
    return Measurement(subject=subject_from_key(subject), **found)


def measurement_to_json(measurement: Measurement) -> str:
    """`measurement_data` as JSON."""
    return json.dumps(measurement_data(measurement), separators=(",", ":"))


def measurement_from_json(subject: str, body: str) -> Measurement:
    """The inverse of `measurement_to_json`, given the subject's key."""
    return measurement_of(subject, json.loads(body))
