"""Damaged files are refused or cut right, whatever was damaged; tried in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

DAMAGE = Path(__file__).parents[1] / "support" / "damage.py"


@pytest.mark.timeout(900)
def test_damaged_models_are_refused_or_cut_right(long: bool) -> None:
    count, seconds = ("1000000", "300") if long else ("400", "60")
    ran = subprocess.run(
        [sys.executable, str(DAMAGE), "--seed", "0", "--count", count, "--seconds", seconds],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    counts = json.loads(ran.stdout)
    print(counts)
    assert counts["refused"] > 0
    assert counts["equal"] > 0
