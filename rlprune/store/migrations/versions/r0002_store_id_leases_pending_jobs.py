"""A store has an id; a lease its length and its renewals; a plan the jobs it was waiting for."""

from __future__ import annotations

import uuid

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

LEASE_SEC_OF_0_6_1 = 60.0


def upgrade() -> None:
    op.add_column("plans", sa.Column("pending_job_ids", sa.Text, nullable=True))
    op.add_column("jobs", sa.Column("lease_sec", sa.Float, nullable=True))
    op.add_column("jobs", sa.Column("renewal_count", sa.Integer, nullable=True))
    jobs = sa.table("jobs", sa.column("state"), sa.column("lease_sec"), sa.column("renewal_count"))
    op.execute(
        jobs.update()
        .where(jobs.c.state == "leased")
        .values(lease_sec=LEASE_SEC_OF_0_6_1, renewal_count=0)
    )
    settings = sa.table("settings", sa.column("name"), sa.column("value"))
    op.execute(settings.insert().values(name="store_id", value=uuid.uuid4().hex))
    # What 0.6.1 looks at: it refuses this store rather than to misread it.
    op.execute(settings.update().where(settings.c.name == "schema_version").values(value="2"))
