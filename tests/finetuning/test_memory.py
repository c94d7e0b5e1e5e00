"""Freed memory is kept by the program that trains, and by no other."""

from __future__ import annotations

import subprocess
import sys

import pytest

KEPT = """
import mmap, sys
from rlprune.cli import main
import numpy as np

def faults():
    return int(open("/proc/self/stat").read().rsplit(")", 1)[1].split()[7])

sys.argv = ["rlprune", sys.argv[1], "--help"]
try:
    main()
except SystemExit:
    pass
np.ones(8_000_000)
before = faults()
np.ones(8_000_000)
print("faults", faults() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's mallopt")
@pytest.mark.parametrize(("command", "kept"), [("finetune", True), ("plan", False)])
def test_what_was_freed_is_used_again(command: str, kept: bool) -> None:
    """64 MB asked for again cost no page faults where they were kept."""
    found = subprocess.run(
        [sys.executable, "-c", KEPT, command], capture_output=True, text=True, check=True
    )
    faults = int(found.stdout.rsplit("faults", 1)[1])
    assert (faults < 100) == kept, found.stdout
