"""The tables as rlprune 0.6.1 made them, which knew no revisions: its stores are stamped so."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_Sequence = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "settings",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
    )
    op.create_table(
        "graphs",
        sa.Column("fingerprint", sa.String(64), primary_key=True),
        sa.Column("graph", sa.Text, nullable=False),
        sa.Column("skeleton", sa.LargeBinary, nullable=False),
        sa.Column("created_sec", sa.Float, nullable=False),
    )
    op.create_table(
        "devices",
        sa.Column("device", sa.String(120), primary_key=True),
        sa.Column("description", sa.Text, nullable=False),
        sa.Column("first_seen_sec", sa.Float, nullable=False),
        sa.Column("last_seen_sec", sa.Float, nullable=False),
        sa.Column("generation", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "measurements",
        sa.Column("seq", _Sequence, primary_key=True, autoincrement=True),
        sa.Column("device", sa.String(120), nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("job_id", sa.String(32), nullable=True),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("accepted_sec", sa.Float, nullable=False),
    )
    op.create_index("measurements_of_device", "measurements", ["device", "seq"])
    op.create_index("measurements_of_job", "measurements", ["job_id"])
    op.create_table(
        "plans",
        sa.Column("seq", _Sequence, primary_key=True, autoincrement=True),
        sa.Column("plan_id", sa.String(32), nullable=False, unique=True),
        sa.Column("request_id", sa.String(64), nullable=True, unique=True),
        sa.Column("content_digest", sa.String(64), nullable=False),
        sa.Column("device", sa.String(120), nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("created_sec", sa.Float, nullable=False),
    )
    op.create_index("plans_of_device", "plans", ["device", "seq"])
    op.create_table(
        "jobs",
        sa.Column("seq", _Sequence, primary_key=True, autoincrement=True),
        sa.Column("job_id", sa.String(32), nullable=False, unique=True),
        sa.Column("request_id", sa.String(64), nullable=True, unique=True),
        sa.Column("content_digest", sa.String(64), nullable=False),
        sa.Column("device", sa.String(120), nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=True),
        sa.Column("subjects", sa.Text, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("failure_count", sa.Integer, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("created_sec", sa.Float, nullable=False),
        sa.Column("lease_id", sa.String(32), nullable=True, unique=True),
        sa.Column("worker_id", sa.String(120), nullable=True),
        sa.Column("lease_end_sec", sa.Float, nullable=True),
    )
    op.create_index("jobs_to_lease", "jobs", ["device", "state", "seq"])
    op.create_table(
        "reports",
        sa.Column("request_id", sa.String(64), primary_key=True),
        sa.Column("content_digest", sa.String(64), nullable=False),
        sa.Column("job_id", sa.String(32), nullable=False),
        sa.Column("answer", sa.Text, nullable=False),
        sa.Column("accepted_sec", sa.Float, nullable=False),
    )
    op.execute("INSERT INTO settings (name, value) VALUES ('schema_version', '1')")
