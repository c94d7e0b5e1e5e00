"""The figure to plan by: which tells, near the optimum, what plans are worth after training.

    scripts/bench figure [--work FOLDER] [--plan | --train | --known] [--only GLOB ...] [--seeds N]

Some 30 plans of each of three networks at half of their MACs, all within 15 % of the best by
divergence (further where there are too few), are cut, reconstructed, and trained for one epoch of
10,000 images and for five. Which of these ranks them as their accuracy does (Spearman), before
training (`e0`) and after it (`e1`, `e5`)?

    summed   the losses of single options, added up: what the knapsack plans by
    solved   the divergence of the whole plan, its layers solved once
    again    the same, solved again as it is when a plan is carried out
    local    the same after a brief training of blocks, each to answer as it did
    brief    the same after as brief a training of the whole network

And how far is the plan that a figure would choose below the best of them (`regret`; `any` is a plan
drawn blindly)? Plans, figures and trainings are kept in --work; an interrupted training goes on:

    scripts/bench figure --plan      # plans and their figures, and what their training will take
    scripts/bench figure --train     # only trainings, balanced over networks at any time
    scripts/bench figure --known     # only rows, of what is kept; what is not complete is not kept
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from benchmarks.harness import Bench, chosen
from benchmarks.parts.figure_plans import NETS, about, is_planned, kept, plan_count, proposals
from benchmarks.parts.figure_rows import band_rows, is_whole, outcome, rows
from benchmarks.parts.figure_training import LONG, SHORT, epoch_seconds, trained, trainings
from benchmarks.parts.options_plans import Run

QUICK_NETS = ("vgg",)


def main() -> None:
    bench = Bench("figure", __doc__)
    options = parsed(bench)
    run = Run(
        options.work / "quick" if options.quick else options.work, options.shared, options.quick
    )
    nets = QUICK_NETS if options.quick else NETS
    lengths = (SHORT,) if options.quick else (SHORT, LONG)
    with bench.measuring():
        if not options.known:
            if not options.train:
                plan(options, nets, lengths, run)
            if not options.plan:
                train(options, nets, lengths, run)
        if not (options.plan or options.train):
            tell(bench, nets, lengths, run)


def parsed(bench: Bench) -> argparse.Namespace:
    add = bench.parser.add_argument
    add("--work", type=Path, default=Path("build/figure"), help="folder of what is kept")
    add(
        "--only",
        nargs="+",
        metavar="GLOB",
        help="cells: NET.band, NET.e0, NET.e1, NET.e5, mean.e1 ...",
    )
    add("--seeds", type=int, default=1, metavar="N", help="trainings of each plan and length")
    add("--plan", action="store_true", help="only plans, their figures, and an estimate")
    add("--train", action="store_true", help="only train; plans that are not kept are made")
    add("--known", action="store_true", help="only tell what is kept")
    return bench.parse()


def plan(
    options: argparse.Namespace, nets: tuple[str, ...], lengths: tuple[int, ...], run: Run
) -> None:
    """Plans and figures of the networks that are asked for, and what their training takes."""
    for net in nets:
        if not chosen(options, f"{net}.band"):
            continue
        count = len(proposals(net, run))
        spent = sum(kept(net, index, run).cpu_seconds for index in range(count))
        each = epoch_seconds(net, run)
        hours = each * count * sum(lengths) * options.seeds / 3600
        print(
            f"{net}: planned in {about(net, run)['cpu_seconds']:.0f} CPU s, figures in {spent:.0f};"
            f" an epoch takes {each:.0f}, so {count} plans for {' and '.join(map(str, lengths))} "
            f"with {options.seeds} seed(s) {hours:.1f} CPU hours",
            flush=True,
        )


def train(
    options: argparse.Namespace, nets: tuple[str, ...], lengths: tuple[int, ...], run: Run
) -> None:
    """All trainings that are asked for, in their order."""
    for one in trainings(nets, plan_count(run), options.seeds):
        if one.epochs in lengths and chosen(options, f"{one.net}.e{one.epochs}"):
            trained(one, run)


def tell(bench: Bench, nets: tuple[str, ...], lengths: tuple[int, ...], run: Run) -> None:
    """All rows of what is kept; those of some of the plans are printed only."""
    options = bench.options
    for net in nets:
        if is_planned(net, run) and chosen(options, f"{net}.band"):
            bench.cell(f"{net}.band", partial(band_rows, net, run), derived=True)
    for epochs in (0, *lengths):
        found = {net: outcome(net, epochs, options.seeds, run) for net in nets}
        places = {net: [one] for net, one in found.items() if one is not None}
        if len(places) == len(nets) > 1:
            places["mean"] = [one for own in places.values() for one in own]
        for place, outcomes in places.items():
            name = f"{place}.e{epochs}"
            if not chosen(options, name):
                continue
            if all(is_whole(one, run) for one in outcomes):
                bench.cell(name, partial(rows, place, epochs, outcomes), derived=True)
                continue
            for row in rows(place, epochs, outcomes):
                print(row.line("not complete"), flush=True)


if __name__ == "__main__":
    main()
