"""Which leases have gone silent: by this process's own monotonic clock, never by the time of day.

A row says how long its lease lasts and how often it was renewed; a lease has ended for a process
that has seen no newer renewal for that long. So clocks that jump end nothing and hold nothing, and
a restarted server gives every lease one more length. (Ideas: Gray and Cheriton's leases, 1989;
DynamoDB's lock client.)
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import sqlalchemy as sa

DEFAULT_LEASE_SEC = 60.0
"""Of a lease whose row does not say, as those of 0.6.1."""


class LeaseRow(NamedTuple):
    """What of a leased job's row counts here."""

    device: str
    lease_id: str
    renewal_count: int
    lease_sec: float

    @staticmethod
    def of(row: sa.RowMapping | dict[str, Any]) -> LeaseRow:
        """The columns `device`, `lease_id`, `renewal_count` and `lease_sec` of a job."""
        return LeaseRow(
            row["device"],
            row["lease_id"],
            row["renewal_count"] or 0,
            row["lease_sec"] or DEFAULT_LEASE_SEC,
        )


class LeaseWatch:
    """When each lease was last seen to be renewed. May be used from many threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock`: seconds that only pass, from any start."""
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: dict[str, dict[str, tuple[int, float]]] = {}  # by device and lease

    def left_sec(self, lease: LeaseRow) -> float:
        """How long a lease still lasts; 0 or less where it has ended."""
        with self._lock:
            return self._look(lease, self._seen.setdefault(lease.device, {}))

    def silent(self, device: str, leases: Iterable[LeaseRow]) -> list[LeaseRow]:
        """Those of all of a device's leases that have ended; others are forgotten."""
        with self._lock:
            known = self._seen.get(device, {})
            rows = list(leases)
            self._seen[device] = {
                r.lease_id: known[r.lease_id] for r in rows if r.lease_id in known
            }
            return [row for row in rows if self._look(row, self._seen[device]) <= 0.0]

    def _look(self, lease: LeaseRow, known: dict[str, tuple[int, float]]) -> float:
        now = self._clock()
        count, since = known.get(lease.lease_id, (-1, now))
        if count != lease.renewal_count:
            known[lease.lease_id] = (lease.renewal_count, now)
            return lease.lease_sec
        return lease.lease_sec - (now - since)
