"""Predicted against measured latency of unseen pruned variants, on this machine.

For every model: measures what its latency model asks for (operators, the unpruned model and ten
plans), then measures other random plans and compares. Latencies are ratios to the interleaved
unpruned model. Beside it, what a cost proportional to MACs would have said (one factor, fitted to
the same ten plans).

    scripts/bench_latency MODEL.onnx [MODEL.onnx ...] [--plans 20] [--seed 1]
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np

from rlprune.graph.from_onnx import trace_onnx
from rlprune.graph.skeleton import fill, strip
from rlprune.graph.types import FloatArray, IntArray
from rlprune.latency.collect import measure_subjects, trace_models
from rlprune.latency.device import local_device_key
from rlprune.latency.model import LatencyModel
from rlprune.latency.types import Measurement, ModelSubject, OperatorSpec
from rlprune.profile.types import keep_levels
from rlprune.runtime import get_runtime


def random_plans(levels: IntArray, level_count: IntArray, count: int, seed: int) -> IntArray:
    """Half of them with every group drawn by itself, half around a common share [count, G]."""
    rng = np.random.default_rng(seed)
    top = level_count - 1
    rows = []
    for index in range(count):
        share = rng.uniform(size=len(top))
        if index % 2:
            share = np.clip(rng.uniform() + rng.normal(0.0, 0.3, len(top)), 0.0, 1.0)
        rows.append(levels[np.arange(len(top)), np.rint(share * top).astype(np.int64)])
    return np.array(rows)


def report(name: str, errors: FloatArray) -> str:
    within = [float(np.mean(np.abs(errors) < np.log1p(limit))) for limit in (0.05, 0.10)]
    return (
        f"{name}: within 5 % {within[0]:.0%}, within 10 % {within[1]:.0%}, "
        f"median |error| {np.median(np.abs(errors)):.1%}, bias {np.mean(errors):+.1%}, "
        f"worst {np.max(np.abs(errors)):.1%}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--plans", type=int, default=20, help="unseen plans per model")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--raw", type=Path, help="append every measurement, one JSON a line")
    arguments = parser.parse_args()
    runtime = get_runtime()
    device = local_device_key(runtime)
    print(f"{device}, load average {os.getloadavg()[0]:.1f}, seed {arguments.seed}")
    measurements: list[Measurement] = []
    graphs = {}
    for path in arguments.models:
        trace = trace_onnx(path)
        if path.name.endswith((".legacy.onnx", ".dynamo.onnx")):  # weights emptied: fill them
            trace = trace_onnx(fill(strip(trace.model)))
        graph = trace.graph
        graphs[graph.fingerprint] = graph
        levels, level_count = keep_levels(graph)
        models = trace_models(trace)
        model = LatencyModel.fit(device, measurements, graphs)
        began, operators = time.monotonic(), 0
        while missing := model.missing(graph, levels, level_count):
            taken = measure_subjects(missing, model_of=models, device=device, runtime=runtime)
            operators += sum(isinstance(one.subject, OperatorSpec) for one in taken)
            measurements += taken
            model = LatencyModel.fit(device, measurements, graphs)
        seconds = time.monotonic() - began
        tables = model.compile(graph, levels, level_count)

        plans = random_plans(levels, level_count, arguments.plans, arguments.seed)
        subjects = [ModelSubject(graph.fingerprint, tuple(map(int, keeps))) for keeps in plans]
        tests = measure_subjects(subjects, model_of=models, device=device, runtime=runtime)
        if arguments.raw:
            with arguments.raw.open("a") as file:
                for one in [*measurements, *tests]:
                    file.write(json.dumps({"model": path.name, **asdict(one)}) + "\n")
        good = [one for one in tests if one.status != "failed"]
        keeps = np.array([one.subject.keeps for one in good])  # type: ignore[union-attr]
        measured = np.array([one.control_ratio for one in good])
        base_ms = float(tables.latency_ms(graph.widths[None])[0])
        predicted = tables.latency_ms(keeps) / base_ms
        low, high = tables.interval_ratio
        covered = np.mean((measured >= predicted * low) & (measured <= predicted * high))
        over = np.mean(measured > predicted * high * 1.05)
        seen = next(row for row in model.rows if row.graph is graph)
        share = graph.macs(seen.keeps) / graph.macs(graph.widths[None])
        factor = np.exp(np.mean(np.log(seen.ms / base_ms) - np.log(share)))
        by_macs = factor * graph.macs(keeps) / graph.macs(graph.widths[None])
        unstable = sum(one.status == "unstable" for one in tests)
        print(
            f"\n{path.name}: {base_ms:.2f} ms unpruned, {operators} operators and "
            f"{len(seen.ms)} whole models measured in {seconds:.0f} s; {len(good)} unseen plans "
            f"({unstable} unstable), control {np.median([one.control_ms for one in good]):.2f} ms, "
            f"load average {os.getloadavg()[0]:.1f}"
        )
        print("  " + report("predicted", np.log(predicted / measured)))
        print(
            f"  90 % interval {low:.3f}..{high:.3f} covers {covered:.0%}; "
            f"{over:.0%} more than 5 % above its upper end"
        )
        print("  " + report("by MACs", np.log(by_macs / measured)))


if __name__ == "__main__":
    main()
