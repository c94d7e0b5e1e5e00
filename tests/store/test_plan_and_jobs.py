"""A plan, its graph and its jobs are kept together or not at all, and told again alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa
from test_store import DEVICE, FINGERPRINT, GRAPH, SPEC, plan

from rlprune.errors import ConflictError, NotFoundError
from rlprune.latency.types import ModelSubject
from rlprune.store import Store, open_store, schema
from rlprune.store.jobs import JobQueue

MISSING = [SPEC, replace(SPEC, in_width=8), ModelSubject(FINGERPRINT, (8,))]


@pytest.fixture
def queue(url: str) -> Iterator[JobQueue]:
    store = open_store(url)
    store.register_device(DEVICE)
    yield JobQueue(store)
    store.close()


def count(store: Store) -> dict[str, int]:
    with store.database.read() as connection:
        return {
            table.name: connection.scalar(sa.select(sa.func.count()).select_from(table)) or 0
            for table in (schema.plans, schema.jobs, schema.graphs)
        }


def test_the_repeated_request_is_told_the_same_jobs_also_when_they_are_done(
    queue: JobQueue,
) -> None:
    ask: dict[str, Any] = {"request_id": "r1", "content": b"asked", "graph": (GRAPH, b"skeleton")}
    first = queue.put_plan(plan(1.0), MISSING, **ask)
    assert first.pending_job_ids == tuple(job.job_id for job in queue.open_jobs(DEVICE))
    assert len(first.pending_job_ids) == 1
    store = queue._store
    before = count(store)
    with store.database.write() as connection:
        connection.execute(sa.update(schema.jobs).values(state="done"))
    # What is answered is the first plan, not the one that was computed this time.
    again = queue.put_plan(plan(2.0), MISSING, **ask)
    assert again == first and count(store) == before
    assert store.plan_record(first.plan_id) == first
    with pytest.raises(ConflictError):
        queue.put_plan(plan(1.0), MISSING, request_id="r1", content=b"something else")
    assert count(store) == before == {"plans": 1, "jobs": 1, "graphs": 1}


def test_where_the_jobs_cannot_be_kept_neither_is_the_plan(
    queue: JobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("as if the disk were full")

    monkeypatch.setattr(queue, "_row", full)
    ask: dict[str, Any] = {"request_id": "r1", "content": b"asked", "graph": (GRAPH, b"skeleton")}
    with pytest.raises(OSError):
        queue.put_plan(plan(), MISSING, **ask)
    assert count(queue._store) == {"plans": 0, "jobs": 0, "graphs": 0}
    monkeypatch.undo()
    assert len(queue.put_plan(plan(), MISSING, **ask).pending_job_ids) == 1


def test_a_plan_of_which_nothing_is_missing_has_no_jobs(queue: JobQueue) -> None:
    record = queue.put_plan(plan(device="macs"))
    assert record.pending_job_ids == () and queue._store.plan_record(record.plan_id) == record
    with pytest.raises(NotFoundError):
        queue.put_plan(plan(device="nobody"), MISSING)
    assert count(queue._store)["plans"] == 1
