"""After fine-tuning: what plans are worth to a user, and the figures of the literature.

    scripts/bench_finetune [--part grid | published] [--quick] [--seed N] [--json FILE] [--final]
                           [--shared DIR] [--work DIR] [--models NAME ...] [--methods NAME ...]
                           [--devices KEY ...] [--shares B ...] [--seeds N] [--epochs N]
                           [--train-images N] [--policy NAME] [--store URL] [--workers N]

- `grid`: plans of `bench_policies` (planned now where its book has none), cut, reconstructed and
  trained for 3 epochs on 10,000 train images; accuracy on unseen images, paired with that of ours,
  and the latency of every plan measured in turns with the unpruned model.
- `published`: ResNet-20 (or `--models cifar10_resnet56`) at half the MACs, 15 epochs on 45,000
  images; the drop from the unpruned network, paired, beside the figures of the literature.

Give it the `--work` of `bench_policies`. A killed run goes on within the epoch where it stopped.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from benchmarks.policies import MODELS, Run, case_of, done, measured_devices, pack_of
from benchmarks.harness import Row, write_rows
from benchmarks.peers.book import Book
from benchmarks.peers.figures import Difference, Losses, Place, difference, over_cells
from benchmarks.peers.grid import Case
from benchmarks.peers.options import grid_parser, log_if_final, seeds_of, settings_of, store_of
from benchmarks.peers.tuning import Recipe, Tuner

from rlprune.latency.collect import measure_subjects, trace_models
from rlprune.latency.types import MACS_DEVICE, ModelSubject
from rlprune.planning import which_device
from rlprune.task.knapsack import budgets_at
from rlprune.store.encoding import digest
from rlprune.training.finetune import TrainConfig

GRID_METHODS = ("uniform", "knapsack", "learned64", "amc", "evolution")
OURS = "learned64"
"""What a user is told to ask for; the policy alone is guarded and mostly the knapsack."""
PUBLISHED_METHODS = ("learned",)
CLEARLY = ("uniform", "amc")
"""Peers that our plans are to be clearly above; with the others they are to be level."""
PUBLISHED = {
    "cifar10_resnet20": "60 epochs: DDPG -0.52, random policy -0.80 (Distiller)",
    "cifar10_resnet56": "AMC -0.90; DepGraph without sparse learning -0.07 (Torch-Pruning)",
}
"""Drops at half the MACs that others report, best of several runs or on the images that chose."""
GRID_RECIPE = Recipe(TrainConfig(epoch_count=3), 10_000)
PUBLISHED_RECIPE = Recipe(TrainConfig(epoch_count=15, batch_size=128, learning_rate=0.05), 45_000)


@dataclass(frozen=True, slots=True)
class Bundle:
    """One network with one seed: what a worker does at a time."""

    run: Run
    model: str
    seed: int
    methods: tuple[str, ...]
    recipe: Recipe
    half_macs: bool


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
    macs: float
    """Share of the unpruned network's."""
    seconds: float


def main() -> None:
    parser = grid_parser(__doc__, shares=(0.5, 0.25))
    parser.add_argument("--part", choices=("grid", "published"), default="grid")
    parser.add_argument("--epochs", type=int, metavar="N")
    parser.add_argument("--train-images", type=int, metavar="N")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    log_if_final(options, "bench_finetune", f"part {options.part} ")
    bundles = bundles_of(options)
    results: list[Result] = []
    for found in done(bundles, options.workers, tune):
        results += found
        print(f"{len(results)} plans trained", flush=True)
    rows = published_rows(results) if options.part == "published" else grid_rows(results)
    if options.json:
        write_rows(options.json, rows)


def bundles_of(options: argparse.Namespace) -> list[Bundle]:
    published, quick = options.part == "published", options.quick
    recipe = PUBLISHED_RECIPE if published else GRID_RECIPE
    epochs = options.epochs or (1 if quick else recipe.config.epoch_count)
    recipe = replace(
        recipe,
        config=replace(recipe.config, epoch_count=epochs),
        image_count=options.train_images or (1000 if quick else recipe.image_count),
    )
    # By the key `macs` every width is as good as any other; the literature rounds to few.
    settings = settings_of(options, quick_search=20, round_to=1 if published else 8)
    shares = (options.shares[0],) if published else tuple(options.shares)
    run = Run(settings, options.shared, store_of(options), (MACS_DEVICE,), shares)
    small = ("cifar10_resnet8_mlperf_tiny",)
    default = ("cifar10_resnet20",) if published else MODELS
    models = options.models or (small if quick else default)
    if not published:
        run = replace(run, devices=tuple(measured_devices(run, models, options.devices or ["ort"])))
    methods = tuple(options.methods or (PUBLISHED_METHODS if published else GRID_METHODS))
    return [
        Bundle(run, model, seed, methods, recipe, published)
        for seed in seeds_of(options)
        for model in models
    ]


def tune(bundle: Bundle) -> list[Result]:
    """Every plan of a bundle, trained."""
    torch.set_num_threads(1)
    run = bundle.run
    case = case_of(run, bundle.model, bundle.seed)
    book = Book(run.settings.work / "peers.sqlite")
    tuner = Tuner(case, pack_of(run.shared), bundle.recipe, book, run.settings.work)
    widths = tuple(int(width) for width in case.trace.graph.widths)
    results = []
    for device in run.devices:
        for share in run.shares:
            b = share_at_half(case, device) if bundle.half_macs else share
            place = Place(bundle.model, device, b)
            plans = {method: answer(case, method, device, b) for method in bundle.methods}
            latency = latencies(case, device, plans, book)
            for method, keeps in plans.items():
                print(f"{bundle.model} seed {bundle.seed} b{b:.2f} {method}", flush=True)
                trained = tuner.tuned(keeps)
                macs = case.trace.graph.macs(np.array([keeps, widths]))
                results.append(
                    Result(
                        method,
                        place,
                        bundle.seed,
                        tuple(100.0 * trained.right),
                        latency[keeps],
                        float(macs[0] / macs[1]),
                        trained.seconds,
                    )
                )
            unpruned = tuner.unpruned()
            points = tuple(100.0 * unpruned.right)
            results.append(Result("unpruned", place, bundle.seed, points, 1.0, 1.0, 0.0))
    return results


