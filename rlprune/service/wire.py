"""The one table between our errors and gRPC's status codes, and how a refusal travels.

A refusal is a status code, a line for a person, and an `ErrorDetail` in the trailing metadata, from
which the client raises the same class with the same attributes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import cast

import grpc
from google.protobuf.message import DecodeError

from rlprune import errors
from rlprune.errors import RlpruneError, UnavailableError
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

_MAX_MESSAGE = 2000
"""Headers are limited to 8 kB in all; a longer message would lose the refusal altogether."""


def refuse(context: grpc.ServicerContext, error: RlpruneError) -> None:
    """Ends the call with `error`; never returns."""
    kind = next(base for base in type(error).__mro__ if base in STATUS)
    reason, code = STATUS[kind]
    detail = types_pb2.ErrorDetail(
        reason=reason,
        field=error.field[:_MAX_MESSAGE],
        attributes={
            name: value[:_MAX_MESSAGE]
            for name, value in vars(error).items()
            if name != "field" and isinstance(value, str)
        },
    )
    context.set_trailing_metadata(((ERROR_KEY, detail.SerializeToString()),))
    context.abort(code, str(error)[:_MAX_MESSAGE])


def refuse_internal(context: grpc.ServicerContext, log: logging.Logger, method: str) -> None:
    """Ends a call in which a bug raised; the cause goes to the log and not to the caller."""
    log.exception("bug in %s", method)
    context.abort(grpc.StatusCode.INTERNAL, "internal error; the server's log says more")


def abandon(context: grpc.ServicerContext) -> None:
    """Ends a call whose deadline passed while it queued: nobody waits for the answer."""
    context.abort(grpc.StatusCode.CANCELLED, "the deadline passed before the call was looked at")


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
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return RlpruneError(f"{target} is no rlprune server, or of another version ({message})")
    return RlpruneError(f"{target}: {code.name}: {message}")


def may_retry(error: grpc.RpcError) -> bool:
    """Whether the same call may be sent again: only what is unavailable passes (AIP-194)."""
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
