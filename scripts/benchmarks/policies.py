"""Policies beside the searches they are to replace: same graphs, budgets, images and devices.

Every method chooses on 1,000 images of one half of `test_reward` by what a plan's answers diverge
from the unpruned network's, profiles on 1,000 others of it, and its plan is judged by its loss on
the other half; with --final the same plans are judged on `test_report`, and that reading is logged.
Budgets are `least + b (base - least)`. Evaluations are kept in `--work` as well: an interrupted run
goes on where it stopped.
"""

from __future__ import annotations

from functools import partial

from benchmarks.harness import Bench, log_final
from benchmarks.parts.cells import (
    MODELS,
    QUICK_MODELS,
    Cells,
    Job,
    add_options,
    case_of,
    places_of,
    run_of,
)
from benchmarks.peers.findings import METHODS, Finding
from benchmarks.peers.tables import Grid, cell_rows, headlines
from rlprune.errors import PolicyError


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

        cells = Cells(bench, run, methods, find)
        places = places_of(run, options, models)
        for place in places:
            name = f"{place.model}/{place.device}/b{place.share}{told}"
            cells.measure(place, name, lambda own, found: cell_rows(Grid.of(own.work, found)))
        name = f"over {' '.join(models)} {' '.join(sorted({p.device for p in places}))}{told}"
        name += f" {' '.join(map(str, options.shares))}"
        whole = partial(Grid.of, options.work)
        bench.cell(name, lambda: headlines(whole(cells.found(places))), derived=True)


def find(job: Job) -> list[Finding]:
    """All methods' findings; what the book has is not computed again."""
    case = case_of(job.run, job.place.model, job.seed)
    findings = []
    for method in job.methods:
        try:
            findings.append(case.find(method, job.place.device, job.place.share))
        except PolicyError as error:
            print(f"{method} is left out: {error}", flush=True)
    return findings


if __name__ == "__main__":
    main()
