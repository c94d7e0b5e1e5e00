"""Plans as rows, within the transactions of `store` and `jobs`."""

from __future__ import annotations

import json
import uuid
from typing import Any

import sqlalchemy as sa

from rlprune.errors import ConflictError, NotFoundError
from rlprune.files import digest
from rlprune.plans import PruningPlan
from rlprune.store import encoding, schema
from rlprune.store.records import PlanRecord


def plan_row(
    plan: PruningPlan, now_sec: float, *, request_id: str = "", content: bytes | None = None
) -> dict[str, Any]:
    """The row of a new plan; see `Store.put_plan`."""
    body = plan.to_json(indent=None)
    return {
        "plan_id": uuid.uuid4().hex,
        "request_id": encoding.check_request_id(request_id) if request_id else None,
        "content_digest": digest(body if content is None else content),
        "device": plan.device,
        "fingerprint": plan.fingerprint,
        "body": body,
        "created_sec": now_sec,
    }


def read_plan(connection: sa.Connection, plan_id: str) -> PlanRecord:
    """A plan within a transaction; raises as `Store.plan`."""
    encoding.check_id(plan_id, field="plan_id")
    query = sa.select(schema.plans).where(schema.plans.c.plan_id == plan_id)
    row = connection.execute(query).mappings().first()
    if row is None:
        raise NotFoundError(f"no plan with id {plan_id[:80]!r}", field="plan_id")
    return plan_of_row(row)


def plan_of_request(connection: sa.Connection, request_id: str, content_digest: str) -> str | None:
    """See `Store.plan_of_request`; within a transaction."""
    rows = schema.plans.c
    query = sa.select(rows.plan_id, rows.content_digest).where(rows.request_id == request_id)
    found = connection.execute(query).first()
    if found is None:
        return None
    if found.content_digest != content_digest:
        raise ConflictError(
            f"request_id {request_id!r} was used for another request; take a new one",
            field="request_id",
        )
    return str(found.plan_id)


def plan_of_row(row: sa.RowMapping) -> PlanRecord:
    """A plan as its row has it."""
    with encoding.stored("a plan"):
        return PlanRecord(
            row["plan_id"],
            PruningPlan.from_json(row["body"]),
            row["created_sec"],
            tuple(json.loads(row["pending_job_ids"] or "[]")),
        )
