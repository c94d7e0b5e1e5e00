"""Opening a database and running transactions in it.

Promise: when a write transaction has returned, its rows are on disk. SQLite runs in WAL mode with
synchronous=FULL, so they survive `kill -9`, and loss of power as far as the disk keeps its own
promises; PostgreSQL likewise while its `synchronous_commit` is left on. What is read or written is
read from and written to the store that was opened: one that was deleted, replaced or damaged since
raises StoreError (`presence`). One `Database` may be used from many threads, one file or server
from many processes.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.dialects import postgresql, sqlite

from rlprune.errors import InputError, StoreError, UnavailableError
from rlprune.store import schema, upgrade

BUSY_TIMEOUT_SEC = 20.0
"""How long a SQLite writer waits for another process's transaction."""
PROBE, PROBE_BYTES = "probe", 1 << 16
"""A row of `settings` that is written and removed to see whether there is room."""
_OPEN_LOCK = 0x726C7072  # "rlpr": one process at a time creates the tables


class Database:
    """An engine, and the two kinds of transaction that the store uses."""

    def __init__(self, url: str) -> None:
        """Opens or creates the database at a SQLAlchemy URL (sqlite file or postgresql).

        Raises:
            InputError: no URL of a kind known here, or what is there is no store of this version.
            UnavailableError: the database does not answer.
        """
        self.url = _parse(url)
        self.engine = _engine(self.url)
        self._damage = ""
        self._write_failed = False
        try:
            self._id = self._open()
        except exc.OperationalError as error:
            self.close()
            raise UnavailableError(f"cannot open store {self}: {_first_line(error)}") from error
        except (exc.DatabaseError, sqlite3.DatabaseError) as error:
            self.close()
            raise InputError(
                f"{self} is not a store ({_first_line(error)}); give another --store", field="store"
            ) from error
        except BaseException:
            self.close()
            raise
        sqlite_file = self.url.database if self.engine.dialect.name == "sqlite" else None
        self._files = StoreFiles(sqlite_file)

    def __str__(self) -> str:
        return self.url.render_as_string(hide_password=True)

    @property
    def name(self) -> str:
        """The file's or database's name, without the path, user and host that are nobody's business
        at the other end of a wire."""
        return Path(str(self.url.database)).name

    def close(self) -> None:
        """Closes all connections."""
        self.engine.dispose()

    def check(self) -> None:
        """Whether all is well: the store is there, and was neither replaced nor found damaged.

        Where the last write failed, one as large as most is tried, so that a disk that was full or
        a lock that was held is forgotten when it is over, and not before. For health checks; some
        0.2 ms where all is well.

        Raises:
            StoreError: the store is gone, was replaced or is damaged.
            UnavailableError: the database does not answer, or cannot be written.
        """
        if self._damage:
            raise StoreError(self._damage)
        with self.read() as connection:
            self._check_id(connection)
        if self._write_failed:
            probe = schema.settings.c.name == PROBE
            with self.write() as connection:
                connection.execute(sa.delete(schema.settings).where(probe))
                row = {"name": PROBE, "value": "0" * PROBE_BYTES}
                connection.execute(sa.insert(schema.settings).values(row))
            with self.write() as connection:
                connection.execute(sa.delete(schema.settings).where(probe))

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """One consistent view; nothing written in it is kept.

        Raises:
            StoreError, UnavailableError: as `check`.
        """
        with self._named():
            self._check_files()
            with self.engine.connect() as connection:
                yield connection

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """All or nothing; on disk when it returns. Writers of one SQLite file take turns.

        Raises:
            StoreError, UnavailableError: as `check`.
        """
        try:
            with self._named():
                self._check_files()
                with self._writing() as connection, connection.begin():
                    self._check_id(connection)
                    yield connection
                self._check_files()  # or it went to a file that is in no folder any more
        except (StoreError, UnavailableError):
            self._write_failed = True
            raise
        self._write_failed = False

    def _check_files(self) -> None:
        missing = self._files.missing()
        if missing:
            raise self._lost(f"{missing} was deleted or replaced")

    def _check_id(self, connection: sa.Connection) -> None:
        if upgrade.store_id(connection) != self._id:
            raise self._lost("another one stands in its place")

    def _lost(self, what: str) -> StoreError:
        return StoreError(
            f"store {self.name} is lost: {what} while it was open, and nothing more is kept; put "
            "it back and start again"
        )

    @contextmanager
    def _named(self) -> Iterator[None]:
        """What a database raises, as our errors; bugs pass."""
        try:
            yield
        except exc.DBAPIError as error:
            if _is_damage(error):
                self._damage = (
                    f"store {self.name} is damaged: {_first_line(error)}; restore it from a backup"
                )
                raise StoreError(self._damage) from error
            if isinstance(error, exc.OperationalError):
                self._check_files()  # a new connection to a deleted file says: no such table
                raise UnavailableError(f"store {self.name}: {_first_line(error)}") from error
            raise
        except exc.TimeoutError as error:
            raise UnavailableError(f"store {self.name}: all connections are in use") from error

    def _writing(self) -> sa.Connection:
        return self.engine.connect().execution_options(rlprune_write=True)

    def insert_new(
        self, connection: sa.Connection, table: sa.Table, values: Mapping[str, Any]
    ) -> bool:
        """Inserts a row unless one with the same key is there; says whether it was inserted."""
        make = postgresql.insert if self.engine.dialect.name == "postgresql" else sqlite.insert
        # Not rowcount: psycopg leaves it out where SQLAlchemy itself asks for the new key.
        insert = make(table).values(**values).on_conflict_do_nothing()
        return connection.execute(insert.returning(*table.primary_key)).first() is not None

    def _open(self) -> str:
        """Makes or upgrades the tables where need be; returns the store's id."""
        if self.engine.dialect.name == "sqlite":
            _switch_to_wal(self.engine)
        with self.engine.connect() as connection:
            if upgrade.revision_of(connection, str(self)) == schema.REVISION:
                return upgrade.store_id(connection) or ""
        with self._writing() as connection, connection.begin():
            if self.engine.dialect.name == "postgresql":
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_OPEN_LOCK)))
            upgrade.bring_up(connection, str(self))
            return upgrade.store_id(connection) or ""


