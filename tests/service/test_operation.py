"""What an operator needs: tokens worth the name, a log that says who asked, true health."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from service_rig import BOARD

from rlprune.errors import AuthenticationError, InputError, NotFoundError, RlpruneError
from rlprune.service import health
from rlprune.service.call_log import Call, JsonLines, TokenLog
from rlprune.service.channel import Channel
from rlprune.service.client import Client
from rlprune.service.device_client import DeviceClient
from rlprune.service.server import start
from rlprune.store.database import Database
from rlprune.v1 import devices_pb2, plans_pb2

TOKEN = "marker-token-5f1c"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def openssl(*arguments: str | Path) -> None:
    try:
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")


def make_pair(folder: Path, name: str, *, password: str = "") -> tuple[Path, Path]:
    cert, key = folder / f"{name}.pem", folder / f"{name}.key"
    openssl(
        *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-days", "2"),
        *(("-passout", f"pass:{password}") if password else ("-nodes",)),
        *("-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
        *("-keyout", key, "-out", cert),
    )
    return cert, key


@pytest.mark.parametrize("token", ["x", "elevenchars", " ", "            ", "schlüssel-lang-genug"])
def test_beyond_loopback_a_token_that_can_be_guessed_is_refused(tmp_path: Path, token: str) -> None:
    cert, key = make_pair(tmp_path, "own")
    with pytest.raises(InputError, match="token") as refusal:
        start("0.0.0.0:0", str(tmp_path / "s"), token=token, tls_cert=cert, tls_key=key)
    assert token not in str(refusal.value) or token.strip() in ("", "x")
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("token", ["", " ", "line\nline", "schlüssel"])
def test_a_token_that_nobody_could_send_is_refused_on_loopback_too(
    tmp_path: Path, token: str
) -> None:
    with pytest.raises(InputError) as refusal:
        start("127.0.0.1:0", str(tmp_path / "s"), token=token)
    assert refusal.value.field == "token"


def test_an_encrypted_key_is_refused_without_asking_for_its_password(tmp_path: Path) -> None:
    cert, key = make_pair(tmp_path, "own", password="secret")
    command = [str(Path(sys.executable).parent / "rlprune"), "serve", "--listen", "127.0.0.1:0"]
    told = subprocess.run(
        [*command, "--tls-cert", str(cert), "--tls-key", str(key), "--store", str(tmp_path / "s")],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        start_new_session=True,
    )
    assert told.returncode != 0 and told.stderr.startswith("error: ")
    assert "unencrypted" in told.stderr and len(told.stderr.strip().splitlines()) == 1


def test_a_renewed_certificate_is_served_to_new_connections(tmp_path: Path) -> None:
    cert, key = make_pair(tmp_path, "first")
    server = start("127.0.0.1:0", str(tmp_path / "s"), tls_cert=cert, tls_key=key)
    address = f"localhost:{server.port}"
    old_ca = shutil.copy(cert, tmp_path / "old.pem")
    with Client(address, tls_ca=old_ca) as client:
        assert client.devices() == []
        new_cert, new_key = make_pair(tmp_path, "second")
        time.sleep(1.1)  # files are looked at once a second
        cert.write_text("half written")
        assert client.devices() == []
        with Client(address, tls_ca=old_ca) as other:
            assert other.devices() == []  # a pair that is none does not replace the one in use
        time.sleep(1.1)
        os.replace(new_key, key)
        os.replace(new_cert, cert)
        with Client(address, tls_ca=cert) as late:
            assert late.devices() == []
        assert client.devices() == []  # and connections that stand go on
    server.stop(0.5)


def test_every_call_leaves_one_line_with_who_what_and_what_came_of_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "rlprune.service")
    server = start("127.0.0.1:0", str(tmp_path / "s.sqlite"))
    device = DeviceClient(server.address)
    channel = Channel(server.address)
    caplog.clear()
    device.register_device(BOARD, {})
    asked = plans_pb2.CreatePlanRequest(
        fingerprint="ab" * 32, device=BOARD, budget_ms=1.0, request_id="r-17\n" * 10_000
    )
    asked.hold.append("x" * 100_000)
    with pytest.raises(InputError):
        channel.call("PlanService/CreatePlan", asked, plans_pb2.CreatePlanResponse)
    asked.request_id = "r-18"
    with pytest.raises(RlpruneError):
        channel.call("PlanService/CreatePlan", asked, plans_pb2.CreatePlanResponse)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 3
    registered, long, last = lines
    assert "DeviceService.RegisterDevice OK" in registered and f"key={BOARD}" in registered
    assert "from ipv4:127.0.0.1:" in registered or "from ipv6:" in registered
    assert "INVALID_ARGUMENT" in long and "\n" not in long and len(long) < 2000
    assert "request_id=r-18" in last and "fingerprint=abab" in last and f"device={BOARD}" in last
    for handle in (device, channel):
        handle.close()
    server.stop(0.5)


def test_wrong_tokens_leave_a_line_but_not_one_each(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "rlprune.service")
    server = start("127.0.0.1:0", str(tmp_path / "s.sqlite"), token=TOKEN)
    with Client(server.address, token="guess-4711", patience_sec=0.0) as client:
        for _ in range(50):
            with pytest.raises(AuthenticationError):
                client.devices()
    told = [
        record.getMessage()
        for record in caplog.records
        if "UNAUTHENTICATED" in record.msg % record.args
    ]
    assert 1 <= len(told) <= 20 and "127.0.0.1" in told[0] and "ListDevices" in told[0]
    assert TOKEN not in caplog.text and "4711" not in caplog.text
    server.stop(0.5)


def test_refused_tokens_between_two_lines_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "rlprune.service")
    now = [0.0]
    log = TokenLog(clock=lambda: now[0])
    for _ in range(40):
        log.refused("/rlprune.v1.X/Y", "ipv4:1.2.3.4:5")
    now[0] = 1.5
    log.refused("/rlprune.v1.X/Y", "ipv4:1.2.3.4:5")
    assert len(caplog.records) == 2 and "39 calls more" in caplog.records[1].getMessage()


def test_the_log_of_serve_json_is_json_in_every_line(tmp_path: Path) -> None:
    command = [str(Path(sys.executable).parent / "rlprune"), "serve", "--json"]
    process = subprocess.Popen(
        [*command, "--listen", "127.0.0.1:0", "--store", str(tmp_path / "s")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    first = "".join(iter(process.stdout.readline, "}\n")) + "}"
    address = json.loads(first)["listening"]
    with Client(address) as client:
        client.devices()
        with pytest.raises(NotFoundError):
            client.get_plan("no such plan")
    with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError):
        channel.unary_unary("/rlprune.v1.PlanService/ListPlans")(
            b"", compression=grpc.Compression.Deflate, timeout=10
        )
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=30)
    lines = [json.loads(line) for line in log.splitlines()]
    calls = {line["method"].rpartition(".")[2]: line for line in lines if "method" in line}
    assert calls["ListDevices"]["status"] == "OK" and calls["ListDevices"]["duration_ms"] > 0
    assert calls["GetPlan"]["status"] == "NOT_FOUND" and calls["GetPlan"]["peer"]
    assert all({"time", "level", "logger"} <= line.keys() for line in lines)


def test_a_bug_in_the_json_log_has_its_traceback() -> None:
    try:
        raise ValueError("of ours")
    except ValueError:
        info = sys.exc_info()
    record = logging.LogRecord("rlprune.service", logging.ERROR, "", 0, "bug in %s", ("X",), info)
    entry = json.loads(JsonLines().format(record))
    assert entry["message"] == "bug in X" and "of ours" in entry["traceback"]


def test_a_lease_id_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "rlprune.service")
    call = Call("rlprune.v1.DeviceService.Report", "peer")
    call.about(devices_pb2.ReportRequest(lease_id="may-report", request_id="r1"))
    call.log()
    assert "r1" in caplog.text and "may-report" not in caplog.text


def status(address: str) -> int:
    with grpc.insecure_channel(address) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        return int(check(health_pb2.HealthCheckRequest(), timeout=5).status)


def until(wanted: Callable[[], bool], timeout_sec: float = 20.0) -> None:
    end = time.monotonic() + timeout_sec
    while not wanted():
        assert time.monotonic() < end, "not within its time"
        time.sleep(0.05)


def test_health_follows_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "CHECK_SEC", 0.1)
    path = tmp_path / "s.sqlite"
    server = start("127.0.0.1:0", str(path))
    assert status(server.address) == SERVING
    aside = tmp_path / "aside"
    path.rename(aside)
    until(lambda: status(server.address) == NOT_SERVING)
    aside.rename(path)
    until(lambda: status(server.address) == SERVING)
    server.stop(0.5)


def test_health_answers_while_the_store_hangs_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "CHECK_SEC", 0.1)
    monkeypatch.setattr(health, "CHECK_TIMEOUT_SEC", 0.5)
    go_on = threading.Event()
    monkeypatch.setattr(Database, "check", lambda self: go_on.wait(30))
    server = start("127.0.0.1:0", str(tmp_path / "s.sqlite"))
    until(lambda: status(server.address) == NOT_SERVING)
    go_on.set()
    until(lambda: status(server.address) == SERVING)
    server.stop(0.5)


def test_health_notices_a_damaged_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "CHECK_SEC", 0.1)
    path = tmp_path / "s.sqlite"
    server = start("127.0.0.1:0", str(path))
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    with path.open("r+b") as file:
        file.seek(100)
        file.write(b"\xff" * (path.stat().st_size - 100))
    with Client(server.address, patience_sec=0.0) as client, pytest.raises(RlpruneError) as refusal:
        client.devices()
    assert "internal error" not in str(refusal.value)
    until(lambda: status(server.address) == NOT_SERVING)
    server.stop(0.5)


def test_a_call_that_hangs_does_not_keep_the_process() -> None:
    code = (
        "import threading, time; from rlprune.service.server import leave_what_runs\n"
        "leave_what_runs(); print('nothing ran')\n"
        "threading.Thread(target=time.sleep, args=(600,)).start()\n"
        "leave_what_runs(); print('never')"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stdout) == (0, "nothing ran\n")
    assert "threads still at work: 1" in ended.stderr
