"""Fits the loss curves that planners go by where nothing was measured; says what they are worth.

    scripts/data fit_curves [--seed N] [--recorded DIR] [--out FILE]

Every block type on record is left out once. Of its networks is printed what plans by predicted
losses lose, by MACs at budgets `least + b (base - least)`, b 0.1 to 0.9, over what the knapsack by
its measured losses does: a mean of logarithms, so that 0.2 is about a fifth more. Objectives are
surrogates of recorded evaluations. Then the curves that ship are fitted to all networks.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from datasets import catalogue
from datasets.running import recorded_folder, stoppable
from rlprune.graph.types import FloatArray
from rlprune.policy import get_policy
from rlprune.schemes import Space
from rlprune.sensitivity.energy import non_increasing
from rlprune.sensitivity.predicted import (
    DEFAULT_CURVES,
    FORMAT,
    TRAITS,
    CurveModel,
    energy_curve,
    traits,
)
from rlprune.solver.knapsack import budgets_at, solve
from rlprune.solver.task import PruningTask
from rlprune.store import open_store
from rlprune.training.run import load_models, training_tasks
from rlprune.training.select import informative_budgets

SHARES = np.linspace(0.1, 0.9, 9)
PEERS = ("uniform", "uniform-plain", "global")
DRAWS = 4000
MIN_NATS = 2e-3
"""Added before the logarithm: smaller divergences are noise."""
MIN_ENERGY = 1e-4
"""The same of curves by energy."""
RIDGE = 0.3
"""Of 0.05, 0.3, 1, 3 and 10 the best on block types left out, in a trial."""


@dataclass(frozen=True)
class Example:
    """One network whose losses were measured."""

    name: str
    space: Space
    share: FloatArray
    """Of the energy that is dropped [S, L]."""
    loss: FloatArray
    """Measured, monotone [S, L], nats."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--recorded", type=Path, metavar="DIR", help="what ships by default")
    parser.add_argument("--out", type=Path, default=DEFAULT_CURVES, metavar="FILE")
    options = parser.parse_args()
    with stoppable():
        fit(options)


def fit(options: argparse.Namespace) -> None:
    models = load_models([options.recorded or recorded_folder()])
    families: dict[str, list[str]] = {}
    for name, family in catalogue.recorded_families(models).items():
        families.setdefault(family, []).append(name)
    with tempfile.TemporaryDirectory() as scratch:
        store = open_store(f"sqlite:///{scratch}/latency.db")
        named, _ = training_tasks(models, store=store, devices=[])
        tasks = {one.model: one.task for one in named}
    examples = {name: example(name, task) for name, task in tasks.items()}
    excess: dict[str, list[float]] = {}
    for left_out in families.values():
        model = fit_curves([examples[name] for name in sorted(tasks) if name not in left_out])
        for name in left_out:
            for method, lost in excesses(tasks[name], model).items():
                excess.setdefault(method, []).append(lost)
    print(f"{len(tasks)} networks, their block types left out; loss over that of the knapsack by")
    print("measured losses, log nats; 90 % intervals, bootstrapped over networks:")
    for method, values in excess.items():
        own = np.array(values)
        drawn = np.random.default_rng(options.seed).integers(len(own), size=(DRAWS, len(own)))
        low, high = np.quantile(own[drawn].mean(1), [0.05, 0.95])
        print(f"  {method:24} {own.mean():6.3f}  [{low:.3f}, {high:.3f}]")
    save(fit_curves([examples[name] for name in sorted(tasks)]), options.out)
    print(f"wrote {options.out}")


def fit_curves(examples: Sequence[Example]) -> CurveModel:
    """Ridge regression; every network weighs the same."""
    found, targets = [], []
    for one in examples:
        graph, settings = one.space.graph, one.space.settings
        below = np.arange(settings.shape[1]) < one.space.option_count[:, None] - 1
        energy = np.maximum(energy_curve(graph, one.share), MIN_ENERGY)
        found.append(traits(graph, settings)[below])  # [n, T]
        targets.append(np.log((one.loss + MIN_NATS) / energy)[below])
    known = np.concatenate(found)
    mean, deviation = known.mean(0), known.std(0) + 1e-9
    rows, rights = [], []
    for own, target in zip(found, targets, strict=True):
        table = (own - mean) / deviation
        weight = 1.0 / np.sqrt(len(table))
        rows.append((table - table.mean(0)) * weight)
        rights.append((target - target.mean()) * weight)
    left, right = np.concatenate(rows), np.concatenate(rights)
    ridge = RIDGE * len(examples) * np.eye(left.shape[1])
    weights = np.linalg.solve(left.T @ left + ridge, left.T @ right)
    levels = [
        (target - (own - mean) / deviation @ weights).mean()
        for own, target in zip(found, targets, strict=True)
    ]

    def plain(values: FloatArray) -> tuple[float, ...]:
        return tuple(float(f"{value:.7g}") for value in values)

    return CurveModel(
        plain(mean),
        plain(deviation),
        plain(known.min(0)),
        plain(known.max(0)),
        plain(weights),
        float(np.mean(levels)),
        tuple(one.name for one in examples),
    )


def save(model: CurveModel, path: str | Path) -> None:
    """Writes JSON."""
    data = {"format": FORMAT, "traits": list(TRAITS), **asdict(model)}
    Path(path).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def example(name: str, task: PruningTask) -> Example:
    share = task.profiles.energy_loss
    assert share is not None and task.profiles.profiled
    return Example(name, task.space, share, task.curve)


def excesses(task: PruningTask, model: CurveModel) -> dict[str, float]:
    """By method the mean log of its loss over the knapsack's by measured losses."""
    assert task.objective is not None
    budget_ms = budgets_at(task, SHARES)
    measured = task.objective.loss(task.space.settings_at(solve(task, budget_ms)))
    useful = informative_budgets(measured)
    share = task.profiles.energy_loss
    plans = {
        "predicted": solve(task, budget_ms, loss=by_curves(task, model, share)),
        "predicted from shapes": solve(task, budget_ms, loss=by_curves(task, model, None)),
        "energy": solve(task, budget_ms, loss=by_energy(task)),
    }
    plans |= {name: get_policy(name).plan(task.data_free, budget_ms) for name in PEERS}
    floor = 1e-3  # nats: a surrogate may answer with less than nothing
    return {
        name: float(
            np.log(
                np.maximum(task.objective.loss(task.space.settings_at(choice)), floor)[useful]
                / np.maximum(measured, floor)[useful]
            ).mean()
        )
        for name, choice in plans.items()
    }


def by_curves(task: PruningTask, model: CurveModel, share: FloatArray | None) -> FloatArray:
    return non_increasing(model.curve(task.graph, task.space.settings, share), task.option_count)


def by_energy(task: PruningTask) -> FloatArray:
    share = task.profiles.energy_loss
    assert share is not None
    return non_increasing(energy_curve(task.graph, share), task.option_count)


if __name__ == "__main__":
    main()
