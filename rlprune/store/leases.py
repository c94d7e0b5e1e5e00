"""Leases: who may measure a job, and until when.

A lease is granted to one worker and ends at its deadline; its id is the fencing token. A report on
an ended or foreign lease is refused and changes nothing; the same report sent twice counts once.
Only a clock of the server's that never jumps is asked (`lease_watch`), so a device or a server with
a wrong one does no harm. (Ideas: Temporal's activity timeouts; Vizier's client ids, by which a
worker that asks again gets the same work.)
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa

from rlprune.device_keys import canonical_key
from rlprune.errors import InputError, LeaseError
from rlprune.files import digest
from rlprune.latency.types import FAULT, Measurement, Subject
from rlprune.store import encoding, schema
from rlprune.store.jobs import (
    MAX_FAILURES,
    end_leases,
    job_of_row,
    silent_leases,
    subjects_left,
)
from rlprune.store.lease_watch import LeaseRow
from rlprune.store.plan_rows import conflict
from rlprune.store.records import Job, JobState, Lease, ReportAnswer
from rlprune.store.store import Store, insert_measurements, measurement_rows, touch_device

_SEEN_SEC = 10.0  # an idle worker is noted no more often; every note is a write


class Leases:
    """The leases of one store's jobs. Every method is one transaction, callable from any thread."""

    def __init__(self, store: Store, *, lease_sec: float = 60.0) -> None:
        """A lease lasts `lease_sec` from when it was granted or last renewed."""
        self._store = store
        self._database = store.database
        self.lease_sec = lease_sec

    def lease(self, worker_id: str, device: str) -> Lease | None:
        """The oldest pending job of the device for this worker; None where there is nothing to do.

        A worker that holds a lease gets that one again: the first answer may have been lost.

        Raises:
            NotFoundError: the device is unknown; register it first.
        """
        device = canonical_key(device)
        if not 1 <= len(worker_id) <= 120:
            raise InputError("worker_id must have 1 to 120 characters", field="worker_id")
        encoding.check_id(worker_id, field="worker_id")
        now = self._store.clock()
        last_seen_sec = self._store.last_seen_sec(device)
        watch = self._store.lease_watch
        rows = schema.jobs.c
        held = sa.and_(rows.state == JobState.LEASED, rows.worker_id == worker_id)
        pending = rows.state == JobState.PENDING
        mine = sa.select(schema.jobs).where(rows.device == device).order_by(rows.seq).limit(1)
        if abs(now - last_seen_sec) < _SEEN_SEC:
            # Most polls find nothing: they cost a read, not a write.
            with self._database.read() as connection:
                work = connection.execute(mine.where(sa.or_(held, pending))).first()
                if work is None and not silent_leases(connection, watch, device):
                    return None
        with self._database.write() as connection:
            end_leases(connection, watch, device)
            lease = self._held(connection, mine.where(held)) or self._grant(
                connection, mine.where(pending), worker_id
            )
            touch_device(self._database, connection, device, now)
        return lease

    def _held(self, connection: sa.Connection, query: sa.Select[Any]) -> Lease | None:
        row = connection.execute(query).mappings().first()
        return None if row is None else self._lease(connection, row)

    def _grant(
        self, connection: sa.Connection, pending: sa.Select[Any], worker_id: str
    ) -> Lease | None:
        query = pending.with_for_update(skip_locked=True)
        row = connection.execute(query).mappings().first()
        if row is None:
            return None
        granted = {
            "state": JobState.LEASED.value,
            "worker_id": worker_id,
            "lease_id": uuid.uuid4().hex,
            "lease_end_sec": self._store.clock() + self.lease_sec,
            "lease_sec": self.lease_sec,
            "renewal_count": 0,
        }
        connection.execute(
            sa.update(schema.jobs).where(schema.jobs.c.seq == row["seq"]).values(**granted)
        )
        return self._lease(connection, {**row, **granted})

    def _lease(self, connection: sa.Connection, row: sa.RowMapping | dict[str, Any]) -> Lease:
        job = job_of_row(row)
        left_sec = self._store.lease_watch.left_sec(LeaseRow.of(row))
        left = subjects_left(connection, job)
        return Lease(row["lease_id"], job, left, self._store.clock() + left_sec)

    def renew(self, lease_id: str) -> float:
        """Moves the lease's end on; returns it, by the store's clock.

        Raises:
            LeaseError: the lease has ended or never was; nothing changed.
        """
        encoding.check_id(lease_id, field="lease_id")
        now = self._store.clock()
        with self._database.write() as connection:
            row = self._leased(connection, lease_id)
            lease = LeaseRow.of(row)
            # Never shorter than it was: another server may have granted it for longer.
            length = max(self.lease_sec, self._store.lease_watch.left_sec(lease))
            renewed = lease._replace(renewal_count=lease.renewal_count + 1, lease_sec=length)
            connection.execute(
                sa.update(schema.jobs)
                .where(schema.jobs.c.lease_id == lease_id)
                .values(
                    renewal_count=renewed.renewal_count,
                    lease_sec=length,
                    lease_end_sec=now + length,
                )
            )
            touch_device(self._database, connection, row["device"], now)
        return now + self._store.lease_watch.left_sec(renewed)

    def report(
        self,
        lease_id: str,
        request_id: str,
        measurements: Sequence[Measurement],
        *,
        done: bool = False,
        release: bool = False,
    ) -> ReportAnswer:
        """Accepts measurements of a leased job; they are on disk when this returns.

        The same report under the same request_id gets the first answer and counts once, also after
        the lease has ended.

        Args:
            measurements: checked (`encoding.check_measurement`). Where the third of the job's
                subjects took the measuring process down, an unfinished job is parked and the lease
                ends; the answer's state says so.
            done: the job is finished; every subject must have been reported, as failed if need be.
            release: the worker stops; the job may be leased by another at once.

        Raises:
            LeaseError: the lease has ended or never was; nothing changed.
            ConflictError: the request_id was used for another report.
            InputError: a measurement is of another device or of a subject that the job does not
                have or was reported before, or `done` with subjects left.
        """
        encoding.check_request_id(request_id)
        encoding.check_id(lease_id, field="lease_id")
        if done and release:
            raise InputError("a report either finishes the job or releases it", field="release")
        rows = measurement_rows(measurements)
        told = (row[name] for row in rows for name in ("device", "subject", "body"))
        content = digest(lease_id, f"{done},{release}", *told)
        now = self._store.clock()
        with self._database.write() as connection:
            lock = sa.select(schema.jobs.c.seq).where(schema.jobs.c.lease_id == lease_id)
            connection.execute(lock.with_for_update()).all()
            first = _first_answer(connection, request_id, content)
            if first is not None:
                return first
            row = self._leased(connection, lease_id)
            job = job_of_row(row)
            _check_of_job(measurements, job, subjects_left(connection, job))
            insert_measurements(self._database, connection, rows, now, job_id=job.job_id)
            touch_device(self._database, connection, job.device, now)
            changes = _after(connection, job, done=done, release=release)
            if not changes and any(_is_fault(m.conditions) for m in measurements):
                changes = _after_faults(connection, job)
            if changes:
                connection.execute(
                    sa.update(schema.jobs).where(schema.jobs.c.seq == row["seq"]).values(**changes)
                )
            generation = connection.scalar(
                sa.select(schema.devices.c.generation).where(schema.devices.c.device == job.device)
            )
            answer = ReportAnswer(
                job.job_id,
                JobState(changes.get("state", job.state)),
                len(measurements),
                int(generation or 0),
            )
            connection.execute(
                sa.insert(schema.reports).values(
                    request_id=request_id,
                    content_digest=content,
                    job_id=job.job_id,
                    answer=json.dumps(asdict(answer)),
                    accepted_sec=now,
                )
            )
        return answer

    def _leased(self, connection: sa.Connection, lease_id: str) -> sa.RowMapping:
        query = sa.select(schema.jobs).where(schema.jobs.c.lease_id == lease_id)
        row = connection.execute(query.with_for_update()).mappings().first()
        if (
            row is None
            or row["state"] != JobState.LEASED
            or self._store.lease_watch.left_sec(LeaseRow.of(row)) <= 0.0
        ):
            raise LeaseError(
                f"lease {lease_id[:40]!r} has ended or was never granted; lease again",
                field="lease_id",
            )
        return row


