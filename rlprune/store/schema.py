"""The tables, in SQL that SQLite and PostgreSQL share.

Times are seconds since the epoch by the store's clock. `seq` columns give the order of acceptance.
What a row holds besides its keys is JSON text, in the same words as the types it was made from.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
)

REVISIONS = ("0001", "0002", "0003", "0004")
"""Of these tables, oldest first, as `migrations/versions` has them; the last is the one below."""
REVISION = REVISIONS[-1]
SCHEMA_VERSION = 2
"""What versions before there were revisions look at, in `settings`; they refuse this one."""

metadata = MetaData()

# SQLite makes only INTEGER PRIMARY KEY count up by itself.
_Sequence = BigInteger().with_variant(Integer(), "sqlite")

# By this name Alembic looks for a store's revision.
alembic_version = Table(
    "alembic_version",
    metadata,
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)

settings = Table(
    "settings",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("value", Text, nullable=False),
)

graphs = Table(
    "graphs",
    metadata,
    Column("fingerprint", String(64), primary_key=True),
    Column("graph", Text, nullable=False),
    Column("skeleton", LargeBinary, nullable=False),
    Column("created_sec", Float, nullable=False),
)

devices = Table(
    "devices",
    metadata,
    Column("device", String(120), primary_key=True),
    Column("description", Text, nullable=False),  # JSON object of strings
    Column("first_seen_sec", Float, nullable=False),
    Column("last_seen_sec", Float, nullable=False),
    Column("generation", BigInteger, nullable=False),
)

measurements = Table(
    "measurements",
    metadata,
    Column("seq", _Sequence, primary_key=True, autoincrement=True),
    Column("device", String(120), nullable=False),
    Column("subject", Text, nullable=False),  # encoding.subject_key
    Column("status", String(16), nullable=False),
    Column("job_id", String(32), nullable=True),
    Column("body", Text, nullable=False),
    Column("accepted_sec", Float, nullable=False),
    Index("measurements_of_device", "device", "seq"),
    Index("measurements_of_job", "job_id"),
)

plans = Table(
    "plans",
    metadata,
    Column("seq", _Sequence, primary_key=True, autoincrement=True),
    Column("plan_id", String(32), nullable=False, unique=True),
    Column("request_id", String(64), nullable=True, unique=True),
    Column("content_digest", String(64), nullable=False),
    Column("device", String(120), nullable=False),
    Column("fingerprint", String(64), nullable=False),
    Column("body", Text, nullable=False),
    Column("created_sec", Float, nullable=False),
    Column("pending_job_ids", Text, nullable=True),  # JSON array; NULL: none
    Column("model_name", String(200), nullable=True),
    Column("request", Text, nullable=True),  # JSON object in the words of PlanOptions
    Index("plans_of_device", "device", "seq"),
)

jobs = Table(
    "jobs",
    metadata,
    Column("seq", _Sequence, primary_key=True, autoincrement=True),
    Column("job_id", String(32), nullable=False, unique=True),
    Column("request_id", String(64), nullable=True, unique=True),
    Column("content_digest", String(64), nullable=False),
    Column("device", String(120), nullable=False),
    Column("fingerprint", String(64), nullable=True),
    Column("subjects", Text, nullable=False),  # JSON array of subject keys
    Column("state", String(16), nullable=False),
    Column("failure_count", Integer, nullable=False),
    Column("reason", Text, nullable=False),
    Column("created_sec", Float, nullable=False),
    Column("lease_id", String(32), nullable=True, unique=True),
    Column("worker_id", String(120), nullable=True),
    Column("lease_end_sec", Float, nullable=True),  # for people; servers go by what follows
    Column("lease_sec", Float, nullable=True),
    Column("renewal_count", Integer, nullable=True),
    Index("jobs_to_lease", "device", "state", "seq"),
)

reports = Table(
    "reports",
    metadata,
    Column("request_id", String(64), primary_key=True),
    Column("content_digest", String(64), nullable=False),
    Column("job_id", String(32), nullable=False),
    Column("answer", Text, nullable=False),  # JSON of jobs.ReportAnswer
    Column("accepted_sec", Float, nullable=False),
)
