"""Options beside widths: what kernel shapes, blocks left out and int8 win at equal latency.

    scripts/bench options [--work FOLDER] [--plan | --train | --known] [--only GLOB ...] [--final]

Budgets are shares of the unpruned network's measured latency in the same precision; an epoch is
10,000 training images. Every plan is made from validation images (`train_calib`), certified on this
machine (ONNX Runtime, one thread), measured on OpenVINO as well, cut, reconstructed, and trained
for one epoch or 15 with the unpruned network as its teacher; accuracies are on `test_reward`,
with `--final` on `test_report`. Arms differ in what a plan may use:

    channels         widths alone
    all              widths, kernel shapes and blocks left out; all-int8: the same in int8
    uniform          one ratio for all widths, filled up to the budget
    searched-int8    all in int8, searched for (effort thorough): ResNet-20 and VGG at 0.75 alone
    blocks           widths and blocks;  all_but_blocks: widths and kernel shapes
    end              all in int8 on ONNX Runtime (end-openvino: on OpenVINO), for ResNet-20 at 0.25
                     and 0.2 of its latency in f32, and 60 epochs of all 45,000 images

Plans, measurements and trainings are kept in --work and made once; an interrupted training goes on.
About 20 core hours in all, so it may be done in parts:

    scripts/bench options --plan     # only plans and their latencies: an hour, on a quiet machine
    scripts/bench options --train    # only trainings, those that say most first, in the background
    scripts/bench options --known    # only the rows of what is kept so far
    scripts/bench options --keep-plans   # the plans beside the kept rows, for who makes them again
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from benchmarks.harness import Bench, Row, chosen, log_final
from benchmarks.parts import options_end, options_int8, options_large, options_rows
from benchmarks.parts.options_plans import (
    ARMS,
    BUDGETS,
    NETS,
    Cell,
    Run,
    keep_plans,
    plan_file,
    planned,
)
from benchmarks.parts.options_rows import Told
from benchmarks.parts.options_training import (
    FULL,
    LONG,
    LONG_BUDGET,
    SEEDS,
    SHORT,
    Training,
    end_cells,
    long_cells,
    short_cells,
    trained,
    trainings,
)
from rlprune.latency.types import PRECISIONS

QUICK_NETS, QUICK_ARMS = ("resnet20",), ("channels", "all")


def main() -> None:
    bench = Bench("options", __doc__)
    options = parsed(bench)
    told = told_of(options)
    skipped = [name for name, arm in ARMS.items() if arm.precision not in PRECISIONS]
    if skipped:
        print(f"skipped: {', '.join(skipped)}: this version has {', '.join(PRECISIONS)} alone")
    with bench.measuring():
        if options.keep_plans:
            print(f"{keep_plans(told.run)} plans are kept")
            return
        if options.train:
            train(options, told)
            return
        if options.final:
            log_final(options, "options")
        cells = (
            [Cell(net, LONG_BUDGET, arm) for net in QUICK_NETS for arm in QUICK_ARMS]
            if options.quick
            else list(
                dict.fromkeys(one for net in NETS for one in (*short_cells(net), *long_cells(net)))
            )
        )
        if options.plan:
            for cell in (*cells, *([] if options.quick else end_cells())):
                if chosen(options, f"{cell.name}.latency"):
                    planned(cell, told.run)
            return
        tell(bench, cells, told)


def parsed(bench: Bench) -> argparse.Namespace:
    add = bench.parser.add_argument
    add("--work", type=Path, default=Path("build/options"), help="folder of what is kept")
    add("--only", nargs="+", metavar="GLOB", help="rows: NET.bB.ARM.latency, NET.bB.e1.ARM ...")
    add("--plan", action="store_true", help="only plan and measure")
    add("--train", action="store_true", help="only train, those that say most first")
    add("--known", action="store_true", help="only tell what is kept")
    add("--keep-plans", action="store_true", help="only write the plans into the results' folder")
    add("--final", action="store_true", help="report on test_report, and log it")
    add("--packages", type=Path, metavar="DIR", help="unpacked wheels of EfficientNet-Lite0")
    return bench.parse()


def told_of(options: argparse.Namespace) -> Told:
    work = options.work / "quick" if options.quick else options.work
    run = Run(work, options.shared, options.quick)
    return Told(run, 2 if options.quick else SEEDS, options.known, options.final)


def train(options: argparse.Namespace, told: Told) -> None:
    """All trainings that are asked for, in the order of use."""
    for one in trainings(told.seeds):
        if chosen(options, options_rows.accuracy_name(one.cell, one.epochs)) and quick_enough(
            options, one
        ):
            trained(one, told.run)


def quick_enough(options: argparse.Namespace, one: Training) -> bool:
    cell = one.cell
    quick = cell.net in QUICK_NETS and cell.arm in QUICK_ARMS and one.epochs == SHORT
    return not options.quick or (quick and cell.budget == LONG_BUDGET)


def tell(bench: Bench, cells: list[Cell], told: Told) -> None:
    """All rows, made where they are not known."""
    options = bench.options

    def cell_of(name: str, rows: Callable[[], Iterable[Row]]) -> None:
        if chosen(options, name):
            bench.cell(name, rows)

    for net in dict.fromkeys(cell.net for cell in cells):
        cell_of(f"{net}.unpruned", partial(options_rows.unpruned_row, net, told))
    for cell in cells:
        name = f"{cell.name}.latency"
        if not told.known_only or plan_file(cell, told.run).exists():
            cell_of(name, partial(options_rows.latency_rows, cell, told, bench.is_again(name)))
        lengths = [0, *([SHORT] if cell in short_cells(cell.net) else [])]
        if cell in long_cells(cell.net) and not options.quick:
            lengths.append(LONG)
        for epochs in lengths:
            name = options_rows.accuracy_name(cell, epochs)
            again = bench.is_again(name)
            cell_of(name, partial(options_rows.accuracy_rows, cell, epochs, told, again))
    nets = list(dict.fromkeys(cell.net for cell in cells))
    ready = [Cell(net, BUDGETS[0], arm) for net in nets for arm in ("channels", "all")]
    if not told.known_only or all(plan_file(cell, told.run).exists() for cell in ready):
        cell_of("planning_time", partial(options_rows.planning_rows, nets, told.run))
    if options.quick:
        return
    made = [cell for cell in cells if plan_file(cell, told.run).exists()]
    if made and chosen(options, "first"):
        bench.cell("first", partial(options_rows.prediction_rows, made, told.run), derived=True)
    for name, rows in options_rows.gain_rows(options_rows.known_accuracies(told)).items():
        if chosen(options, name.removeprefix("options.")):
            bench.cell(name, rows.copy, derived=True)
    for net in nets:
        cell_of(f"int8.{net}.plain", partial(options_int8.plain_row, net, told))
        if chosen(options, f"int8.{net}.gap"):
            bench.cell(f"int8.{net}", partial(options_int8.rows, net, told), derived=True)
    for cell in end_cells():
        name = f"{cell.name}.latency"
        if not told.known_only or plan_file(cell, told.run).exists():
            cell_of(name, partial(options_end.latency_rows, cell, told, bench.is_again(name)))
            # Said to be derived, for an hour's training is not drawn to be made again.
            name = options_rows.accuracy_name(cell, FULL)
            if chosen(options, name):
                bench.cell(name, partial(options_end.accuracy_rows, cell, told), derived=True)
    for budget in options_large.BUDGETS:
        for arm in options_large.ARMS:
            large = options_large.Large(budget, arm, options.packages)
            if not told.known_only or options_large.is_known(large, told.run):
                cell_of(large.name, partial(options_large.rows, large, told.run))


if __name__ == "__main__":
    main()
