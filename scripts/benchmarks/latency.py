"""Latency that can be trusted: predictions, repeats and certificates on this machine's device keys.

    scripts/bench_latency [--quick] [--seed N] [--json FILE] [--only PART ...] [--runtimes NAME ...]
                          [--models NAME ...] [--plans N] [--sessions N] [--work DIR]
                          [--shared DIR]

Parts, each resumable (measurements are kept under `--work`):

- `predict`: per key and model, measures what the latency model asks for, then random plans that
  nothing was fitted to, and compares ratios to the interleaved unpruned model. Beside it on the
  same plans: no whole model but the base measured, and three rivals.
- `transfer`: a key whose operators were never measured, from ten whole models of one network and
  the operators of another key.
- `repeat`: one plan measured in five new processes, a busy neighbour beside.
- `certify`: certified plans, measured once more in a new process.
- `speed`: a batch of 4,096 plans; operators of a new 50-layer network.

Needs shared/data and shared/models. Load averages are printed: figures of a busy machine are worse.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from platformdirs import user_cache_path

from benchmarks.harness import Row, write_rows
from benchmarks.parts.latency_data import MODELS, Case, collect, fitted, traced
from benchmarks.parts.latency_loop import certify_rows, repeat_rows, speed_rows
from benchmarks.peers.latency import RIVALS
from rlprune.graph.types import FloatArray, IntArray
from rlprune.latency.device import local_device_key
from rlprune.latency.measure import MeasureConfig
from rlprune.latency.types import ModelSubject, OperatorSpec
from rlprune.runtime import RUNTIMES, get_runtime

PARTS = ("predict", "transfer", "repeat", "certify", "speed")
CLOSE, NEAR = 0.05, 0.10
TEN = 10


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="two models, few plans")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--runtimes", nargs="+", choices=list(RUNTIMES), default=list(RUNTIMES))
    parser.add_argument("--models", nargs="+", default=None, metavar="NAME")
    parser.add_argument("--plans", type=int, help="unseen plans per model and key; 40 by default")
    parser.add_argument("--sessions", type=int, default=12, help="of every whole model collected")
    parser.add_argument("--work", type=Path, default=user_cache_path("rlprune") / "bench_latency")
    parser.add_argument("--shared", help="folder that holds data/ and models/")
    options = parser.parse_args()
    names = options.models or (MODELS[:2] if options.quick else MODELS)
    plan_count = options.plans or (10 if options.quick else 40)
    options.work.mkdir(parents=True, exist_ok=True)

    rows: list[Row] = []
    cases: dict[str, list[Case]] = {}
    traces = {name: traced(name, options.shared) for name in names}
    for runtime_name in options.runtimes:
        runtime = get_runtime(runtime_name)
        device = local_device_key(runtime)
        print(f"{device}, load average {os.getloadavg()[0]:.1f}, seed {options.seed}", flush=True)
        cases[runtime_name] = [
            collect(
                name,
                trace,
                runtime,
                device,
                options.work,
                plan_count=plan_count,
                seed=options.seed,
                config=MeasureConfig(session_count=options.sessions),
            )
            for name, trace in traces.items()
        ]
        if "predict" in options.only:
            rows += show(predict_rows(runtime_name, device, cases[runtime_name]))
    if "transfer" in options.only:
        rows += show(transfer_rows(cases))
    for runtime_name, own in cases.items():
        if "repeat" in options.only:
            rows += show(repeat_rows(runtime_name, own, quick=options.quick))
        if "certify" in options.only:
            rows += show(certify_rows(runtime_name, own, quick=options.quick))
    if "speed" in options.only:
        rows += show(speed_rows(traces, options.runtimes[0]))
    if options.json:
        write_rows(options.json, rows)


def predict_rows(runtime: str, device: str, cases: list[Case]) -> Iterator[Row]:
    errors: dict[str, list[FloatArray]] = {}
    covered: list[FloatArray] = []
    for case in cases:
        measured, keeps = tests(case)
        model = fitted(case, device)
        tables = model.compile(case.trace.graph, case.levels, case.level_count)
        predicted = ratios(case, tables.latency_ms)
        own = np.log(predicted(keeps) / measured)
        base_only = fitted(case, device, 1).compile(case.trace.graph, case.levels, case.level_count)
        errors.setdefault("predicted", []).append(own)
        errors.setdefault("base alone", []).append(
            np.log(ratios(case, base_only.latency_ms)(keeps) / measured)
        )
        for name, rival in RIVALS.items():
            theirs = ratios(case, rival(case, device))(keeps)
            errors.setdefault(name, []).append(np.log(theirs / measured))
        low, high = (ends / tables.latency_ms(keeps) for ends in tables.interval_ms(keeps))
        covered.append((-own >= np.log(low)) & (-own <= np.log(high)))
        control = np.array([one.control_ms for one in case.tests])
        operators = sum(isinstance(one.subject, OperatorSpec) for one in case.fitting)
        print(
            f"  {case.name}: {operators} operators and {len(case.fitting) - operators} whole models"
            f" measured; {len(measured)} unseen plans, "
            f"{sum(one.status == 'unstable' for one in case.tests)} unstable; control "
            f"{np.median(control):.2f} ms, drift {np.ptp(control) / np.median(control):.0%}; "
            f"within 5 / 10 %: {within(own, CLOSE):.0%} / {within(own, NEAR):.0%}, "
            f"bias {own.mean():+.1%}, covered {covered[-1].mean():.0%}"
        )
        yield Row(f"{runtime}/{case.name}/measurements", len(case.fitting), "", 200, "min", 1, None)
    for name, parts in errors.items():
        found = np.concatenate(parts)
        ours = name == "predicted"
        for limit, target in ((CLOSE, 0.7), (NEAR, 0.9)):
            share = share_row(f"{runtime}/{name}/within {limit:.0%}", np.abs(found), limit)
            yield share(target if ours else None)
        median = float(np.median(np.abs(found)))
        yield Row(f"{runtime}/{name}/median error", median, "", None, "min", len(found), None)
    hit = np.concatenate(covered)
    # The target is a band, so both of its ends are rows.
    for sense, target in (("max", 0.87), ("min", 0.93)):
        name = f"{runtime}/90 % interval covers, {sense}"
        yield Row(name, float(hit.mean()), "", target, sense, len(hit), proportion(hit))


def transfer_rows(cases: dict[str, list[Case]]) -> Iterator[Row]:
    """Each key as if it were new: no operators, ten whole models, another key's costs."""
    for runtime, own in cases.items():
        for other, theirs in cases.items():
            if other == runtime:
                continue
            errors = []
            for case, known in zip(own, theirs, strict=True):
                device = case.tests[0].device
                donor = fitted(known, known.tests[0].device).costs
                model = fitted(case, device, TEN, operators=False, donor=donor)
                tables = model.compile(case.trace.graph, case.levels, case.level_count)
                measured, keeps = tests(case)
                errors.append(np.log(ratios(case, tables.latency_ms)(keeps) / measured))
            found = np.abs(np.concatenate(errors))
            row = share_row(f"{runtime} new, from {other}/within 10%", found, NEAR)
            yield row(0.7)


