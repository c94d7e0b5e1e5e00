"""A real worker with a real runtime against a real server; only the faults are made up."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from device_rig import FAULTY_KEY, QUICK, conv, faulty, until, working
from faulty_child import SLEEP, SLOW
from onnx_nets import conv_net

from rlprune.device.child import ChildConfig
from rlprune.device.worker import work
from rlprune.errors import AuthenticationError, UnavailableError
from rlprune.graph.from_onnx import trace_onnx
from rlprune.graph.skeleton import strip
from rlprune.latency.device import local_device_key
from rlprune.latency.types import ModelSubject
from rlprune.runtime import get_runtime
from rlprune.service.client import Client
from rlprune.service.server import Server, start
from rlprune.store import Store, open_store
from rlprune.store.jobs import JobQueue
from rlprune.store.records import JobState

KEY = local_device_key(get_runtime())
NET = conv_net((8, 16), extent=8)
TWISTED = replace(conv(8), groups=3)
CONV = conv(3)


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


def test_a_board_measures_int8_from_the_skeleton_alone(server: Server, store: Store) -> None:
    subjects = [
        ModelSubject(trace_onnx(NET).graph.fingerprint, (8, 8), precision=precision, **more)
        for precision, more in (
            ("f32", {}),
            ("int8", {}),
            ("int8", {"keep_float": ("conv0",)}),
            ("bf16", {}),
        )
    ]
    trace = trace_onnx(NET)
    with working(server.address), Client(server.address) as client:
        until(client.devices)
        JobQueue(store).enqueue(
            KEY, subjects, fingerprint=trace.graph.fingerprint, graph=(trace.graph, strip(NET))
        )
        until(lambda: store.generation(KEY) >= len(subjects))
    found = {one.subject: one for one in store.measurements(KEY)}
    assert set(found) == set(subjects)
    assert all(found[one].status != "failed" for one in subjects[:3])
    # What a board cannot do is said in its measurement.
    assert "no bf16 kernels" in found[subjects[3]].reason


def test_every_round_of_a_certificate_is_measured_in_new_processes(
    server: Server, store: Store, tmp_path: Path
) -> None:
    starts = tmp_path / "starts"
    child = (
        f"import os; print(os.getpid(), file=open({str(starts)!r}, 'a'), flush=True)\n"
        "from rlprune.device import child_main; child_main.main()"
    )
    config = replace(QUICK, child=ChildConfig(command=(sys.executable, "-c", child)))
    with working(server.address, config=config), Client(server.address) as client:
        until(client.devices)
        ask = {"device": KEY, "budget_ratio": 0.95, "policy": "knapsack"}
        client.plan(NET, **ask)  # type: ignore[arg-type]
        before, measured_before = starts.read_text().split(), store.generation(KEY)
        plan = client.plan(NET, certify=True, **ask)  # type: ignore[arg-type]
    assert plan.certificate is not None and plan.certificate.within == plan.feasible
    rounds = plan.certificate.rounds
    assert len(set(starts.read_text().split())) >= len(before) + 2 * len(rounds)
    reported = store.measurements(KEY)[measured_before:]
    kept = {one.subject.settings for one in reported if isinstance(one.subject, ModelSubject)}
    assert {found.keeps for found in rounds} <= kept
    assert all(one.control_ms > 0 for one in reported)


def test_what_cannot_be_measured_is_reported_as_failed(server: Server, store: Store) -> None:
    store.register_device(KEY)
    job = JobQueue(store).request(KEY, [TWISTED, CONV], request_id="q1")
    assert work(server.address, once=True, config=QUICK) == 1
    queue = JobQueue(store)
    found = {measurement.subject: measurement for measurement in queue.reported(job.job_id)}
    assert queue.job(job.job_id).state is JobState.DONE and found[CONV].latency_ms > 0
    assert found[TWISTED].status == "failed" and found[TWISTED].reason


def test_a_model_of_another_batch_is_not_measured_under_this_key(
    server: Server, store: Store
) -> None:
    batched = conv_net((8, 16), extent=8)
    for value in (batched.graph.input[0], batched.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = 4
    store.register_device(FAULTY_KEY)
    with (
        working(server.address, runtime="faulty", config=faulty()),
        Client(server.address) as client,
    ):
        (found,) = client.measure(batched, np.array([8, 16]), FAULTY_KEY)
    assert found.status == "failed" and "work --batch 4" in found.reason
    batch_key = FAULTY_KEY.replace(".b1", ".b4")
    with (
        working(server.address, runtime="faulty", config=faulty(), batch=4),
        Client(server.address) as client,
    ):
        until(lambda: batch_key in [device.key for device in client.devices()])
        (found,) = client.measure(batched, np.array([8, 16]), batch_key)
    assert found.latency_ms > 0


def test_a_worker_that_lost_its_lease_stops_and_reports_nothing(
    server: Server, store: Store
) -> None:
    store.register_device(FAULTY_KEY)
    queue = JobQueue(store)
    queue.request(FAULTY_KEY, [conv(SLEEP)], request_id="q1")
    before = set(psutil.Process().children())
    with working(server.address, runtime="faulty", config=faulty()):
        until(lambda: queue.open_jobs(FAULTY_KEY)[0].state is JobState.LEASED)
        (child,) = set(psutil.Process().children()) - before
        with store.database.write() as connection:
            connection.exec_driver_sql("UPDATE jobs SET lease_id = 'taken-away'")
        until(lambda: not child.is_running(), 20)
    assert store.measurements(FAULTY_KEY) == []


def test_a_long_measurement_keeps_its_lease(store: Store) -> None:
    server = start("127.0.0.1:0", store, lease_sec=1.0)
    store.register_device(FAULTY_KEY)
    queue = JobQueue(store)
    job = queue.request(FAULTY_KEY, [conv(SLOW)], request_id="q1")  # two sessions of more than 1 s
    assert work(server.address, runtime="faulty", once=True, config=faulty()) == 1
    server.stop(0.5)
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
    "from rlprune.device import child_main\n"
    "heavy = 'torch ray gymnasium stable_baselines3 sqlalchemy sklearn onnxruntime'\n"
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
            replace(conv(64, 8 * n), in_spatial=(56, 56), out_spatial=(56, 56))
            for n in range(1, 13)
        ]
        job = queue.request(KEY, specs, request_id="q1")
        until(lambda: queue.job(job.job_id).state is JobState.LEASED)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert process.stdout.read().strip() == "0", "the job was not finished"
    given_back = queue.job(job.job_id)
    assert (given_back.state, given_back.failure_count) == (JobState.PENDING, 0)
