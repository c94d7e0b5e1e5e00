"""What the client refuses, waits for, and outlives."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from concurrent import futures
from pathlib import Path

import pytest
from onnx import TensorProto, helper
from onnx_nets import conv_net
from service_rig import BOARD, Rig, macs_cost, measured, messages

import rlprune
from rlprune.errors import InputError, OverloadedError, UnavailableError
from rlprune.graph.from_onnx import trace_onnx
from rlprune.service import front
from rlprune.service.channel import Channel
from rlprune.service.client import Client
from rlprune.service.device_client import DeviceClient
from rlprune.service.plans import PlanService
from rlprune.service.server import start
from rlprune.v1 import plans_pb2

SERVE = (
    "import sys; from rlprune.service.server import serve\n"
    "serve(sys.argv[1], sys.argv[2], on_ready=lambda a: print(a, flush=True))"
)


@pytest.mark.parametrize("target", ["localhost:65536", "127.0.0.1:99999999999", "a b:1", "::1:-1"])
def test_an_address_that_is_none_is_refused_before_anything_is_sent(target: str) -> None:
    with pytest.raises(InputError, match="HOST:PORT") as refusal:
        Client(target)
    assert refusal.value.field == "server"


def test_a_file_that_is_no_certificate_is_refused_in_one_line(tmp_path: Path) -> None:
    for name, content in {
        "text": b"no certificate",
        "empty": b"",
        "binary": bytes(range(256)),
    }.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(InputError, match=name) as refusal:
            Client("localhost:1", tls_ca=path)
        assert refusal.value.field == "tls_ca" and "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "token", ["s3cret\n", " ", "s3cret b", "s3cret-schlüssel", "s3cret\0", "\t"]
)
def test_a_token_that_no_header_can_carry_is_refused_and_not_told(token: str) -> None:
    with pytest.raises(InputError) as refusal:
        Client("127.0.0.1:1", token=token)
    assert refusal.value.field == "token" and "s3cret" not in str(refusal.value)


def test_certifying_ends_with_its_time(rig: Rig) -> None:
    model = conv_net()
    graph = trace_onnx(model).graph
    rig.device.register_device(BOARD, {})
    with rig.working(macs_cost(graph)):
        rig.client.plan(model, device=BOARD, budget_ratio=0.7)
    began = time.monotonic()
    with pytest.raises(UnavailableError, match="still to do"):
        rig.client.plan(model, device=BOARD, budget_ratio=0.7, certify=True, timeout_sec=2.0)
    assert time.monotonic() - began < 15.0


def serving(address: str, store: Path) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, address, str(store)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def test_a_waiting_client_outlives_the_kill_of_its_server(tmp_path: Path) -> None:
    model = conv_net()
    graph = trace_onnx(model).graph
    process, address = serving("127.0.0.1:0", tmp_path / "s.sqlite")
    device = DeviceClient(address, patience_sec=60.0)
    device.register_device(BOARD, {})
    asked = threading.Event()

    def tell(what: str, done: int, total: int) -> None:
        if what.startswith("measuring on"):
            asked.set()

    # Less patience than the restart takes: what outlives it is the wait's own time.
    with Client(address, patience_sec=0.2) as client, futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(
            client.plan, model, device=BOARD, budget_ratio=0.7, timeout_sec=120.0, on_progress=tell
        )
        assert asked.wait(60)
        process.send_signal(signal.SIGKILL)
        process.wait()
        time.sleep(3.0)
        again, where = serving(address, tmp_path / "s.sqlite")
        assert where == address
        try:
            cost = macs_cost(graph)
            while (job := device.lease("w", BOARD)) is not None or not waiting.done():
                if job is None:
                    time.sleep(0.1)
                    continue
                found = [measured(BOARD, subject, cost(subject)) for subject in job.left]
                device.report(job.lease_id, f"r-{job.lease_id[:20]}", messages(found), done=True)
            assert waiting.result(60).feasible
        finally:
            device.close()
            for one in (process, again):
                one.kill()
                one.wait()
                assert one.stdout is not None
                one.stdout.close()


def test_a_server_that_never_answered_is_not_waited_for() -> None:
    began = time.monotonic()
    with (
        Client("127.0.0.1:1", patience_sec=0.3) as client,
        pytest.raises(UnavailableError, match=r"127\.0\.0\.1:1"),
    ):
        client.plan(conv_net(), device=BOARD, budget_ratio=0.7, timeout_sec=300.0)
    assert time.monotonic() - began < 60.0


def test_an_overloaded_server_says_so_at_once_and_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front, "MAX_CONCURRENT", 2)
    go_on = threading.Event()

    def slow(self: PlanService, request: object) -> plans_pb2.ListPlansResponse:
        go_on.wait(30)
        return plans_pb2.ListPlansResponse()

    monkeypatch.setattr(PlanService, "list_plans", slow)
    server = start("127.0.0.1:0", str(tmp_path / "s.sqlite"))

    def ask(patience_sec: float) -> object:
        channel = Channel(server.address, patience_sec=patience_sec)
        try:
            request = plans_pb2.ListPlansRequest()
            return channel.call("PlanService/ListPlans", request, plans_pb2.ListPlansResponse)
        finally:
            channel.close()

    with futures.ThreadPoolExecutor(3) as pool:
        running = [pool.submit(ask, 0.0) for _ in range(2)]
        time.sleep(0.5)
        with pytest.raises(OverloadedError):
            ask(0.0)
        patient = pool.submit(ask, 30.0)
        time.sleep(0.5)
        go_on.set()
        for call in (*running, patient):
            assert call.result(30) == plans_pb2.ListPlansResponse()
    server.stop(0.5)


def test_a_model_that_costs_nothing_is_refused_as_locally(rig: Rig) -> None:
    shape = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 8]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", shape[:1], shape[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(InputError, match="costs nothing") as here:
        rlprune.plan(model, device="macs", budget_ratio=0.5)
    with pytest.raises(InputError, match="costs nothing") as there:
        rig.client.plan(model, device="macs", budget_ratio=0.5)
    assert str(here.value) == str(there.value) and type(here.value) is type(there.value)
