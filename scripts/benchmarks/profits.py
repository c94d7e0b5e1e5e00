"""Which options make networks faster on each runtime and precision; writes what is offered there.

    scripts/bench profits [--runtimes NAME ...] [--quick] [--fresh] [--table]

Small dense networks and what options make of them, one thread, each measured in turns with the
dense one (`latency.measure`). A figure is a latency over the dense network's.

- `profits.RUNTIME_PRECISION.KERNEL.CHANNELSatEXTENT.OPTION`: three convolutions whose kernels keep
  a rectangle; `3x3/2` has stride 2, `depthwise_5x5` a filter a channel.
- `profits.RUNTIME_PRECISION.block...`: four residual blocks, of which one or two are left out, or
  that are narrowed within to as few multiply-accumulates.
- `profits.RUNTIME_f32.zeros...`: three 3x3 convolutions with zeros among their weights: half or
  nine tenths of all (unstructured), two of every four (2:4), five of nine taps (pattern).

`--table` prints the kept figures as the page docs/faster.md has them, and measures nothing. At the
end of a run that leaves nothing unmeasured rlprune/schemes/data/profits.json is written anew.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx

from benchmarks.harness import RESULTS, Bench, Row
from benchmarks.parts.profit_nets import ZEROS, Kernel, convolutions, residual, words
from rlprune.errors import MissingExtraError
from rlprune.latency.measure import MeasureConfig, measure
from rlprune.latency.types import BF16, F32, INT8, ONE_SIDED_95, OperatorSpec
from rlprune.precision import with_made_up_scales
from rlprune.runtime import Runtime, get_runtime
from rlprune.schemes.profits import DATA, FORMAT

RUNS = (
    *(("ort", F32), ("ort", INT8)),
    *(("openvino", F32), ("openvino", BF16), ("openvino", INT8)),
    ("mnn", F32),
)
FASTER = 0.97
"""An option is offered where it takes on average less than this share of every larger one ..."""
SLOWER = 1.1
"""... and at no place more than this times the whole kernel's."""
RUN_SD = 0.032
"""How far figures of two runs are apart beyond what their sessions say (natural logarithm): 72
of them, twenty minutes and some busy neighbours apart, differed by 0.038; sessions said 0.021."""
ENOUGH = 0.5
"""Leaving a block out pays where it saves this share of what its operations say."""

Models = Mapping[str, onnx.ModelProto]
SHOWN = {
    **{("3x3", one): f"3x3 kept as {one}" for one in ("2x3", "2x2", "1x3", "3x1", "1x1")},
    **{("3x3/2", one): f"3x3 of stride 2 kept as {one}" for one in ("2x2", "1x3", "1x1")},
    **{("5x5", one): f"5x5 kept as {one}" for one in ("3x5", "3x3", "1x5", "1x3", "1x1")},
    **{("depthwise_3x3", one): f"depthwise 3x3 kept as {one}" for one in ("2x3", "1x3", "1x1")},
    **{("depthwise_5x5", one): f"depthwise 5x5 kept as {one}" for one in ("3x3", "1x5", "1x1")},
    ("block", "one_left_out"): "one of four blocks left out",
    ("block", "one_narrowed"): "four blocks narrowed to as few operations",
    ("block", "two_left_out"): "two of four blocks left out",
    ("block", "two_narrowed"): "four blocks narrowed to as few operations",
    ("zeros", "unstructured_0.5"): "half of all weights zero",
    ("zeros", "unstructured_0.1"): "nine tenths of all weights zero",
    ("zeros", "2of4"): "two of every four weights zero (2:4)",
    ("zeros", "pattern_4of9"): "four taps of every 3x3 kernel kept (patterns)",
}
"""What the page has of (kernel, option), and how it is called there."""
Rows = Iterator[Row]


KERNELS = (
    Kernel("3x3", (3, 3), ((16, 32), (32, 16), (64, 8), (64, 56), (256, 14)), (1, 2, 3)),
    Kernel("3x3/2", (3, 3), ((32, 64),), (1, 2, 3), stride=2),
    Kernel("5x5", (5, 5), ((32, 16), (64, 14)), (1, 3, 5)),
    Kernel("depthwise_3x3", (3, 3), ((96, 28), (384, 14)), (1, 2, 3), depthwise=True),
    Kernel("depthwise_5x5", (5, 5), ((240, 14),), (1, 3, 5), depthwise=True),
)
BLOCK_PLACES = ((16, 32), (64, 16))
BLOCKS = 4
LEFT_OUT = {"one_left_out": 1, "two_left_out": 2}
ZERO_PLACES = ((64, 16), (256, 14))


