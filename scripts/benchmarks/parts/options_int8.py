"""Rows of `options` on int8: how near plans come to plain int8, and whether f32 beats any.

A plan in int8 is measured beside plain int8 (the unpruned network, quantised), a plan in f32 beside
the unpruned network in f32. Both latencies are compared by what plain int8 takes of f32, measured
when plans were made.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean

from benchmarks.harness import Row, mean_and_interval
from benchmarks.parts.options_plans import (
    ARMS,
    INT8_BUDGET,
    SEARCHED,
    Cell,
    own_over_f32,
    planned,
)
from benchmarks.parts.options_rows import Told, known_seeds
from benchmarks.parts.options_training import (
    LONG,
    OTHER_IMAGES,
    REPORT,
    REWARD,
    long_cells,
    plain_int8,
)
from rlprune.latency.types import INT8

MOST_LOST = 1.0
"""Points below plain int8 that a plan may lie."""


def plain_row(net: str, told: Told) -> Iterator[Row]:
    """Accuracy of plain int8."""
    value = 100 * plain_int8(net, told.run, REPORT if told.final else REWARD)
    yield Row(f"options.int8.{net}.plain", value, "%", None, "max", 1, None)


def rows(net: str, told: Told) -> Iterator[Row]:
    """Of plans in int8 after 15 epochs, those that were trained: how far the best that takes at
    most `INT8_BUDGET` of plain int8's latency is below it, the same of the searched plan with other
    images every epoch, and how many are slower and worse than a plan in f32."""
    known = {cell: known_seeds(cell, LONG, told) for cell in long_cells(net)}
    trained = {cell: values for cell, values in known.items() if values is not None}
    ours = {cell: values for cell, values in trained.items() if ARMS[cell.arm].precision == INT8}
    theirs = {cell: values for cell, values in trained.items() if cell not in ours}
    ratios = {cell: planned(cell, told.run).ratio.value for cell in trained}
    fast = [values for cell, values in ours.items() if ratios[cell] <= INT8_BUDGET]
    plain = 100 * plain_int8(net, told.run, REPORT if told.final else REWARD)
    if fast:
        gaps = [plain - value for value in max(fast, key=fmean)]
        mean, interval = mean_and_interval(gaps)
        name = f"options.int8.{net}.gap.e{LONG}"
        yield Row(name, mean, "points", MOST_LOST, "min", len(gaps), interval)
    searched = Cell(net, INT8_BUDGET, SEARCHED)
    if searched in ours and (other := known_seeds(searched, OTHER_IMAGES, told)) is not None:
        mean, interval = mean_and_interval([plain - value for value in other])
        name = f"options.int8.{net}.gap.e{OTHER_IMAGES}_of_45000"
        yield Row(name, mean, "points", MOST_LOST, "min", len(other), interval)
    if ours and theirs:
        beaten = [
            cell
            for cell, values in ours.items()
            if any(
                ratios[other] < ratios[cell] * own_over_f32(planned(cell, told.run).plan)
                and fmean(better) > fmean(values)
                for other, better in theirs.items()
            )
        ]
        name = f"options.int8.{net}.beaten"
        yield Row(name, len(beaten), "plans", 0.0, "min", len(ours), None)
