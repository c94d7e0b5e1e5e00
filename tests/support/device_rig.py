"""A server with a store of its own, a worker in a thread, and what to measure."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path

from rlprune.device.child import ChildConfig
from rlprune.device.worker import WorkerConfig, work
from rlprune.latency.device import local_device_key
from rlprune.latency.measure import MeasureConfig
from rlprune.latency.types import OperatorSpec

BRIEF = MeasureConfig(
    warmup_count=1,
    min_sample_ms=0.3,
    sample_count=3,
    max_sample_count=3,
    session_count=2,
    extra_session_count=0,
)
QUICK = WorkerConfig(poll_sec=0.05, max_backoff_sec=0.2, measure=BRIEF)
FAULTY_CHILD = Path(__file__).parent / "faulty_child.py"


def faulty(
    memory_bytes: int = 2 << 30, cpu_sec: float = 60.0, wall_sec: float = 60.0
) -> WorkerConfig:
    """A worker whose child has the faulty runtime."""
    child = ChildConfig(memory_bytes, cpu_sec, wall_sec, (sys.executable, str(FAULTY_CHILD)))
    return WorkerConfig(poll_sec=0.05, max_backoff_sec=0.2, measure=BRIEF, child=child)


class _Faulty:
    name = "faulty"
    version = "1"


FAULTY_KEY = local_device_key(_Faulty())


def conv(in_width: int, out_width: int = 8) -> OperatorSpec:
    return OperatorSpec(
        "conv", "", in_width, out_width, (8, 8), (8, 8), (3, 3), (1, 1), (1,) * 4, (1, 1), 1
    )


@contextmanager
def working(
    address: str, *, config: WorkerConfig = QUICK, **options: object
) -> Iterator[futures.Future[int]]:
    """A worker in a thread; its result is the number of jobs it finished."""
    stop = threading.Event()
    with futures.ThreadPoolExecutor(1) as pool:
        running = pool.submit(work, address, stop=stop, config=config, **options)  # type: ignore[arg-type]
        try:
            yield running
        finally:
            stop.set()
        running.result(30)


def until(reached: Callable[[], object], seconds: float = 30.0) -> None:
    give_up = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < give_up, "never came about"
        time.sleep(0.02)
