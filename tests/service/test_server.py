"""How the server starts, whom it answers, and how it ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from onnx_nets import conv_net
from service_rig import BOARD, dump, measured, messages

from rlprune.errors import AuthenticationError, InputError, UnavailableError
from rlprune.graph.from_onnx import trace_onnx
from rlprune.graph.skeleton import strip
from rlprune.latency.types import ModelSubject
from rlprune.service.channel import Channel
from rlprune.service.client import Client
from rlprune.service.device_client import DeviceClient
from rlprune.service.device_messages import subject_to
from rlprune.service.server import start
from rlprune.store import open_store
from rlprune.v1 import devices_pb2, plans_pb2

TOKEN = "marker-token-5f1c"


def health_of(address: str, service: str = "") -> int:
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service=service)
        return int(stub.Check(request, timeout=5).status)


def test_two_servers_cannot_hold_one_port(tmp_path: Path) -> None:
    first = start("127.0.0.1:0", str(tmp_path / "a.sqlite"))
    with pytest.raises(InputError, match=str(first.port)) as refusal:
        start(first.address, str(tmp_path / "b.sqlite"))
    assert refusal.value.field == "listen"
    assert not (tmp_path / "b.sqlite").exists()
    first.stop(0.5)


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "192.0.2.1", "example.org"])
@pytest.mark.parametrize("given", ["nothing", "token", "tls"])
def test_beyond_loopback_it_needs_tls_and_a_token(
    tmp_path: Path, pem: tuple[Path, Path], host: str, given: str
) -> None:
    with pytest.raises(InputError, match="other machines") as refusal:
        start(
            f"{host}:0",
            str(tmp_path / "s.sqlite"),
            token=TOKEN if given == "token" else None,
            tls_cert=pem[0] if given == "tls" else None,
            tls_key=pem[1] if given == "tls" else None,
        )
    assert refusal.value.field == "listen"
    assert not (tmp_path / "s.sqlite").exists()


@pytest.mark.parametrize("listen", ["", "50051", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:99999"])
def test_a_malformed_address_is_refused(tmp_path: Path, listen: str) -> None:
    with pytest.raises(InputError, match="HOST:PORT"):
        start(listen, str(tmp_path / "s.sqlite"))


@pytest.fixture(scope="session")
def pem(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate for localhost, and its key."""
    folder = tmp_path_factory.mktemp("pem")
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = [
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
        *("-nodes", "-days", "2", "-subj", "/CN=localhost"),
        *("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
        *("-keyout", str(key), "-out", str(cert)),
    ]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=60)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    return cert, key


def test_tls_and_token_together_serve_every_interface(
    tmp_path: Path, pem: tuple[Path, Path]
) -> None:
    cert, key = pem
    server = start("0.0.0.0:0", str(tmp_path / "s.sqlite"), token=TOKEN, tls_cert=cert, tls_key=key)
    with Client(f"localhost:{server.port}", token=TOKEN, tls_ca=cert) as client:
        assert client.devices() == []
    with (
        Client(f"127.0.0.1:{server.port}", token=TOKEN, patience_sec=0.0) as plain,
        pytest.raises(UnavailableError),
    ):
        plain.devices()
    server.stop(0.5)


def test_half_of_a_key_pair_and_unreadable_files_are_refused(
    tmp_path: Path, pem: tuple[Path, Path]
) -> None:
    for given in ({"tls_cert": pem[0]}, {"tls_key": pem[1]}, {"tls_cert": "no", "tls_key": "no"}):
        with pytest.raises(InputError):
            start("127.0.0.1:0", str(tmp_path / "s.sqlite"), **given)  # type: ignore[arg-type]
    with pytest.raises(InputError):
        Client("localhost:1", tls_ca=tmp_path / "missing.pem")


def test_no_rpc_but_health_answers_without_the_token(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    server = start("127.0.0.1:0", str(tmp_path / "s.sqlite"), token=TOKEN)
    methods = [
        (service.name, method)
        for file in (plans_pb2.DESCRIPTOR, devices_pb2.DESCRIPTOR)
        for service in file.services_by_name.values()
        for method in service.methods
    ]
    assert len(methods) == 12
    for token in (None, "wrong", TOKEN + "x", TOKEN[:-1]):
        channel = Channel(server.address, token=token)
        for service, method in methods:
            request = GetMessageClass(method.input_type)()
            with pytest.raises(AuthenticationError):
                channel.call(
                    f"{service}/{method.name}", request, GetMessageClass(method.output_type)
                )
        channel.close()
    with grpc.insecure_channel(server.address) as raw, pytest.raises(grpc.RpcError) as refusal:
        reflection = raw.stream_stream(
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
            request_serializer=lambda message: message,
            response_deserializer=lambda message: message,
        )
        next(reflection(iter([b""]), timeout=5))
    assert refusal.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert health_of(server.address) == health_pb2.HealthCheckResponse.SERVING
    with Client(server.address, token=TOKEN) as client:
        assert client.devices() == []
    server.stop(0.5)
    assert TOKEN not in caplog.text


def test_a_token_does_not_leave_the_machine_in_the_open() -> None:
    with pytest.raises(InputError) as refusal:
        Client("192.0.2.1:50051", token=TOKEN)
    assert refusal.value.field == "tls_ca" and TOKEN not in str(refusal.value)
    for target in ("", "localhost", "localhost:", ":1", "localhost:port"):
        with pytest.raises(InputError, match="HOST:PORT"):
            Client(target)


def test_health_is_told_per_service_and_reflection_lists_them(tmp_path: Path) -> None:
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
        ProtoReflectionDescriptorDatabase,
    )

    server = start("127.0.0.1:0", str(tmp_path / "s.sqlite"))
    names = {"rlprune.v1.PlanService", "rlprune.v1.DeviceService"}
    for name in ("", *names):
        assert health_of(server.address, name) == health_pb2.HealthCheckResponse.SERVING
    with grpc.insecure_channel(server.address) as channel:
        assert names <= set(ProtoReflectionDescriptorDatabase(channel).get_services())
    server.stop(0.5)


