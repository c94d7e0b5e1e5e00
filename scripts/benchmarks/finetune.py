"""After fine-tuning: what plans are worth to a user, and the figures of the literature.

- `--part grid`: plans of `policies` (planned now where its book has none), cut, reconstructed and
  trained for 3 epochs on 10,000 train images; accuracy on unseen images, paired with that of ours,
  and the latency of every plan measured in turns with the unpruned model.
- `--part published`: ResNet-20 (or `--models cifar10_resnet56`) at half the MACs, 15 epochs on
  45,000 images; the drop from the unpruned network, paired, beside the figures of the literature.

Give it the `--work` of `policies`. A killed run goes on within the epoch where it stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from benchmarks.harness import Bench, Row, log_final
from benchmarks.parts.cells import (
    MODELS,
    QUICK_MODELS,
    Cells,
    Job,
    add_options,
    case_of,
    pack_of,
    places_of,
    run_of,
)
from benchmarks.peers.figures import NORMAL_90, Losses, Place, difference, over_cells
from benchmarks.peers.grid import Case
from benchmarks.peers.tuning import Recipe, Tuner
from rlprune.files import digest
from rlprune.finetuning.loop import TrainConfig
from rlprune.latency.collect import measure_subjects, trace_models
from rlprune.latency.types import MACS_DEVICE, ModelSubject
from rlprune.planning import which_device
from rlprune.solver.knapsack import budgets_at

GRID_METHODS = ("uniform", "knapsack", "learned64", "amc", "evolution")
OURS = "learned64"
"""What a user is told to ask for; the policy alone is guarded and mostly the knapsack."""
CLEARLY = ("uniform", "amc")
"""Peers that our plans are to be clearly above; with the others they are to be level."""
PUBLISHED = {
    "cifar10_resnet20": "60 epochs: DDPG -0.52, random policy -0.80 (Distiller)",
    "cifar10_resnet56": "AMC -0.90; DepGraph without sparse learning -0.07 (Torch-Pruning)",
}
"""Drops at half the MACs that others report, best of several runs or on the images that chose."""
# No teacher: what the other methods were published with, and what the kept figures are of.
UNTAUGHT = TrainConfig(batch_size=64, learning_rate=0.02, distill_weight=0.0)
GRID_RECIPE = Recipe(replace(UNTAUGHT, epoch_count=3), 10_000)
PUBLISHED_RECIPE = Recipe(
    replace(UNTAUGHT, epoch_count=15, batch_size=128, learning_rate=0.05), 45_000
)


@dataclass(frozen=True, slots=True)
class Result:
    """One plan, trained."""

    method: str
    place: Place
    seed: int
    points: tuple[float, ...]
    """100 for every image of the report that is right, 0 for the others."""
    latency: float
    """Measured, as a share of the unpruned model's; MACs by the key `macs`; NaN if it failed."""


def main() -> None:
    bench = Bench("finetune", __doc__)
    add_options(bench, shares=(0.5, 0.25))
    bench.parser.add_argument("--part", choices=("grid", "published"), default="grid")
    bench.parser.add_argument("--epochs", type=int, metavar="N")
    bench.parser.add_argument("--train-images", type=int, metavar="N")
    options = bench.parse()
    published = options.part == "published"
    with bench.measuring():
        # By the key `macs` every width is as good as any other; the literature rounds to few.
        run = run_of(options, quick_search=20, round_to=1 if published else 8)
        if options.final:
            log_final(options, "finetune")
        default = ("cifar10_resnet20",) if published else MODELS
        models = options.models or (QUICK_MODELS if options.quick else default)
        methods = tuple(options.methods or (("learned",) if published else GRID_METHODS))
        told = "" if methods == GRID_METHODS else f" {' '.join(methods)}"
        work = partial(tune, recipe=recipe_of(options), half_macs=published)
        cells = Cells(bench, run, methods, work)
        if published:
            for model in models:
                place = Place(model, MACS_DEVICE, options.shares[0])
                name = f"{model} at half the MACs{told}"
                print(f"{name}; published: {PUBLISHED.get(model, '-')}")
                cells.measure(place, name, lambda _, found: published_rows(found))
            return
        options.devices = options.devices or ["ort"]
        places = places_of(run, options, models)
        for place in places:
            name = f"{place.model}/{place.device}/b{place.share}{told}"
            cells.measure(place, name, lambda _, found: grid_rows(found))
        name = f"over {' '.join(f'{p.model}/{p.device}/b{p.share}' for p in places)}{told}"
        bench.cell(name, lambda: headlines(cells.found(places)), derived=True)


