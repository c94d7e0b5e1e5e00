"""A plan has the name that its user calls the model by, and what was asked."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("plans", sa.Column("model_name", sa.String(200), nullable=True))
    op.add_column("plans", sa.Column("request", sa.Text, nullable=True))