def test_a_message_beyond_the_limit_is_refused_and_the_server_lives(tmp_path: Path) -> None:
    server = start("127.0.0.1:0", str(tmp_path / "s.sqlite"))
    with Client(server.address) as client:
        channel = Channel(server.address)
        request = plans_pb2.CreatePlanRequest(skeleton=bytes(40 * 2**20))
        with pytest.raises(UnavailableError, match="too large"):
            channel.call("PlanService/CreatePlan", request, plans_pb2.CreatePlanResponse)
        channel.close()
        assert client.devices() == []
    server.stop(0.5)


SERVE = (
    "import sys; from rlprune.service.server import serve\n"
    "serve(sys.argv[2], sys.argv[1], on_ready=lambda a: print(a, flush=True))"
)


Spawn = Callable[..., tuple[subprocess.Popen[str], str]]


@pytest.fixture
def spawn(tmp_path: Path) -> Iterator[Spawn]:
    """Starts servers as processes of their own over one store; kills what is left of them."""
    made: list[subprocess.Popen[str]] = []

    def start_one(listen: str = "127.0.0.1:0") -> tuple[subprocess.Popen[str], str]:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVE, str(tmp_path / "s.sqlite"), listen],
            stdout=subprocess.PIPE,
            text=True,
        )
        made.append(process)
        assert process.stdout is not None
        return process, process.stdout.readline().strip()

    yield start_one
    for process in made:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_what_was_acknowledged_survives_kill_9(tmp_path: Path, spawn: Spawn) -> None:
    trace = trace_onnx(conv_net())
    process, address = spawn()
    device = DeviceClient(address)
    device.register_device(BOARD, {})
    subjects = [ModelSubject(trace.graph.fingerprint, (8 + n, 8)) for n in range(5)]
    channel = Channel(address)
    channel.call(
        "DeviceService/RequestMeasurement",
        devices_pb2.RequestMeasurementRequest(
            device=BOARD,
            subjects=[subject_to(subject) for subject in subjects],
            skeleton=strip(trace.model),
            request_id="q1",
        ),
        devices_pb2.Job,
    )
    leased = device.lease("worker", BOARD)
    assert leased is not None
    acknowledged = []
    for number, subject in enumerate(subjects[:4]):
        sent = measured(BOARD, subject, 1.0 + number)
        device.report(leased.lease_id, f"r{number}", messages([sent]))
        acknowledged.append(sent)
    process.send_signal(signal.SIGKILL)
    process.wait()
    store = open_store(str(tmp_path / "s.sqlite"))
    assert store.measurements(BOARD) == acknowledged
    store.close()
    # Another server on the same store and port: the lease goes on, the old report counts once.
    _, again = spawn(address)
    assert again == address
    first = device.report(leased.lease_id, "r0", messages([acknowledged[0]]))
    assert (first.accepted_count, first.generation) == (1, 1)
    last = device.report(
        leased.lease_id, "r4", messages([measured(BOARD, subjects[4], 5.0)]), done=True
    )
    assert (last.state, last.generation) == ("done", 5)
    device.close()
    channel.close()


def test_sigterm_lets_a_running_call_finish_and_ends_with_0(tmp_path: Path, spawn: Spawn) -> None:
    process, address = spawn()
    store = open_store(str(tmp_path / "s.sqlite"))
    with Client(address, patience_sec=0.0) as client, futures.ThreadPoolExecutor(1) as pool:
        device = DeviceClient(address)
        device.register_device(BOARD, {})
        with store.database.write():  # until this ends, the server's own write has to wait
            running = pool.submit(device.register_device, "board-2", {})
            time.sleep(0.5)  # the connection stands: the call is there long before that
            process.send_signal(signal.SIGTERM)
            with pytest.raises(UnavailableError):
                while True:  # new calls are refused before the old one is done
                    client.devices()
            assert not running.done()
        assert running.result(20).key == "board-2"
        device.close()
    assert process.wait(20) == 0
    assert [record.key for record in store.devices()] == [BOARD, "board-2"]
    store.close()


def test_ctrl_c_ends_with_0_too(spawn: Spawn) -> None:
    process, _ = spawn()
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0


def test_a_server_on_a_store_that_is_none_does_not_start(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database " * 1000)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    with pytest.raises(InputError):
        start(address, str(tmp_path / "text"))
    start(address, str(tmp_path / "s.sqlite")).stop(0.2)  # the port was given back


def test_importing_the_client_brings_no_heavy_package() -> None:
    code = (
        "import sys; from rlprune.service.client import Client\n"
        "heavy = 'torch ray onnxruntime sqlalchemy sklearn scipy gymnasium stable_baselines3'\n"
        "print([name for name in heavy.split() if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=os.environ
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_a_stopped_server_leaves_a_store_that_was_given_open(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "s.sqlite"))
    server = start("127.0.0.1:0", store)
    server.stop(0.5)
    assert dump(store)["plans"] == []
    store.close()
