"""What a worker says to a server: introduce itself, lease, renew, report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlprune.latency.types import Subject
from rlprune.service.channel import Channel
from rlprune.service.device_messages import (
    device_from,
    job_from,
    state_from,
    subjects_from,
)
from rlprune.store.records import DeviceRecord, Job, ReportAnswer
from rlprune.v1 import devices_pb2, types_pb2


@dataclass(frozen=True, slots=True)
class LeasedJob:
    """A job that this worker may measure and report for now."""

    lease_id: str
    job: Job
    left: tuple[Subject, ...]
    """What nobody has reported yet."""
    lease_sec: float
    """How long the lease lasts unless renewed, from when it was received."""


class DeviceClient:
    """A server, as a worker sees it. May be used from several threads.

    Every method raises UnavailableError where the server does not answer, and what the store's
    method of the same name raises.
    """

    def __init__(
        self,
        target: str,
        *,
        token: str | None = None,
        tls_ca: str | Path | None = None,
        patience_sec: float = 5.0,
    ) -> None:
        """See `channel.Channel`."""
        self.target = target
        self._channel = Channel(target, token=token, tls_ca=tls_ca, patience_sec=patience_sec)

    def close(self) -> None:
        """Ends the connection."""
        self._channel.close()

    def register_device(self, key: str, description: Mapping[str, str]) -> DeviceRecord:
        """Makes this device known."""
        request = devices_pb2.RegisterDeviceRequest(key=key, description=description)
        return device_from(
            self._channel.call("DeviceService/RegisterDevice", request, devices_pb2.Device)
        )

    def lease(self, worker_id: str, device: str) -> LeasedJob | None:
        """A job for this worker, or None; NotFoundError where the device must register first."""
        request = devices_pb2.LeaseRequest(worker_id=worker_id, device=device)
        found = self._channel.call("DeviceService/Lease", request, devices_pb2.LeaseResponse)
        if not found.HasField("job"):
            return None
        return LeasedJob(
            lease_id=found.lease_id,
            job=job_from(found.job)[0],
            left=subjects_from(found.left, field="left"),
            lease_sec=found.lease_sec,
        )

    def renew(self, lease_id: str) -> float:
        """How many seconds the lease lasts from now; LeaseError where it has ended."""
        request = devices_pb2.RenewRequest(lease_id=lease_id)
        found = self._channel.call("DeviceService/Renew", request, devices_pb2.RenewResponse)
        return found.lease_sec

    def report(
        self,
        lease_id: str,
        request_id: str,
        measurements: Sequence[types_pb2.Measurement],
        *,
        done: bool = False,
        release: bool = False,
    ) -> ReportAnswer:
        """Hands in measurements; on the server's disk when this returns."""
        request = devices_pb2.ReportRequest(
            lease_id=lease_id,
            request_id=request_id,
            measurements=measurements,
            done=done,
            release=release,
        )
        found = self._channel.call("DeviceService/Report", request, devices_pb2.ReportResponse)
        return ReportAnswer(
            job_id=found.job_id,
            state=state_from(found.state),
            accepted_count=found.accepted_count,
            generation=found.generation,
        )

    def skeleton(self, fingerprint: str) -> bytes:
        """The skeleton of a graph that a job measures."""
        request = devices_pb2.GetSkeletonRequest(fingerprint=fingerprint)
        return self._channel.call(
            "DeviceService/GetSkeleton", request, devices_pb2.GetSkeletonResponse
        ).skeleton
