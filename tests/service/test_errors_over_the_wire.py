"""A refusal arrives as the class it was raised as, with its words, field and attributes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rlprune import errors
from rlprune.errors import RlpruneError, UnavailableError
from rlprune.service.client import Client
from rlprune.service.plans import PlanService
from rlprune.service.server import start
from rlprune.service.wire import STATUS

Refusing = Callable[[Exception], Client]


def tree(kind: type[RlpruneError] = RlpruneError) -> list[type[RlpruneError]]:
    return [kind, *(below for child in kind.__subclasses__() for below in tree(child))]


def example(kind: type[RlpruneError]) -> RlpruneError:
    if kind is errors.UnsupportedOperatorError:
        return errors.UnsupportedOperatorError("node/7", "NonZero", "its shape depends on data")
    if kind is errors.MissingExtraError:
        return errors.MissingExtraError("measuring", "device")
    return kind(f"a {kind.__name__} with ümlauts, 100 % and a value", field="budget_ms")


def test_the_table_has_every_class_and_every_reason_once() -> None:
    assert set(tree()) == set(STATUS)
    assert len({reason for reason, _ in STATUS.values()}) == len(STATUS)


@pytest.fixture
def refusing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[Exception], Client]]:
    """A client of a server whose GetPlan raises what it is told to."""
    raised: list[Exception] = []

    def refuse(self: PlanService, request: object) -> object:
        raise raised[-1]

    monkeypatch.setattr(PlanService, "get_plan", refuse)
    server = start("127.0.0.1:0", str(tmp_path / "s.sqlite"))
    # No patience, since what is unavailable is tried again.
    client = Client(server.address, patience_sec=0.0)

    def told(error: Exception) -> Client:
        raised.append(error)
        return client

    yield told
    client.close()
    server.stop(0.5)


def test_every_class_round_trips(refusing: Refusing) -> None:
    for kind in set(tree()) - {errors.StoreError, errors.UnavailableError}:
        sent = example(kind)
        with pytest.raises(RlpruneError) as refusal:
            refusing(sent).get_plan("any")
        assert type(refusal.value) is kind
        assert str(refusal.value) == str(sent)
        assert vars(refusal.value) == vars(sent)


def test_callers_are_not_told_where_the_store_is(
    refusing: Refusing, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for kind in (errors.StoreError, errors.UnavailableError):
        with pytest.raises(kind) as refusal:
            refusing(kind("store postgresql://me@db.example.org: away")).get_plan("any")
        assert "example.org" not in str(refusal.value) and "log" in str(refusal.value)
        assert "postgresql://me@db.example.org: away" in caplog.text
        caplog.clear()


@pytest.mark.parametrize("letter", ["x", "%", "ü", "\u6f22", "\U0001f600", "\n", "\ud800"])
def test_a_long_refusal_arrives_in_any_script(refusing: Refusing, letter: str) -> None:
    sent = errors.ModelError(letter * 100_000, field=letter * 100_000)
    sent.node = letter * 100_000  # type: ignore[attr-defined]
    sent.operator = letter * 100_000  # type: ignore[attr-defined]
    with pytest.raises(errors.ModelError) as refusal:
        refusing(sent).get_plan("any")
    assert len(str(refusal.value)) > 150 and len(refusal.value.field) > 450


def test_an_endless_message_is_cut_and_still_arrives(refusing: Refusing) -> None:
    with pytest.raises(errors.ModelError) as refusal:
        refusing(errors.ModelError("x" * 100_000, field="y" * 100_000)).get_plan("any")
    assert len(str(refusal.value)) == len(refusal.value.field) == 2000


def test_a_bug_is_told_to_the_log_and_not_to_the_caller(
    refusing: Refusing, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR), pytest.raises(RlpruneError) as refusal:
        refusing(KeyError("s3cret")).get_plan("any")
    assert type(refusal.value) is RlpruneError and "s3cret" not in str(refusal.value)
    assert "s3cret" in caplog.text


def test_a_server_that_is_not_there_is_unavailable() -> None:
    with (
        Client("127.0.0.1:1", patience_sec=0.3) as client,
        pytest.raises(UnavailableError, match=r"127\.0\.0\.1:1"),
    ):
        client.devices()
