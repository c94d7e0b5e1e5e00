"""A store that 0.6.1 left is opened by this version, whole; one of a later version is refused."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from rlprune.errors import InputError, LeaseError
from rlprune.latency.types import ModelSubject
from rlprune.store import open_store, schema
from rlprune.store.jobs import JobQueue
from rlprune.store.leases import Leases
from rlprune.store.records import JobState

ASSET = Path(__file__).parent / "data" / "store_0_6_1.sql"
BOARD, OTHER = "board-1", "board-2"


def old_rows() -> dict[str, list[dict[str, Any]]]:
    """What stood in the store of 0.6.1, by table."""
    raw = sqlite3.connect(":memory:")
    raw.row_factory = sqlite3.Row
    raw.executescript(ASSET.read_text())
    tables = [row[0] for row in raw.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    found = {name: [dict(row) for row in raw.execute(f"SELECT * FROM {name}")] for name in tables}
    raw.close()
    return found


def lay_down(url: str) -> None:
    """The store of 0.6.1 at `url`: its very statements in SQLite, its rows in PostgreSQL."""
    if url.startswith("sqlite"):
        raw = sqlite3.connect(url.removeprefix("sqlite:///"))
        raw.executescript(ASSET.read_text())
        raw.close()
        return
    from alembic import command
    from alembic.config import Config

    engine = sa.create_engine(url)
    config = Config()
    config.set_main_option("script_location", "rlprune.store:migrations")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        connection.exec_driver_sql("DROP TABLE alembic_version")
        connection.exec_driver_sql("DELETE FROM settings")
        for name, rows in old_rows().items():
            table = sa.Table(name, sa.MetaData(), autoload_with=connection)
            connection.execute(sa.insert(table), rows)
            if "seq" in table.c:  # as if these had been counted up here
                connection.exec_driver_sql(
                    f"SELECT setval(pg_get_serial_sequence('{name}', 'seq'), {len(rows) + 100})"
                )
    engine.dispose()


def test_all_that_0_6_1_stored_is_found_and_goes_on(url: str) -> None:
    lay_down(url)
    old = old_rows()
    now = max(row["created_sec"] for row in old["jobs"]) + 20.0
    store = open_store(url, clock=lambda: now)
    assert [device.key for device in store.devices()] == [BOARD, OTHER]
    measured = store.measurements(BOARD)
    assert len(measured) == store.generation(BOARD) == len(old["measurements"])
    models = [one for one in measured if isinstance(one.subject, ModelSubject)]
    assert models and all(one.latency_ms > 0 for one in measured)
    graph = store.graph(models[0].subject.fingerprint)  # type: ignore[union-attr]
    assert store.skeleton(graph.fingerprint) == old["graphs"][0]["skeleton"]
    records, _ = store.plans()
    assert [record.plan_id for record in records] == [row["plan_id"] for row in old["plans"]][::-1]
    for record in records:
        record.plan.check(graph)
    queue, leases = JobQueue(store), Leases(store)
    states = {row["job_id"]: queue.job(row["job_id"]).state for row in old["jobs"]}
    assert sorted(states.values()) == sorted(row["state"] for row in old["jobs"])
    assert len(queue.unmeasurable(OTHER)) == 1, "the parked one rests"
    # The worker that held a job when the server was stopped has it still, and others do not.
    (held,) = [row for row in old["jobs"] if row["state"] == "leased"]
    leases.renew(held["lease_id"])
    again = leases.lease(held["worker_id"], OTHER)
    assert again is not None and again.lease_id == held["lease_id"]
    fresh = leases.lease("worker-2", OTHER)
    assert fresh is not None and states[fresh.job.job_id] is JobState.PENDING
    assert leases.lease("worker-3", OTHER) is None
    now += 61.0
    with pytest.raises(LeaseError):
        leases.renew(held["lease_id"])
    report = old["reports"][0]
    with store.database.read() as connection:
        kept = connection.execute(sa.select(schema.reports)).mappings().one()
    assert {name: kept[name] for name in report} == report
    store.close()


def tables(url: str) -> dict[str, Any]:
    engine = sa.create_engine(url)
    seen = sa.inspect(engine)
    found = {
        name: (
            [(c["name"], str(c["type"]), c["nullable"]) for c in seen.get_columns(name)],
            seen.get_pk_constraint(name)["constrained_columns"],
            sorted(i["column_names"] for i in seen.get_indexes(name)),
            sorted(u["column_names"] for u in seen.get_unique_constraints(name)),
        )
        for name in seen.get_table_names()
    }
    engine.dispose()
    return found


def test_an_upgraded_store_has_the_tables_of_a_new_one(url: str, tmp_path: Path) -> None:
    open_store(url).close()
    made = tables(url)
    store = open_store(url)
    with store.database.write() as connection:
        schema.metadata.drop_all(connection)
        connection.exec_driver_sql("DROP TABLE IF EXISTS alembic_version")
    store.close()
    lay_down(url)
    open_store(url).close()
    assert tables(url) == made


def test_every_revision_is_known_in_its_order() -> None:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", "rlprune.store:migrations")
    revisions = [one.revision for one in ScriptDirectory.from_config(config).walk_revisions()]
    assert tuple(reversed(revisions)) == schema.REVISIONS


NEWER: list[Callable[[sa.Connection], object]] = [
    lambda connection: connection.execute(
        sa.update(schema.alembic_version).values(version_num="0099")
    ),
    lambda connection: connection.execute(
        sa.update(schema.settings)
        .where(schema.settings.c.name == "schema_version")
        .values(value="0099")
    ),
]


@pytest.mark.parametrize("change", NEWER)
def test_a_store_of_a_later_version_is_refused_in_one_line_and_left_alone(
    url: str, change: Callable[[sa.Connection], object]
) -> None:
    store = open_store(url)
    with store.database.write() as connection:
        change(connection)
    store.close()
    before = tables(url)
    with pytest.raises(InputError, match="0099") as refusal:
        open_store(url)
    assert refusal.value.field == "store" and "\n" not in str(refusal.value)
    assert tables(url) == before
    if url.startswith("sqlite"):
        command = [str(Path(sys.executable).parent / "rlprune"), "serve", "--listen", "127.0.0.1:0"]
        told = subprocess.run(
            [*command, "--store", url], capture_output=True, text=True, timeout=60
        )
        assert told.returncode == 1 and "0099" in told.stderr
        assert "Traceback" not in told.stderr


OPEN = "import sys; from rlprune.store import open_store; print(open_store(sys.argv[1]).devices())"


def test_processes_that_open_an_old_store_at_once_upgrade_it_once(url: str) -> None:
    lay_down(url)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", OPEN, url], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for _ in range(3)
    ]
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err.decode()
        assert BOARD.encode() in out
    store = open_store(url)
    assert store.generation(BOARD) == len(old_rows()["measurements"])
    store.close()


def test_opening_a_store_of_this_version_does_not_import_alembic(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 's.sqlite'}"
    code = f"{OPEN}; print('alembic' in sys.modules)"
    for _ in range(2):  # made, then opened
        done = subprocess.run(
            [sys.executable, "-c", code, url], capture_output=True, text=True, timeout=60
        )
        assert done.stdout.split() == ["[]", "False"], done.stderr


def test_what_0_6_1_looks_at_says_that_it_cannot_read_this(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 's.sqlite'}"
    lay_down(url)
    store = open_store(url)
    with store.database.read() as connection:
        query = sa.select(schema.settings.c.value).where(schema.settings.c.name == "schema_version")
        assert connection.scalar(query) != "1"
    store.close()
