"""Many attempts at one door, and what they did to it."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

Attempt = Callable[[np.random.Generator], str]
"""Makes one input and hands it in; returns what came of it in a word, which begins with `BUG` where
it should not have. An exception counts as a bug, too."""

SHOWN_BUGS = 10


@dataclass
class Found:
    """What so many attempts did."""

    count: int
    outcomes: Counter[str] = field(default_factory=Counter)
    bug_count: int = 0
    bugs: list[tuple[int, str]] = field(default_factory=list)
    """Index and words of the first few; the seed and the index make the input again."""
    slowest_sec: float = 0.0
    slowest: int = 0
    """Index of the slowest attempt."""
    growth_mb: float = 0.0
    """Resident memory at the end over that after a fifth of the attempts."""


def try_many(attempt: Attempt, count: int, seed: int) -> Found:
    """Attempts 0 to `count`, each with a generator of its own, so that one can be had again."""
    found = Found(count)
    settled_mb = _resident_mb()
    for index in range(count):
        began = time.perf_counter()
        try:
            outcome = attempt(np.random.default_rng((seed, index)))
        except Exception as error:
            outcome = f"BUG {type(error).__name__}: {str(error)[:200]}"
        took_sec = time.perf_counter() - began
        if took_sec > found.slowest_sec:
            found.slowest_sec, found.slowest = took_sec, index
        found.outcomes[outcome.partition(":")[0]] += 1
        if outcome.startswith("BUG"):
            found.bug_count += 1
            if len(found.bugs) < SHOWN_BUGS:
                found.bugs.append((index, outcome))
        if index == count // 5:
            settled_mb = _resident_mb()
    found.growth_mb = _resident_mb() - settled_mb
    return found


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
