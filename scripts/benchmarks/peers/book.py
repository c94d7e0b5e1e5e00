"""What was computed once: evaluations and findings, in one SQLite file that processes share.

Everything is kept under a digest of what it depends on, so that an interrupted benchmark goes on
where it stopped, a second run computes nothing, and a changed evaluator or policy finds nothing.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from rlprune.graph.types import IntArray
from rlprune.sensitivity.evaluate import Evaluation

WAIT_SEC = 60.0
"""For another process's write."""

SCHEMA = "CREATE TABLE IF NOT EXISTS kept (key TEXT PRIMARY KEY, value BLOB) WITHOUT ROWID"


class Book:
    """The file; for one thread of each process."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = sqlite3.connect(path, timeout=WAIT_SEC, isolation_level=None)
        self._file.execute("PRAGMA journal_mode=WAL")
        self._file.execute("PRAGMA synchronous=NORMAL")
        self._file.execute(SCHEMA)

    def close(self) -> None:
        self._file.close()

    def evaluation(
        self, context: str, keeps: IntArray, make: Callable[[], Evaluation]
    ) -> Evaluation:
        """The plan's evaluation in a context; made where it is not there. Kept in float32."""

        def made() -> bytes:
            one = make()
            values = (one.image_losses, one.image_divergences, [one.accuracy])
            return np.concatenate(values).astype(np.float32).tobytes()

        found = self._kept(f"{context} {','.join(str(int(keep)) for keep in keeps)}", made)
        values = np.frombuffer(found, dtype=np.float32).astype(np.float64)
        losses, divergences = np.split(values[:-1], 2)
        return Evaluation.of(losses, divergences, float(values[-1]))

    def finding(self, key: str, make: Callable[[], Any]) -> Any:
        """A JSON value by its key; made where it is not there."""
        return json.loads(self._kept(key, lambda: json.dumps(make()).encode()))

    def _kept(self, key: str, make: Callable[[], bytes]) -> bytes:
        row = self._file.execute("SELECT value FROM kept WHERE key = ?", (key,)).fetchone()
        if row is None:
            row = (make(),)
            self._file.execute("INSERT OR REPLACE INTO kept VALUES (?, ?)", (key, *row))
        return bytes(row[0])
