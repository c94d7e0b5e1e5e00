"""Every way rlprune says no, in one tree.

    RlpruneError
    ├── InputError                  something the caller gave is wrong; nothing was done
    │   ├── ModelError              the model file is refused
    │   │   └── UnsupportedOperatorError   an operator whose channels cannot be followed
    │   ├── PlanError               the plan is truncated, malformed or impossible
    │   │   └── PlanMismatchError   the plan is for another graph
    │   ├── BudgetError             the budget is NaN, negative or missing
    │   ├── CalibrationError        the calibration file is not `x`, `y` as the model needs them
    │   └── PolicyError             the policy directory is not an artifact, or of another version
    ├── NotFoundError               no such device, plan, job or model
    ├── MissingExtraError           this needs an extra that is not installed
    ├── LeaseError                  the lease has ended, or is somebody else's
    ├── ConflictError               the same request_id with other content
    ├── AuthenticationError         a token is missing or wrong
    ├── StoreError                  the store is gone, was replaced, or is damaged
    ├── UnavailableError            the server or cluster does not answer; trying again may help
    │   └── OverloadedError         the server has too much to do; nothing was done
    ├── NotServedError              the server knows no such call
    └── MeasurementError            a device could not run what it was asked to measure

Each message says what was wrong, the value, and what to do. `field` names the part of the
request at fault where there is one. The status codes of gRPC stand only in `service/wire.py`.
"""

from __future__ import annotations


class RlpruneError(Exception):
    """Any refusal of rlprune; the text is one line for a person."""

    usual_field = ""
    """What is at fault where nothing else is said."""

    def __init__(self, message: str, *, field: str = "") -> None:
        super().__init__(message)
        self.field = field or self.usual_field
        """The part of the request at fault, as a dotted path; empty where there is none."""


class InputError(RlpruneError):
    """Something the caller gave is wrong; nothing was done."""


class ModelError(InputError):
    """The model is refused: no ONNX, invalid, unsafe, too large, or of unknown shape."""

    usual_field = "model"


class UnsupportedOperatorError(ModelError):
    """An operator whose channels cannot be followed; names node and operator."""

    def __init__(self, node: str, operator: str, why: str) -> None:
        super().__init__(f"node {node!r} ({operator}): {why}")
        self.node = node
        self.operator = operator
        self.why = why


class PlanError(InputError):
    """The plan is truncated, malformed, or asks for what the graph cannot give."""


class PlanMismatchError(PlanError):
    """The plan is for another graph."""


class BudgetError(InputError):
    """The budget is not a positive, finite number of ms or share of the unpruned latency."""


class CalibrationError(InputError):
    """The calibration data does not hold `x` and `y` of the shapes the model needs."""

    usual_field = "calibration"


class PolicyError(InputError):
    """The policy directory is not an artifact of this version, or is damaged."""


class NotFoundError(RlpruneError):
    """No such device, plan, job or model."""


class MissingExtraError(RlpruneError):
    """A feature needs an extra that is not installed."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f'{feature} needs the extra "{extra}": pip install "rlprune[{extra}]"')
        self.extra = extra


class LeaseError(RlpruneError):
    """The lease has ended, was granted to another worker, or never was; nothing changed."""


class ConflictError(RlpruneError):
    """The same request_id was sent before with other content; nothing changed."""


class AuthenticationError(RlpruneError):
    """The token is missing or wrong."""


class StoreError(RlpruneError):
    """The store is gone, was replaced under its process, or is damaged; trying again is no use."""


class UnavailableError(RlpruneError):
    """The server or cluster does not answer in time; the same call may be tried again."""


class OverloadedError(UnavailableError):
    """The server has as many calls as it takes; nothing was done."""


class NotServedError(RlpruneError):
    """The server knows no such call: it is of an earlier version, or no server of ours."""


class MeasurementError(RlpruneError):
    """A device could not run what it was asked to measure."""


class AccuracyWarning(UserWarning):
    """A model was written whose answers are likely to be far from the original's."""


def one_line(reason: object, most: int = 300) -> str:
    """What something said, fit for an error message."""
    return " ".join(str(reason).split())[:most]
