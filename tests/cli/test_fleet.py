"""Server, worker and client as the processes they are in use."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from command_line import Rlprune, answer, refusal
from small_onnx import small_onnx

from rlprune.latency.device import local_device_key
from rlprune.runtime import get_runtime


@contextmanager
def running(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """`rlprune ARGUMENTS` as a process, stopped by Ctrl+C at the end."""
    command = [sys.executable, "-c", "from rlprune.cli import main; main()", *map(str, arguments)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ.copy()
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        try:
            process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise


def first_json(process: subprocess.Popen[str]) -> dict[str, str]:
    """The JSON object that a process prints when it is ready."""
    assert process.stdout is not None
    text = ""
    for line in process.stdout:
        text += line
        if line.startswith("}"):
            return dict(json.loads(text))
    assert process.stderr is not None
    raise AssertionError(f"ended early: {process.stderr.read()}")


@pytest.fixture
def server(folder: Path) -> Iterator[str]:
    """HOST:PORT of a server with a store of its own."""
    with running("serve", "--listen", "127.0.0.1:0", "--store", folder / "s.sqlite", "--json") as p:
        yield first_json(p)["listening"]
    assert p.returncode == 0


def test_plan_from_a_server_whose_worker_measures(
    rlprune: Rlprune, folder: Path, server: str
) -> None:
    model = folder / "model.onnx"
    model.write_bytes(small_onnx(widths=(8, 16), shape=(1, 3, 8, 8)).SerializeToString())
    ask = ("plan", model, "--server", server, "--policy", "knapsack", "--budget-ratio", 1.0)
    assert answer(rlprune(*ask, "--device", "macs", "--json"))["feasible"]
    assert answer(rlprune("devices", "--server", server, "--json")) == []

    device = local_device_key(get_runtime())
    with running("work", "--server", server) as worker:
        while not answer(rlprune("devices", "--server", server, "--json")):
            assert worker.poll() is None
        asked = rlprune(*ask, "--device", device, "--json")
        certified = rlprune(*ask, "--device", device, "--certify", "--json")
    assert worker.returncode == 0
    assert asked.exit_code in (0, 3)
    plan = json.loads(asked.stdout)
    assert plan["device"] == device and plan["base_latency_ms"] > 0
    assert certified.exit_code in (0, 3)
    certificate = json.loads(certified.stdout)["certificate"]
    assert certificate["within"] == (certified.exit_code == 0)
    assert certificate["rounds"] and certificate["measured_latency_ms"] > 0
    (known,) = answer(rlprune("devices", "--server", server, "--json"))
    assert known["key"] == known["device"] == device and known["measurement_count"] > 0
    assert known["runtime"] == "ort" and known["error_ratio"] > 0
    assert known["last_measured_sec"] <= known["last_seen_sec"] + 10
    assert isinstance(known["stale"], bool) and known["parked_job_count"] == 0

    line = refusal(rlprune(*ask, "--device", "toaster"), folder, also=("s.sqlite",))
    assert "toaster" in line and device in line
    line = refusal(rlprune(*ask, "--device", device, "--policy", "."), folder, also=("s.sqlite",))
    assert "policy" in line
    assert rlprune(*ask).exit_code == 2  # which device?


@pytest.mark.parametrize("command", [("measure", "--isolated"), ("work", "--dry-run")])
def test_models_are_measured_as_a_worker_does_without_a_server(
    rlprune: Rlprune, folder: Path, command: tuple[str, str]
) -> None:
    (folder / "model.onnx").write_bytes(small_onnx(shape=(1, 3, 8, 8)).SerializeToString())
    found = answer(rlprune(*command, "model.onnx", "--runtime", "mnn", "--json"))
    assert found["device"] == local_device_key(get_runtime("mnn"))
    (model,) = found["models"]
    assert model["model"] == "model.onnx" and model["latency_ms"] > 0
    assert "tract" in refusal(rlprune(*command, "model.onnx", "--runtime", "tract"), folder)


def test_a_worker_needs_a_server(rlprune: Rlprune, folder: Path) -> None:
    for wrong in ((), ("--dry-run",), ("model.onnx",), ("--dry-run", "--server", "a:1", "m.onnx")):
        assert rlprune("work", *wrong).exit_code == 2


def test_server_open_to_others_needs_certificate_and_token(rlprune: Rlprune, folder: Path) -> None:
    line = refusal(rlprune("serve", "--listen", "0.0.0.0:0"), folder)
    assert "certificate" in line and "token" in line
    assert "HOST:PORT" in refusal(rlprune("serve", "--listen", "nonsense"), folder)


def test_ctrl_c_ends_a_command_cleanly(folder: Path) -> None:
    """A plan that waits for a worker that never comes, interrupted."""
    (folder / "model.onnx").write_bytes(small_onnx().SerializeToString())
    device = "ort-1.0.x86_64-none.t1.b1"
    store = folder / "s.sqlite"
    from contextlib import closing

    from rlprune.store import open_store

    with closing(open_store(str(store))) as opened:
        opened.register_device(device)
    with running("serve", "--listen", "127.0.0.1:0", "--store", store, "--json") as serving:
        address = first_json(serving)["listening"]
        ask = ("--server", address, "--device", device, "--policy", "knapsack")
        with running("plan", "model.onnx", "--budget-ms", 5, *ask, "-o", "new.json") as planning:
            assert planning.stderr is not None
            assert "measuring on" in planning.stderr.readline()
            planning.send_signal(signal.SIGINT)
            _, rest = planning.communicate(timeout=30)
        assert planning.returncode == 130
        assert "Traceback" not in rest and "the same command goes on" in rest
    assert not (folder / "new.json").exists()
