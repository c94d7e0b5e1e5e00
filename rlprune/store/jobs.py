"""Measuring jobs: what is to be measured on which device, and what became of it.

A job is some subjects on one device; workers take jobs by leases (`store.leases`). A job whose
leases ended three times without a complete report is parked: it may be what kills the workers.
Every transaction locks jobs before devices, so that none waits for another in a circle.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

import sqlalchemy as sa

from rlprune.device_keys import canonical_key
from rlprune.errors import InputError, NotFoundError
from rlprune.files import digest
from rlprune.graph.types import PruningGraph
from rlprune.latency.types import Measurement, ModelSubject, Subject
from rlprune.plans import PruningPlan
from rlprune.store import encoding, schema
from rlprune.store.lease_watch import LeaseRow, LeaseWatch
from rlprune.store.plan_rows import conflict, plan_of_request, plan_row, read_plan
from rlprune.store.records import UNSAID, Asked, Job, JobState, PlanRecord
from rlprune.store.store import Store, insert_graph

MAX_FAILURES = 3
"""Leases that may end without a complete report before the job is parked, and failed measurements
of one subject before it counts as unmeasurable."""
PARK_SEC = 3600.0
"""How long subjects of a parked job are not queued again."""
SUBJECTS_PER_JOB = 16
"""Small, so that progress shows and a killed worker loses little."""
MAX_SUBJECTS = 1024
"""Of one job that was asked for by name."""


class JobQueue:
    """The jobs of one store. Every method is one transaction, callable from any thread."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._database = store.database

    def enqueue(
        self,
        device: str,
        subjects: Sequence[Subject],
        *,
        fingerprint: str = "",
        graph: tuple[PruningGraph, bytes] | None = None,
    ) -> list[Job]:
        """Sees to it that every subject is in an open job; returns those jobs, old and new.

        A `graph` with its skeleton is put in the same transaction.

        Raises:
            NotFoundError: the device is unknown.
        """
        device = canonical_key(device)
        _check_subjects(subjects, fingerprint)
        self._store.last_seen_sec(device)  # refuses unknown ones
        with self._database.write() as connection:
            if graph is not None:
                insert_graph(self._database, connection, graph, self._store.clock())
            return self._queue(connection, device, subjects, fingerprint)

    def put_plan(
        self,
        plan: PruningPlan,
        missing: Sequence[Subject] = (),
        *,
        request_id: str = "",
        content: bytes | None = None,
        graph: tuple[PruningGraph, bytes] | None = None,
        asked: Asked = UNSAID,
    ) -> PlanRecord:
        """Keeps a plan and, in the same transaction, queues what it should still be measured by.

        The same `request_id` gets the first answer, its jobs included, and nothing is written.

        Args:
            missing: subjects for the plan's device, as `enqueue` takes them.
            request_id, content, graph, asked: as `Store.put_plan` has them.

        Raises:
            NotFoundError: the device is unknown, and something is missing.
            ConflictError: the same request_id came with other content.
        """
        _check_subjects(missing, plan.fingerprint)
        if missing:
            self._store.last_seen_sec(plan.device)
        row = plan_row(
            plan, self._store.clock(), request_id=request_id, content=content, asked=asked
        )
        with self._database.write() as connection:
            if not self._database.insert_new(connection, schema.plans, row):
                first = plan_of_request(connection, request_id, row["content_digest"])
                assert first is not None, "only a row with this request_id can stand in the way"
                return read_plan(connection, first)
            if graph is not None:
                insert_graph(self._database, connection, graph, self._store.clock())
            jobs: list[Job] = []
            if missing:
                jobs = self._queue(connection, plan.device, missing, plan.fingerprint)
            pending = tuple(job.job_id for job in jobs)
            connection.execute(
                sa.update(schema.plans)
                .where(schema.plans.c.plan_id == row["plan_id"])
                .values(pending_job_ids=json.dumps(pending))
            )
        return PlanRecord(
            row["plan_id"], plan, row["created_sec"], pending, asked.model_name, asked.request
        )

    def _queue(
        self,
        connection: sa.Connection,
        device: str,
        subjects: Sequence[Subject],
        fingerprint: str,
    ) -> list[Job]:
        """The open jobs that the subjects are in, the missing ones made, in a transaction."""
        # Two askers at once would each queue the same: the device's row is their turnstile.
        connection.execute(
            sa.select(schema.devices.c.device)
            .where(schema.devices.c.device == device)
            .with_for_update()
        ).all()
        wanted = {encoding.subject_key(subject): subject for subject in subjects}
        jobs: list[Job] = []
        for job in _open_jobs(connection, device):
            keys = {encoding.subject_key(subject) for subject in job.subjects}
            if keys & wanted.keys():
                jobs.append(job)
                wanted = {key: value for key, value in wanted.items() if key not in keys}
        left = list(wanted.values())
        for start in range(0, len(left), SUBJECTS_PER_JOB):
            row = self._row(device, left[start : start + SUBJECTS_PER_JOB], fingerprint)
            connection.execute(sa.insert(schema.jobs).values(**row))
            jobs.append(job_of_row(row))
        return jobs

    def request(
        self,
        device: str,
        subjects: Sequence[Subject],
        *,
        request_id: str,
        fingerprint: str = "",
        graph: tuple[PruningGraph, bytes] | None = None,
    ) -> Job:
        """One new job of exactly these subjects; the same request_id gets the same job.

        A `graph` with its skeleton is put in the same transaction.

        Raises:
            NotFoundError: the device is unknown.
            ConflictError: the same request_id came with another device or other subjects.
            InputError: no subject, too many, or one twice.
        """
        device = canonical_key(device)
        encoding.check_request_id(request_id)
        _check_subjects(subjects, fingerprint)
        if not 1 <= len(subjects) <= MAX_SUBJECTS or len(set(subjects)) != len(subjects):
            raise InputError(
                f"a job has 1 to {MAX_SUBJECTS} different subjects, not {len(subjects)}",
                field="subjects",
            )
        self._store.last_seen_sec(device)  # refuses unknown ones
        row = {**self._row(device, subjects, fingerprint), "request_id": request_id}
        with self._database.write() as connection:
            if self._database.insert_new(connection, schema.jobs, row):
                if graph is not None:
                    insert_graph(self._database, connection, graph, self._store.clock())
                return job_of_row(row)
            query = sa.select(schema.jobs).where(schema.jobs.c.request_id == request_id)
            found = connection.execute(query).mappings().one()
        if found["content_digest"] != row["content_digest"]:
            raise conflict(request_id)
        return job_of_row(found)

    def unmeasurable(self, device: str) -> dict[str, str]:
        """Subjects (by key) that are not queued again by themselves, and why.

        They failed on the device three times, or stood unreported in a job parked within the hour.
        """
        device = canonical_key(device)
        now = self._store.clock()
        rows = schema.measurements.c
        failed = sa.select(rows.subject, rows.body).where(
            rows.device == device, rows.status == "failed"
        )
        parked = sa.select(schema.jobs).where(
            schema.jobs.c.device == device,
            schema.jobs.c.state == JobState.PARKED,
            # Both ends: after a clock was set back an hour must not become a day.
            schema.jobs.c.lease_end_sec.between(now - PARK_SEC, now + PARK_SEC),
        )
        reasons: dict[str, list[str]] = {}
        with self._database.read() as connection:
            for key, body in connection.execute(failed):
                reasons.setdefault(key, []).append(json.loads(body)["reason"])
            found = {k: texts[-1] for k, texts in reasons.items() if len(texts) >= MAX_FAILURES}
            for row in connection.execute(parked).mappings():
                job = job_of_row(row)
                for subject in subjects_left(connection, job):
                    found.setdefault(encoding.subject_key(subject), job.reason)
        return found

    def job(self, job_id: str) -> Job:
        """A job as it stands now.

        Raises:
            NotFoundError: there is none with this id.
        """
        with self._database.read() as connection:
            row = _job_row(connection, job_id)
        if row["state"] == JobState.LEASED and (
            self._store.lease_watch.left_sec(LeaseRow.of(row)) <= 0.0
        ):
            with self._database.write() as connection:
                end_leases(connection, self._store.lease_watch, row["device"])
                row = _job_row(connection, job_id)
        return job_of_row(row)

    def reported_count(self, job_id: str) -> int:
        """Subjects of a job that were reported so far."""
        rows = schema.measurements.c
        query = sa.select(sa.func.count(rows.subject.distinct())).where(rows.job_id == job_id)
        with self._database.read() as connection:
            return int(connection.scalar(query) or 0)

    def reported(self, job_id: str) -> list[Measurement]:
        """What was reported for a job so far, in order of arrival."""
        rows = schema.measurements.c
        query = sa.select(rows.subject, rows.body).where(rows.job_id == job_id).order_by(rows.seq)
        with self._database.read() as connection:
            found = connection.execute(query).all()
        with encoding.stored(f"a measurement of job {job_id[:32]}"):
            return [encoding.measurement_from_json(*item) for item in found]

    def open_jobs(self, device: str) -> list[Job]:
        """Jobs of a device that are pending or leased, oldest first."""
        device = canonical_key(device)
        with self._database.read() as connection:
            return _open_jobs(connection, device)

    def parked_count(self, device: str) -> int:
        """Jobs of a device that were given up."""
        device = canonical_key(device)
        rows = schema.jobs.c
        query = sa.select(sa.func.count()).where(
            rows.device == device, rows.state == JobState.PARKED.value
        )
        with self._database.read() as connection:
            return int(connection.scalar(query) or 0)

    def _row(self, device: str, subjects: Sequence[Subject], fingerprint: str) -> dict[str, Any]:
        keys = json.dumps([encoding.subject_key(subject) for subject in subjects])
        return {
            "job_id": uuid.uuid4().hex,
            "content_digest": digest(device, fingerprint, keys),
            "device": device,
            "fingerprint": fingerprint or None,
            "subjects": keys,
            "state": JobState.PENDING.value,
            "failure_count": 0,
            "reason": "",
            "created_sec": self._store.clock(),
        }


