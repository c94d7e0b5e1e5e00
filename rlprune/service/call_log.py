"""One line in the log for each call: who called what, what about, and what became of it.

Texts of callers are escaped and cut, so that no call writes two lines, or a long one.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

LOG = logging.getLogger("rlprune.service")

MAX_VALUE = 100
"""Characters of one fact of a call; an error's message may have ten times as many."""
_FACTS = (
    "request_id",
    "device",
    "key",
    "fingerprint",
    "plan_id",
    "job_id",
    "worker_id",
    "policy",
)
"""Fields of requests and answers that say what a call was about. Not `lease_id`: who knows it may
report."""
_POLLS = ("Lease", "Renew", "GetJob", "Check")
"""Many a minute, and told only where they are refused."""


@dataclass(slots=True)
class Call:
    """What is known of one call until it has ended."""

    method: str
    """Full name."""
    peer: str
    """Address of the caller, as gRPC has it."""
    status: str = "OK"
    """Name of the gRPC status."""
    error: str = ""
    """Why it was refused; empty where it was not."""
    facts: dict[str, str] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)

    def about(self, message: Any) -> None:
        """Notes what a request or an answer says of what the call is about."""
        for name in _FACTS:
            value = getattr(message, name, None)
            if isinstance(value, str) and value:
                self.facts[name] = value
        plan = getattr(message, "plan", None)
        if plan is not None and plan.fingerprint:
            self.facts["fingerprint"] = plan.fingerprint

    def log(self) -> None:
        """Writes the line."""
        took_ms = 1000 * (time.monotonic() - self.began)
        facts = {name: _clean(value, MAX_VALUE) for name, value in self.facts.items()}
        error = _clean(self.error, 10 * MAX_VALUE)
        polled = self.status == "OK" and self.method.rpartition(".")[2] in _POLLS
        about = "".join(f" {name}={value}" for name, value in facts.items())
        LOG.log(
            logging.DEBUG if polled else logging.INFO,
            "%s %s %.1f ms from %s%s%s",
            *(self.method, self.status, took_ms, self.peer, about, f": {error}" if error else ""),
            extra={
                "call": {
                    "method": self.method,
                    "peer": self.peer,
                    "status": self.status,
                    "duration_ms": round(took_ms, 3),
                    **facts,
                    **({"error": error} if error else {}),
                }
            },
        )


class TokenLog:
    """Tells of calls without the right token, in one line a second at most; of any thread."""

    def __init__(
        self, *, interval_sec: float = 1.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._interval_sec = interval_sec
        self._clock = clock
        self._lock = threading.Lock()
        self._next = float("-inf")
        self._untold = 0

    def refused(self, method: str, peer: str) -> None:
        """Notes one such call; the next line also says how many came since the last."""
        with self._lock:
            now = self._clock()
            if now < self._next:
                self._untold += 1
                return
            untold, self._untold = self._untold, 0
            self._next = now + self._interval_sec
        call = Call(_clean(method, MAX_VALUE), peer, status="UNAUTHENTICATED")
        call.error = "the token is missing or wrong"
        if untold:
            call.error += f"; so it was in {untold} calls more since the last such line"
        call.log()


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, logger, and either a message or the facts of a call."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        call = getattr(record, "call", None)
        entry |= call if call is not None else {"message": record.getMessage()}
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def _clean(text: str, length: int) -> str:
    """`text` in one line of at most about `length` characters."""
    cut = text if len(text) <= length else text[:length] + "..."
    return "".join(
        letter if letter.isprintable() else repr(letter)[1:-1] for letter in " ".join(cut.split())
    )
