"""0.6.1 and today's version together: each's client and worker with the other's server.

The old package is taken from this repository's history and runs in processes of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx_nets import conv_net
from service_rig import Rig

from rlprune.device.worker import WorkerConfig, work
from rlprune.device_keys import canonical_key
from rlprune.graph.from_onnx import trace_onnx
from rlprune.latency.device import local_device_key
from rlprune.latency.measure import MeasureConfig
from rlprune.plans import PruningPlan
from rlprune.runtime import get_runtime
from rlprune.service.client import Client

COMMIT = "925f37d"  # 0.6.1
ROOT = Path(__file__).parents[2]
BRIEF: dict[str, Any] = {
    "warmup_count": 1,
    "min_sample_ms": 0.3,
    "sample_count": 3,
    "max_sample_count": 3,
    "session_count": 2,
    "extra_session_count": 0,
}

WORKER = f"""
import sys
from rlprune.device.child import ChildConfig
from rlprune.device.worker import WorkerConfig, work
from rlprune.latency.measure import MeasureConfig
# The child's environment has no PYTHONPATH.
code = f"import sys; sys.path.insert(0, {{sys.argv[2]!r}}); "
code += "from rlprune.device import child_main; child_main.main()"
child = ChildConfig(command=(sys.executable, "-c", code))
brief = MeasureConfig(**{BRIEF})
config = WorkerConfig(poll_sec=0.05, max_backoff_sec=0.2, measure=brief, child=child)
work(sys.argv[1], config=config)
"""
CLIENT = """
import sys
from rlprune.service.client import Client
with Client(sys.argv[1]) as client:
    plan = client.plan(sys.argv[2], device=sys.argv[3], budget_ratio=0.6, policy="knapsack")
    kept = next(iter(client.plans()))
    print(plan.to_json(indent=None))
    print(kept.plan.to_json(indent=None))
"""
SERVER = """
import sys, time
from rlprune.service.server import start
from rlprune.store import open_store
server = start("127.0.0.1:0", open_store(sys.argv[1]))
print(server.address, flush=True)
time.sleep(600)
"""


class Old:
    """The package of 0.6.1 in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._environment = os.environ | {"PYTHONPATH": str(folder), "XDG_DATA_HOME": str(folder)}

    def start(self, code: str, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            cwd=self.folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            text=True,
        )

    @contextmanager
    def started(self, code: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """A process that is ended, whatever happens meanwhile."""
        with self.start(code, *arguments) as process:
            try:
                yield process
            finally:
                process.terminate()

    def run(self, code: str, *arguments: str) -> list[str]:
        with self.start(code, *arguments) as process:
            out, _ = process.communicate(timeout=120)
        assert process.returncode == 0
        return out.splitlines()


def until(reached: Callable[[], object], seconds: float) -> None:
    give_up = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < give_up, "never came about"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Old:
    folder = tmp_path_factory.mktemp("old")
    archive = subprocess.run(
        ["git", "-C", str(ROOT), "archive", COMMIT, "rlprune"], capture_output=True, check=False
    )
    if archive.returncode:
        pytest.skip(f"the history of this clone does not reach back to 0.6.1 ({COMMIT})")
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
    return Old(folder)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    onnx.save(conv_net((16, 32), extent=16), path)
    return path


@pytest.fixture
def old_worker(old: Old, rig: Rig) -> Iterator[str]:
    """A worker of 0.6.1 at today's server; the key that it calls its device by."""
    with old.started(WORKER, rig.server.address, str(old.folder)):
        key = local_device_key(get_runtime("ort"))
        until(lambda: any(device.key == key for device in rig.client.devices()), 60)
        yield key.replace(".b1", ".f32.b1")


def test_an_old_worker_measures_for_todays_client(rig: Rig, model: Path, old_worker: str) -> None:
    plan = rig.client.plan(
        str(model), device=canonical_key(old_worker), budget_ratio=0.6, policy="knapsack"
    )
    assert plan.feasible and plan.device == canonical_key(old_worker)
    assert not [job for job in rig.store.devices() if ".f32" in job.key]


def test_an_old_client_plans_by_the_old_key_and_its_plan_is_kept(
    rig: Rig, old: Old, model: Path, old_worker: str
) -> None:
    said, kept = old.run(CLIENT, rig.server.address, str(model), old_worker)
    plan = PruningPlan.from_json(said)
    plan.check(trace_onnx(str(model)).graph)
    assert PruningPlan.from_json(kept).groups == plan.groups
    mine = rig.client.plan(str(model), device=old_worker, budget_ratio=0.6, policy="knapsack")
    assert mine.device == plan.device == canonical_key(old_worker)


def test_todays_client_and_worker_at_an_old_server(old: Old, model: Path, tmp_path: Path) -> None:
    with old.started(SERVER, f"sqlite:///{tmp_path / 'old.sqlite'}") as process:
        assert process.stdout is not None
        address, stop = process.stdout.readline().strip(), threading.Event()
        key = local_device_key(get_runtime("ort"))
        config = WorkerConfig(poll_sec=0.05, max_backoff_sec=0.2, measure=MeasureConfig(**BRIEF))
        with futures.ThreadPoolExecutor(1) as pool, Client(address) as client:
            worker = pool.submit(work, address, stop=stop, config=config)
            try:
                until(lambda: any(device.key == key for device in client.devices()), 60)
                plan = client.plan(str(model), device=key, budget_ratio=0.6, policy="knapsack")
                kept = next(iter(client.plans()))  # it keeps every plan that it makes
            finally:
                stop.set()
            worker.result(30)
    assert plan.feasible and kept.plan.keeps.tolist() == plan.keeps.tolist()


def test_a_plan_file_of_0_6_1_is_read_and_applies(old: Old, model: Path, tmp_path: Path) -> None:
    code = (
        "import sys, rlprune; trace = rlprune.trace(sys.argv[1]);"
        "rlprune.plan(trace, device='macs', budget_ratio=0.5, hold='conv0').save(sys.argv[2])"
    )
    path = tmp_path / "plan.json"
    old.run(code, str(model), str(path))
    assert json.loads(path.read_text())["format"] == "rlprune.plan/1"
    plan, trace = PruningPlan.load(path), trace_onnx(str(model))
    plan.check(trace.graph)
    assert plan.precision == "f32" and plan.constraints.hold == ("conv0",)
