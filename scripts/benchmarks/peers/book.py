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

from rlprune.graph.types import FloatArray, IntArray
from rlprune.profile.evaluate import Evaluation

WAIT_SEC = 60.0
"""For another process's write."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS evaluation (
    context TEXT, keeps TEXT, losses BLOB, accuracy REAL, PRIMARY KEY (context, keeps)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS divergence (
    context TEXT, keeps TEXT, divergences BLOB, PRIMARY KEY (context, keeps)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS finding (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
"""


class Book:
    """The file; for one thread of each process."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = sqlite3.connect(path, timeout=WAIT_SEC, isolation_level=None)
        self._file.execute("PRAGMA journal_mode=WAL")
        self._file.execute("PRAGMA synchronous=NORMAL")
        self._file.executescript(SCHEMA)

    def close(self) -> None:
        self._file.close()

    def evaluation(
        self, context: str, keeps: IntArray, make: Callable[[], Evaluation]
    ) -> Evaluation:
        """The plan's evaluation in a context; made where it is not there. Kept in float32."""
        key = (context, ",".join(str(int(keep)) for keep in keeps))
        found = self._file.execute(
            "SELECT losses, accuracy, divergences FROM evaluation JOIN divergence "
            "USING (context, keeps) WHERE context = ? AND keeps = ?",
            key,
        ).fetchone()
        if found is None:
            made = make()
            losses, divergences = (
                np.asarray(values, dtype=np.float32).tobytes()
                for values in (made.image_losses, made.image_divergences)
            )
            found = (losses, made.accuracy, divergences)
            self._file.execute("BEGIN")
            self._file.execute(
                "INSERT OR REPLACE INTO evaluation VALUES (?, ?, ?, ?)", (*key, *found[:2])
            )
            self._file.execute(
                "INSERT OR REPLACE INTO divergence VALUES (?, ?, ?)", (*key, divergences)
            )
            self._file.execute("COMMIT")
        return Evaluation.of(_unpacked(found[0]), _unpacked(found[2]), float(found[1]))

    def finding(self, key: str, make: Callable[[], Any]) -> Any:
        """A JSON value by its key; made where it is not there."""
        row = self._file.execute("SELECT value FROM finding WHERE key = ?", (key,)).fetchone()
        if row is not None:
            return json.loads(row[0])
        value = json.dumps(make())
        self._file.execute("INSERT OR REPLACE INTO finding VALUES (?, ?)", (key, value))
        return json.loads(value)

    def has(self, key: str) -> bool:
        """Whether the finding is there."""
        return bool(self._file.execute("SELECT 1 FROM finding WHERE key = ?", (key,)).fetchone())


def _unpacked(values: bytes) -> FloatArray:
    return np.frombuffer(values, dtype=np.float32).astype(np.float64)
