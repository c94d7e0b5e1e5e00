"""What a board installs, and how long a client takes to import, beside an earlier version.

    scripts/bench install [--old PYTHON] [--quick] [--seed N] [--json FILE]

The core wheel is built and its bytes counted. A client's import is CPU time of a new process, in
turns with the interpreter that `--old` names, whose package lies in a checkout of that version.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.harness import Bench, Row

ROOT = Path(__file__).resolve().parents[2]
IMPORTS = {"package": "import rlprune", "client": "import rlprune; rlprune.Client"}
WHERE = "import pathlib, rlprune; print(pathlib.Path(rlprune.__file__).parents[1])"


def main() -> None:
    bench = Bench("install", __doc__)
    bench.parser.add_argument("--old", metavar="PYTHON", help="interpreter of an earlier version's")
    options = bench.parse()
    pythons = {"new": sys.executable} | ({"old": options.old} if options.old else {})
    with bench.measuring():
        bench.cell("wheel", lambda: wheels(pythons))
        for name, code in IMPORTS.items():
            bench.cell(
                f"import/{name}",
                lambda name=name, code=code: imports(  # type: ignore[misc]
                    name, code, pythons, 7 if options.quick else 25
                ),
            )


def wheels(pythons: dict[str, str]) -> Iterator[Row]:
    """Bytes of each version's core wheel."""
    size: dict[str, int] = {}
    for version, python in pythons.items():
        told = subprocess.run([python, "-c", WHERE], capture_output=True, text=True, cwd="/")
        source = ROOT if version == "new" else Path(told.stdout.strip())
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(
                [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, source],
                check=True,
                stderr=subprocess.DEVNULL,
            )
            (wheel,) = Path(folder).glob("rlprune-*.whl")
            size[version] = wheel.stat().st_size
        yield Row(f"wheel/{version}", size[version] / 1e6, "MB", None, "min", 1, None)
    if "old" in size:
        yield Row("wheel/over_old", size["new"] / size["old"], "x", 1.0, "min", 1, None)


def imports(name: str, code: str, pythons: dict[str, str], count: int) -> Iterator[Row]:
    """CPU seconds of a process that imports, in turns."""
    spent: dict[str, list[float]] = {version: [] for version in pythons}
    for _ in range(count):
        for version, python in pythons.items():
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run([python, "-c", code], check=True, cwd="/")
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            spent[version].append(
                after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            )
    for version, values in spent.items():
        low, high = np.quantile(values, [0.05, 0.95])
        yield Row(
            f"import/{name}/{version}", 1e3 * float(np.median(values)), "ms", None, "min", count,
            (1e3 * float(low), 1e3 * float(high)),
        )  # fmt: skip
    if "old" in spent:
        ratios = np.array(spent["new"]) / np.array(spent["old"])
        error = 1.645 * ratios.std(ddof=1) / np.sqrt(count)
        mean = float(ratios.mean())
        full = f"import/{name}/over_old"
        yield Row(full, mean, "x", 1.0, "min", count, (mean - error, mean + error))


if __name__ == "__main__":
    main()