def rows_of(
    runtime: Runtime, precision: str, prefix: str, dense: onnx.ModelProto, models: Models
) -> Rows:
    """A row for each model, measured in turns with the dense one."""
    scaled = with_made_up_scales if precision == INT8 else (lambda model: model)
    blank = OperatorSpec("conv", "", 1, 1, (), (), precision=precision)
    subjects = [(replace(blank, variant=name), scaled(model)) for name, model in models.items()]
    found = measure(
        subjects,
        device=runtime.name,
        runtime=runtime,
        control=scaled(dense),
        config=MeasureConfig(session_count=6, extra_session_count=4),
    )
    for (spec, _), one in zip(subjects, found, strict=True):
        if one.status == "failed":
            raise SystemExit(f"{prefix}.{spec.variant} failed: {one.reason}")
        ratio, count = one.control_ratio, len(one.session_ms)
        within = np.log(one.ratio_interval[1] / ratio)
        spread = float(np.exp(np.hypot(within, ONE_SIDED_95 * RUN_SD)))
        name, interval = f"{prefix}.{spec.variant}", (ratio / spread, ratio * spread)
        yield Row(name, ratio, "ratio", None, "min", count, interval)


def kernel_rows(
    runtime: Runtime, precision: str, kernel: Kernel, place: tuple[int, int], prefix: str
) -> Rows:
    """Every rectangle of one kernel at one place."""
    models = {words(one): convolutions(kernel, place, one) for one in kernel.options()}
    dense = convolutions(kernel, place, kernel.extents)
    yield from rows_of(runtime, precision, prefix, dense, models)


def block_rows(runtime: Runtime, precision: str, place: tuple[int, int], prefix: str) -> Rows:
    """Blocks left out, and blocks narrowed to as many operations."""
    width = place[0]
    models = {name: residual(place, [width] * (BLOCKS - n)) for name, n in LEFT_OUT.items()}
    for name, n in LEFT_OUT.items():
        inner = width * (BLOCKS - n) // BLOCKS
        models[narrowed(name)] = residual(place, [inner] * BLOCKS)
    yield from rows_of(runtime, precision, prefix, residual(place, [width] * BLOCKS), models)


def zero_rows(runtime: Runtime, precision: str, place: tuple[int, int], prefix: str) -> Rows:
    """Weights with zeros among them."""
    kernel = KERNELS[0]
    models = {
        name: convolutions(kernel, place, kernel.extents, weigh) for name, weigh in ZEROS.items()
    }
    dense = convolutions(kernel, place, kernel.extents)
    yield from rows_of(runtime, precision, prefix, dense, models)


def run_name(run: tuple[str, str]) -> str:
    """`ort_int8`."""
    return "_".join(run)


def narrowed(left_out: str) -> str:
    """What is narrowed to as many operations as some blocks left out leave."""
    return left_out.replace("left_out", "narrowed")


def at(place: tuple[int, int]) -> str:
    """`64at16`: channels, and the image's extent."""
    return f"{place[0]}at{place[1]}"


Ratios = dict[str, dict[str, dict[str, dict[str, float]]]]
"""Run -> kernel -> option -> place -> latency over the dense network's."""


def ratios_of(rows: Sequence[Row]) -> Ratios:
    """The figures by what they are of."""
    found: Ratios = {}
    for row in rows:
        _, run, kernel, place, option = row.name.split(".", 4)
        found.setdefault(run, {}).setdefault(kernel, {}).setdefault(option, {})[place] = row.value
    return found


def mean(by_place: Mapping[str, float]) -> float:
    """Geometric."""
    return float(np.exp(np.mean(np.log(list(by_place.values())))))


def offered(kernel: Kernel, ratios: Mapping[str, Mapping[str, float]]) -> list[str]:
    """The rectangles that are worth offering: on average faster than every larger one that
    contains them, and at no place much slower than the whole kernel."""
    known = {one: mean(ratios[words(one)]) for one in kernel.options()} | {kernel.extents: 1.0}

    def pays(one: tuple[int, int]) -> bool:
        larger = [
            ms
            for other, ms in known.items()
            if other != one and all(a <= b for a, b in zip(one, other, strict=True))
        ]
        worst = max(ratios[words(one)].values())
        return known[one] < FASTER * min(larger) and worst < SLOWER

    return [words(one) for one in kernel.options() if pays(one)]


