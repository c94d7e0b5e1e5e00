"""Models that crash, exhaust or hang the runtime, in real child processes; the worker goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace

import psutil
import pytest
from device_rig import BRIEF, FAULTY_CHILD, FAULTY_KEY, conv, faulty, until
from faulty_child import ALLOCATE, RAISE, SEGFAULT, SLEEP, SPIN

from rlprune.device.child import Child, ChildConfig, ChildFault
from rlprune.device.worker import work
from rlprune.errors import MissingExtraError, NotFoundError, UnavailableError
from rlprune.latency.types import Measurement, OperatorSpec
from rlprune.service.device_messages import measurement_from
from rlprune.service.server import Server
from rlprune.store import Store, open_store
from rlprune.store.encoding import subject_key
from rlprune.store.jobs import JobQueue
from rlprune.store.records import JobState


def measured(child: Child, spec: OperatorSpec) -> Measurement:
    (found,) = child.measure(
        [spec], device=FAULTY_KEY, config=BRIEF, checkpoint=lambda done, planned: None
    )
    return measurement_from(found)


def test_a_child_that_dies_says_of_what_and_the_next_one_measures() -> None:
    usual = faulty(memory_bytes=1 << 30).child
    for width, limits, reason in (
        (SEGFAULT, usual, r"crashed the runtime \(SIGSEGV\)"),
        (ALLOCATE, usual, "out of memory: 1024 MB are allowed"),
        (SLEEP, replace(usual, wall_sec=2.0), "hung: no session finished in 2 s"),
        (SPIN, replace(usual, cpu_sec=1.0), "more than 1 s of CPU time"),
        (RAISE, usual, "raised ValueError: of a class"),
    ):
        child = Child("faulty", limits)
        with pytest.raises(ChildFault, match=reason):
            measured(child, conv(width))
        if width == SEGFAULT:
            assert measured(child, conv(3)).status in ("ok", "unstable")
        child.close()


def test_a_child_that_does_not_start_says_why() -> None:
    usual = faulty().child
    with pytest.raises(NotFoundError, match="tract"):
        Child("tract", usual).start()
    broken = replace(usual, command=(sys.executable, "-c", "raise SystemExit(3)"))
    with pytest.raises(UnavailableError, match=r"faulty does not start.*exit code 3"):
        Child("faulty", broken).start()
    absent = "import sys; sys.modules['MNN'] = None; from rlprune.device import child_main as c"
    command = (sys.executable, "-c", f"{absent}; c.main()")
    with pytest.raises(MissingExtraError, match=r"rlprune\[mnn\]"):
        Child("mnn", ChildConfig(command=command)).start()


def test_what_takes_the_child_down_is_reported_as_failed_and_the_rest_measured(
    server: Server, store: Store
) -> None:
    store.register_device(FAULTY_KEY)
    queue = JobQueue(store)
    specs = [conv(3), conv(SEGFAULT), conv(5)]
    job = queue.request(FAULTY_KEY, specs, request_id="q1")
    assert work(server.address, runtime="faulty", once=True, config=faulty()) == 1
    assert queue.job(job.job_id).state is JobState.DONE
    found = {one.subject: one for one in queue.reported(job.job_id)}
    assert found[specs[0]].latency_ms > 0 and found[specs[2]].latency_ms > 0
    assert found[specs[1]].status == "failed" and "SIGSEGV" in found[specs[1]].reason


def test_a_job_whose_subjects_did_so_three_times_is_parked_for_good(
    server: Server, store: Store
) -> None:
    store.register_device(FAULTY_KEY)
    bad = [conv(SEGFAULT, out_width) for out_width in (4, 8, 16)]
    good = conv(3)
    job = JobQueue(store).request(FAULTY_KEY, [*bad, good], request_id="q1")
    other = JobQueue(store).request(FAULTY_KEY, [conv(5)], request_id="q2")
    assert work(server.address, runtime="faulty", once=True, config=faulty()) == 1, "the other one"
    server.stop(0.5)
    reopened = open_store(str(store.database.url.database))
    queue = JobQueue(reopened)
    parked = queue.job(job.job_id)
    assert parked.state is JobState.PARKED and queue.job(other.job_id).state is JobState.DONE
    assert "3 subjects took the measuring process down" in parked.reason
    assert "SIGSEGV" in parked.reason
    assert [one.subject for one in queue.reported(job.job_id)] == bad
    assert list(queue.unmeasurable(FAULTY_KEY)) == [subject_key(good)], "rests for an hour"
    reopened.close()


WORK = """
import sys; sys.path.insert(0, sys.argv[2])
from device_rig import faulty
from rlprune.device.worker import work
work(sys.argv[1], runtime="faulty", config=faulty())
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_child_does_not_outlive_its_worker(
    server: Server, store: Store, number: signal.Signals
) -> None:
    store.register_device(FAULTY_KEY)
    queue = JobQueue(store)
    queue.request(FAULTY_KEY, [conv(SLEEP)], request_id="q1")
    command = [sys.executable, "-c", WORK, server.address, str(FAULTY_CHILD.parent)]
    with subprocess.Popen(command) as process:
        until(lambda: queue.open_jobs(FAULTY_KEY)[0].state is JobState.LEASED)
        (child,) = psutil.Process(process.pid).children()
        process.send_signal(number)
        assert process.wait(20) == (0 if number == signal.SIGTERM else -number)
    until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
    state = queue.open_jobs(FAULTY_KEY)[0].state
    assert state is (JobState.PENDING if number == signal.SIGTERM else JobState.LEASED)


@pytest.mark.skipif(not os.path.exists("/proc/self/environ"), reason="no /proc here")
def test_the_child_gets_no_secret_and_no_new_privileges(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = {
        "RLPRUNE_TOKEN": "t0ken",
        "AWS_SECRET_ACCESS_KEY": "s3cret",
        "ORT_AUTH_TOKEN": "t0ken",
        "DATABASE_URL": "postgresql://user:s3cret@db/x",
        "SSH_AUTH_SOCK": "/tmp/s0cket",
    }
    for name, value in {**secrets, "OMP_NUM_THREADS": "1", "LC_ALL": "C.UTF-8"}.items():
        monkeypatch.setenv(name, value)
    before = set(psutil.Process().children())
    child = Child("faulty", faulty().child)
    child.start()
    (process,) = set(psutil.Process().children()) - before
    with open(f"/proc/{process.pid}/environ", "rb") as file:
        environment = dict(line.split(b"=", 1) for line in file.read().split(b"\0") if line)
    with open(f"/proc/{process.pid}/status") as file:
        status = dict(line.split(":\t", 1) for line in file if ":\t" in line)
    assert measured(child, conv(3)).latency_ms > 0
    child.close()
    assert not environment.keys() & {name.encode() for name in secrets}
    assert not any(b"s3cret" in value or b"t0ken" in value for value in environment.values())
    assert {b"OMP_NUM_THREADS", b"LC_ALL", b"PATH"} <= environment.keys()
    assert status["NoNewPrivs"].strip() == "1"
