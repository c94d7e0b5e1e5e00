"""What damaged and odd input does: bugs and crashes among so many attempts, and memory kept.

scripts/bench_fuzz [--part NAME] [--count N] [--quick] [--seed N] [--json FILE]

`messages`: mutated requests to every rpc of a server, with real parsing and a real store. `models`:
damaged ONNX files, traced and cut, some of them run beside what they must equal.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import fuzz_messages
import fuzz_models
from benchmarks.harness import Row, write_rows
from fuzzing import Attempt, Found, try_many

PARTS: dict[str, Callable[[], AbstractContextManager[Attempt]]] = {
    "messages": fuzz_messages.attempts,
    "models": fuzz_models.attempts,
}
"""What is attempted; each attempt draws its input from the generator that it is given."""
COUNTS = {"messages": 100_000, "models": 100_000, "reports": 10_000}
QUICK_COUNT = 1000
MAX_GROWTH_MB = 64.0
"""Of resident memory, from a fifth of the attempts to the end: caches fill, and nothing else."""
MAX_SEC = 10.0


def rows(part: str, found: Found) -> list[Row]:
    """The figures of one part with their targets."""
    return [
        Row(f"{part}/bugs", found.bug_count, "", 0.0, "min", found.count, None),
        Row(f"{part}/slowest", found.slowest_sec, "s", MAX_SEC, "min", found.count, None),
        Row(f"{part}/growth", found.growth_mb, "MB", MAX_GROWTH_MB, "min", found.count, None),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=[*PARTS], action="append", help="all by default")
    parser.add_argument("--count", type=int, metavar="N", help="attempts of each part")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_COUNT} attempts of each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)  # of refusals, 100,000 lines
    print(f"load average {os.getloadavg()[0]:.1f}, seed {options.seed}")
    written: list[Row] = []
    for part in options.part or PARTS:
        count = options.count or (QUICK_COUNT if options.quick else COUNTS[part])
        with PARTS[part]() as attempt:
            found = try_many(attempt, count, options.seed)
        for outcome, times in found.outcomes.most_common():
            print(f"{part:10} {outcome:40} {times:8}")
        for index, detail in found.bugs:
            print(f"{part}: attempt {index}: {detail}")
        print(f"{part}: slowest was attempt {found.slowest}")
        for row in rows(part, found):
            print(f"{row.name:24} {row.value:10.2f} {row.unit:3} target {row.target:g}")
            written.append(row)
    if options.json:
        write_rows(options.json, written)


if __name__ == "__main__":
    main()
