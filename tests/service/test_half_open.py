"""Callers that open calls or connections and send nothing stop nobody else."""

from __future__ import annotations

import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from rlprune.service import front
from rlprune.service.client import Client
from rlprune.service.server import Server, start

TOKEN = "marker-token-5f1c"
METHODS = {
    "short": "/rlprune.v1.DeviceService/ListDevices",
    "planning": "/rlprune.v1.PlanService/CreatePlan",
    "health": "/grpc.health.v1.Health/Check",
    "watched health": "/grpc.health.v1.Health/Watch",
    "reflection": "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    "unknown": "/rlprune.v1.PlanService/NoSuchMethod",
}
AUTHORIZED = (("authorization", f"Bearer {TOKEN}"),)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = start("127.0.0.1:0", str(tmp_path_factory.mktemp("s") / "s.sqlite"), token=TOKEN)
    yield server
    server.stop(0.2)


def nothing(until: threading.Event) -> Iterator[bytes]:
    """A message that does not come."""
    until.wait(20)
    yield from ()


@contextmanager
def half_open(address: str, method: str, count: int, *, authorized: bool) -> Iterator[None]:
    """A connection with so many calls whose headers have been sent and nothing more."""
    ended = threading.Event()
    with grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        call = channel.stream_stream(method, lambda sent: sent, lambda received: received)
        for _ in range(count):
            call(nothing(ended), metadata=AUTHORIZED if authorized else ())
        time.sleep(0.2)  # until they are there
        yield
    ended.set()


def serves(address: str) -> None:
    """Fails unless both a caller with a token and a health check are answered at once."""
    began = time.monotonic()
    with Client(address, token=TOKEN, patience_sec=0.0) as client:
        assert client.devices() == []
    with grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        found = check(health_pb2.HealthCheckRequest(), timeout=5)
    assert found.status == health_pb2.HealthCheckResponse.SERVING
    assert time.monotonic() - began < 4.0


@pytest.mark.parametrize("authorized", [False, True], ids=["no token", "token"])
@pytest.mark.parametrize("method", METHODS)
def test_calls_without_their_message_stop_nobody(
    server: Server, method: str, authorized: bool
) -> None:
    for count in (8, 60):
        with half_open(server.address, METHODS[method], count, authorized=authorized):
            serves(server.address)


def test_nor_do_500_of_them(server: Server) -> None:
    with ExitStack() as held:
        for _ in range(5):
            calls = half_open(server.address, METHODS["planning"], 100, authorized=True)
            held.enter_context(calls)
        serves(server.address)


def test_a_wrong_token_is_refused_without_waiting_for_the_message(server: Server) -> None:
    with grpc.insecure_channel(server.address) as channel:
        call = channel.stream_unary(METHODS["short"], lambda sent: sent, lambda received: received)
        with pytest.raises(grpc.RpcError) as refusal:
            call(
                nothing(threading.Event()), timeout=5, metadata=(("authorization", "Bearer wrong"),)
            )
    assert refusal.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_a_message_that_does_not_come_in_time_ends_its_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front, "MESSAGE_SEC", 0.2)
    server = start("127.0.0.1:0", str(tmp_path / "s.sqlite"))
    with grpc.insecure_channel(server.address) as channel:
        call = channel.stream_unary(METHODS["short"], lambda sent: sent, lambda received: received)
        with pytest.raises(grpc.RpcError, match="no request came"):
            call(nothing(threading.Event()), timeout=10)
    server.stop(0.2)


def test_more_silent_connections_than_descriptors_lock_nobody_out_for_good(tmp_path: Path) -> None:
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))\n"
        "from rlprune.service.server import serve\n"
        "serve('127.0.0.1:0', sys.argv[1], on_ready=lambda a: print(a, flush=True))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "s.sqlite")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    host, _, port = address.rpartition(":")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    silent: list[socket.socket] = []
    try:
        with Client(address) as early:
            assert early.devices() == []
            silent += [socket.create_connection((host, int(port)), timeout=5) for _ in range(1100)]
            # Who was there before goes on, the store included; who comes later is let in while
            # the silent ones still hold on.
            assert early.devices() == []
            with Client(address, patience_sec=30.0) as late:
                assert late.devices() == []
    finally:
        for one in silent:
            one.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        process.kill()
        process.wait()
        process.stdout.close()
