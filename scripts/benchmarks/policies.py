"""Policies beside the searches they are to replace: same graphs, budgets, images and devices.

    scripts/bench_policies [--quick] [--seed N] [--json FILE] [--final] [--shared DIR] [--work DIR]
                           [--models NAME ...] [--methods NAME ...] [--devices KEY ...]
                           [--shares B ...] [--seeds N] [--images N] [--evaluations N]
                           [--store URL] [--policy NAME] [--workers N] [--report] [--estimate]

Every method chooses on 1,000 images of one half of `test_reward` by what a plan's answers diverge
from the unpruned network's, profiles on 1,000 others of it, and its plan is judged by its loss on
the other half; with --final the same plans are judged on `test_report`, and that reading is logged.
Budgets are `least + b (base - least)`. Everything is kept in DIR: an interrupted run goes on where
it stopped, and methods that matter most come first in every cell.
`--report` prints the figures of what is kept and searches for nothing; `--estimate` says what the
run would cost from nothing.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import multiprocessing
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from typing import TypeVar

import torch
from datasets import catalogue
from benchmarks.harness import write_rows
from benchmarks.parts.tasks import split_images
from datasets.pack import CifarPack, shared_data
from benchmarks.peers.book import Book
from benchmarks.peers.findings import METHODS, STAGES, Finding, GridSettings, search_count
from benchmarks.peers.grid import Case
from benchmarks.peers.options import grid_parser, log_if_final, seeds_of, settings_of, store_of
from benchmarks.peers.tables import Grid, print_cells, print_headlines, rows_of

from rlprune.errors import InputError, NotFoundError, PolicyError
from rlprune.planning import device_task, which_device
from rlprune.profile.energy import energy_profiles
from rlprune.profile.types import keep_levels
from rlprune.store import open_store

B = TypeVar("B")
F = TypeVar("F")

MODELS = ("vovnet", "seresnet", "densenet", "mobilenetv3")
"""The held-out families, one of each first."""
QUICK_MODELS = ("cifar10_resnet8_mlperf_tiny",)
CASES_AT_ONCE = 2
"""Networks with images that one process holds."""
TOLD_SEC = 10.0
"""Cells that took longer are told of."""
JUDGED_COST = 4
"""A plan judged on the report's images costs about as much as so many evaluations."""


@dataclass(frozen=True, slots=True)
class Run:
    """All that a worker process is told."""

    settings: GridSettings
    shared: str | None
    store: str
    devices: tuple[str, ...]
    shares: tuple[float, ...]
    only_kept: bool = False
    """Whether to search for nothing that the book does not have."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """Some methods on one network with one seed's images: what a worker does at a time."""

    run: Run
    model: str
    seed: int
    methods: tuple[str, ...]


def main() -> None:
    parser = grid_parser(__doc__, shares=(0.5, 0.25, 0.75))
    parser.add_argument("--report", action="store_true", help="figures of what is kept so far")
    parser.add_argument("--estimate", action="store_true", help="say what it costs, run nothing")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    if not options.estimate:
        log_if_final(options, "bench_policies")
    run = Run(
        settings_of(options, quick_search=50),
        options.shared,
        store_of(options),
        (),
        tuple(options.shares),
        options.report,
    )
    models = options.models or list(_at_hand(QUICK_MODELS if options.quick else MODELS))
    if not models:
        parser.error("none of the default networks has its weights here; make some: make_zoo")
    seeds = seeds_of(options)
    wanted = options.methods or METHODS
    run = replace(run, devices=tuple(measured_devices(run, models, options.devices)))
    print(
        f"{platform.python_version()}, load average {os.getloadavg()[0]:.1f}; "
        f"{', '.join(models)}; {len(seeds)} seeds from {options.seed}; "
        f"devices {', '.join(run.devices)}; "
        f"report on {'test_report' if options.final else 'the other half of test_reward'}",
        flush=True,
    )
    bundles = [
        Bundle(run, model, seed, methods)
        for stage in STAGES
        if (methods := tuple(method for method in stage if method in wanted))
        for seed in seeds
        for model in models
    ]
    if options.estimate:
        estimate(bundles, options.workers)
        return
    grid = Grid(options.work / "peers.sqlite")
    for index, findings in enumerate(done(bundles, options.workers, find), 1):
        grid.add(findings)
        print(f"{time.strftime('%H:%M')} {index}/{len(bundles)} bundles done", flush=True)
    print_cells(grid)
    rows = rows_of(grid)
    print_headlines(rows)
    if options.json:
        write_rows(options.json, rows)


