"""Starting Ray on this machine: a start that fails is tried again, and the last failure is told."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from rlprune.cluster import START_TRIES, ray_session
from rlprune.errors import UnavailableError


class _FaultyRay:
    """`ray.init` that fails the first times as Ray does where its processes die at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, failures: int) -> None:
        self.calls: list[str] = []
        self._failures = failures
        monkeypatch.setattr("ray.is_initialized", lambda: False)
        monkeypatch.setattr("ray.init", self._init)
        monkeypatch.setattr("ray.shutdown", lambda: self.calls.append("shutdown"))

    def _init(self, **settings: object) -> None:
        self.calls.append("init")
        if self.calls.count("init") <= self._failures:
            raise Exception("The current node timed out during startup.")


def test_a_start_that_failed_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = _FaultyRay(monkeypatch, failures=1)
    with ray_session(None):
        assert ray.calls == ["init", "init"]
    assert ray.calls[2:] == ["shutdown"]


def test_where_no_start_succeeds_the_reason_and_the_logs_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ray = _FaultyRay(monkeypatch, failures=START_TRIES)
    refused = pytest.raises(UnavailableError, match=r"this machine: The current node.*/tmp/ray/")
    with refused, ray_session(None):
        pytest.fail("there is no cluster")
    assert ray.calls.count("init") == START_TRIES


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
def test_an_address_at_which_nothing_listens_is_refused_at_once(form: str) -> None:
    address = form.format(free_port())
    began = time.monotonic()
    refusal = pytest.raises(UnavailableError, match=r"no Ray cluster at .*refused; give")
    with refusal as refused, ray_session(address):
        pytest.fail("there is no cluster")
    assert time.monotonic() - began < 5.0 and "\n" not in str(refused.value)


@pytest.mark.parametrize("greeting", [b"", b"220 mail ESMTP\r\n"], ids=["silent", "other"])
def test_an_address_at_which_no_ray_answers_is_refused_in_time(
    monkeypatch: pytest.MonkeyPatch, greeting: bytes
) -> None:
    monkeypatch.setattr("rlprune.cluster.PROBE_SEC", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken: list[socket.socket] = []

        def greet() -> None:
            taken.append(server.accept()[0])
            taken[0].sendall(greeting)

        thread = threading.Thread(target=greet)
        thread.start()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(UnavailableError, match="no Ray cluster"), ray_session(address):
            pytest.fail("there is no cluster")
        thread.join()
        taken[0].close()
