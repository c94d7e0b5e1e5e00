"""The end of `options`: one network as small as may be, in int8, after the full recipe.

Budgets here are shares of the unpruned network's latency in f32, whatever the precision of the
plan; on a runtime where int8 alone takes 0.37 of it, 0.25 leaves more of the network than where it
takes 0.48.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from benchmarks.harness import Row
from benchmarks.parts.options_plans import ARMS, Cell, measured, own_over_f32, planned
from benchmarks.parts.options_rows import Told, accuracy_name, seeds_of
from benchmarks.parts.options_training import FULL, REPORT, REWARD, unpruned

MOST_LOST = {0.25: 1.5}
"""Points below the unpruned network, by budget; what the smaller one reaches is told."""


def latency_rows(cell: Cell, told: Told, again: bool) -> Iterator[Row]:
    """What a plan takes of the unpruned network in f32, and what int8 alone takes."""
    made = planned(cell, told.run)
    ratio = made.ratio
    if again:
        ratio = measured(cell, made.plan, told.run, ARMS[cell.arm].runtime)
    share = own_over_f32(made.plan)
    low, high = (share * end for end in ratio.interval)
    name = f"options.{cell.name}"
    yield Row(f"{name}.latency", share * ratio.value, "of f32", cell.budget, "min", 1, (low, high))
    yield Row(f"{name}.plain_int8", share, "of f32", None, "min", 1, None)


def accuracy_rows(cell: Cell, told: Told) -> Iterator[Row]:
    """Accuracy after the full recipe, and how far it is below the unpruned network's."""
    values = seeds_of(cell, FULL, replace(told, seeds=1))
    if values is None:
        return
    whole = 100 * unpruned(cell.net, told.run, REPORT if told.final else REWARD)
    name = f"options.{accuracy_name(cell, FULL)}"
    yield Row(name, values[0], "%", None, "max", 1, None)
    most = MOST_LOST.get(cell.budget)
    yield Row(f"{name}.lost", whole - values[0], "points", most, "min", 1, None)
