"""The grid as rows: every cell, and over all cells how much of a search's saving a method has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks.harness import Row
from benchmarks.peers.book import Book
from benchmarks.peers.figures import Losses, Place, difference, over_cells, share_of_saving
from benchmarks.peers.findings import SEARCHES, Finding, loss_increase

TARGETS = {"learned": 0.5, "learned8": 0.9}
"""Shares of evolution's saving over the knapsack that methods are to reach."""


class Grid:
    """Losses on the report's images by method, cell and seed."""

    def __init__(self) -> None:
        self.losses: dict[str, dict[Place, dict[int, np.ndarray]]] = {}
        """By method; a search's name ends in its evaluations, `evolution@400`."""
        self.asked: dict[str, dict[Place, int]] = {}
        """Evaluations, the profile's too, of the last seed."""
        self.answer: dict[str, str] = {}
        """The name under which a method's last plan stands."""

    @staticmethod
    def of(work: Path, findings: Sequence[Finding]) -> Grid:
        """Of findings that the book in `work` has judged."""
        grid, book = Grid(), Book(work / "peers.sqlite")
        for one in findings:
            place = Place(one.model, one.device, one.share)
            for plan in one.plans:
                staged = one.method in SEARCHES and one.method != "netadapt"
                name = f"{one.method}@{plan.count}" if staged else one.method
                losses = loss_increase(one, plan, book)
                grid.losses.setdefault(name, {}).setdefault(place, {})[one.seed] = losses
                grid.asked.setdefault(name, {})[place] = one.profile_count + plan.count
                grid.answer[one.method] = name
        return grid

    def of_method(self, method: str) -> dict[Place, Losses]:
        """A method's last plans; nothing where it was not run."""
        return dict(self.losses.get(self.answer.get(method, method), {}))


def cell_rows(grid: Grid) -> Iterator[Row]:
    """Of every method in every cell: what it loses, and over the knapsack."""
    knapsack = grid.of_method("knapsack")
    for name, cells in grid.losses.items():
        for place, losses in cells.items():
            where = f"{place.model}/{place.device}/b{place.share}/{name}"
            if (own := difference(losses)) is not None:
                yield own.row(f"{where}/loss_increase", "nats", "min")
            over = difference(losses, knapsack.get(place, {}))
            if over is not None and name != "knapsack":
                yield over.row(f"{where}/over_knapsack", "nats", "min")
            asked = grid.asked[name][place]
            yield Row(f"{where}/evaluations", asked, "", None, "min", len(losses), None)


def headlines(grid: Grid) -> Iterator[Row]:
    """Over all cells."""
    knapsack, search = grid.of_method("knapsack"), grid.of_method("evolution")
    for method in ("learned", "learned8", "learned64", "random", "netadapt", "amc"):
        own = grid.of_method(method)
        found = share_of_saving(own, search, knapsack, np.random.default_rng(0))
        if found is not None:
            full, target = f"{method}/share_of_evolution", TARGETS.get(method)
            yield Row(full, found.value, "", target, "max", found.cell_count, found.interval)
        worst = [
            over.mean - 2 * over.se
            for place, cell in own.items()
            if (over := difference(cell, knapsack.get(place, {}))) is not None
        ]
        if worst and method.startswith("learned"):
            full = f"{method}/worst_cell_beyond_noise"
            yield Row(full, max(worst), "nats", 0.0, "min", len(worst), None)
    over = over_cells(grid.of_method("amc"), grid.of_method("random_policy"))
    if over is not None:
        yield over.row("amc/over_random_policy", "nats", "min", 0.0)
    free = grid.of_method("learned_free")
    for other in ("global", "uniform", "uniform-plain"):
        for model in dict.fromkeys(place.model for place in free):
            own = {place: cell for place, cell in free.items() if place.model == model}
            over = over_cells(own, grid.of_method(other))
            if over is not None:
                yield over.row(f"data_free/{model}/over_{other}", "nats", "min", 0.0)
    for name, cells in grid.losses.items():
        over = over_cells(cells, knapsack)
        if name != "knapsack" and over is not None:
            yield over.row(f"all/{name}/over_knapsack", "nats", "min")
