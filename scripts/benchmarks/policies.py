"""Policies beside the searches they are to replace: same graphs, budgets, images and devices.

Every method chooses on 1,000 images of one half of `test_reward` by what a plan's answers diverge
from the unpruned network's, profiles on 1,000 others of it, and its plan is judged by its loss on
the other half; with --final the same plans are judged on `test_report`, and that reading is logged.
Budgets are `least + b (base - least)`. Evaluations are kept in `--work` as well: an interrupted run
goes on where it stopped.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from benchmarks.harness import Bench, Row, log_final
from benchmarks.parts.cells import (
    MODELS,
    QUICK_MODELS,
    Run,
    add_options,
    case_of,
    done,
    nothing_known,
    places_of,
    run_of,
    seeds_of,
)
from benchmarks.peers.figures import Place
from benchmarks.peers.findings import METHODS, Finding
from benchmarks.peers.tables import Grid, cell_rows, headlines
from rlprune.errors import PolicyError


@dataclass(frozen=True, slots=True)
class Bundle:
    """Some methods in one cell with one seed's images: what a worker does at a time."""

    run: Run
    place: Place
    seed: int
    methods: tuple[str, ...]


def main() -> None:
    bench = Bench("policies", __doc__)
    add_options(bench, shares=(0.5, 0.25, 0.75))
    options = bench.parse()
    with bench.measuring():
        run = run_of(options, quick_search=50)
        if options.final:
            log_final(options, "policies")
        models = options.models or (QUICK_MODELS if options.quick else MODELS)
        methods = tuple(options.methods or METHODS)
        told = "" if methods == METHODS else f" {' '.join(methods)}"

        def grid(places: list[Place], run: Run) -> Grid:
            bundles = [
                Bundle(run, place, seed, methods) for place in places for seed in seeds_of(options)
            ]
            return Grid.of(run.settings.work, done(bundles, options.workers, find))

        def measure(place: Place, name: str) -> list[Row]:
            with nothing_known(run, bench.is_again(name)) as own:
                return list(cell_rows(grid([place], own)))

        places = places_of(run, options, models)
        for place in places:
            name = f"{place.model}/{place.device}/b{place.share}{told}"
            bench.cell(name, partial(measure, place, name))
        name = f"over {' '.join(models)} {' '.join(sorted({p.device for p in places}))}{told}"
        name += f" {' '.join(map(str, options.shares))}"
        bench.cell(name, lambda: headlines(grid(places, run)), derived=True)


def find(bundle: Bundle) -> list[Finding]:
    """All methods' findings; what the book has is not computed again."""
    case = case_of(bundle.run, bundle.place.model, bundle.seed)
    findings = []
    for method in bundle.methods:
        try:
            findings.append(case.find(method, bundle.place.device, bundle.place.share))
        except PolicyError as error:
            print(f"{method} is left out: {error}", flush=True)
    return findings


if __name__ == "__main__":
    main()
