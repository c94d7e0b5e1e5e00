"""Plans as rows, within the transactions of `store` and `jobs`."""

from __future__ import annotations

import base64
import itertools
import json
import uuid
from typing import Any

import sqlalchemy as sa

from rlprune.device_keys import canonical_key
from rlprune.errors import ConflictError, InputError, NotFoundError
from rlprune.files import digest
from rlprune.plans import PruningPlan
from rlprune.store import encoding, schema
from rlprune.store.records import UNSAID, Asked, PlanRecord

MAX_PAGE_BYTES = 2 * 2**20
"""Of plans on one page, as they are kept; on the wire they are shorter, and gRPC's own clients take
4 MB at most."""


def plan_row(
    plan: PruningPlan,
    now_sec: float,
    *,
    request_id: str = "",
    content: bytes | None = None,
    asked: Asked = UNSAID,
) -> dict[str, Any]:
    """The row of a new plan; see `Store.put_plan`."""
    body = plan.to_json(indent=None)
    return {
        "plan_id": uuid.uuid4().hex,
        "request_id": encoding.check_request_id(request_id) if request_id else None,
        "content_digest": digest(body if content is None else content),
        "device": canonical_key(plan.device),
        "fingerprint": plan.fingerprint,
        "body": body,
        "created_sec": now_sec,
        "model_name": asked.model_name or None,
        "request": asked.request or None,
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
        raise conflict(request_id)
    return str(found.plan_id)


def conflict(request_id: str) -> ConflictError:
    """The refusal of a request_id that was used for something else."""
    return ConflictError(
        f"request_id {request_id!r} was used for another request; take a new one",
        field="request_id",
    )


def plan_of_row(row: sa.RowMapping) -> PlanRecord:
    """A plan as its row has it."""
    with encoding.stored("a plan"):
        return PlanRecord(
            row["plan_id"],
            PruningPlan.from_json(row["body"]),
            row["created_sec"],
            tuple(json.loads(row["pending_job_ids"] or "[]")),
            row["model_name"] or "",
            row["request"] or "",
        )


def plan_page(
    connection: sa.Connection, limit: int, page_token: str, device: str
) -> tuple[list[PlanRecord], str]:
    """See `Store.plans`; within a transaction."""
    own = schema.plans.c
    # A plan with candidates has 150 kB: first the sizes, then as many as go on a page.
    sizes = sa.select(own.seq, sa.func.length(own.body)).order_by(own.seq.desc())
    if device:
        sizes = sizes.where(own.device == device)
    if page_token:
        sizes = sizes.where(own.seq < _before(page_token, device))
    found = connection.execute(sizes.limit(limit + 1)).all()
    total = itertools.accumulate(size for _, size in found)
    fitting = sum(size <= MAX_PAGE_BYTES for size in total)
    page = [seq for seq, _ in found[: min(max(fitting, 1), limit)]]
    query = sa.select(schema.plans).where(own.seq.in_(page)).order_by(own.seq.desc())
    rows = connection.execute(query).mappings().all()
    token = _token(int(page[-1]), device) if len(found) > len(page) else ""
    return [plan_of_row(row) for row in rows], token


def _token(seq: int, device: str) -> str:
    return base64.urlsafe_b64encode(json.dumps([seq, device]).encode()).decode()


def _before(page_token: str, device: str) -> int:
    try:
        seq, token_device = json.loads(base64.urlsafe_b64decode(page_token[:1000].encode()))
        if token_device != device or type(seq) is not int or not 0 <= seq < 2**63:
            raise ValueError
    except (RecursionError, TypeError, ValueError) as error:
        raise InputError(
            "page_token was not given out for this request; start from the first page",
            field="page_token",
        ) from error
    return seq
