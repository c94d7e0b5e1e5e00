"""Damaged models for `bench_fuzz`: traced, cut and, some of them, run beside the oracle."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from fuzzing import Attempt

RUN_SHARE = 0.02
"""Of the models that are cut, as many are run: it takes ten times as long."""


@contextmanager
def attempts() -> Iterator[Attempt]:
    """One attempt is one model damaged in one to three ways, or in its bytes."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    import damage

    sources = [make().SerializeToString() for make in damage.SOURCES]

    def attempt(rng: np.random.Generator) -> str:
        data = damage.damaged(sources, rng)
        return damage.outcome(data, rng, running=bool(rng.random() < RUN_SHARE))

    yield attempt