def recipe_of(options: argparse.Namespace) -> Recipe:
    recipe = PUBLISHED_RECIPE if options.part == "published" else GRID_RECIPE
    epochs = options.epochs or (1 if options.quick else recipe.config.epoch_count)
    count = options.train_images or (1000 if options.quick else recipe.image_count)
    return replace(recipe, config=replace(recipe.config, epoch_count=epochs), image_count=count)


def tune(job: Job, *, recipe: Recipe, half_macs: bool) -> list[Result]:
    """Every plan of a cell with one seed, trained."""
    run, place = job.run, job.place
    case = case_of(run, place.model, job.seed)
    tuner = Tuner(case, pack_of(run.shared), recipe, run.settings.work)
    share = share_at_half(case, place.device) if half_macs else place.share
    plans = {
        method: case.find(method, place.device, share).plans[-1].keeps for method in job.methods
    }
    latency = latencies(case, place.device, plans)
    results = []
    for method, keeps in plans.items():
        print(f"{place.model} seed {job.seed} b{share:.2f} {method}", flush=True)
        points = tuple(100.0 * tuner.tuned(keeps))
        results.append(Result(method, place, job.seed, points, latency[keeps]))
    points = tuple(100.0 * tuner.unpruned())
    return [*results, Result("unpruned", place, job.seed, points, 1.0)]


def share_at_half(case: Case, device: str) -> float:
    """The b whose budget is half of the unpruned network's cost."""
    least, base = budgets_at(case.task(device), np.array([0.0, 1.0]))
    return float((0.5 * base - least) / (base - least))


def latencies(
    case: Case, device: str, plans: dict[str, tuple[int, ...]]
) -> dict[tuple[int, ...], float]:
    """By plan: latency measured in turns with the unpruned model, as a share of its.

    Not added to the store: the tables that plans were made with would change.
    """
    distinct = list(dict.fromkeys(plans.values()))
    key, runtime = which_device(device, case.trace.graph)
    if runtime is None:
        macs = case.trace.graph.macs(np.array([*distinct, case.trace.graph.widths]))
        return {k: float(m / macs[-1]) for k, m in zip(distinct, macs, strict=False)}

    def made() -> list[Any]:
        subjects = [ModelSubject(case.trace.graph.fingerprint, keeps) for keeps in distinct]
        found = measure_subjects(
            subjects, model_of=trace_models(case.trace), device=key, runtime=runtime
        )
        return [one.control_ratio if one.status != "failed" else float("nan") for one in found]

    name = digest("latency", case.trace.graph.fingerprint, key, repr(distinct))
    return dict(zip(distinct, case.book.finding(name, made), strict=True))


def by_method(results: list[Result]) -> dict[str, dict[Place, dict[int, np.ndarray]]]:
    points: dict[str, dict[Place, dict[int, np.ndarray]]] = {}
    for one in results:
        cell = points.setdefault(one.method, {}).setdefault(one.place, {})
        cell[one.seed] = np.array(one.points)
    return points


def grid_rows(results: list[Result]) -> Iterator[Row]:
    """Of every method in a cell: accuracy, ours over it, and latency."""
    points, place = by_method(results), results[0].place
    ours: Losses = points.get(OURS, {}).get(place, {})
    for method, cells in points.items():
        where = f"{place.model}/{place.device}/b{place.share}/{method}"
        own, over = difference(cells[place]), difference(ours, cells[place])
        assert own is not None
        yield own.row(f"{where}/accuracy", "%", "max")
        if over is not None and method != OURS:
            yield over.row(f"{where}/ours_over", "points", "max")
        ratio = [one.latency for one in results if one.method == method]
        count = len(ratio)
        yield Row(f"{where}/latency", float(np.mean(ratio)), "of base", None, "min", count, None)


def headlines(results: list[Result]) -> Iterator[Row]:
    """Ours over each peer in all cells, and what of that is certain."""
    points = by_method(results)
    for method in points.keys() - {OURS, "unpruned"}:
        over = over_cells(points.get(OURS, {}), points[method])
        if over is None:
            continue
        name, count = f"tuned/{OURS}_over_{method}", over.seed_count
        yield over.row(name, "points", "max")
        if method in CLEARLY:
            low = over.mean - NORMAL_90 * over.se
            yield Row(f"{name}/low", low, "points", 0.0, "max", count, None)
        else:
            high = over.mean + over.se
            yield Row(f"{name}/plus_one_se", high, "points", 0.0, "max", count, None)


def published_rows(results: list[Result]) -> Iterator[Row]:
    """What each method drops at half the MACs."""
    points, place = by_method(results), results[0].place
    for method, cells in points.items():
        own = difference(cells[place])
        change = difference(cells[place], points["unpruned"][place])
        assert own is not None and change is not None
        yield change.row(f"{place.model}/half_macs/{method}/change", "points", "max")
        yield own.row(f"{place.model}/half_macs/{method}/accuracy", "%", "max")


if __name__ == "__main__":
    main()
