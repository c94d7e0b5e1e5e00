"""A device key no longer says `f32`: precision is a property of what is measured.

What measurements and plans say of their device in their bodies is read as it is today
(`store.encoding`, `plans`); the columns are what is searched.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    for name in ("devices", "measurements", "plans", "jobs"):
        table = sa.table(name, sa.column("device"))
        op.execute(
            table.update()
            .where(table.c.device.like("%.f32.b%"))
            .values(device=sa.func.replace(table.c.device, ".f32.b", ".b"))
        )
