"""`kill -9` of server and workers under load: what was acknowledged is kept, and counted once."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from device_rig import FAULTY_KEY, conv, until
from faulty_child import ALLOCATE, RAISE, SEGFAULT, SLEEP, SLOW, SPIN

from rlprune.store import Store, open_store, schema
from rlprune.store.jobs import JobQueue

SERVE = """
import sys; from rlprune.service.server import serve
serve(sys.argv[1], sys.argv[2], lease_sec=2.0)
"""
WORKER = Path(__file__).parents[1] / "support" / "kill9_worker.py"
FAULTS = (ALLOCATE, RAISE, SEGFAULT, SLEEP, SLOW, SPIN)
SUBJECTS = [conv(i, o) for i in range(1, 41) if i not in FAULTS for o in range(1, 61)]


class Fleet:
    """One server process and two worker processes, restarted whenever they were killed."""

    def __init__(self, folder: Path, url: str) -> None:
        with socket.socket() as probe:  # the port must be known before: workers look for it again
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        self.logs = [folder / f"acknowledged-{number}.jsonl" for number in (1, 2)]
        self._errors = (folder / "stderr.txt").open("ab")
        self._commands = [[sys.executable, "-c", SERVE, address, url]] + [
            [sys.executable, str(WORKER), address, str(log)] for log in self.logs
        ]
        self._processes = [self._start(index) for index in range(3)]

    def _start(self, index: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self._commands[index], stderr=self._errors)

    def kill(self, index: int) -> None:
        self._processes[index].kill()
        self._processes[index].wait()
        self._processes[index] = self._start(index)

    def acknowledged(self) -> list[dict[str, object]]:
        """What the workers noted; the last line of a killed one may be torn."""
        lines = [
            line for log in self.logs if log.exists() for line in log.read_bytes().split(b"\n")
        ]
        return [json.loads(line) for line in lines if line.endswith(b"}")]

    def stop(self) -> None:
        for process in reversed(self._processes):
            process.terminate()
        for process in self._processes:
            process.wait(60)
        self._errors.close()


@pytest.mark.timeout(5000)
def test_acknowledged_reports_survive_kill_9_and_count_once(tmp_path: Path, long: bool) -> None:
    kill_count = 200 if long else 6
    rng = np.random.default_rng(kill_count)
    url = f"sqlite:///{tmp_path / 's.sqlite'}"
    store = open_store(url)
    store.register_device(FAULTY_KEY)
    queue = JobQueue(store)
    fleet = Fleet(tmp_path, url)
    asked = 0
    try:
        # Every process once at least, then at random; each time while reports come in.
        victims = [0, 1, 2, *rng.integers(0, 3, max(0, kill_count - 3)).tolist()]
        for index in victims:
            while len(queue.open_jobs(FAULTY_KEY)) < 8:
                first = (8 * asked) % len(SUBJECTS)
                queue.request(FAULTY_KEY, SUBJECTS[first : first + 8], request_id=f"q{asked}")
                asked += 1
            enough = len(fleet.acknowledged()) + int(rng.integers(1, 6))
            until(lambda enough=enough: len(fleet.acknowledged()) >= enough, 120.0)
            time.sleep(rng.uniform(0.0, 0.02))  # anywhere between two reports, or within one
            fleet.kill(index)
        before_end = len(fleet.acknowledged())
        until(lambda: len(fleet.acknowledged()) > before_end, 120.0)
    finally:
        fleet.stop()
    check(store, fleet.acknowledged())
    print(f"{len(victims)} kills, {len(fleet.acknowledged())} reports acknowledged")
    store.close()


def check(store: Store, acknowledged: list[dict[str, object]]) -> None:
    rows = schema.measurements.c
    with store.database.read() as connection:
        kept = connection.execute(sa.select(rows.job_id, rows.subject, rows.body)).all()
        reports = set(connection.scalars(sa.select(schema.reports.c.request_id)))
        generation = connection.scalar(sa.select(schema.devices.c.generation))
    samples = Counter(json.dumps(json.loads(row.body)["wall_ms"]) for row in kept)
    noted = Counter(json.dumps(one) for line in acknowledged for one in line["samples"])  # type: ignore[attr-defined]
    assert {line["request_id"] for line in acknowledged} <= reports, "a report was lost"
    assert not noted - samples, "a measurement was lost"
    assert max(samples.values()) == 1, "a measurement was counted twice"
    assert max(Counter((row.job_id, row.subject) for row in kept).values()) == 1
    assert generation == len(kept)
    assert len(noted) >= 2 * len(store.devices())
