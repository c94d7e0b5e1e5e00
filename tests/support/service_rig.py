"""A real server on port 0 over a real store, and a device whose latencies the test makes up."""

from __future__ import annotations

import math
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import sqlalchemy as sa

from rlprune.graph.types import PruningGraph
from rlprune.latency.device import threads_of
from rlprune.latency.types import Measurement, ModelSubject, OperatorSpec, Subject
from rlprune.service.channel import Channel
from rlprune.service.client import Client
from rlprune.service.device_client import DeviceClient
from rlprune.service.device_messages import measurement_to
from rlprune.service.server import Server, start
from rlprune.store import Store, open_store
from rlprune.store.schema import metadata
from rlprune.v1 import types_pb2

BOARD = "board-1"
Cost = Callable[[Subject], float]


class Rig:
    """A server, its store, and everybody who talks to it."""

    def __init__(self, folder: Path) -> None:
        self.now_offset = 0.0
        self.url = f"sqlite:///{folder / 'store.sqlite'}"
        self.store: Store = open_store(self.url, clock=self._clock)
        self.server: Server = start("127.0.0.1:0", self.store, lease_sec=30.0)
        self.client = Client(self.server.address)
        self.device = DeviceClient(self.server.address)
        self.channel = Channel(self.server.address)

    def _clock(self) -> float:
        return time.time() + self.now_offset

    def close(self) -> None:
        self.client.close()
        self.device.close()
        self.channel.close()
        self.server.stop(0.5)
        self.store.close()

    def dump(self) -> dict[str, list[tuple[object, ...]]]:
        """Every row of every table."""
        return dump(self.store)

    @contextmanager
    def working(self, cost: Cost, key: str = BOARD) -> Iterator[None]:
        """A worker with made-up latencies, while it lasts."""
        stop = threading.Event()

        def work() -> None:
            while not stop.wait(0.02):
                self.do_jobs(cost, key)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def do_jobs(self, cost: Cost, key: str = BOARD) -> int:
        """Leases and reports all open jobs of a device with made-up latencies; how many."""
        count = 0
        while (job := self.device.lease(f"worker-of-{key}", key)) is not None:
            measurements = messages(measured(key, subject, cost(subject)) for subject in job.left)
            self.device.report(job.lease_id, uuid.uuid4().hex, measurements, done=True)
            count += 1
        return count


def dump(store: Store) -> dict[str, list[tuple[object, ...]]]:
    with store.database.read() as connection:
        return {
            table.name: [tuple(row) for row in connection.execute(sa.select(table))]
            for table in metadata.sorted_tables
        }


def messages(found: Iterable[Measurement]) -> list[types_pb2.Measurement]:
    """As a worker reports them."""
    return [measurement_to(one) for one in found]


def measured(key: str, subject: Subject, ms: float) -> Measurement:
    sessions = ((ms, ms * 1.01, ms), (ms, ms, ms * 0.99), (ms,) * 3, (ms,) * 3)
    return Measurement(key, subject, sessions, sessions, thread_count=threads_of(key))


def macs_cost(graph: PruningGraph, factor: float = 1.0) -> Cost:
    """Latencies in proportion to multiply-accumulates: 1 ms per 10 million."""

    def cost(subject: Subject) -> float:
        if isinstance(subject, ModelSubject):
            return factor * (0.05 + float(graph.macs(np.array(subject.settings))) / 1e7)
        return factor * (0.002 + _macs(subject) / 1e7)

    return cost


def _macs(spec: OperatorSpec) -> float:
    channels = spec.in_width * spec.out_width if spec.kind in ("conv", "linear") else 0
    return channels * math.prod(spec.kernel) * math.prod(spec.out_spatial)
