"""From whatever stands in a database to the tables of this version.

A new store is made at once; one of an earlier version is upgraded revision by revision
(`migrations`), in one transaction: it happens whole or not at all. Only that imports Alembic, so
that opening a current store stays quick.
"""

from __future__ import annotations

import uuid

import sqlalchemy as sa

from rlprune.errors import InputError
from rlprune.store import schema

_FIRST = schema.REVISIONS[0]  # what 0.6.1 made, without saying so


def revision_of(connection: sa.Connection, store: str) -> str | None:
    """The revision of the store that stands in a database; None where none does.

    Args:
        store: its name, for the refusal.

    Raises:
        InputError: it is of a version that is not known here.
    """
    tables = sa.inspect(connection)
    versioned = tables.has_table(schema.alembic_version.name)
    if versioned:
        found = connection.scalar(sa.select(schema.alembic_version.c.version_num)) or ""
        if found not in schema.REVISIONS or not tables.has_table("settings"):
            raise _unknown(store, found)
    elif tables.has_table(schema.settings.name):
        found = _FIRST
    else:
        return None
    version = _setting(connection, "schema_version")
    expected = "1" if found == _FIRST else str(schema.SCHEMA_VERSION)
    if version != expected:
        if not versioned and sa.inspect(connection).has_table(schema.alembic_version.name):
            return revision_of(connection, store)  # upgraded by another between the two looks
        raise _unknown(store, str(version))
    return found


def bring_up(connection: sa.Connection, store: str) -> None:
    """Makes the tables, or upgrades them, within the caller's write transaction.

    Raises:
        InputError: as `revision_of`; nothing was changed.
    """
    found = revision_of(connection, store)
    if found is None:
        schema.metadata.create_all(connection)
        connection.execute(sa.insert(schema.alembic_version).values(version_num=schema.REVISION))
        settings = {"schema_version": str(schema.SCHEMA_VERSION), "store_id": uuid.uuid4().hex}
        connection.execute(
            sa.insert(schema.settings),
            [{"name": name, "value": value} for name, value in settings.items()],
        )
    elif found != schema.REVISION:
        _migrate(connection)


def store_id(connection: sa.Connection) -> str | None:
    """What tells this store from every other; None where there is none (any more)."""
    return _setting(connection, "store_id")


def _migrate(connection: sa.Connection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", "rlprune.store:migrations")
    config.attributes["connection"] = connection
    if not sa.inspect(connection).has_table(schema.alembic_version.name):
        command.stamp(config, _FIRST)
    command.upgrade(config, schema.REVISION)


def _setting(connection: sa.Connection, name: str) -> str | None:
    rows = schema.settings.c
    return connection.scalar(sa.select(rows.value).where(rows.name == name))


def _unknown(store: str, found: str) -> InputError:
    return InputError(
        f"store {store} has schema {found[:40]!r}, this version of rlprune reads up to "
        f"{schema.REVISION!r}; use the version that wrote it last, or a new store",
        field="store",
    )
