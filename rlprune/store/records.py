"""What a store and a server tell: devices, plans, jobs and leases as plain data, free of SQL."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from rlprune.latency.types import Subject
from rlprune.plans import PruningPlan


@dataclass(frozen=True, slots=True)
class DeviceHealth:
    """How far predictions for a device can be trusted."""

    error_ratio: float
    """Half-width of the predictions' 90 % interval (natural logarithm, so about a share): the
    median over models measured whole; NaN without any."""
    drift_ratio: float
    """How much slower (above 1) the device's controls run than before its last change; 1.0 where
    they never changed, NaN without measurements."""
    stale: bool
    """It changed, and too little was measured since: plans ask for new measurements."""
    parked_job_count: int = 0
    """Jobs given up for good."""
    dropped: tuple[str, ...] = ()
    """Measurements that predictions cannot use: what each was of, and why."""


@dataclass(frozen=True, slots=True)
class DeviceRecord:
    """A device that registered or was measured on."""

    key: str
    description: dict[str, str]
    """What the device said of itself: runtime, runtime_version, thread_count, machine, ..."""
    first_seen_sec: float
    last_seen_sec: float
    """By the store's clock, seconds since the epoch."""
    measurement_count: int
    generation: int
    """Grows with every accepted measurement; what was computed at another generation is stale."""
    last_measured_sec: float | None = None
    """When the last measurement was accepted; None before the first."""
    health: DeviceHealth | None = None
    """Only where it was asked for: computing it costs a fit."""


@dataclass(frozen=True, slots=True)
class PlanRecord:
    """A plan as it was stored."""

    plan_id: str
    plan: PruningPlan
    created_sec: float
    pending_job_ids: tuple[str, ...] = ()
    """Jobs that the device had still to do for this model when the plan was made."""
    model_name: str = ""
    """What the user calls the model; empty where nobody said."""
    request: str = ""
    """What the user asked, `PlanRequest.to_json`; empty of plans of 0.7.1 and before."""


@dataclass(frozen=True, slots=True)
class Asked:
    """How a plan was asked for, in the user's words; empty where nobody said."""

    model_name: str = ""
    """What the user calls the model."""
    request: str = ""
    """`PlanRequest.to_json`."""


UNSAID = Asked()


class JobState(StrEnum):
    """Where a job stands; done, failed and parked are final."""

    PENDING = "pending"
    LEASED = "leased"
    DONE = "done"
    """Every subject was reported, at least one with samples."""
    FAILED = "failed"
    """Every subject was reported, none could be measured."""
    PARKED = "parked"
    """Three leases ended without a complete report."""
    UNKNOWN = "unknown"
    """What a server of a later version says; never stored."""

    @property
    def open(self) -> bool:
        """Whether the job may still bring measurements."""
        return self in (JobState.PENDING, JobState.LEASED)


@dataclass(frozen=True, slots=True)
class Job:
    """Some subjects to measure on one device."""

    job_id: str
    device: str
    subjects: tuple[Subject, ...]
    fingerprint: str
    """Of the skeleton that the worker needs; empty where operators alone are measured."""
    state: JobState
    failure_count: int
    """Leases that ended without a complete report."""
    reason: str
    """Why it is failed or parked."""


@dataclass(frozen=True, slots=True)
class Lease:
    """The right of one worker to report one job, until `end_sec`."""

    lease_id: str
    job: Job
    left: tuple[Subject, ...]
    """The job's subjects that nobody has reported yet."""
    end_sec: float
    """By the store's clock."""


@dataclass(frozen=True, slots=True)
class ReportAnswer:
    """What became of a report."""

    job_id: str
    state: JobState
    accepted_count: int
    generation: int
    """Of the device, after this report."""
