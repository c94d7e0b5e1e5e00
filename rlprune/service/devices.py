"""DeviceService: devices introduce themselves, lease jobs and report what they measured."""

from __future__ import annotations

from rlprune.device_keys import canonical_key
from rlprune.errors import InputError, PlanError
from rlprune.graph.types import PruningGraph
from rlprune.latency.subjects import check_settings
from rlprune.latency.types import ModelSubject, Subject
from rlprune.planning.health import with_health
from rlprune.service.device_messages import (
    device_to,
    job_to,
    measurement_from,
    state_to,
    subject_to,
    subjects_from,
)
from rlprune.service.models import Graphs
from rlprune.store import Store
from rlprune.store.encoding import check_fingerprint, check_request_id
from rlprune.store.jobs import JobQueue
from rlprune.store.leases import Leases
from rlprune.store.store import page_limit
from rlprune.v1 import devices_pb2

MAX_DESCRIPTION = 32
"""Entries of a device's description."""


class DeviceService:
    """The rpcs of `rlprune.v1.DeviceService` over one store; called from many threads."""

    def __init__(self, store: Store, jobs: JobQueue, leases: Leases, graphs: Graphs) -> None:
        self._store = store
        self._jobs = jobs
        self._leases = leases
        self._graphs = graphs

    def register_device(self, request: devices_pb2.RegisterDeviceRequest) -> devices_pb2.Device:
        """See devices.proto."""
        description = dict(request.description)
        if len(description) > MAX_DESCRIPTION or any(
            not 1 <= len(name) <= 64 or len(value) > 256 for name, value in description.items()
        ):
            raise InputError(
                f"at most {MAX_DESCRIPTION} entries of 64 + 256 characters", field="description"
            )
        record = self._store.register_device(canonical_key(request.key), description)
        return device_to(record, len(self._jobs.open_jobs(record.key)))

    def list_devices(
        self, request: devices_pb2.ListDevicesRequest
    ) -> devices_pb2.ListDevicesResponse:
        """See devices.proto."""
        limit = page_limit(request.page_size)
        # Devices are few, and their keys are their order: the last one is the token.
        left = [record for record in self._store.devices() if record.key > request.page_token]
        page = left[:limit]
        if request.with_health:
            page = [with_health(self._store, record) for record in page]
        return devices_pb2.ListDevicesResponse(
            devices=[device_to(record, len(self._jobs.open_jobs(record.key))) for record in page],
            next_page_token=page[-1].key if len(left) > limit else "",
        )

    def request_measurement(
        self, request: devices_pb2.RequestMeasurementRequest
    ) -> devices_pb2.Job:
        """See devices.proto."""
        check_request_id(request.request_id)
        device = canonical_key(request.device)
        self._store.last_seen_sec(device)  # refuses unknown ones
        subjects = subjects_from(request.subjects, field="subjects")
        brought = self._graphs.trace(request.skeleton) if request.skeleton else None
        graph = brought[0] if brought else self._known_graph(subjects)
        if graph is not None:
            _check_variants(subjects, graph)
        job = self._jobs.request(
            device,
            subjects,
            request_id=request.request_id,
            fingerprint="" if graph is None else graph.fingerprint,
            graph=brought,
        )
        return job_to(job)

    def get_job(self, request: devices_pb2.GetJobRequest) -> devices_pb2.Job:
        """See devices.proto."""
        job = self._jobs.job(request.job_id)
        return job_to(
            job,
            self._jobs.reported(job.job_id) if request.with_measurements else (),
            reported_count=self._jobs.reported_count(job.job_id),
        )

    def get_skeleton(
        self, request: devices_pb2.GetSkeletonRequest
    ) -> devices_pb2.GetSkeletonResponse:
        """See devices.proto."""
        skeleton = self._store.skeleton(check_fingerprint(request.fingerprint))
        return devices_pb2.GetSkeletonResponse(skeleton=skeleton)

    def lease(self, request: devices_pb2.LeaseRequest) -> devices_pb2.LeaseResponse:
        """See devices.proto."""
        lease = self._leases.lease(request.worker_id, request.device)
        if lease is None:
            return devices_pb2.LeaseResponse()
        return devices_pb2.LeaseResponse(
            job=job_to(lease.job),
            lease_id=lease.lease_id,
            left=[subject_to(subject) for subject in lease.left],
            lease_sec=lease.end_sec - self._store.clock(),
        )

    def renew(self, request: devices_pb2.RenewRequest) -> devices_pb2.RenewResponse:
        """See devices.proto."""
        end_sec = self._leases.renew(request.lease_id)
        return devices_pb2.RenewResponse(lease_sec=end_sec - self._store.clock())

    def report(self, request: devices_pb2.ReportRequest) -> devices_pb2.ReportResponse:
        """See devices.proto."""
        measurements = [
            measurement_from(message, field=f"measurements[{index}]")
            for index, message in enumerate(request.measurements)
        ]
        answer = self._leases.report(
            request.lease_id,
            request.request_id,
            measurements,
            done=request.done,
            release=request.release,
        )
        return devices_pb2.ReportResponse(
            job_id=answer.job_id,
            state=state_to(answer.state),
            accepted_count=answer.accepted_count,
            generation=answer.generation,
        )

    def _known_graph(self, subjects: tuple[Subject, ...]) -> PruningGraph | None:
        """The graph that the subjects are variants of; None where operators alone are asked for."""
        for subject in subjects:
            if isinstance(subject, ModelSubject):
                return self._graphs.graph(subject.fingerprint)
        return None


def _check_variants(subjects: tuple[Subject, ...], graph: PruningGraph) -> None:
    for index, subject in enumerate(subjects):
        if not isinstance(subject, ModelSubject):
            continue
        if subject.fingerprint != graph.fingerprint:
            raise InputError(
                f"graph {subject.fingerprint[:12]!r}, but the skeleton's is "
                f"{graph.fingerprint[:12]!r}",
                field=f"subjects[{index}].model.fingerprint",
            )
        try:
            check_settings(graph, subject)
        except InputError as error:
            raise PlanError(str(error), field=f"subjects[{index}].model.keeps") from error
