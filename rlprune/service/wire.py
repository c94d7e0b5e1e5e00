"""The one table between our errors and gRPC's status codes, and how a refusal travels.

A refusal is a status code, a line for a person, and an `ErrorDetail` in the trailing metadata, from
which the client raises the same class with the same attributes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import grpc
from google.protobuf.message import DecodeError

from rlprune import errors
from rlprune.errors import AuthenticationError, RlpruneError, UnavailableError
from rlprune.v1 import types_pb2

ERROR_KEY = "rlprune-error-bin"
"""Trailing metadata that carries an ErrorDetail."""

STATUS: dict[type[RlpruneError], tuple[str, grpc.StatusCode]] = {
    errors.RlpruneError: ("REFUSED", grpc.StatusCode.UNKNOWN),
    errors.InputError: ("INPUT", grpc.StatusCode.INVALID_ARGUMENT),
    errors.ModelError: ("MODEL", grpc.StatusCode.INVALID_ARGUMENT),
    errors.UnsupportedOperatorError: ("UNSUPPORTED_OPERATOR", grpc.StatusCode.INVALID_ARGUMENT),
    errors.PlanError: ("PLAN", grpc.StatusCode.INVALID_ARGUMENT),
    errors.PlanMismatchError: ("PLAN_MISMATCH", grpc.StatusCode.INVALID_ARGUMENT),
    errors.BudgetError: ("BUDGET", grpc.StatusCode.INVALID_ARGUMENT),
    errors.CalibrationError: ("CALIBRATION", grpc.StatusCode.INVALID_ARGUMENT),
    errors.PolicyError: ("POLICY", grpc.StatusCode.INVALID_ARGUMENT),
    errors.NotFoundError: ("NOT_FOUND", grpc.StatusCode.NOT_FOUND),
    errors.MissingExtraError: ("MISSING_EXTRA", grpc.StatusCode.FAILED_PRECONDITION),
    errors.LeaseError: ("LEASE", grpc.StatusCode.FAILED_PRECONDITION),
    errors.ConflictError: ("CONFLICT", grpc.StatusCode.ALREADY_EXISTS),
    errors.AuthenticationError: ("AUTHENTICATION", grpc.StatusCode.UNAUTHENTICATED),
    errors.StoreError: ("STORE", grpc.StatusCode.DATA_LOSS),
    errors.UnavailableError: ("UNAVAILABLE", grpc.StatusCode.UNAVAILABLE),
    errors.OverloadedError: ("OVERLOADED", grpc.StatusCode.RESOURCE_EXHAUSTED),
    errors.NotServedError: ("NOT_SERVED", grpc.StatusCode.UNIMPLEMENTED),
    errors.MeasurementError: ("MEASUREMENT", grpc.StatusCode.FAILED_PRECONDITION),
}
"""Reason (as ErrorDetail.reason has it) and status of every class of the error tree."""

_CLASS = {reason: kind for kind, (reason, _) in STATUS.items()}

# What gRPC itself says, without a detail of ours.
_BARE = {
    grpc.StatusCode.UNAVAILABLE: "the server does not answer",
    grpc.StatusCode.DEADLINE_EXCEEDED: "the server did not answer in time",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "the server is overloaded, or the message is too large",
    grpc.StatusCode.CANCELLED: "the call was cancelled",
}

_TOLD = {
    errors.StoreError: "the server's store is lost or damaged; its log says more",
    errors.UnavailableError: "the server's store cannot be used just now; its log says why",
}
"""What callers are told instead of what the database said, which names hosts, users and files. A
server has nothing but its store to wait for."""
_MAX_MESSAGE = 2000
"""Bytes. Headers may have 8 kB in all; a longer message would lose the refusal altogether."""
_MAX_ATTRIBUTES = 1000
"""Bytes, of all attributes together; the detail as a whole grows by a third on its way."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """How a call ends that is refused."""

    code: grpc.StatusCode
    message: str
    trailing: tuple[tuple[str, bytes], ...] = ()


def refusal(error: RlpruneError) -> Refusal:
    """How `error` travels."""
    kind = next(base for base in type(error).__mro__ if base in STATUS)
    reason, code = STATUS[kind]
    message = _TOLD.get(kind, str(error))
    detail = types_pb2.ErrorDetail(reason=reason, field=_cut(error.field, _MAX_MESSAGE))
    left = _MAX_ATTRIBUTES
    for name, value in vars(error).items():
        if name != "field" and isinstance(value, str):
            detail.attributes[name] = _cut(value, left)
            left -= len(detail.attributes[name].encode())
    trailing = ((ERROR_KEY, detail.SerializeToString()),)
    return Refusal(code, _cut(message, _MAX_MESSAGE, escaped=True), trailing)


BUG = Refusal(grpc.StatusCode.INTERNAL, "internal error; the server's log says more")


def _cut(text: str, size: int, *, escaped: bool = False) -> str:
    """As much of `text` as takes at most `size` bytes on its way.

    Messages are `escaped`: what is not printable ASCII, and the percent sign, takes three bytes for
    each of UTF-8 (gRPC over HTTP2, "Status-Message").
    """
    text = text[:size].encode("utf-8", "replace").decode()  # half a surrogate pair is no text
    for place, letter in enumerate(text):
        plain = not escaped or (" " <= letter <= "~" and letter != "%")
        size -= len(letter.encode()) * (1 if plain else 3)
        if size < 0:
            return text[:place]
    return text


def error_of(error: grpc.RpcError, target: str) -> RlpruneError:
    """What the client raises for a failed call to `target`."""
    code = error.code()
    message = error.details() or ""
    detail = _detail(error)
    if detail is not None and detail.reason in _CLASS:
        kind = _CLASS[detail.reason]
        # Not kind(...): some classes word their message from other arguments.
        refusal = kind.__new__(kind)
        RlpruneError.__init__(refusal, message, field=detail.field)
        for name, value in detail.attributes.items():
            setattr(refusal, name, value)
        return refusal
    if code in _BARE:
        return UnavailableError(f"{target}: {_BARE[code]} ({message})")
    if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
        return AuthenticationError(f"{target}: {message or 'this may not be called'}")
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return errors.NotServedError(
            f"{target} is no rlprune server, or of another version ({message})"
        )
    return RlpruneError(f"{target}: {code.name}: {message}")


def may_retry(error: grpc.RpcError, *, late: bool = False) -> bool:
    """Whether the same call may be sent again: what is unavailable passes (AIP-194), and what was
    refused for want of room, before anything was done; a message that is too large stays so. With
    `late`, also after its time has run out."""
    if late and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return True
    if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return "larger than max" not in (error.details() or "")
    return bool(error.code() is grpc.StatusCode.UNAVAILABLE)


def _detail(error: grpc.RpcError) -> types_pb2.ErrorDetail | None:
    metadata = cast("Iterable[tuple[str, bytes]]", error.trailing_metadata() or ())
    for key, value in metadata:
        if key == ERROR_KEY:
            try:
                return types_pb2.ErrorDetail.FromString(value)
            except DecodeError:
                return None
    return None
