"""One suite over every kind of store; each claim about keeping is checked from another process."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from rlprune.errors import ConflictError, InputError, NotFoundError
from rlprune.graph.types import Group, Member, Operator, PruningGraph, Width
from rlprune.latency.types import Measurement, ModelSubject, OperatorSpec
from rlprune.plans import PlanEntry, PruningPlan
from rlprune.store import Store, open_store

DEVICE = "ort-1.0.test.t1.b1"
FINGERPRINT = "ab" * 32
GRAPH = PruningGraph(
    fingerprint=FINGERPRINT,
    groups=(Group("conv", 16, (Member("conv", "conv.weight", 0, 1),)),),
    operators=(
        Operator("conv", "conv", "", (-1,), Width(3), Width(0, ((0, 1),)), (8, 8), (8, 8), (3, 3)),
    ),
    input_shapes=((1, 3, 8, 8),),
)
SPEC = OperatorSpec("conv", "", 3, 16, (8, 8), (8, 8), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1))


def measured(
    ms: float, subject: OperatorSpec | ModelSubject = SPEC, device: str = DEVICE
) -> Measurement:
    return Measurement(
        device, subject, ((ms, ms * 1.1), (ms,)), ((ms, ms), (ms,)), conditions=(("load", "0.1"),)
    )


def plan(budget_ms: float = 1.0, device: str = DEVICE) -> PruningPlan:
    return PruningPlan(
        FINGERPRINT, "knapsack", False, device, budget_ms, True, 2.0, 0.5, 0.9, (0.8, 1.0),
        (PlanEntry("conv", "channel", 16, 8, ("conv.weight[0]",)),), 1000, 100,
    )  # fmt: skip


def in_new_process(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_all_that_was_written_is_read_by_another_process(url: str) -> None:
    store = open_store(url)
    store.put_graph(GRAPH, b"skeleton\x00bytes")
    store.add_measurements([measured(0.1), measured(5 / 3, ModelSubject(FINGERPRINT, (8,)))])
    plan_id = store.put_plan(plan(), request_id="r1")
    store.register_device("other", {"runtime": "ort"})
    store.close()
    out = in_new_process(
        "import sys\n"
        "from rlprune.store import open_store\n"
        "s = open_store(sys.argv[1]); f = sys.argv[2]\n"
        "print(repr((s.graph(f), s.skeleton(f), s.measurements(sys.argv[3]), s.plan(sys.argv[4]),"
        " s.generation(sys.argv[3]), [d.key for d in s.devices()])))",
        url, FINGERPRINT, DEVICE, plan_id,
    )  # fmt: skip
    expected = (
        GRAPH,
        b"skeleton\x00bytes",
        [measured(0.1), measured(5 / 3, ModelSubject(FINGERPRINT, (8,)))],
        plan(),
        2,
        [DEVICE, "other"],
    )
    assert out.strip() == repr(expected)


def test_generation_grows_with_every_measurement_and_only_for_its_device(store: Store) -> None:
    assert store.generation(DEVICE) == 0
    store.add_measurements([measured(1.0)])
    store.add_measurements([measured(1.0), measured(2.0, device="other")])
    store.add_measurements([])
    assert (store.generation(DEVICE), store.generation("other")) == (2, 1)
    assert {d.key: d.measurement_count for d in store.devices()} == {DEVICE: 2, "other": 1}
    assert store.generations() == {DEVICE: 2, "other": 1}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"cpu_ms": ((float("nan"),),)}, "measurements[1].cpu_ms"),
        ({"wall_ms": ((-1.0,),)}, "measurements[1].wall_ms"),
        ({"cpu_ms": ((float("inf"),),)}, "measurements[1].cpu_ms"),
        ({"cpu_ms": (), "wall_ms": ()}, "measurements[1].cpu_ms"),
        ({"cpu_ms": ((0.0,),)}, "measurements[1].cpu_ms"),
        ({"status": "fine"}, "measurements[1].status"),
        ({"device": "../etc"}, "measurements[1].device"),
        ({"device": "macs"}, "measurements[1].device"),
        ({"control_cpu_ms": ((1.0,),)}, "measurements[1].control_cpu_ms"),
        ({"subject": ModelSubject("nonsense", (1,))}, "measurements[1].subject.fingerprint"),
    ],
)
def test_what_cannot_have_been_measured_is_refused_and_nothing_is_added(
    tmp_path: Path, change: dict[str, object], field: str
) -> None:
    store = open_store(str(tmp_path / "s.sqlite"))
    with pytest.raises(InputError) as refusal:
        store.add_measurements([measured(1.0), dataclasses.replace(measured(1.0), **change)])
    assert refusal.value.field == field
    assert store.devices() == []
    store.close()


def test_a_failed_measurement_needs_no_samples(store: Store) -> None:
    failed = dataclasses.replace(
        measured(1.0), cpu_ms=(), wall_ms=(), status="failed", reason="not supported"
    )
    store.add_measurements([failed])
    assert store.measurements(DEVICE) == [failed]


def test_the_same_request_gets_the_first_plan_and_another_is_refused(store: Store) -> None:
    first = store.put_plan(plan(), request_id="r1")
    assert store.put_plan(plan(), request_id="r1") == first
    assert store.plan_of_request("r1", plan().to_json(indent=None).encode()) == first
    assert store.plan_of_request("r2", b"") is None
    with pytest.raises(ConflictError):
        store.put_plan(plan(2.0), request_id="r1")
    with pytest.raises(ConflictError):
        store.plan_of_request("r1", b"other")
    assert len(store.plans()[0]) == 1
    # What counts is the question where the caller gives it: the answer may have changed since.
    asked = store.put_plan(plan(1.0), request_id="q", content=b"8 ms")
    assert store.put_plan(plan(2.0), request_id="q", content=b"8 ms") == asked
    assert store.plan(asked).budget_ms == 1.0


def test_plans_without_request_id_are_each_kept(store: Store) -> None:
    assert store.put_plan(plan()) != store.put_plan(plan())


def test_page_size_and_token_are_honoured(store: Store) -> None:
    ids = [store.put_plan(plan(float(n), DEVICE if n % 2 else "other")) for n in range(1, 8)]
    page, token = store.plans(page_size=3)
    assert [record.plan_id for record in page] == ids[:-4:-1] and token
    rest, last = store.plans(page_size=4, page_token=token)
    assert [record.plan_id for record in rest] == ids[3::-1] and last == ""
    own, token = store.plans(page_size=1, device=DEVICE)
    assert [record.plan.device for record in own] == [DEVICE]
    for arguments, field in (
        ({"page_size": -1}, "page_size"),
        ({"page_token": token}, "page_token"),  # given out for a filter
        ({"page_token": "%%%"}, "page_token"),
        ({"page_token": "bnVsbA=="}, "page_token"),
    ):
        with pytest.raises(InputError) as refusal:
            store.plans(**arguments)  # type: ignore[arg-type]
        assert refusal.value.field == field


def test_what_is_not_there_is_named(store: Store) -> None:
    store.register_device("board-1")
    asked: list[tuple[Callable[[], object], str]] = [
        (lambda: store.graph("cd" * 32), "cdcd"),
        (lambda: store.skeleton("cd" * 32), "cdcd"),
        (lambda: store.plan("nope"), "nope"),
        (lambda: store.device("nope"), "board-1, macs"),
    ]
    for call, named in asked:
        with pytest.raises(NotFoundError, match=named):
            call()
    assert store.measurements("nope") == [] and store.generation("nope") == 0


def test_registering_again_keeps_first_seen_and_moves_last_seen(url: str) -> None:
    now = [100.0]
    store = open_store(url, clock=lambda: now[0])
    store.register_device("board-1", {"runtime": "ort"})
    now[0] = 200.0
    record = store.register_device("board-1")
    assert (record.first_seen_sec, record.last_seen_sec) == (100.0, 200.0)
    assert record.description == {"runtime": "ort"}
    for key in ("", "UPPER", "a/b", "x" * 121, "macs"):
        with pytest.raises(InputError):
            store.register_device(key)
    store.close()


def test_threads_and_processes_write_at_once_and_nothing_is_lost(url: str, store: Store) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from test_store import measured, DEVICE; from rlprune.store import open_store\n"
        "s = open_store(sys.argv[1])\n"
        "for n in range(20): s.add_measurements([measured(1.0 + n)])"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code, url, str(Path(__file__).parent)])
        for _ in range(2)
    ]
    threads = [
        threading.Thread(
            target=lambda: [store.add_measurements([measured(1.0 + n)]) for n in range(20)]
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [process.wait(60) for process in processes] == [0, 0]
    assert store.generation(DEVICE) == len(store.measurements(DEVICE)) == 120


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("no database " * 1000)
    for url in (str(text), "mysql://host/db", "sqlite://", "::://", "postgresql+nodriver://h/d"):
        with pytest.raises(InputError) as refusal:
            open_store(url)
        assert refusal.value.field == "store"
    assert text.read_text() == "no database " * 1000


def test_a_store_of_another_version_is_refused(tmp_path: Path) -> None:
    import sqlite3

    path = tmp_path / "s.sqlite"
    open_store(str(path)).close()
    with sqlite3.connect(path) as raw:
        raw.execute("UPDATE settings SET value = '99' WHERE name = 'schema_version'")
    raw.close()
    with pytest.raises(InputError, match="99"):
        open_store(str(path))


def test_a_password_is_not_shown(tmp_path: Path) -> None:
    from rlprune.errors import RlpruneError

    with pytest.raises(RlpruneError) as refusal:
        open_store("postgresql+psycopg://user:s3cret@127.0.0.1:1/x")
    assert "s3cret" not in str(refusal.value)


def test_bodies_are_plain_json(store: Store) -> None:
    import sqlalchemy as sa

    from rlprune.store import schema

    store.add_measurements([measured(1.0)])
    with store.database.read() as connection:
        body = connection.scalar(sa.select(schema.measurements.c.body))
    assert json.loads(str(body))["cpu_ms"][0][0] == 1.0
