"""Plans of little effort beside plans by a fully measured profile, and by made-up inputs.

    scripts/bench experience [--work FOLDER] [--models NAME ...] [--only GLOB ...] [--known]

Plans are made as a user would make them, with all options, for this machine (ONNX Runtime, one
thread) at 0.5 and 0.35 of the unpruned network's latency, from 1,000 images of `train_calib`, or
from made-up ones. They are applied, not tuned, and judged by what they diverge from the unpruned
network's answers on 1,000 images of `test_reward` (`--final`: on `test_report`, logged):

    profile                  knapsack by sensitivity measured option by option
    instant quick thorough   the efforts of `rlprune plan`
    race16 race40            searches at the price of 16 and 40 evaluations
    made_up.METHOD           the same on made-up images (`kept`: applied on them as well)
    uniform global energy    planners that neither learn nor evaluate
    evolution evopress random netadapt amc
                             other searches, at the price of 400 evaluations

Networks are those that nothing was fitted to: ResNet-20 and -56, and the families held out.
With --train plans of four networks are trained for five epochs (`e5`; accuracies in points).
`time.NET` is how long an instant plan of a file takes. Differences of loss are in natural
logarithms. All is kept in --work.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from platformdirs import user_cache_path

import benchmarks.parts.experience_training as training
from benchmarks.harness import Bench, Row, chosen, log_final
from benchmarks.parts.experience_plans import BUDGETS, METHODS, Cell, is_known, judged
from benchmarks.parts.experience_rows import cell_rows, headlines
from benchmarks.parts.experience_times import INSTANT_SEC, cost_rows, instant_rows
from benchmarks.parts.options_plans import Run
from datasets import catalogue
from datasets.pack import shared_folder

QUICK = ("cifar10_resnet20", "instant", "uniform")


def main() -> None:
    bench = Bench("experience", __doc__)
    add = bench.parser.add_argument
    add("--work", type=Path, default=user_cache_path("rlprune") / "bench_experience")
    add("--models", nargs="+", metavar="NAME", help="networks of the zoo")
    add("--only", nargs="+", metavar="GLOB", help="cells: NET.bB.METHOD, time.NET")
    add("--known", action="store_true", help="only tell what is kept")
    add("--train", action="store_true", help="train what is planned for five epochs")
    add("--final", action="store_true", help="report on test_report, and log it")
    options = bench.parse()
    work = options.work / "quick" if options.quick else options.work
    run = Run(work, options.shared, options.quick)
    with bench.measuring():
        if options.final:
            log_final(options, "experience")
        asked = cells(options.models, quick=options.quick)
        for cell in asked:
            made = is_known(cell, run, final=options.final)
            if chosen(options, cell.name) and (made or not options.known):
                bench.cell(cell.name, partial(rows, cell, run, final=options.final))
        for one in training.trainings() if options.train else ():
            if chosen(options, one.name) and is_known(one.cell, run):
                training.trained(one, run)
        known = {
            cell: judged(cell, run, final=options.final)
            for cell in asked
            if is_known(cell, run, final=options.final)
        }
        if known:
            bench.cell("headlines", partial(headlines, known), derived=True)
            bench.cell("costs", partial(cost_rows, known, run.shared), derived=True)
        if known_trainings := training.known(run):
            bench.cell("trained", partial(training.rows, known_trainings), derived=True)
        shared = shared_folder(options.shared) / "models"
        for net in INSTANT_SEC:
            there = net.startswith("resnet") or (shared / f"{net}.legacy.onnx.gz").is_file()
            if chosen(options, f"time.{net}") and there and not options.known:
                bench.cell(f"time.{net}", partial(instant_rows, net, shared, options.seed))


def rows(cell: Cell, run: Run, *, final: bool) -> Iterator[Row]:
    return cell_rows(cell, judged(cell, run, final=final))


def cells(models: list[str] | None, *, quick: bool) -> list[Cell]:
    """Every network, budget and method; of one network all before the next."""
    nets = models or [name for name in catalogue.names() if catalogue.held_out(name)]
    if quick:
        net, *methods = QUICK
        return [Cell(net, BUDGETS[0], method) for method in methods]
    return [Cell(net, budget, method) for net in nets for method in METHODS for budget in BUDGETS]


if __name__ == "__main__":
    main()
