"""Mutated requests to every rpc: nothing crashes, is answered as a bug, or keeps memory.

400 of them; `--long` tries 100,000. The seed and an attempt's number make its request again.
"""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import psutil
import pytest
from fuzz_messages import attempts

COUNT, LONG_COUNT = 400, 100_000
MAX_GROWTH_MB = 64.0
"""Of resident memory, from a fifth of the attempts to the end: caches fill, and nothing else."""
MAX_SEC = 100.0
"""Ten on a machine of its own."""


@pytest.mark.timeout(5000)
def test_nothing_crashes_or_is_answered_as_a_bug(long: bool) -> None:
    count, outcomes, slowest = LONG_COUNT if long else COUNT, Counter[str](), 0.0
    settled = psutil.Process().memory_info().rss
    with attempts() as attempt:
        for index in range(count):
            began = time.perf_counter()
            outcome = attempt(np.random.default_rng((13, index)))
            slowest = max(slowest, time.perf_counter() - began)
            assert not outcome.startswith("BUG"), f"attempt {index}: {outcome}"
            outcomes[outcome.partition(":")[0]] += 1
            if index == count // 5:
                settled = psutil.Process().memory_info().rss
    print(outcomes)
    assert len(outcomes) > 1, "everything came to the same: nothing was tried"
    assert slowest < MAX_SEC
    if long:
        assert (psutil.Process().memory_info().rss - settled) / 2**20 < MAX_GROWTH_MB
