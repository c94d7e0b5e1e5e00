"""The grid as tables and rows: every cell, and the figures that issue 5 asks for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from benchmarks.harness import Row

from benchmarks.peers.book import Book
from benchmarks.peers.figures import (
    Difference,
    Losses,
    Place,
    difference,
    over_cells,
    share_of_saving,
)
from benchmarks.peers.findings import EPISODIC, LEAN, Finding, loss_increase

HALF, MOST = 0.5, 0.9
"""Shares of evolution's saving that the policy is to reach without and with candidates."""


class Grid:
    """Losses on the report's images by method, cell and seed."""

    def __init__(self, book: Path) -> None:
        self._book = Book(book)
        self.losses: dict[str, dict[Place, dict[int, np.ndarray]]] = {}
        """By method; a search's name ends in its evaluations, `evolution@400`."""
        self.asked: dict[str, dict[Place, tuple[int, int]]] = {}
        """Evaluations of the profile, and beyond it, of the last seed."""
        self.answer: dict[str, str] = {}
        """The name under which a method's last plan stands."""

    def add(self, findings: Sequence[Finding]) -> None:
        """Takes over what was found; plans that were not judged are an error."""
        for one in findings:
            place = Place(one.model, one.device, one.share)
            for plan in one.plans:
                staged = len(one.plans) > 1 or one.method in ("evolution", "random", *EPISODIC)
                name = f"{one.method}@{plan.count}" if staged else one.method
                losses = loss_increase(one, plan, self._book)
                self.losses.setdefault(name, {}).setdefault(place, {})[one.seed] = losses
                count = min(plan.count, one.evaluation_count)
                self.asked.setdefault(name, {})[place] = (one.profile_count, count)
                self.answer[one.method] = name

    def of(self, method: str) -> dict[Place, Losses]:
        """A method's last plans; nothing where it was not run."""
        return dict(self.losses.get(self.answer.get(method, method), {}))

    @property
    def places(self) -> list[Place]:
        return sorted({place for cells in self.losses.values() for place in cells})


def print_cells(grid: Grid) -> None:
    knapsack = grid.of("knapsack")
    for place in grid.places:
        print(f"\n{place.model}, {place.device}, b {place.share}: loss increase on unseen images")
        print(
            f"{'method':18} {'evaluations':>12} {'nats':>15} {'over knapsack':>17} {'of seeds':>9}"
        )
        for name, cells in grid.losses.items():
            if place not in cells:
                continue
            own = difference(cells[place])
            over = difference(cells[place], knapsack.get(place, {}))
            profile, count = grid.asked[name][place]
            assert own is not None
            print(
                f"{name:18} {f'{profile} + {count}':>12} {_shown(own):>15} "
                f"{'-' if over is None else _shown(over):>17} "
                f"{'-' if over is None else f'{over.seed_se:.3f}':>9}"
            )


def _shown(one: Difference) -> str:
    return f"{one.mean:.3f} +-{one.image_se:.3f}"


def rows_of(grid: Grid) -> list[Row]:
    """Headlines first, then every method over all cells, then cells."""
    rows = [*_headlines(grid)]
    knapsack = grid.of("knapsack")
    for name, cells in grid.losses.items():
        if name != "knapsack" and (over := over_cells(cells, knapsack)) is not None:
            rows.append(_row(f"all/{name}/over_knapsack", over, None))
    for place in grid.places:
        where = f"{place.model}/{place.device}/b{place.share}"
        for name, cells in grid.losses.items():
            if place not in cells:
                continue
            own = difference(cells[place])
            over = difference(cells[place], knapsack.get(place, {}))
            if own is not None:
                rows.append(_row(f"{where}/{name}/loss_increase", own, None))
            if over is not None and name != "knapsack":
                rows.append(_row(f"{where}/{name}/over_knapsack", over, None))
    return rows


def _headlines(grid: Grid) -> list[Row]:
    rows: list[Row] = []
    knapsack, search = grid.of("knapsack"), grid.of("evolution")
    for method, name, target in (
        ("learned", "zero_shot", HALF),
        ("learned8", "candidates", MOST),
        ("learned64", "candidates64", None),
        (LEAN, "lean_candidates64", None),
        ("corrected", "corrected", None),
        ("random", "random", None),
        ("netadapt", "netadapt", None),
        ("amc", "amc", None),
    ):
        found = share_of_saving(grid.of(method), search, knapsack, np.random.default_rng(0))
        if found is not None:
            full = f"{name}/share_of_evolution"
            rows.append(Row(full, found.value, "", target, "max", found.cell_count, found.interval))
    for own, other, name in (
        ("learned", "corrected", "zero_shot/over_corrected"),
        ("amc", "random_policy", "amc/over_random_policy"),
    ):
        over = over_cells(grid.of(own), grid.of(other))
        if over is not None:
            rows.append(_row(name, over, 0.0))
    for model in dict.fromkeys(place.model for place in grid.places):
        own_cells = _only(grid.of("learned_free"), model)
        for other in ("magnitude", "uniform", "uniform-plain"):
            over = over_cells(own_cells, _only(grid.of(other), model))
            if over is not None:
                rows.append(_row(f"data_free/{model}/over_{other}", over, 0.0))
    for method, name in (
        ("learned", "zero_shot"),
        ("learned8", "candidates"),
        ("learned64", "candidates64"),
        (LEAN, "lean_candidates64"),
    ):
        beyond = [
            over.mean - 2 * over.se
            for place, cell in grid.of(method).items()
            if (over := difference(cell, knapsack.get(place, {}))) is not None
        ]
        if beyond:
            full = f"guard/{name}/worst_cell_beyond_noise"
            rows.append(Row(full, max(beyond), "nats", 0.0, "min", len(beyond), None))
    return rows


def _only(cells: dict[Place, Losses], model: str) -> dict[Place, Losses]:
    return {place: cell for place, cell in cells.items() if place.model == model}


def _row(name: str, one: Difference, target: float | None) -> Row:
    """With an interval of 90 %."""
    half = 1.645 * one.se
    ends = (one.mean - half, one.mean + half)
    return Row(name, one.mean, "nats", target, "min", one.seed_count, ends)


def print_headlines(rows: Sequence[Row]) -> None:
    """Rows that have a target, and the shares beside them."""
    print(f"\n{'figure':44} {'value':>8} {'90 %':>18} {'n':>3} {'target':>7}  met")
    for row in rows:
        if row.target is None and not row.name.endswith("/share_of_evolution"):
            continue
        ends = "" if row.interval is None else f"{row.interval[0]:.3f} .. {row.interval[1]:.3f}"
        met, target = "", ""
        if row.target is not None:
            better = row.value <= row.target if row.sense == "min" else row.value >= row.target
            met, target = "yes" if better else "NO", f"{row.target:.2f}"
        print(f"{row.name:44} {row.value:8.3f} {ends:>18} {row.n:3} {target:>7}  {met}")
