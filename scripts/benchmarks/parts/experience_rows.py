"""Rows of `experience`: what plans lose, and by how much more or less than others'."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from benchmarks.harness import Row
from benchmarks.parts.experience_plans import Cell, Judged, Known
from rlprune.graph.types import FloatArray

DRAWS = 2000
ENDS = (0.05, 0.95)
"""Of a 90 % interval."""
BLIND = ("uniform", "global", "energy")
"""Planners that neither learn nor evaluate."""

TARGETS = {
    "instant.over_profile": 0.08,
    "quick.over_profile": 0.03,
    "made_up.profile.over_profile": 0.03,
    "made_up.quick.over_quick": 0.03,
    "race40.over_evolution": 0.02,
}
"""Differences of log loss. Of `quick` the upper end of the interval is held against it."""
BY_UPPER_END = ("quick.over_profile",)
MOST_WORSE = 0.15
"""Of plans on made-up images over those on real ones, on the network where that is worst."""
MOST_KEPT = 0.9
"""Of the accuracy that real images keep, made-up ones are to keep so much."""
LEAST_SAVED = 0.9
"""Of what evolution saves over the knapsack by a full profile, the race at 16 evaluations is to
save so much."""
LEAST_BELOW = 0.25
"""By so much of their loss instant plans are to be below the best blind planner's."""


def cell_rows(cell: Cell, found: Judged) -> Iterator[Row]:
    """What one plan loses."""
    name = f"experience.{cell.name}"
    ends = (found.divergence - 1.645 * found.error, found.divergence + 1.645 * found.error)
    yield Row(f"{name}.loss", found.divergence, "nats", None, "min", found.count, ends)
    yield Row(f"{name}.kept", found.kept, "of acc.", None, "max", found.count, None)


def headlines(known: Known) -> Iterator[Row]:
    """What methods lose beside one another, over all networks and budgets that both are known
    of."""
    for name, target in TARGETS.items():
        method, _, other = name.rpartition(".over_")
        pairs = logs(known, method, [other])
        if not pairs:
            continue
        mean, ends = bootstrapped(pairs)
        value = ends[1] if name in BY_UPPER_END else mean
        yield Row(f"experience.{name}", value, "log", target, "min", count(pairs), ends)
    if blind := logs(known, "instant", BLIND):
        mean, ends = bootstrapped(blind)
        shares = (1 - float(np.exp(ends[1])), 1 - float(np.exp(ends[0])))
        below = 1 - float(np.exp(mean))
        name = "experience.instant.below_blind"
        yield Row(name, below, "of loss", LEAST_BELOW, "max", count(blind), shares)
    for method in ("profile", "quick"):
        if pairs := logs(known, f"made_up.{method}", [method]):
            worst = max(float(own.mean()) for own in pairs)
            name = f"experience.made_up.{method}.worst"
            yield Row(name, worst, "log", MOST_WORSE, "min", len(pairs), None)
    by_race, by_evolution = (
        logs(known, method, ["profile"], where="evolution") for method in ("race16", "evolution")
    )
    if by_race:
        saved = [
            -float(np.mean([own.mean() for own in pairs])) for pairs in (by_race, by_evolution)
        ]
        name = "experience.race16.of_evolutions_saving"
        yield Row(name, saved[0] / saved[1], "of it", LEAST_SAVED, "max", count(by_race), None)
    kept = [
        known[Cell(one.net, one.budget, "made_up.quick")].kept / found.kept
        for one, found in known.items()
        if one.method == "quick" and Cell(one.net, one.budget, "made_up.quick") in known
    ]
    if kept:
        name = "experience.made_up.least_kept"
        yield Row(name, min(kept), "of acc.", MOST_KEPT, "max", len(kept), None)
        name = "experience.made_up.mean_kept"
        yield Row(name, float(np.mean(kept)), "of acc.", None, "max", len(kept), None)


def logs(known: Known, method: str, others: Sequence[str], *, where: str = "") -> list[FloatArray]:
    """By network, the logarithm of a method's loss over the least of others' at every budget, if
    the method `where` is known there, too."""
    found: dict[str, list[float]] = {}
    for cell, own in known.items():
        beside = [Cell(cell.net, cell.budget, other) for other in others]
        needed = [*beside, Cell(cell.net, cell.budget, where)] if where else beside
        if cell.method == method and all(one in known for one in needed):
            least = min(known[one].divergence for one in beside)
            found.setdefault(cell.net, []).append(float(np.log(own.divergence / least)))
    return [np.array(values) for values in found.values()]


def bootstrapped(pairs: Sequence[FloatArray]) -> tuple[float, tuple[float, float]]:
    """The mean over networks of the mean over their cells, and its 90 % interval: networks are
    drawn anew, then the cells of each."""
    rng = np.random.default_rng(0)
    mean = float(np.mean([own.mean() for own in pairs]))
    drawn = [
        np.mean(
            [
                rng.choice(pairs[index], len(pairs[index])).mean()
                for index in rng.integers(0, len(pairs), len(pairs))
            ]
        )
        for _ in range(DRAWS)
    ]
    low, high = np.quantile(drawn, ENDS)
    return mean, (float(low), float(high))


def count(pairs: Sequence[FloatArray]) -> int:
    """Cells."""
    return sum(len(own) for own in pairs)
