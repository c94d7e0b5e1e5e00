"""Latency that can be trusted: predictions, repeats and certificates on this machine's device keys.

Parts, each resumable (measurements are kept under `--work`, too):

- `predict`: per key and model, measures what the latency model asks for, then random plans that
  nothing was fitted to, and compares ratios to the interleaved unpruned model. Beside it on the
  same plans: no whole model but the base measured, and three rivals.
- `transfer`: a key whose operators were never measured, from ten whole models of one network and
  the operators of another key.
- `repeat`: one plan measured in five new processes, a busy neighbour beside.
- `certify`: certified plans, measured once more in a new process.
- `speed`: a batch of 4,096 plans; operators of a new ResNet-50.

Needs shared/data and shared/models. Figures of a busy machine are worse. `--quick`: two models, few
plans.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from itertools import permutations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from platformdirs import user_cache_path

from benchmarks.harness import Bench, Row
from benchmarks.parts.latency_data import MODELS, Case, Lab, fitted
from benchmarks.parts.latency_loop import certify_rows, repeat_rows, speed_rows
from benchmarks.peers.latency import RIVALS, Predict
from rlprune.graph.types import FloatArray, IntArray
from rlprune.latency.known import Donor
from rlprune.latency.tables import LatencyTables
from rlprune.latency.types import ModelSubject, OperatorSpec
from rlprune.runtime import RUNTIMES

PARTS = ("predict", "transfer", "repeat", "certify", "speed")
CLOSE, NEAR = 0.05, 0.10
TEN = 10


def main() -> None:
    bench = Bench("latency", __doc__, seed=1)
    add = bench.parser.add_argument
    add("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    add("--runtimes", nargs="+", choices=list(RUNTIMES), default=list(RUNTIMES))
    add("--models", nargs="+", metavar="NAME")
    add("--plans", type=int, help="unseen plans per model and key; 40 by default")
    add("--sessions", type=int, default=12, help="of every whole model collected")
    add("--work", type=Path, default=user_cache_path("rlprune") / "bench_latency")
    options = bench.parse()
    names = tuple(options.models or (MODELS[:2] if options.quick else MODELS))
    count = options.plans or (10 if options.quick else 40)
    lab = Lab(options.work, names, count, options.seed, options.sessions, options.shared)
    with bench.measuring():
        for part, rows in parts(options):
            name = part if names == MODELS else f"{part} of {' '.join(names)}"
            again = bench.is_again(name)
            with tempfile.TemporaryDirectory() if again else nullcontext(options.work) as work:
                bench.cell(name, partial(rows, lab.within(Path(work))))


def parts(options: argparse.Namespace) -> Iterator[tuple[str, Callable[[Lab], Iterator[Row]]]]:
    """The cells that were asked for, and what measures each."""
    for part, rows in (
        ("predict", predict_rows),
        ("repeat", repeat_rows),
        ("certify", certify_rows),
    ):
        for runtime in options.runtimes if part in options.only else ():
            yield f"{part}/{runtime}", partial(rows, runtime)
    for runtime, donor in permutations(options.runtimes, 2):
        if "transfer" in options.only:
            yield f"transfer/{runtime} from {donor}", partial(transfer_rows, runtime, donor)
    if "speed" in options.only:
        yield f"speed/{options.runtimes[0]}", partial(speed_rows, options.runtimes[0])


def predict_rows(runtime: str, lab: Lab) -> Iterator[Row]:
    errors: dict[str, list[FloatArray]] = {}
    covered: list[NDArray[np.bool_]] = []
    for case in lab.cases(runtime):
        measured, keeps = tests(case)
        tables, base_only = (fitted(case, *few).compile(case.space) for few in ((), (1,)))
        ways: dict[str, Predict] = {name: rival(case) for name, rival in RIVALS.items()}
        ways |= {"predicted": by_tables(case, tables), "base alone": by_tables(case, base_only)}
        for name, way in ways.items():
            errors.setdefault(name, []).append(np.log(ratios(case, way, keeps) / measured))
        own = errors["predicted"][-1]
        choice = case.space.choice_of(keeps)
        low, high = (ends / tables.latency_ms(choice) for ends in tables.interval_ms(choice))
        covered.append((-own >= np.log(low)) & (-own <= np.log(high)))
        operators = sum(isinstance(one.subject, OperatorSpec) for one in case.fitting)
        print(
            f"  {case.name}: {operators} operators and {len(case.fitting) - operators} whole models"
            f" measured; {len(measured)} unseen plans, "
            f"{sum(one.status == 'unstable' for one in case.tests)} unstable; within 10 %: "
            f"{np.mean(np.abs(own) <= np.log1p(NEAR)):.0%}, bias {own.mean():+.1%}, "
            f"covered {covered[-1].mean():.0%}",
            flush=True,
        )
        yield Row(f"{runtime}/{case.name}/measurements", len(case.fitting), "", 200, "min", 1, None)
    for name, parts in errors.items():
        found = np.concatenate(parts)
        ours = name == "predicted"
        for limit, target in ((CLOSE, 0.7), (NEAR, 0.9)):
            full = f"{runtime}/{name}/within {limit:.0%}"
            yield share_row(full, np.abs(found), limit, target if ours else None)
        median = float(np.median(np.abs(found)))
        yield Row(f"{runtime}/{name}/median error", median, "", None, "min", len(found), None)
    hit = np.concatenate(covered)
    # The target is a band, so both of its ends are rows.
    share, ends, name = float(hit.mean()), proportion(hit), f"{runtime}/90 % interval covers"
    yield Row(f"{name}, max", share, "", 0.87, "max", len(hit), ends)
    yield Row(f"{name}, min", share, "", 0.93, "min", len(hit), ends)


def transfer_rows(runtime: str, donor: str, lab: Lab) -> Iterator[Row]:
    """A key as if it were new: no operators, ten whole models, another key's costs."""
    errors = []
    for case, known in zip(lab.cases(runtime), lab.cases(donor), strict=True):
        other = fitted(known)
        begun = Donor(other.costs, other.call_ms)
        model = fitted(case, TEN, operators=False, donor=begun)
        predict = by_tables(case, model.compile(case.space))
        measured, keeps = tests(case)
        errors.append(np.log(ratios(case, predict, keeps) / measured))
    name = f"{runtime} new, from {donor}/within 10%"
    yield share_row(name, np.abs(np.concatenate(errors)), NEAR, 0.7)


def tests(case: Case) -> tuple[FloatArray, IntArray]:
    """Measured ratio to the control [N], and keeps [N, S], of the unseen plans."""
    keeps = [one.subject.settings for one in case.tests if isinstance(one.subject, ModelSubject)]
    return np.array([one.control_ratio for one in case.tests]), np.array(keeps, dtype=np.int64)


def by_tables(case: Case, tables: LatencyTables) -> Predict:
    return lambda keeps: tables.latency_ms(case.space.choice_of(keeps))


def ratios(case: Case, predict: Predict, keeps: IntArray) -> FloatArray:
    """The prediction over that of the unpruned model."""
    return predict(keeps) / float(predict(case.trace.graph.widths[None])[0])


def share_row(name: str, errors: FloatArray, limit: float, target: float | None) -> Row:
    hit = errors <= np.log1p(limit)
    return Row(name, float(hit.mean()), "", target, "max", len(hit), proportion(hit))


def proportion(hit: NDArray[np.bool_]) -> tuple[float, float]:
    """Wilson's 90 % interval of a share."""
    n, share, z = len(hit), float(np.mean(hit)), 1.645
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return float(centre - half), float(centre + half)


if __name__ == "__main__":
    main()
