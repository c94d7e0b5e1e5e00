"""Handing in what was measured, whatever the server answers meanwhile.

A report keeps its request_id until it is acknowledged, so sending it again counts once. What a
server says ends it in two ways only: it was taken, or it was refused for good (the lease has ended,
or the report is at fault). Everything else, a bug of the server's included, is waited for.
"""

from __future__ import annotations

import logging
import random
import threading
import time
import uuid
from dataclasses import dataclass, field

from rlprune.errors import (
    AuthenticationError,
    ConflictError,
    InputError,
    LeaseError,
    NotFoundError,
    RlpruneError,
)
from rlprune.service.device_client import DeviceClient
from rlprune.store.records import JobState
from rlprune.v1 import types_pb2

LOG = logging.getLogger("rlprune.device")


class Backoff:
    """Pauses that double from try to try, each cut at random, so that workers that were turned
    away together do not come back together."""

    def __init__(self, first_sec: float, most_sec: float) -> None:
        self._first_sec = min(first_sec, most_sec)
        self._most_sec = most_sec
        self.reset()

    def reset(self) -> None:
        """After a success."""
        self._next_sec = self._first_sec

    def wait(self, error: RlpruneError, stop: threading.Event) -> None:
        """Says what went wrong, and waits; not longer than until `stop` is set."""
        pause_sec = self._next_sec * random.uniform(0.5, 1.0)
        self._next_sec = min(2 * self._next_sec, self._most_sec)
        LOG.warning("%s; trying again in %.1f s", error, pause_sec)
        stop.wait(pause_sec)


@dataclass(frozen=True, slots=True)
class Report:
    """What is to be said of a leased job."""

    lease_id: str
    measurements: tuple[types_pb2.Measurement, ...] = ()
    done: bool = False
    release: bool = False
    request_id: str = field(default_factory=lambda: uuid.uuid4().hex)


class RefusedError(Exception):
    """A report was refused for good; the message is the server's. Travels nowhere."""


def deliver(
    client: DeviceClient,
    report: Report,
    backoff: Backoff,
    stop: threading.Event,
    *,
    patience_sec: float = float("inf"),
) -> JobState:
    """Sends a report until it is acknowledged; returns the job's state then.

    Raises:
        RefusedError: it is at fault.
        LeaseError: the lease has ended.
        AuthenticationError: the token is missing or wrong.
        RlpruneError: no acknowledgement within `patience_sec`, or before `stop` was set.
    """
    give_up = time.monotonic() + patience_sec
    while True:
        try:
            answer = client.report(
                report.lease_id,
                report.request_id,
                report.measurements,
                done=report.done,
                release=report.release,
            )
        except (AuthenticationError, LeaseError):
            raise
        except (InputError, ConflictError, NotFoundError) as error:
            raise RefusedError(str(error)) from error
        except RlpruneError as error:
            if stop.is_set() or time.monotonic() > give_up:
                raise
            backoff.wait(error, stop)
        else:
            backoff.reset()
            return answer.state