def _job_row(connection: sa.Connection, job_id: str) -> sa.RowMapping:
    encoding.check_id(job_id, field="job_id")
    query = sa.select(schema.jobs).where(schema.jobs.c.job_id == job_id)
    row = connection.execute(query).mappings().first()
    if row is None:
        raise NotFoundError(f"no job with id {job_id[:80]!r}", field="job_id")
    return row


def _open_jobs(connection: sa.Connection, device: str) -> list[Job]:
    rows = schema.jobs.c
    states = [state.value for state in JobState if state.open]
    query = sa.select(schema.jobs).where(rows.device == device, rows.state.in_(states))
    return [job_of_row(row) for row in connection.execute(query.order_by(rows.seq)).mappings()]


def job_of_row(row: sa.RowMapping | dict[str, Any]) -> Job:
    """A job as its row has it."""
    with encoding.stored("a job"):
        return Job(
            job_id=row["job_id"],
            device=row["device"],
            subjects=tuple(encoding.subject_from_key(key) for key in json.loads(row["subjects"])),
            fingerprint=row["fingerprint"] or "",
            state=JobState(row["state"]),
            failure_count=row["failure_count"],
            reason=row["reason"],
        )


def subjects_left(connection: sa.Connection, job: Job) -> tuple[Subject, ...]:
    """The job's subjects that nobody has reported yet."""
    rows = schema.measurements.c
    query = sa.select(rows.subject).where(rows.job_id == job.job_id)
    reported = set(connection.scalars(query))
    return tuple(s for s in job.subjects if encoding.subject_key(s) not in reported)


