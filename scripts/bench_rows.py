"""What a benchmark of plans reports: rows with intervals, and a table of them.

Intervals are 90 %: Student's t over seeds, and over folds of the images, added in quadrature.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy.stats import t as student

from rlprune.graph.types import FloatArray
from rlprune.latency.types import Measurement

LEVEL = 0.9


@dataclass(frozen=True, slots=True)
class Row:
    """One figure, in the form that all benchmarks write."""

    name: str
    value: float
    unit: str
    target: float | None
    sense: str
    """Which way is better: `min` or `max`."""
    n: int
    interval: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """One plan, corrected with one seed's images and judged on the report's."""

    policy: str
    share: float
    seed: int
    keeps: tuple[int, ...]
    folds: tuple[float, ...]
    """Mean loss on disjoint folds of the images."""
    accuracy: float
    budget_ms: float


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """The list that every benchmark's `--json FILE` holds."""
    path.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


def plan_rows(
    network: str,
    outcomes: list[Outcome],
    measured: dict[tuple[int, ...], Measurement],
    base_ms: float,
    image_count: int,
) -> list[Row]:
    rows = []
    for share in dict.fromkeys(outcome.share for outcome in outcomes):
        at = [outcome for outcome in outcomes if outcome.share == share]
        reference = np.array([outcome.folds for outcome in at if outcome.policy == "knapsack"])
        for policy in dict.fromkeys(outcome.policy for outcome in at):
            own = [outcome for outcome in at if outcome.policy == policy]
            name = f"{network}/b{share}/{policy}"
            folds = np.array([outcome.folds for outcome in own])  # [seeds, folds]
            right = np.array([outcome.accuracy for outcome in own])
            spread = float(np.sqrt(right.mean() * (1.0 - right.mean()) / image_count))
            rows.append(_row(f"{name}/loss", folds.mean(1), "nats", "min", _fold_se(folds)))
            rows.append(_row(f"{name}/accuracy", 100 * right, "%", "max", 100 * spread))
            if policy != "knapsack":
                gain = folds - reference
                target = 0.0 if policy == "learned" else None
                full = f"{name}/loss_over_knapsack"
                rows.append(_row(full, gain.mean(1), "nats", "min", _fold_se(gain), target))
            one = measured[own[0].keeps]
            if one.status == "failed":
                print(f"{name}: not measured: {one.reason}")
                continue
            over = one.control_ratio * base_ms / own[0].budget_ms
            held = 1.05 if one.status == "ok" else None
            if held is None:
                print(f"{name}: latency {one.status}: {one.reason}")
            rows.append(Row(f"{name}/latency", one.control_ratio, "of base", None, "min", 1, None))
            rows.append(Row(f"{name}/over_budget", over, "of budget", held, "min", 1, None))
    return rows


def _fold_se(folds: FloatArray) -> float:
    """Standard error over images, from disjoint folds of them [seeds, folds]."""
    of_images = folds.mean(0)
    return float(of_images.std(ddof=1) / np.sqrt(len(of_images)))


def _row(
    name: str,
    seeds: FloatArray,
    unit: str,
    sense: str,
    image_se: float,
    target: float | None = None,
) -> Row:
    """Mean over seeds, with an interval over seeds and images."""
    count = len(seeds)
    half = student.ppf(0.5 + LEVEL / 2, 3) * image_se  # images are seen in four folds
    if count > 1:
        over_seeds = student.ppf(0.5 + LEVEL / 2, count - 1) * seeds.std(ddof=1) / np.sqrt(count)
        half = np.hypot(half, over_seeds)
    value = float(seeds.mean())
    return Row(name, value, unit, target, sense, count, (value - float(half), value + float(half)))


def print_table(network: str, rows: list[Row], dense: str) -> None:
    print(f"\n{network}, unpruned {dense}")
    print(f"{'b':>5} {'policy':10} {'loss, nats':>22} {'accuracy, %':>22} {'ms / base':>10}")
    values = {row.name: row for row in rows}
    for name in (row.name.removesuffix("/loss") for row in rows if row.name.endswith("/loss")):
        _, share, policy = name.split("/")
        cells = [_cell(values[f"{name}/{part}"]) for part in ("loss", "accuracy")]
        latency = values.get(f"{name}/latency")
        shown = "-" if latency is None else f"{latency.value:.3f}"
        print(f"{share[1:]:>5} {policy:10} {cells[0]:>22} {cells[1]:>22} {shown:>10}", flush=True)


def _cell(row: Row) -> str:
    assert row.interval is not None
    return f"{row.value:.2f} [{row.interval[0]:.2f}, {row.interval[1]:.2f}]"
