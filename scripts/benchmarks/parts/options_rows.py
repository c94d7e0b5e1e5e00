"""Rows of `options`: what plans were measured at, what trainings came to, and what options win.

Accuracies are means over seeds with their 90 % interval; the seeds are the training's, the plan is
one. A row that lacks a training is not told.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

import numpy as np

from benchmarks.harness import Row, mean_and_interval
from benchmarks.parts.options_plans import (
    BUDGETS,
    NETS,
    OPENVINO,
    Cell,
    Run,
    measured,
    planned,
    planning_ratio,
)
from benchmarks.parts.options_training import (
    LONG,
    LONG_BUDGET,
    REPORT,
    REWARD,
    SHORT,
    Training,
    cut,
    is_known,
    reported,
    trained,
    unpruned,
)

THREE = tuple(name for name, net in NETS.items() if net.three_by_three)
BLOCK_NETS = tuple(name for name, net in NETS.items() if net.of_blocks)
SMALL_BUDGETS = (0.5, 0.35)
"""Those that gains are told at."""
TARGETS = {"resnet20.b0.5.e1.all": 85.0}
"""Accuracies, in %."""

Accuracies = Mapping[tuple[Cell, int], Sequence[float]]
"""By cell and epochs what each seed came to, in %; what is not known is not there."""


@dataclass(frozen=True, slots=True)
class Told:
    """How rows are told."""

    run: Run
    seeds: int
    known_only: bool = False
    """Tell what is kept; plan and train nothing."""
    final: bool = False
    """Tell of `test_report`."""


def latency_rows(cell: Cell, told: Told, again: bool) -> Iterator[Row]:
    """Measured latency of a plan, on the runtime it was planned for and on OpenVINO."""
    name, made = f"options.{cell.name}.latency", planned(cell, told.run)
    ratio, other = made.ratio, made.openvino
    if again:
        ratio = measured(cell, made.plan, told.run, "ort")
        other = other and measured(cell, made.plan, told.run, OPENVINO)
    # What a baseline cannot reach is told, and no fault.
    target = cell.budget if cell.arm in ("channels", "all", "all-int8") else None
    yield Row(name, ratio.value, "of base", target, "min", 1, ratio.interval)
    if other is not None:
        full = f"options.{cell.name}.{OPENVINO}"
        yield Row(full, other.value, "of base", None, "min", 1, other.interval)


def accuracy_rows(cell: Cell, epochs: int, told: Told, again: bool) -> Iterator[Row]:
    """Accuracy of a cell before training or after so many epochs, where it is known or to be made.

    `again`: of the kept seeds the first is trained again.
    """
    name = accuracy_name(cell, epochs)
    if epochs == 0:
        if not told.known_only or is_cut(cell, told.run):
            value = 100 * cut(cell, told.run)[1]
            yield Row(f"options.{name}", value, "%", None, "max", 1, None)
        return
    if again and not told.final:
        trained_again = trained(Training(cell, epochs, 0), told.run, again=True)["accuracy"]
        rest = seeds_of(cell, epochs, told) or [0.0]
        values: Sequence[float] | None = [100 * trained_again, *rest[1:]]
    else:
        values = seeds_of(cell, epochs, told)
    if values is None:
        return
    mean, interval = mean_and_interval(values)
    target = TARGETS.get(name)
    yield Row(f"options.{name}", mean, "%", target, "max", len(values), interval)


def unpruned_row(net: str, told: Told) -> Iterator[Row]:
    """Accuracy of the network as it was."""
    value = 100 * unpruned(net, told.run, REPORT if told.final else REWARD)
    yield Row(f"options.{net}.unpruned", value, "%", None, "max", 1, None)


def planning_rows(nets: Sequence[str], run: Run) -> Iterator[Row]:
    """How much longer planning takes with all options than with channels alone."""
    ratios = {net: planning_ratio(net, run) for net in nets}
    for net, ratio in ratios.items():
        yield Row(f"options.planning_time.{net}", ratio, "times", None, "min", 1, None)
    ends = (min(ratios.values()), max(ratios.values()))
    value = median(ratios.values())
    yield Row("options.planning_time", value, "times", 2.0, "min", len(ratios), ends)


def known_accuracies(told: Told) -> Accuracies:
    """All that is kept with every seed."""
    found = {}
    for net in NETS:
        for arm in ("channels", "all", "blocks", "all_but_blocks"):
            for epochs, budgets in ((SHORT, BUDGETS), (LONG, (LONG_BUDGET,))):
                for budget in budgets:
                    cell = Cell(net, budget, arm)
                    if (values := known_seeds(cell, epochs, told)) is not None:
                        found[cell, epochs] = values
    return found


def known_seeds(cell: Cell, epochs: int, told: Told) -> list[float] | None:
    """Accuracy by seed, in %; None where one is not kept."""
    return seeds_of(cell, epochs, Told(told.run, told.seeds, True, told.final))


def seeds_of(cell: Cell, epochs: int, told: Told) -> list[float] | None:
    """Accuracy by seed, in %; None where one lacks and is not to be made."""
    each = [Training(cell, epochs, seed) for seed in range(told.seeds)]
    if told.known_only and not all(is_known(one, told.run) for one in each):
        return None
    found = [trained(one, told.run)["accuracy"] for one in each]
    if told.final:
        found = [reported(one, told.run) for one in each]
    return [100.0 * float(value) for value in found]


def gain_rows(known: Accuracies) -> dict[str, list[Row]]:
    """What all options win over channels alone, by the name of the row; only what is known."""
    made = {}
    short = [(net, budget) for net in THREE for budget in SMALL_BUDGETS]
    long = [(net, LONG_BUDGET) for net in THREE]
    for name, places, epochs, target in (
        ("options.gain.3x3.e1", short, SHORT, 2.0),
        ("options.gain.e15", long, LONG, 1.0),
    ):
        gains = [_gain(known, place, epochs, "all", "channels") for place in places]
        if all(one is not None for one in gains):
            made[name] = [_over_places(name, [fmean(one) for one in gains if one], target)]
    for name, arm, over, wanted in (
        ("options.blocks.gain.e15", "blocks", "channels", 0.3),
        ("options.blocks.all_over_all_but_blocks.e15", "all", "all_but_blocks", None),
    ):
        each = [_gain(known, (net, LONG_BUDGET), LONG, arm, over) for net in BLOCK_NETS]
        if all(one is not None for one in each):
            pairs = [value for one in each if one for value in one]
            mean, interval = mean_and_interval(pairs)
            made[name] = [Row(name, mean, "points", wanted, "max", len(pairs), interval)]
    if (worst := _worst(known)) is not None:
        made[worst.name] = [worst]
    return made


def prediction_rows(cells: Sequence[Cell], run: Run) -> Iterator[Row]:
    """Of the first plan for every cell, before a measurement of it could tell on the next: how many
    kept the budget that their predicted upper end was held to, and what they took over what was
    predicted."""
    firsts = [(cell, planned(cell, run).plan) for cell in cells]
    within, ratios = [], dict[str, list[float]]()
    for cell, plan in firsts:
        assert plan.certificate is not None
        first = plan.certificate.rounds[0]
        within.append(first.measured_latency_ms <= plan.budget_ms)
        ratios.setdefault(cell.arm, []).append(
            first.measured_latency_ms / first.predicted_latency_ms
        )
    yield Row("options.first.within", fmean(within), "of plans", 0.9, "max", len(within), None)
    for arm, values in ratios.items():
        mean, interval = mean_and_interval(values)
        name = f"options.first.{arm}.measured_over_predicted"
        yield Row(name, mean, "times", None, "min", len(values), interval)


def accuracy_name(cell: Cell, epochs: int) -> str:
    """Of a row, without `options.`."""
    return f"{cell.net}.b{cell.budget:g}.e{epochs}.{cell.arm}"


def is_cut(cell: Cell, run: Run) -> bool:
    """Whether the pruned module is kept."""
    return (run.work / "cut" / f"{cell.name}.json").exists()


def _gain(
    known: Accuracies, place: tuple[str, float], epochs: int, arm: str, over: str
) -> list[float] | None:
    """Points of one arm over another, seed by seed."""
    ours, theirs = (known.get((Cell(*place, one), epochs)) for one in (arm, over))
    if ours is None or theirs is None:
        return None
    return [one - other for one, other in zip(ours, theirs, strict=True)]


def _over_places(name: str, gains: Sequence[float], target: float) -> Row:
    mean, interval = mean_and_interval(gains)
    return Row(name, mean, "points", target, "max", len(gains), interval)


def _worst(known: Accuracies) -> Row | None:
    """The least gain of all networks and budgets, in its standard errors.

    Three seeds say little of their own spread, so that of all cells is pooled.
    """
    places = [(net, budget) for net in NETS for budget in BUDGETS]
    cells = [[Cell(*place, arm) for arm in ("all", "channels")] for place in places]
    if not all((cell, SHORT) in known for pair in cells for cell in pair):
        return None
    values = np.array([[known[cell, SHORT] for cell in pair] for pair in cells])  # [P, 2, seeds]
    error = math.sqrt(2 * float(values.var(2, ddof=1).mean()) / values.shape[2])
    worst = float((values[:, 0].mean(1) - values[:, 1].mean(1)).min()) / error
    return Row("options.worst.e1", worst, "se", -2.0, "max", len(places), None)
