"""Fits the loss curves that planners go by where nothing was measured; says what they are worth.

    scripts/fit_curves [--quick] [--seed N] [--json FILE] [--recorded DIR] [--out FILE]

Every block type on record is left out once. Of its networks is printed what plans by foretold
losses lose, by MACs at budgets `least + b (base - least)`, b 0.1 to 0.9, over what the knapsack by
its measured losses does: a mean of logarithms, so that 0.2 is about a fifth more. Objectives are
surrogates of recorded evaluations. Then the curves that ship are fitted to all networks.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import tempfile
from pathlib import Path

import numpy as np
from datasets import catalogue
from benchmarks.harness import Row, write_rows

from rlprune.graph.types import FloatArray
from rlprune.policy import DATA, get_policy
from rlprune.policy.corrected import budgets_at, telling
from rlprune.profile.energy import loss_curve, non_increasing
from rlprune.profile.predicted import (
    DEFAULT_CURVES,
    CurveModel,
    Example,
    energy_curve,
    fit_curves,
)
from rlprune.store import open_store
from rlprune.task.knapsack import solve
from rlprune.task.task import PruningTask
from rlprune.training.run import load_models, training_tasks

SHARES = np.linspace(0.1, 0.9, 9)
PEERS = ("uniform", "uniform-plain", "global")
DRAWS = 4000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a third of the networks, no --out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--recorded", type=Path, default=DATA / "recorded", metavar="DIR")
    parser.add_argument("--out", type=Path, default=DEFAULT_CURVES, metavar="FILE")
    options = parser.parse_args()
    models = load_models([options.recorded])
    families: dict[str, list[str]] = {}
    for name, family in catalogue.recorded_families(models).items():
        families.setdefault(family, []).append(name)
    if options.quick:
        families = {family: names[::3] for family, names in families.items()}
        models = {name: models[name] for names in families.values() for name in names}
    with tempfile.TemporaryDirectory() as scratch:
        store = open_store(f"sqlite:///{scratch}/latency.db")
        named, _ = training_tasks(models, store=store, devices=[])
        tasks = {one.model: one.task for one in named}
    examples = {name: example(name, task) for name, task in tasks.items()}
    excess: dict[str, list[float]] = {}
    for left_out in families.values():
        model = fit_curves([examples[name] for name in sorted(tasks) if name not in left_out])
        for name in left_out:
            for method, own in excesses(tasks[name], model).items():
                excess.setdefault(method, []).append(own)
    rows = [row_of(method, np.array(own), options.seed) for method, own in excess.items()]
    print(f"{len(tasks)} networks, their block types left out; loss over that of the knapsack by")
    print("measured losses, log nats:")
    for row in rows:
        assert row.interval is not None
        print(
            f"  {row.name:32} {row.value:6.3f}  90 % {row.interval[0]:.3f} .. {row.interval[1]:.3f}"
        )
    if not options.quick:
        fit_curves([examples[name] for name in sorted(tasks)]).save(options.out)
        print(f"wrote {options.out}")
    if options.json:
        write_rows(options.json, rows)


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
    useful = telling(measured)
    share = task.profiles.energy_loss
    plans = {
        "foretold": solve(task, budget_ms, loss=foretold(task, model, share)),
        "foretold from shapes": solve(task, budget_ms, loss=foretold(task, model, None)),
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


def foretold(task: PruningTask, model: CurveModel, share: FloatArray | None) -> FloatArray:
    return non_increasing(model.curve(task.graph, task.levels, share), task.level_count)


def by_energy(task: PruningTask) -> FloatArray:
    share = task.profiles.energy_loss
    assert share is not None
    return non_increasing(energy_curve(task.graph, share), task.level_count)


def row_of(method: str, own: FloatArray, seed: int) -> Row:
    """With an interval of 90 %, bootstrapped over networks."""
    drawn = own[np.random.default_rng(seed).integers(len(own), size=(DRAWS, len(own)))].mean(1)
    low, high = np.quantile(drawn, [0.05, 0.95])
    name = f"left_out/{method.replace(' ', '_')}/over_measured"
    return Row(name, float(own.mean()), "log", None, "min", len(own), (float(low), float(high)))


if __name__ == "__main__":
    main()