def _after(connection: sa.Connection, job: Job, *, done: bool, release: bool) -> dict[str, Any]:
    """What a report changes in its job."""
    ended = {"lease_id": None, "worker_id": None}
    if release:
        return {**ended, "state": JobState.PENDING.value}
    if not done:
        return {}
    left = subjects_left(connection, job)
    if left:
        raise InputError(
            f"done, but {len(left)} of {len(job.subjects)} subjects were not reported; report "
            "what cannot be measured with status 'failed'",
            field="done",
        )
    rows = schema.measurements.c
    query = sa.select(rows.body).where(rows.job_id == job.job_id).order_by(rows.seq)
    bodies = [json.loads(body) for body in connection.scalars(query)]
    if any(body["status"] != "failed" for body in bodies):
        return {**ended, "state": JobState.DONE.value}
    return {**ended, "state": JobState.FAILED.value, "reason": bodies[-1]["reason"]}


def _after_faults(connection: sa.Connection, job: Job) -> dict[str, Any]:
    """Parks an unfinished job whose subjects took the measuring process down too often."""
    rows = schema.measurements.c
    query = sa.select(rows.body).where(rows.job_id == job.job_id, rows.status == "failed")
    bodies = [json.loads(body) for body in connection.scalars(query.order_by(rows.seq))]
    faults = [body["reason"] for body in bodies if _is_fault(body["conditions"])]
    if len(faults) < MAX_FAILURES:
        return {}
    return {
        "lease_id": None,
        "worker_id": None,
        "state": JobState.PARKED.value,
        "reason": f"{len(faults)} subjects took the measuring process down; the last: {faults[-1]}",
    }


def _is_fault(conditions: Iterable[Sequence[str]]) -> bool:
    return any(name == FAULT for name, _ in conditions)


def _first_answer(connection: sa.Connection, request_id: str, content: str) -> ReportAnswer | None:
    rows = schema.reports.c
    query = sa.select(rows.content_digest, rows.answer).where(rows.request_id == request_id)
    found = connection.execute(query).first()
    if found is None:
        return None
    if found.content_digest != content:
        raise conflict(request_id)
    answer = json.loads(found.answer)
    return ReportAnswer(**{**answer, "state": JobState(answer["state"])})


def _check_of_job(measurements: Sequence[Measurement], job: Job, left: tuple[Subject, ...]) -> None:
    open_subjects = set(left)
    for index, measurement in enumerate(measurements):
        if measurement.device != job.device:
            raise InputError(
                f"measured on {measurement.device!r}, leased for {job.device!r}",
                field=f"measurements[{index}].device",
            )
        if measurement.subject not in job.subjects:
            raise InputError(
                "this subject is not part of the leased job", field=f"measurements[{index}].subject"
            )
        if measurement.subject not in open_subjects:
            raise InputError(
                "this subject of the job was reported before and counts once",
                field=f"measurements[{index}].subject",
            )
        open_subjects.remove(measurement.subject)
