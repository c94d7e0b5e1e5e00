"""What benchmarks share: arguments, rows with their targets, and rows kept between runs.

    scripts/bench NAME [--quick] [--seed N] [--json FILE] [--shared DIR] [--fresh]

A benchmark measures cell by cell. What a cell came to is kept in `results/NAME.jsonl` with its
commit, command and date, and not measured again by the same seed and options: it is printed as
kept. Of the cells that a run comes to a random tenth is measured again all the same, and the run
fails where a new value lies outside of the kept interval; `--fresh` measures all and replaces them.
Nothing is kept of `--quick`. Ctrl+C and SIGTERM end a run with what was finished kept.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.stats import t as student

from datasets.running import stoppable

RESULTS = Path(__file__).parent / "results"
AGAIN_RATIO = 0.1
"""Of the kept cells, measured again in every run."""
SELECTING = {
    *("quick", "seed", "json", "shared", "fresh", "work", "jobs", "workers", "store", "packages"),
    *("only", "models", "runtimes", "devices", "shares", "methods", "full"),
    *("plan", "train", "known", "keep_plans"),
}
"""Options that do not change what a cell comes to; cells are named by what these select."""

Sense = Literal["min", "max"]


@dataclass(frozen=True, slots=True)
class Row:
    """One figure, in the form that all benchmarks write."""

    name: str
    value: float
    unit: str
    target: float | None
    sense: Sense
    """Which way is better."""
    n: int
    interval: tuple[float, float] | None

    @property
    def met(self) -> bool:
        """Whether the target is reached; true without one."""
        if self.target is None:
            return True
        return self.value <= self.target if self.sense == "min" else self.value >= self.target

    def line(self, remark: str = "") -> str:
        """The figure with its target beside it."""
        ends = "" if self.interval is None else f"[{self.interval[0]:.3f}, {self.interval[1]:.3f}]"
        target = ""
        if self.target is not None:
            bound = "<=" if self.sense == "min" else ">="
            target = f"target {bound} {self.target:g}: {'met' if self.met else 'NOT MET'}"
        figure = f"{self.name:56} {self.value:9.3f} {self.unit:9} {ends:17} n={self.n:<5}"
        return f"{figure} {target:26} {remark}".rstrip()


class Bench:
    """One run of a benchmark: `parse`, then `cell` after `cell` within `measuring`."""

    def __init__(self, name: str, doc: str | None, *, seed: int = 0) -> None:
        self.name = name
        self.rows: list[Row] = []
        self._failed: list[str] = []
        self.parser = argparse.ArgumentParser(
            prog=f"scripts/bench {name}",
            description=doc,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        add = self.parser.add_argument
        add("--quick", action="store_true", help="minutes; figures are rough, nothing is kept")
        add("--seed", type=int, default=seed)
        add("--json", type=Path, metavar="FILE", help="write all rows as a list")
        add("--shared", metavar="DIR", help="folder of the measuring pack (data/, models/)")
        add("--fresh", action="store_true", help="measure all again and keep that instead")

    def parse(self, argv: Sequence[str] | None = None) -> argparse.Namespace:
        """The options; reads what is kept and draws what is measured again."""
        self.options = options = self.parser.parse_args(argv)
        given = {
            key: str(value)
            for key, value in vars(options).items()
            if key not in SELECTING and value != self.parser.get_default(key)
        }
        self._setting = json.dumps([options.seed, given], sort_keys=True)
        self._file = RESULTS / f"{self.name}.jsonl"
        self._kept: dict[str, dict[str, dict[str, Any]]] = {}
        if self._file.is_file() and not options.quick:
            for line in self._file.read_text(encoding="utf-8").splitlines():
                kept = json.loads(line)
                if kept["setting"] == self._setting:
                    self._kept.setdefault(kept["cell"], {})[kept["name"]] = kept
        able = [
            cell for cell, rows in self._kept.items() if not next(iter(rows.values()))["derived"]
        ]
        self._drawn = set(random.sample(able, math.ceil(AGAIN_RATIO * len(able))))
        print(f"{self.name}: seed {options.seed}, load {os.getloadavg()[0]:.1f}", flush=True)
        return options

    def is_again(self, name: str) -> bool:
        """Whether a cell is measured although it is kept: from nothing, then."""
        return bool(self.options.fresh or name in self._drawn)

    def cell(
        self, name: str, measure: Callable[[], Iterable[Row]], *, derived: bool = False
    ) -> list[Row]:
        """The rows of a cell, kept or measured now, printed as they come.

        `derived`: made of other cells' measurements, and measured again with those only.
        """
        kept = self._kept.get(name, {})
        rows: list[Row] = []
        if kept and not self.is_again(name):
            for line in kept.values():
                values = {field.name: line[field.name] for field in fields(Row)}
                interval = line["interval"]
                row = Row(**{**values, "interval": interval and (interval[0], interval[1])})
                print(row.line(f"kept {line['commit'][:8]} {line['date'][:10]}"), flush=True)
                rows.append(row)
        else:
            for row in measure():
                known = None if self.options.fresh else kept.get(row.name)
                print(row.line(self._compared(row, known)), flush=True)
                rows.append(row)
            if not self.options.quick and (self.options.fresh or not kept):
                self._keep(rows, {"cell": name, "derived": derived})
        self.rows += rows
        return rows

    def _compared(self, row: Row, kept: dict[str, Any] | None) -> str:
        """What is said of a kept row that was measured again."""
        if kept is None:
            return ""
        if kept["interval"] is not None and not (
            kept["interval"][0] <= row.value <= kept["interval"][1]
        ):
            self._failed.append(row.name)
            return f"OUTSIDE OF KEPT {kept['interval']}"
        return f"again; kept is {kept['value']:.3f}"

    def _keep(self, rows: Sequence[Row], of: dict[str, Any]) -> None:
        about = {
            "setting": self._setting,
            "seed": self.options.seed,
            "commit": commit(),
            "command": shlex.join(["scripts/bench", self.name, *sys.argv[1:]]),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        RESULTS.mkdir(exist_ok=True)
        with self._file.open("a", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps({**of, **asdict(row), **about}) + "\n")

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Around all cells; ends the run."""
        with stoppable():
            yield
        if self.options.json:
            rows = [asdict(row) for row in self.rows]
            self.options.json.write_text(json.dumps(rows, indent=1) + "\n")
        missed = sum(not row.met for row in self.rows)
        print(f"{len(self.rows)} rows, {missed} miss their target", flush=True)
        if self._failed:
            raise SystemExit(f"outside of what was kept: {', '.join(self._failed)}")


def mean_and_interval(values: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """The mean, and its 90 % interval by Student's t."""
    own = np.array(values)
    half = student.ppf(0.95, len(own) - 1) * own.std(ddof=1) / np.sqrt(len(own))
    return float(own.mean()), (float(own.mean() - half), float(own.mean() + half))


def chosen(options: argparse.Namespace, name: str) -> bool:
    """Whether a cell is asked for: named by one of the patterns in `--only`, or there are none."""
    return any(fnmatchcase(name, glob) for glob in options.only or ["*"])


def commit() -> str:
    """Of the working tree, marked where files of it were changed since."""
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    done = subprocess.run(
        command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


def log_final(options: argparse.Namespace, name: str) -> None:
    """A line per reading of `test_report`: figures that are read often are chosen."""
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{name}.final.log").open("a", encoding="utf-8") as log:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        log.write(f"{now} commit {commit()} {shlex.join(sys.argv[1:])}\n")
