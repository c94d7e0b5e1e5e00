"""What `policies` and `finetune` share: options, and cells of one network, device and budget."""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Generic, TypeVar

import torch
from platformdirs import user_cache_path

from benchmarks.harness import Bench, Row
from benchmarks.parts.tasks import split_images
from benchmarks.peers.figures import Place
from benchmarks.peers.findings import METHODS, GridSettings
from benchmarks.peers.grid import Case
from datasets import catalogue
from datasets.pack import CifarPack, shared_data
from rlprune.errors import NotFoundError
from rlprune.planning import device_task, which_device
from rlprune.schemes import space_with
from rlprune.schemes.channels import keep_levels
from rlprune.sensitivity.energy import energy_profiles
from rlprune.store import open_store

F = TypeVar("F")

MODELS = ("vovnet", "seresnet", "densenet", "mobilenetv3")
"""The held-out families, one of each first."""
QUICK_MODELS = ("cifar10_resnet8_mlperf_tiny",)
CASES_AT_ONCE = 2
"""Networks with images that one process holds."""


@dataclass(frozen=True, slots=True)
class Run:
    """All that a worker process is told."""

    settings: GridSettings
    shared: str | None
    store: str


def add_options(bench: Bench, shares: Sequence[float]) -> None:
    add = bench.parser.add_argument
    add("--final", action="store_true", help="report on test_report, and log it")
    add("--work", type=Path, default=user_cache_path("rlprune") / "bench_policies", metavar="DIR")
    add("--models", nargs="+", metavar="NAME", help="networks of the zoo")
    add("--methods", nargs="+", metavar="NAME", choices=METHODS)
    add("--devices", nargs="+", metavar="KEY", help="keys, macs, or ort, openvino, mnn of here")
    add("--shares", nargs="+", type=float, default=shares, metavar="B")
    add("--seeds", type=int, metavar="N", help="three by default")
    add("--images", type=int, metavar="N", help="to choose and profile on, each; 1,000")
    add("--evaluations", type=int, metavar="N", help="of each search; 400")
    add("--store", metavar="URL", help="with measurements; one of its own in --work")
    add("--policy", default="learned", help="a name, or an artifact's directory")
    add("--workers", type=int, default=1, help="processes")


def run_of(options: argparse.Namespace, *, quick_search: int, round_to: int = 8) -> Run:
    options.work.mkdir(parents=True, exist_ok=True)
    images = options.images or (200 if options.quick else 1000)
    searched = options.evaluations or (quick_search if options.quick else 400)
    settings = GridSettings(
        final=options.final,
        profile_count=images,
        objective_count=images,
        report_count=1000 if options.quick else None,
        search_count=searched,
        episode_count=min(searched, 200),
        round_to=round_to,
        policy=options.policy,
        work=options.work,
    )
    store = options.store or f"sqlite:///{options.work / 'latency.db'}"
    return Run(settings, options.shared, store)


@dataclass(frozen=True, slots=True)
class Job:
    """Some methods in one cell with one seed's images: what a process does at a time."""

    run: Run
    place: Place
    seed: int
    methods: tuple[str, ...]


@contextmanager
def nothing_known(run: Run, again: bool) -> Iterator[Run]:
    """The run, with a folder of its own where all is to be computed again."""
    if not again:
        yield run
        return
    with tempfile.TemporaryDirectory() as folder:
        yield replace(run, settings=replace(run.settings, work=Path(folder)))


class Cells(Generic[F]):
    """Cells of a benchmark, and what `work` finds in them, in `--workers` processes."""

    def __init__(
        self, bench: Bench, run: Run, methods: tuple[str, ...], work: Callable[[Job], list[F]]
    ) -> None:
        self._bench, self._run, self._methods, self._work = bench, run, methods, work

    def found(self, places: Sequence[Place], run: Run | None = None) -> list[F]:
        """By every seed."""
        options = self._bench.options
        count = options.seeds or (1 if options.quick else 3)
        jobs = [
            Job(run or self._run, place, seed, self._methods)
            for seed in range(options.seed, options.seed + count)
            for place in places
        ]
        if options.workers < 2:
            return [one for job in jobs for one in self._work(job)]
        with multiprocessing.get_context("spawn").Pool(options.workers) as pool:
            return [one for part in pool.imap_unordered(self._work, jobs) for one in part]

    def measure(
        self, place: Place, name: str, rows: Callable[[GridSettings, list[F]], Iterable[Row]]
    ) -> None:
        """The rows of one cell, kept or measured now."""

        def measured() -> list[Row]:
            with nothing_known(self._run, self._bench.is_again(name)) as own:
                return list(rows(own.settings, self.found([place], own)))

        self._bench.cell(name, measured)


@lru_cache(maxsize=CASES_AT_ONCE)
def case_of(run: Run, model: str, seed: int) -> Case:
    """One network with one seed's images, in this process."""
    torch.set_num_threads(1)
    pack = pack_of(run.shared)
    # Chosen on the same images whatever is reported on: final figures are of the same plans.
    split = replace(
        split_images(pack, final=False), report=split_images(pack, final=run.settings.final).report
    )
    net = catalogue.load(model, pack=pack)
    return Case(run.settings, net, seed, pack, split, open_store(run.store))


@lru_cache(maxsize=1)
def pack_of(shared: str | None) -> CifarPack:
    return CifarPack(shared_data(shared))


def places_of(run: Run, options: argparse.Namespace, models: Sequence[str]) -> list[Place]:
    """Every network, device and budget; devices are measured now where that is this machine.

    By default `macs`, this machine's ONNX Runtime, and whatever else the store knows.
    """
    store = open_store(run.store)
    traces = {
        name: catalogue.traced(catalogue.load(name, pack=pack_of(run.shared))) for name in models
    }
    names = options.devices or ["macs", "ort", *(one.key for one in store.devices())]
    keys = [which_device(name, trace.graph) for name in names for trace in traces.values()]
    places = []
    for key, runtime in dict(keys).items():
        try:
            for trace in traces.values():
                levels = keep_levels(trace.graph, round_to=run.settings.round_to)
                space = space_with(trace.graph, *levels)
                device_task(trace, space, energy_profiles(trace, space), store, key, runtime)
        except NotFoundError as error:
            print(f"{key} is left out: {error}", flush=True)
            continue
        places += [Place(name, key, share) for name in models for share in options.shares]
    return places
