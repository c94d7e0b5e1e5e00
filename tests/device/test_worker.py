"""A real worker with a real runtime against a real server; only the faults are made up."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from onnx_nets import conv_net

from rlprune.device import worker as worker_module
from rlprune.device.worker import WorkerConfig, work
from rlprune.errors import AuthenticationError, UnavailableError
from rlprune.graph.from_onnx import trace_onnx
from rlprune.latency.device import local_device_key
from rlprune.latency.measure import MeasureConfig
from rlprune.latency.types import Measurement, OperatorSpec
from rlprune.runtime import get_runtime
from rlprune.service.client import Client
from rlprune.service.server import Server, start
from rlprune.store import Store, open_store
from rlprune.store.jobs import JobQueue
from rlprune.store.records import JobState

KEY = local_device_key(get_runtime())
NET = conv_net((8, 16), extent=8)
QUICK = WorkerConfig(
    poll_sec=0.05,
    max_backoff_sec=0.2,
    measure=MeasureConfig(
        warmup_count=1, sample_count=3, max_sample_count=3, session_count=2, extra_session_count=0
    ),
)
TWISTED = OperatorSpec(
    "conv", "", 8, 8, (4, 4), (4, 4), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), groups=3
)
CONV = OperatorSpec("conv", "", 3, 8, (8, 8), (8, 8), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = open_store(str(tmp_path / "s.sqlite"))
    yield store
    store.close()


@pytest.fixture
def server(store: Store) -> Iterator[Server]:
    server = start("127.0.0.1:0", store, lease_sec=4.0)
    yield server
    server.stop(0.5)


@contextmanager
def working(address: str, **options: object) -> Iterator[futures.Future[int]]:
    """A worker in a thread; its result is the number of jobs it finished."""
    stop = threading.Event()
    with futures.ThreadPoolExecutor(1) as pool:
        running = pool.submit(work, address, stop=stop, config=QUICK, **options)  # type: ignore[arg-type]
        try:
            yield running
        finally:
            stop.set()
        running.result(30)


def until(reached: Callable[[], object], seconds: float = 30.0) -> None:
    give_up = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < give_up, "never came about"
        time.sleep(0.02)


def test_a_plan_for_a_real_device_is_measured_planned_and_measured_again(
    server: Server, store: Store
) -> None:
    told: list[tuple[str, int, int]] = []
    with working(server.address) as running, Client(server.address) as client:
        until(client.devices)
        (device,) = client.devices()
        assert device.key == KEY and device.description["runtime"] == "ort"
        plan = client.plan(
            NET,
            device=KEY,
            budget_ratio=1.0,
            policy="knapsack",
            on_progress=lambda *progress: told.append(progress),
        )
        plan.check(trace_onnx(NET).graph)
        assert plan.device == KEY and plan.base_latency_ms > 0
        assert told[-1][1] == told[-1][2] > 0
        before = store.generation(KEY)
        (found,) = client.measure(NET, plan.keeps, KEY)
        assert found.status in ("ok", "unstable") and found.latency_ms > 0
        assert found.control_ms > 0, "the unpruned model runs between as control"
        assert store.generation(KEY) == before + 1
    assert running.result() >= 2


def test_what_cannot_be_measured_is_reported_as_failed(server: Server, store: Store) -> None:
    store.register_device(KEY)
    job = JobQueue(store).request(KEY, [TWISTED, CONV], request_id="q1")
    assert work(server.address, once=True, config=QUICK) == 1
    queue = JobQueue(store)
    found = {measurement.subject: measurement for measurement in queue.reported(job.job_id)}
    assert queue.job(job.job_id).state is JobState.DONE and found[CONV].latency_ms > 0
    assert found[TWISTED].status == "failed" and found[TWISTED].reason


def test_a_worker_that_lost_its_lease_stops_and_reports_nothing(
    server: Server, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.register_device(KEY)
    queue = JobQueue(store)
    queue.request(KEY, [CONV], request_id="q1")
    noticed = threading.Event()

    def slow(
        *subjects: object, on_progress: Callable[[int, int], None], **_: object
    ) -> list[Measurement]:
        try:
            while True:  # measures until it is told to stop
                time.sleep(0.02)
                on_progress(0, 1)
        finally:
            noticed.set()

    monkeypatch.setattr(worker_module, "measure_subjects", slow)
    with working(server.address):
        until(lambda: queue.open_jobs(KEY)[0].state is JobState.LEASED)
        with store.database.write() as connection:
            connection.exec_driver_sql("UPDATE jobs SET lease_id = 'taken-away'")
        assert noticed.wait(20)
    assert store.measurements(KEY) == []


def test_a_long_measurement_keeps_its_lease(
    server: Server, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.register_device(KEY)
    queue = JobQueue(store)
    job = queue.request(KEY, [CONV], request_id="q1")

    def slow(subjects: object, **_: object) -> list[Measurement]:
        time.sleep(5.0)  # longer than the lease of 4 s
        return [Measurement(KEY, CONV, ((1.0,),), ((1.0,),))]

    monkeypatch.setattr(worker_module, "measure_subjects", slow)
    assert work(server.address, once=True, config=QUICK) == 1
    done = queue.job(job.job_id)
    assert (done.state, done.failure_count) == (JobState.DONE, 0)


def test_a_server_that_was_restarted_is_found_again(store: Store) -> None:
    first = start("127.0.0.1:0", store)
    with working(first.address), Client(first.address) as client:
        until(client.devices)
        first.stop(0.2)
        store.close()
        other = open_store(str(store.database.url.database) + ".other")  # knows no device
        second = start(first.address, other)
        until(client.devices)
        (found,) = client.measure(NET, np.array([8, 16]), KEY)
        assert found.latency_ms > 0
    second.stop(0.5)
    other.close()


def test_once_ends_where_nothing_is_to_do_or_nobody_answers(server: Server) -> None:
    assert work(server.address, once=True, config=QUICK) == 0
    server.stop(0.2)
    with pytest.raises(UnavailableError):
        work(server.address, once=True, config=QUICK)


def test_a_wrong_token_ends_the_worker(tmp_path: Path) -> None:
    server = start("127.0.0.1:0", str(tmp_path / "t.sqlite"), token="right")
    with pytest.raises(AuthenticationError):
        work(server.address, token="wrong", config=QUICK)
    assert work(server.address, token="right", once=True, config=QUICK) == 0
    server.stop(0.5)


WORK = (
    "import sys; from rlprune.device import worker\n"
    "from rlprune.latency import collect\n"
    "heavy = 'torch ray gymnasium stable_baselines3 sqlalchemy sklearn'\n"
    "print([name for name in heavy.split() if name in sys.modules], flush=True)\n"
    "print(worker.work(sys.argv[1]), flush=True)"
)


def test_sigterm_gives_the_job_back_and_ends_cleanly(server: Server, store: Store) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WORK, server.address], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "[]", "a board has none of these"
        until(store.devices)
        queue = JobQueue(store)
        specs = [
            OperatorSpec(
                "conv", "", 64, 8 * n, (56, 56), (56, 56), (3, 3), (1, 1), (1,) * 4, (1, 1), 1
            )
            for n in range(1, 13)
        ]
        job = queue.request(KEY, specs, request_id="q1")
        until(lambda: queue.job(job.job_id).state is JobState.LEASED)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert process.stdout.read().strip() == "0", "the job was not finished"
    given_back = queue.job(job.job_id)
    assert (given_back.state, given_back.failure_count) == (JobState.PENDING, 0)
