"""Damaged and odd input, some of it; `--long` tries what issue 13 asks for."""

from __future__ import annotations

import pytest
from bench_fuzz import COUNTS, MAX_GROWTH_MB, MAX_SEC, PARTS
from fuzzing import try_many


@pytest.mark.timeout(5000)
@pytest.mark.parametrize("part", PARTS)
def test_nothing_crashes_or_is_answered_as_a_bug(part: str, long: bool) -> None:
    with PARTS[part]() as attempt:
        found = try_many(attempt, COUNTS[part] if long else 400, seed=13)
    assert found.bug_count == 0, found.bugs
    assert len(found.outcomes) > 1, "everything came to the same: nothing was tried"
    assert found.slowest_sec < 10 * MAX_SEC  # of a machine that does much else
    if long:
        assert found.growth_mb < MAX_GROWTH_MB