def answer(case: Case, method: str, device: str, share: float) -> tuple[int, ...]:
    """The keeps that a method ends with."""
    found = case.find(method, device, share)
    assert found is not None
    return found.plans[-1].keeps


def share_at_half(case: Case, device: str) -> float:
    """The b whose budget is half of the unpruned network's cost."""
    task = case.task(device)
    least, base = budgets_at(task, np.array([0.0, 1.0]))
    return float((0.5 * base - least) / (base - least))


def latencies(
    case: Case, device: str, plans: dict[str, tuple[int, ...]], book: Book
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
    return dict(zip(distinct, book.finding(name, made), strict=True))


def by_method(results: list[Result]) -> dict[str, dict[Place, dict[int, np.ndarray]]]:
    points: dict[str, dict[Place, dict[int, np.ndarray]]] = {}
    for one in results:
        cell = points.setdefault(one.method, {}).setdefault(one.place, {})
        cell[one.seed] = np.array(one.points)
    return points


def grid_rows(results: list[Result]) -> list[Row]:
    """Prints every cell, and our plans against each peer's over all cells."""
    points = by_method(results)
    rows: list[Row] = []
    for place in sorted({one.place for one in results}):
        print(f"\n{place.model}, {place.device}, b {place.share}: after training")
        print(f"{'method':14} {'accuracy, %':>16} {'ours over it':>18} {'ms / base':>10} {'s':>6}")
        for method, cells in points.items():
            if place not in cells:
                continue
            own = difference(cells[place])
            ours: Losses = points.get(OURS, {}).get(place, {})
            over = difference(ours, cells[place])
            here = [one for one in results if one.place == place and one.method == method]
            ratio = float(np.mean([one.latency for one in here]))
            took = float(np.mean([one.seconds for one in here]))
            assert own is not None
            print(f"{method:14} {shown(own):>16} {shown(over):>18} {ratio:10.3f} {took:6.0f}")
            where = f"{place.model}/{place.device}/b{place.share}/{method}"
            rows.append(row_of(f"{where}/accuracy", own, "%"))
            rows.append(Row(f"{where}/latency", ratio, "of base", None, "min", len(here), None))
    heads = list(_heads(points))
    print(f"\n{'figure':44} {'points':>8} {'90 %':>18}  met")
    for row in heads:
        ends = "" if row.interval is None else f"{row.interval[0]:.2f} .. {row.interval[1]:.2f}"
        met = "" if row.target is None else "yes" if row.value >= row.target else "NO"
        print(f"{row.name:44} {row.value:8.2f} {ends:>18}  {met}")
    return heads + rows


def _heads(points: dict[str, dict[Place, dict[int, np.ndarray]]]) -> Iterator[Row]:
    """Ours over each peer, and what of that is certain."""
    for method, cells in points.items():
        if method in (OURS, "unpruned"):
            continue
        over = over_cells(points.get(OURS, {}), cells)
        if over is None:
            continue
        yield row_of(f"tuned/{OURS}_over_{method}", over, "points")
        count = over.seed_count
        if method in CLEARLY:
            low = over.mean - 1.645 * over.se
            yield Row(f"tuned/{OURS}_over_{method}/low", low, "points", 0.0, "max", count, None)
        else:
            high = over.mean + over.se
            yield Row(
                f"tuned/{OURS}_over_{method}/plus_one_se", high, "points", 0.0, "max", count, None
            )


def published_rows(results: list[Result]) -> list[Row]:
    """Prints what each method drops at half the MACs, beside what others report."""
    points = by_method(results)
    rows = []
    for place in sorted({one.place for one in results}):
        print(f"\n{place.model} at half the MACs; published: {PUBLISHED.get(place.model, '-')}")
        print(f"{'method':14} {'accuracy, %':>16} {'change, points':>18} {'90 %':>16} {'MACs':>6}")
        for method, cells in points.items():
            own = difference(cells[place])
            change = difference(cells[place], points["unpruned"][place])
            assert own is not None and change is not None
            row = row_of(f"{place.model}/half_macs/{method}/change", change, "points")
            assert row.interval is not None
            ends = f"{row.interval[0]:.2f} .. {row.interval[1]:.2f}"
            macs = np.mean([one.macs for one in results if one.method == method])
            print(f"{method:14} {shown(own):>16} {shown(change):>18} {ends:>16} {macs:6.3f}")
            rows += [row, row_of(f"{place.model}/half_macs/{method}/accuracy", own, "%")]
    return rows


def shown(one: Difference | None) -> str:
    return "-" if one is None else f"{one.mean:.2f} +-{one.se:.2f}"


def row_of(name: str, one: Difference, unit: str) -> Row:
    """With an interval of 90 % over images and seeds."""
    half = 1.645 * one.se
    ends = (one.mean - half, one.mean + half)
    return Row(name, one.mean, unit, None, "max", one.seed_count, ends)


if __name__ == "__main__":
    main()
