"""Seconds and megabytes that refusing malformed files takes.

scripts/bench_refusals [--quick] [--seed N] [--json FILE]
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from benchmarks.harness import write_rows
from refusals import rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="leave out files of megabytes")
    parser.add_argument("--seed", type=int, default=0, help="changes nothing")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    found = rows(options.quick, options.seed)
    print(f"load average {os.getloadavg()[0]:.1f}")
    for row in found:
        print(f"{row.name:40} {row.value:8.2f} {row.unit:3} target {row.target:g}")
    if options.json:
        write_rows(options.json, found)


if __name__ == "__main__":
    main()
