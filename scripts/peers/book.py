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
from rlprune.profile.types import FOLD_COUNT

WAIT_SEC = 60.0
"""For another process's write."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS evaluation (
    context TEXT, keeps TEXT, losses BLOB, accuracy REAL, PRIMARY KEY (context, keeps)
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
        """The plan's evaluation in a context; made where it is not there.

        Losses are kept in float32, divergences not at all: here plans are chosen by loss.
        """
        text = ",".join(str(int(keep)) for keep in keeps)
        found = self._file.execute(
            "SELECT losses, accuracy FROM evaluation WHERE context = ? AND keeps = ?",
            (context, text),
        ).fetchone()
        if found is None:
            made = make()
            losses = np.asarray(made.image_losses, dtype=np.float32)
            found = (losses.tobytes(), made.accuracy)
            self._file.execute(
                "INSERT OR REPLACE INTO evaluation VALUES (?, ?, ?, ?)", (context, text, *found)
            )
        return _evaluation(np.frombuffer(found[0], dtype=np.float32).astype(np.float64), found[1])

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


def _evaluation(losses: FloatArray, accuracy: float) -> Evaluation:
    return Evaluation(
        loss=float(losses.mean()),
        loss_se=float(losses.std(ddof=1) / np.sqrt(len(losses))),
        accuracy=float(accuracy),
        fold_losses=np.array([losses[fold::FOLD_COUNT].mean() for fold in range(FOLD_COUNT)]),
        image_losses=losses,
    )