def _at_hand(models: Sequence[str]) -> Iterator[str]:
    """Those whose weights are here; the others are told of by name."""
    for name in models:
        try:
            catalogue.load(name)
        except InputError as error:
            print(f"{name} is left out: {error}", flush=True)
        else:
            yield name


def done(bundles: Sequence[B], workers: int, work: Callable[[B], list[F]]) -> Iterator[list[F]]:
    """What `work` makes of each bundle, as they are ready; `workers` processes if more than one."""
    if workers < 2:
        yield from map(work, bundles)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap_unordered(work, bundles)


def find(bundle: Bundle) -> list[Finding]:
    """All cells of a bundle; what the book has is not computed again."""
    torch.set_num_threads(1)
    case = case_of(bundle.run, bundle.model, bundle.seed)
    findings = []
    for method, device, share in product(bundle.methods, bundle.run.devices, bundle.run.shares):
        started = time.monotonic()
        try:
            found = case.find(method, device, share, only_kept=bundle.run.only_kept)
        except PolicyError as error:
            print(f"{method} is left out: {error}", flush=True)
            continue
        if found is None:
            continue
        findings.append(case.judged(found))
        took = time.monotonic() - started
        if took > TOLD_SEC:
            best = found.plans[-1].objective if found.plans else None
            print(
                f"{time.strftime('%H:%M')} {bundle.model} seed {bundle.seed} "
                f"{device.partition('-')[0]} b{share} {method}: {found.evaluation_count} "
                f"evaluations{'' if best is None else f', objective {best:.3f}'}, {took:.0f} s",
                flush=True,
            )
    return findings


@lru_cache(maxsize=CASES_AT_ONCE)
def case_of(run: Run, model: str, seed: int) -> Case:
    """One network with one seed's images, in this process."""
    pack = pack_of(run.shared)
    return Case(
        run.settings,
        catalogue.load(model, pack=pack),
        seed,
        pack,
        # Chosen on the same images whatever is reported on: final figures are of the same plans.
        replace(
            split_images(pack, final=False),
            report=split_images(pack, final=run.settings.final).report,
        ),
        Book(run.settings.work / "peers.sqlite"),
        open_store(run.store),
    )


@lru_cache(maxsize=1)
def pack_of(shared: str | None) -> CifarPack:
    return CifarPack(shared_data(shared))


def measured_devices(
    run: Run, models: Sequence[str], wanted: Sequence[str] | None
) -> Iterator[str]:
    """Keys that all networks can be planned for; measured now where that is this machine.

    By default `macs`, this machine's ONNX Runtime, and whatever else the store knows.
    """
    store = open_store(run.store)
    pack = pack_of(run.shared)
    traces = {name: catalogue.traced(catalogue.load(name, pack=pack)) for name in models}
    names = wanted or ["macs", "ort", *(one.key for one in store.devices())]
    keys = [which_device(name, trace.graph) for name in names for trace in traces.values()]
    for key, runtime in dict(keys).items():
        try:
            for name, trace in traces.items():
                levels, level_count = keep_levels(trace.graph, round_to=run.settings.round_to)
                profiles = energy_profiles(trace, levels, level_count)
                if runtime is not None:
                    print(f"latency of {name} on {key}", flush=True)
                device_task(trace, profiles, store, key, runtime)
        except NotFoundError as error:
            print(f"{key} is left out: {error}", flush=True)
            continue
        yield key


def estimate(bundles: list[Bundle], workers: int) -> None:
    """Core-minutes of a run from nothing, from one evaluation of each network, timed now."""
    seconds: dict[str, float] = {}
    minutes: dict[str, float] = {}
    for bundle in bundles:
        settings = bundle.run.settings
        case = case_of(bundle.run, bundle.model, settings.seed)
        if bundle.model not in seconds:
            seconds[bundle.model] = case.evaluation_sec()
            print(
                f"{bundle.model}: {seconds[bundle.model]:.2f} s of CPU an evaluation on "
                f"{settings.objective_count} images; {len(case.levels)} groups, "
                f"profile of {case.profile_count} evaluations",
                flush=True,
            )
        cells = len(bundle.run.devices) * len(bundle.run.shares)
        for method in bundle.methods:
            count = cells * (search_count(method, settings) + JUDGED_COST)
            if method == "knapsack":  # all methods share the profile
                count += case.profile_count
            spent = count * seconds[bundle.model] / 60
            minutes[method] = minutes.get(method, 0.0) + spent
    for method, spent in minutes.items():
        print(f"{method:16} {spent:7.1f} core-minutes")
    total = sum(minutes.values())
    print(f"at most {total:.0f} core-minutes, {total / max(1, workers):.0f} minutes")


if __name__ == "__main__":
    main()