def block_macs(n: int) -> float:
    """Share of its operations that the network has without `n` of its blocks."""
    return (1 + 2 * (BLOCKS - n)) / (1 + 2 * BLOCKS)


def block_pays(ratios: Mapping[str, Mapping[str, float]]) -> bool:
    """Whether blocks that are left out save at least half of what their operations say."""
    return all(
        1.0 - ms >= ENOUGH * (1.0 - block_macs(n))
        for option, n in LEFT_OUT.items()
        for ms in ratios[option].values()
    )


def data_of(rows: Sequence[Row]) -> str:
    """What ships: mean ratios of each run, and what follows from them."""
    runs: dict[str, dict[str, object]] = {}
    for run, found in ratios_of(rows).items():
        runtime, _, precision = run.partition("_")
        offers = {one.label: offered(one, found[one.label]) for one in KERNELS}
        schemes = ["channel"]
        schemes += ["block"] if block_pays(found["block"]) else []
        schemes += ["shape"] if any(offers.values()) else []
        runs.setdefault(runtime, {})[precision] = {
            "schemes": schemes,
            "kernels": offers,
            "ratios": {
                kernel: {option: round(mean(ms), 3) for option, ms in own.items()}
                for kernel, own in found.items()
            },
        }
    about = {"format": FORMAT, "made_by": "scripts/bench profits"}
    return json.dumps(about | {"runtimes": runs}, indent=1) + "\n"


def table_of(rows: Sequence[Row]) -> Iterator[str]:
    """The table of docs/faster.md: the range over all places."""
    found = ratios_of(rows)
    runs = [run for run in map(run_name, RUNS) if run in found]
    yield f"| | {' | '.join(run.replace('_', ' ') for run in runs)} |"
    yield "| --- |" + " --- |" * len(runs)
    for (kernel, option), title in SHOWN.items():
        cells = [span(found[run].get(kernel, {}).get(option, {})) for run in runs]
        yield f"| {title} | {' | '.join(cells)} |"


def span(by_place: Mapping[str, float]) -> str:
    """`0.37 - 0.45`."""
    ends = [f"{end(by_place.values()):.2f}" for end in (min, max)] if by_place else []
    return " - ".join(dict.fromkeys(ends))


def kept_rows() -> list[Row]:
    """All figures that are kept; of one measured afresh the last."""
    found: dict[str, Row] = {}
    for line in (RESULTS / "profits.jsonl").read_text(encoding="utf-8").splitlines():
        kept = json.loads(line)
        found[kept["name"]] = Row(**{field.name: kept[field.name] for field in fields(Row)})
    return list(found.values())


def cells_of(runtime: Runtime, precision: str) -> Iterator[tuple[str, Callable[[str], Rows]]]:
    """All cells of one run by name, with what measures them."""
    own = (runtime, precision)
    for place in BLOCK_PLACES:
        yield f"block.{at(place)}", partial(block_rows, *own, place)
    for kernel in KERNELS:
        for place in kernel.places:
            yield f"{kernel.label}.{at(place)}", partial(kernel_rows, *own, kernel, place)
    if precision == F32 and runtime.name != "mnn":
        for place in ZERO_PLACES:
            yield f"zeros.{at(place)}", partial(zero_rows, *own, place)


def main() -> None:
    bench = Bench("profits", __doc__)
    add = bench.parser.add_argument
    add("--runtimes", nargs="+", default=["ort", "openvino", "mnn"], metavar="NAME")
    add("--only", nargs="+", default=[""], metavar="CELL", help="cells whose names begin so")
    add("--table", action="store_true", help="print the kept figures as Markdown")
    options = bench.parse()
    if options.table:
        print("\n".join(table_of(kept_rows())))
        return
    with bench.measuring():
        for name, precision in RUNS:
            try:
                runtime = get_runtime(name) if name in options.runtimes else None
            except MissingExtraError:
                runtime = None
            if runtime is None or runtime.refusal(precision):
                continue
            for end, make in cells_of(runtime, precision):
                cell = f"{run_name((name, precision))}.{end}"
                if cell.startswith(tuple(options.only)):
                    bench.cell(cell, partial(make, f"profits.{cell}"))
    rows = kept_rows()
    if len(ratios_of(rows)) == len(RUNS) and not options.quick:
        Path(DATA).write_text(data_of(rows), encoding="utf-8")
        print(f"{DATA} is written")


if __name__ == "__main__":
    main()
