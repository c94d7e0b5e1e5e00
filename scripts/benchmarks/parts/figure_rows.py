"""Rows of `figure`: how each figure ranks plans near the optimum, and what its choice loses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from benchmarks.harness import Row, Sense
from benchmarks.parts.figure_plans import FIGURES, about, is_planned, kept, plan_count, proposals
from benchmarks.parts.figure_stats import (
    BAND,
    Outcome,
    Told,
    between_seeds,
    further,
    over_plans,
    rank_correlation,
    regret,
    regret_of_any,
)
from benchmarks.parts.figure_training import SHORT, Training, known_of
from benchmarks.parts.options_plans import Run

FEW = 8
"""Plans of a network below which nothing is told."""


def band_rows(net: str, run: Run) -> Iterator[Row]:
    """How near the optimum the plans of a network are."""
    plans = proposals(net, run)
    told = about(net, run)
    if told["band"] > BAND:
        print(f"{net}: widened to {told['band']:.0%}, for {len(plans)} of {told['tried']} plans")
    yield Row(f"figure.{net}.band", 100 * told["band"], "%", None, "min", len(plans), None)


def outcome(net: str, epochs: int, seeds: int, run: Run) -> Outcome | None:
    """What is known of a network's plans with all seeds, before training (0 epochs) with one; None
    of too few."""
    what, length = ("accuracy", epochs) if epochs else ("before", SHORT)
    seeds = seeds if epochs else 1
    if not is_planned(net, run):
        return None
    found = []
    for plan in range(plan_count(run)):
        each = [known_of(Training(net, plan, length, seed), run) for seed in range(seeds)]
        accuracies = [100 * one[what] for one in each if one is not None]
        if len(accuracies) == seeds:
            found.append((plan, accuracies))
    if len(found) < min(FEW, plan_count(run)):
        return None
    plans = [kept(net, plan, run) for plan, _ in found]
    return Outcome(
        {name: np.array([plan.figure(name) for plan in plans]) for name in FIGURES},
        np.array([accuracies for _, accuracies in found]).T,
    )


def is_whole(found: Outcome | None, run: Run) -> bool:
    """Whether all plans of a network are trained."""
    return found is not None and len(found.accuracy) == plan_count(run)


def rows(place: str, epochs: int, outcomes: Sequence[Outcome]) -> Iterable[Row]:
    """All rows of a network's plans, or the means over networks."""
    for name in FIGURES:
        told = over_plans(outcomes, name, rank_correlation)
        yield _row(f"{place}.{name}.e{epochs}", told, "rank corr", "max")
    for name in FIGURES:
        if name != "solved":
            told = further(outcomes, name, "solved", rank_correlation)
            yield _row(f"{place}.{name}.over_solved.e{epochs}", told, "rank corr", "max")
    for name in FIGURES:
        told = over_plans(outcomes, name, regret)
        yield _row(f"{place}.{name}.regret.e{epochs}", told, "points", "min")
    told = over_plans(outcomes, FIGURES[0], regret_of_any)
    yield _row(f"{place}.any.regret.e{epochs}", told, "points", "min")
    if all(len(one.accuracies) > 1 for one in outcomes):
        told = between_seeds(outcomes)
        yield _row(f"{place}.seeds.e{epochs}", told, "rank corr", "max")


def _row(name: str, told: Told, unit: str, sense: Sense) -> Row:
    return Row(f"figure.{name}", told.value, unit, None, sense, told.count, told.interval)