def tests(case: Case) -> tuple[FloatArray, IntArray]:
    """Measured ratio to the control [N], and keeps [N, G], of the unseen plans."""
    keeps = [one.subject.keeps for one in case.tests if isinstance(one.subject, ModelSubject)]
    return np.array([one.control_ratio for one in case.tests]), np.array(keeps, dtype=np.int64)


def ratios(
    case: Case, predict: Callable[[IntArray], FloatArray]
) -> Callable[[IntArray], FloatArray]:
    """The prediction over that of the unpruned model."""
    base = float(predict(case.trace.graph.widths[None])[0])
    return lambda keeps: predict(keeps) / base


def within(errors: FloatArray, limit: float) -> float:
    return float(np.mean(np.abs(errors) <= np.log1p(limit)))


def share_row(name: str, errors: FloatArray, limit: float) -> Callable[[float | None], Row]:
    hit = errors <= np.log1p(limit)
    return lambda target: Row(name, float(hit.mean()), "", target, "max", len(hit), proportion(hit))


def proportion(hit: FloatArray) -> tuple[float, float]:
    """Wilson's 90 % interval of a share."""
    n, share, z = len(hit), float(np.mean(hit)), 1.645
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return float(centre - half), float(centre + half)


def show(rows: Iterator[Row]) -> list[Row]:
    made = []
    for row in rows:
        made.append(row)
        target, met = "", ""
        if row.target is not None:
            good = row.value >= row.target if row.sense == "max" else row.value <= row.target
            target = f"target {'>=' if row.sense == 'max' else '<='} {row.target:g}"
            met = "yes" if good else "NO"
        spread = "" if row.interval is None else f"[{row.interval[0]:.3f}, {row.interval[1]:.3f}]"
        print(
            f"{row.name:52} {row.value:9.3f} {row.unit:4} {spread:16} n={row.n:<5} {target:14} "
            f"{met}",
            flush=True,
        )
    return made


if __name__ == "__main__":
    main()
