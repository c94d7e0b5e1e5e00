"""Fits the loss curves that planners go by where nothing was measured; says what they are worth.

    scripts/data fit_curves [--seed N] [--recorded DIR] [--out FILE]

Every block type on record is left out once. Of its networks is printed what plans by predicted
losses lose, by MACs at budgets `least + b (base - least)`, b 0.1 to 0.9, over what the knapsack by
its measured losses does: a mean of logarithms, so that 0.2 is about a fifth more. Objectives are
surrogates of recorded evaluations. Then the curves that ship are fitted to all networks.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from datasets import catalogue
from datasets.running import recorded_folder, stoppable
from rlprune.graph.types import FloatArray
from rlprune.policy import get_policy
from rlprune.sensitivity.energy import loss_curve, non_increasing
from rlprune.sensitivity.predicted import (
    DEFAULT_CURVES,
    CurveModel,
    Example,
    energy_curve,
    fit_curves,
)
from rlprune.solver.knapsack import budgets_at, solve
from rlprune.solver.task import PruningTask
from rlprune.store import open_store
from rlprune.training.run import load_models, training_tasks

SHARES = np.linspace(0.1, 0.9, 9)
PEERS = ("uniform", "uniform-plain", "global")
DRAWS = 4000
INFORMATIVE = (0.02, 2.0)
"""Nats that the knapsack loses: with less nothing is to win, with more plans are next to guessing.
"""


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
    fit_curves([examples[name] for name in sorted(tasks)]).save(options.out)
    print(f"wrote {options.out}")


def example(name: str, task: PruningTask) -> Example:
    share = task.profiles.energy_loss
    assert share is not None and task.profiles.profiled
    curve = loss_curve(task.profiles, task.graph)
    return Example(name, task.graph, task.levels, task.level_count, share, curve)


def excesses(task: PruningTask, model: CurveModel) -> dict[str, float]:
    """By method the mean log of its loss over the knapsack's by measured losses."""
    assert task.objective is not None
    budget_ms = budgets_at(task, SHARES)
    measured = task.objective.loss(solve(task, budget_ms))
    useful = (measured >= INFORMATIVE[0]) & (measured <= INFORMATIVE[1])
    useful = useful if useful.any() else np.ones_like(useful)
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
                np.maximum(task.objective.loss(keeps), floor)[useful]
                / np.maximum(measured, floor)[useful]
            ).mean()
        )
        for name, keeps in plans.items()
    }


def by_curves(task: PruningTask, model: CurveModel, share: FloatArray | None) -> FloatArray:
    return non_increasing(model.curve(task.graph, task.levels, share), task.level_count)


def by_energy(task: PruningTask) -> FloatArray:
    share = task.profiles.energy_loss
    assert share is not None
    return non_increasing(energy_curve(task.graph, share), task.level_count)


if __name__ == "__main__":
    main()