def silent_leases(connection: sa.Connection, watch: LeaseWatch, device: str) -> list[LeaseRow]:
    """The leases of a device that have ended without a word."""
    rows = schema.jobs.c
    query = sa.select(rows.device, rows.lease_id, rows.renewal_count, rows.lease_sec).where(
        rows.device == device, rows.state == JobState.LEASED
    )
    return watch.silent(device, map(LeaseRow.of, connection.execute(query).mappings()))


def end_leases(connection: sa.Connection, watch: LeaseWatch, device: str) -> None:
    """Makes jobs of a device's ended leases available again, or parks them."""
    rows = schema.jobs.c
    parked = rows.failure_count + 1 >= MAX_FAILURES
    for lease in silent_leases(connection, watch, device):
        connection.execute(
            sa.update(schema.jobs)
            # The count again: another server may renew the lease at this very moment.
            .where(
                rows.lease_id == lease.lease_id,
                sa.func.coalesce(rows.renewal_count, 0) == lease.renewal_count,
            )
            .values(
                failure_count=rows.failure_count + 1,
                state=sa.case((parked, JobState.PARKED.value), else_=JobState.PENDING.value),
                reason=sa.case(
                    (parked, f"{MAX_FAILURES} workers leased it and never finished"), else_=""
                ),
                lease_id=None,
                worker_id=None,
            )
        )


def _check_subjects(subjects: Iterable[Subject], fingerprint: str) -> None:
    if fingerprint:
        encoding.check_fingerprint(fingerprint)
    for index, subject in enumerate(subjects):
        if isinstance(subject, ModelSubject) and subject.fingerprint != fingerprint:
            raise InputError(
                f"a variant of graph {subject.fingerprint[:12]!r} in a job of {fingerprint[:12]!r}",
                field=f"subjects[{index}].fingerprint",
            )
