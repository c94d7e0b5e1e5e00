"""Starting Ray on this machine: a start that fails is tried again, and the last failure is told."""

from __future__ import annotations

import pytest

from rlprune.errors import UnavailableError
from rlprune.training.population import START_TRIES, ray_session


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
