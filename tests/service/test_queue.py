"""Calls wait in a queue of limited length, and leave it when nobody waits for them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import pytest

from rlprune.errors import UnavailableError
from rlprune.service import front
from rlprune.service.channel import Channel
from rlprune.service.client import Client
from rlprune.service.plans import PlanService
from rlprune.service.server import Server, start
from rlprune.v1 import plans_pb2


class Slow:
    """A server with one thread of each kind, whose ListPlans and CreatePlan wait to be let go."""

    def __init__(self, server: Server, go_on: threading.Event, begun: list[str]) -> None:
        self.server = server
        self.go_on = go_on
        self.begun = begun

    def ask(self, rpc: str, *, timeout_sec: float = 30.0) -> None:
        channel = Channel(self.server.address, patience_sec=0.0)
        kinds = {
            "ListPlans": (plans_pb2.ListPlansRequest, plans_pb2.ListPlansResponse),
            "CreatePlan": (plans_pb2.CreatePlanRequest, plans_pb2.CreatePlanResponse),
        }
        request, answer = kinds[rpc]
        try:
            channel.call(f"PlanService/{rpc}", request(), answer, timeout_sec=timeout_sec)
        finally:
            channel.close()


@pytest.fixture
def slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Slow]:
    monkeypatch.setattr(front, "SHORT_THREADS", 1)
    monkeypatch.setattr(front, "LONG_THREADS", 1)
    go_on, begun = threading.Event(), list[str]()

    def list_plans(self: PlanService, request: object) -> plans_pb2.ListPlansResponse:
        begun.append("ListPlans")
        go_on.wait(30)
        return plans_pb2.ListPlansResponse()

    def create_plan(self: PlanService, request: object) -> plans_pb2.CreatePlanResponse:
        begun.append("CreatePlan")
        go_on.wait(30)
        return plans_pb2.CreatePlanResponse()

    monkeypatch.setattr(PlanService, "list_plans", list_plans)
    monkeypatch.setattr(PlanService, "create_plan", create_plan)
    server = start("127.0.0.1:0", str(tmp_path / "s.sqlite"))
    yield Slow(server, go_on, begun)
    go_on.set()
    server.stop(0.5)


def test_a_call_whose_time_ran_out_in_the_queue_is_not_begun(slow: Slow) -> None:
    with futures.ThreadPoolExecutor(1) as pool:
        running = pool.submit(slow.ask, "ListPlans")
        while not slow.begun:
            time.sleep(0.01)
        for _ in range(5):
            with pytest.raises(UnavailableError, match="in time"):
                slow.ask("ListPlans", timeout_sec=0.2)
        time.sleep(0.5)  # the server counts from when a call arrives
        slow.go_on.set()
        running.result(20)
        slow.ask("ListPlans")
    assert slow.begun == ["ListPlans"] * 2


def test_short_calls_do_not_wait_for_planning(slow: Slow) -> None:
    with futures.ThreadPoolExecutor(3) as pool:
        planning = [pool.submit(slow.ask, "CreatePlan") for _ in range(3)]
        while not slow.begun:
            time.sleep(0.01)
        with Client(slow.server.address, patience_sec=0.0) as client:
            assert client.devices() == []
            assert not any(call.done() for call in planning)
        slow.go_on.set()
        for call in planning:
            call.result(20)