def _parse(url: str) -> sa.URL:
    if "://" not in url:
        url = f"sqlite:///{url}"
    try:
        parsed = sa.make_url(url)
        backend = parsed.get_backend_name()
    except (exc.ArgumentError, ValueError) as error:
        raise InputError(f"not a store URL: {url!r}", field="store") from error
    if backend not in ("sqlite", "postgresql"):
        raise InputError(
            f"store {backend!r}: use sqlite:///FILE or postgresql://...", field="store"
        )
    if backend == "sqlite":
        if parsed.database in (None, "", ":memory:"):
            raise InputError("a store is a file: give sqlite:///FILE", field="store")
        parent = Path(str(parsed.database)).absolute().parent
        try:
            parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot make the folder {parent}: {error}", field="store") from error
    return parsed


def _engine(url: sa.URL) -> sa.Engine:
    # More than a server has threads, so that none waits for another's connection.
    options: dict[str, Any] = {
        "pool_size": 16,
        "max_overflow": 16,
        "pool_timeout": BUSY_TIMEOUT_SEC,
    }
    try:
        if url.get_backend_name() == "postgresql":
            return sa.create_engine(url, pool_pre_ping=True, **options)
        engine = sa.create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_SEC}, **options)
    except exc.NoSuchModuleError as error:
        raise InputError(f"store {url.drivername!r}: {error}", field="store") from error
    except ModuleNotFoundError as error:
        raise InputError(
            f"store {url.drivername!r} needs the package {error.name!r}: pip install {error.name}",
            field="store",
        ) from error

    @sa.event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _: Any) -> None:
        # The driver's own BEGIN comes late and is never IMMEDIATE, so it is switched off
        # (SQLAlchemy docs, SQLite dialect, "Serializable isolation / Savepoints").
        connection.isolation_level = None
        connection.execute("PRAGMA synchronous=FULL")

    @sa.event.listens_for(engine, "begin")
    def _on_begin(connection: sa.Connection) -> None:
        # A reader turned writer cannot wait for the lock, its view being old: writers say so first.
        write = connection.get_execution_options().get("rlprune_write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return engine


def _switch_to_wal(engine: sa.Engine) -> None:
    # The switch is kept in the file. It does not wait for other processes that open the file at the
    # same moment, busy timeout or not, hence the loop.
    deadline = time.monotonic() + BUSY_TIMEOUT_SEC
    while True:
        try:
            with contextlib.closing(engine.raw_connection()) as connection:
                connection.cursor().execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise UnavailableError(f"cannot open store {engine.url}: {error}") from error
            time.sleep(0.02)


def _first_line(error: Exception) -> str:
    return str(getattr(error, "orig", error)).strip().splitlines()[0]


def _is_damage(error: exc.DBAPIError) -> bool:
    """Whether a database says that its own pages make no sense."""
    code = getattr(error.orig, "sqlite_errorcode", None)
    if code is not None:
        return code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
    if str(error.orig).startswith("Could not decode to UTF-8"):  # Python's word, without a code
        return True
    return str(getattr(error.orig, "sqlstate", "") or "").startswith("XX")


class StoreFiles:
    """The files of an open store, as the file system knew them when it was opened.

    The write-ahead log counts: as long as one connection is open, SQLite itself leaves it alone.
    Never opens them: closing would end the locks that this process holds on them (POSIX).
    """

    def __init__(self, path: str | None) -> None:
        """Of a SQLite file; of what is none (None), nothing is ever missing."""
        paths = [] if path is None else [path, f"{path}-wal"]
        self._known = {one: found for one in paths if (found := _identity(one)) is not None}

    def missing(self) -> str:
        """Name of a file that is not there any more or is another one now; empty: all are well."""
        for path, known in self._known.items():
            if _identity(path) != known:
                return Path(path).name
        return ""


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
