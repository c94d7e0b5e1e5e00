"""A store that is deleted, replaced or damaged while it is open: told in one line, never OK'd."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from test_store import DEVICE, FINGERPRINT, GRAPH, measured, plan

from rlprune.errors import StoreError, UnavailableError
from rlprune.store import Store, open_store, schema
from rlprune.store.jobs import JobQueue
from rlprune.store.leases import Leases


def path_of(store: Store) -> Path:
    return Path(str(store.database.url.database))


def deleted(path: Path) -> None:
    for one in path.parent.glob(path.name + "*"):
        one.unlink()


def only_the_log_deleted(path: Path) -> None:
    Path(f"{path}-wal").unlink()


def replaced(path: Path) -> None:
    other = path.parent / "other.sqlite"
    open_store(str(other)).close()
    other.rename(path)


def moved(path: Path) -> None:
    path.rename(path.parent / "elsewhere.sqlite")


@pytest.mark.parametrize("lose", [deleted, only_the_log_deleted, replaced, moved])
def test_a_store_that_is_gone_or_another_one_acknowledges_nothing_more(
    tmp_path: Path, lose: Callable[[Path], None]
) -> None:
    store = open_store(str(tmp_path / "s.sqlite"))
    store.add_measurements([measured(1.0)])
    store.database.check()
    path = path_of(store)
    lose(path)
    there = path.exists()
    for act in (
        lambda: store.add_measurements([measured(2.0)]),
        lambda: store.put_plan(plan()),
        lambda: store.register_device("board-2"),
        lambda: store.devices(),
        store.database.check,
    ):
        with pytest.raises(StoreError, match=r"store s\.sqlite is lost") as refusal:
            act()
        assert "\n" not in str(refusal.value) and str(tmp_path) not in str(refusal.value)
    assert path.exists() == there, "no empty file in its place"
    store.close()


def test_a_store_that_goes_while_a_write_is_on_its_way_is_not_acknowledged(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "s.sqlite"))
    with pytest.raises(StoreError), store.database.write() as connection:
        connection.execute(sa.insert(schema.settings).values(name="x", value="y"))
        deleted(path_of(store))
    store.close()


def test_another_store_in_the_same_file_or_database_is_noticed_by_its_id(url: str) -> None:
    store = open_store(url)
    store.add_measurements([measured(1.0)])
    other = sa.create_engine(url)
    with other.begin() as connection:
        connection.exec_driver_sql("UPDATE settings SET value = 'x' WHERE name = 'store_id'")
    other.dispose()
    for act in (lambda: store.add_measurements([measured(2.0)]), store.database.check):
        with pytest.raises(StoreError, match="another one stands in its place"):
            act()
    assert len(store.measurements(DEVICE)) == 1
    store.close()


def test_a_write_that_failed_is_tried_again_by_the_check_until_there_is_room(
    tmp_path: Path,
) -> None:
    store = open_store(str(tmp_path / "s.sqlite"))

    def let_grow(pages: int) -> None:  # as a full disk would not
        several = [store.database.engine.raw_connection() for _ in range(16)]
        for one in several:
            one.cursor().execute(f"PRAGMA max_page_count = {pages}")
            one.close()

    let_grow(1)
    with pytest.raises(UnavailableError, match="full"):
        store.add_measurements([measured(1.0)] * 3000)
    for _ in range(3):
        with pytest.raises(UnavailableError, match="full"):
            store.database.check()
    let_grow(1 << 20)
    store.database.check()
    assert store.measurements(DEVICE) == []
    store.close()


def test_a_damaged_page_is_named_in_one_line_and_kept_in_mind(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "s.sqlite"))
    store.put_graph(GRAPH, b"skeleton" * 2000)
    for number in range(60):
        store.add_measurements([measured(1.0 + number)] * 5)
        store.put_plan(plan(1.0 + number))
    JobQueue(store).enqueue(DEVICE, [measured(1.0).subject])
    store.close()
    whole = path_of(store).read_bytes()
    pages = len(whole) // 4096
    rng = np.random.default_rng(3)
    named = 0
    for page in rng.choice(np.arange(1, pages), min(24, pages - 1), replace=False):
        path = tmp_path / f"damaged-{page}.sqlite"
        path.write_bytes(whole[: page * 4096] + rng.bytes(4096) + whole[(page + 1) * 4096 :])
        try:
            damaged = open_store(str(path))
        except Exception as error:
            assert "\n" not in str(error) and type(error).__module__ == "rlprune.errors"
            continue
        seen = False
        for act in (
            lambda s: s.devices(),
            lambda s: s.measurements(DEVICE),
            lambda s: s.graphs(),
            lambda s: s.skeleton(FINGERPRINT),
            lambda s: s.plans(page_size=1000),
            lambda s: JobQueue(s).open_jobs(DEVICE),
            lambda s: Leases(s).lease("worker", DEVICE),
            lambda s: s.add_measurements([measured(2.0)]),
        ):
            try:
                act(damaged)
            except StoreError as error:
                seen = True
                assert "damaged" in str(error) and "\n" not in str(error)
        if damaged.database._damage:
            with pytest.raises(StoreError, match="damaged"):
                damaged.database.check()
        named += seen
        damaged.close()
    assert named > 5


@pytest.mark.parametrize(
    ("statement", "read"),
    [
        ("UPDATE measurements SET body = '{'", lambda s: s.measurements(DEVICE)),
        ("UPDATE measurements SET subject = 'x'", lambda s: s.measurements(DEVICE)),
        ("UPDATE graphs SET graph = '{}'", lambda s: s.graph(FINGERPRINT)),
        ("UPDATE plans SET body = '{}'", lambda s: s.plans()),
        ("UPDATE jobs SET subjects = '[3]'", lambda s: JobQueue(s).open_jobs(DEVICE)),
        ("UPDATE devices SET description = ''", lambda s: s.devices()),
    ],
)
def test_rows_that_make_no_sense_are_damage_and_no_bug(
    url: str, statement: str, read: Callable[[Store], object]
) -> None:
    store = open_store(url)
    store.put_graph(GRAPH, b"skeleton")
    store.add_measurements([measured(1.0)])
    store.put_plan(plan())
    JobQueue(store).enqueue(DEVICE, [measured(1.0).subject])
    with store.database.write() as connection:
        connection.exec_driver_sql(statement)
    with pytest.raises(StoreError, match="damaged"):
        read(store)
    store.close()


POWER = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
/* What a disk holds after a loss of power: of each file what it was when it was last synced. */
static void keep(int fd) {
    char link[64], name[4096], out[8192], block[65536];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, name, sizeof name - 1);
    if (size < 0) return;
    name[size] = 0;
    if (!strstr(name, ".sqlite")) return;
    FILE *from = fopen(link, "rb");
    snprintf(out, sizeof out, "%s/%s", getenv("DISK"), basename(name));
    FILE *to = fopen(out, "wb");
    size_t count;
    while (from && to && (count = fread(block, 1, sizeof block, from))) fwrite(block, 1, count, to);
    if (from) fclose(from);
    if (to) fclose(to);
}
int fdatasync(int fd) { keep(fd); return 0; }
int fsync(int fd) { keep(fd); return 0; }
"""
WRITE = """
import os, sys; sys.path.insert(0, sys.argv[2])
from test_store import measured; from rlprune.store import open_store
store = open_store(sys.argv[1])
for number in range(5):
    store.add_measurements([measured(1.0 + number)])
print("acknowledged", flush=True)
os._exit(9)
"""


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or shutil.which("cc") is None, reason="no C compiler"
)
def test_what_was_acknowledged_survives_a_loss_of_power(tmp_path: Path) -> None:
    """Holds only with synchronous=FULL: with NORMAL or OFF the log is not synced at a commit."""
    (tmp_path / "power.c").write_text(POWER)
    library = tmp_path / "power.so"
    command = ["cc", "-shared", "-fPIC", "-o", str(library), str(tmp_path / "power.c"), "-ldl"]
    subprocess.run(command, check=True)
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", WRITE, str(tmp_path / "s.sqlite"), str(Path(__file__).parent)],
        env={**os.environ, "LD_PRELOAD": str(library), "DISK": str(disk)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.strip() == "acknowledged", done.stderr
    for kept in set(os.listdir(disk)) - set(os.listdir(tmp_path)):
        (disk / kept).unlink()  # deleted meanwhile, and folders are synced too
    raw = sqlite3.connect(disk / "s.sqlite")
    assert raw.execute("SELECT count(*) FROM measurements").fetchone() == (5,)
    raw.close()
