"""Measures operators and plans on every runtime: what latency is first predicted from elsewhere.

    scripts/data latency_tables [--runtimes NAME ...] [--threads N ...] [--precision P] [--work DIR]
                                [--only-write]

Networks of the training families, and five that see images of 224x224: the operators that tell most
of their plans. All is kept in the store of
--work, so that the same command goes on where it was, and what there is of all kinds is written to
rlprune/latency/data/operators.json (`rlprune.latency.known`). Nothing of the held-out families is
measured: plans of those are what predictions are judged by (`scripts/bench instant_latency`).
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from benchmarks.graph import write_model
from datasets import catalogue
from datasets.pack import exported, shared_folder
from datasets.running import stoppable
from rlprune.constraints import Constraints, bind
from rlprune.files import write_atomic
from rlprune.graph.from_onnx import OnnxTrace, trace_onnx
from rlprune.latency import known
from rlprune.latency.choose import operator_specs
from rlprune.latency.collect import measure_subjects, trace_models
from rlprune.latency.costs import CostPoint
from rlprune.latency.device import local_device_key, preferred_multiple
from rlprune.latency.measure import MeasureConfig
from rlprune.latency.model import LatencyModel
from rlprune.latency.operators import form
from rlprune.latency.types import (
    FORM_FIELDS,
    PRECISIONS,
    Arithmetic,
    OperatorSpec,
)
from rlprune.runtime import RUNTIMES, get_runtime
from rlprune.schemes import Space, profitable_schemes, space_of
from rlprune.store import Store, open_store

LARGE = ("resnet18", "mobilenet_v2", "shufflenet_v2_x1_0", "resnet50", "vit_b_16")
"""Networks of 224x224."""
MOST_OPERATORS, MOST_LARGE_OPERATORS = 90, 40
LEAST_POINTS = 30
"""Operators of a kind that is worth shipping."""


def main() -> None:
    parser = argparse.ArgumentParser("latency_tables", description=__doc__)
    parser.add_argument("--runtimes", nargs="+", default=list(RUNTIMES), metavar="NAME")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], metavar="N")
    parser.add_argument("--precision", default="f32")
    parser.add_argument("--work", type=Path, default=user_cache_path("rlprune") / "latency_tables")
    parser.add_argument("--shared", help="the measuring pack, for four of the large networks")
    parser.add_argument("--only-write", action="store_true", help="measure nothing")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    store = open_store(f"sqlite:///{options.work / 'latency.db'}")
    with stoppable():
        for threads in [] if options.only_write else options.threads:
            for runtime in options.runtimes:
                for name, trace in networks(options.shared):
                    measured(name, trace, store, runtime, threads, options.precision)
    written(store)


def networks(shared: str | None) -> Iterator[tuple[str, OnnxTrace]]:
    """What is measured, small networks first."""
    for name, net in catalogue.NETS.items():
        if not catalogue.held_out(name):
            yield name, trace_onnx(exported(net.make().eval()))
    models = shared_folder(shared) / "models"
    for name in LARGE:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{name}.onnx"
            write_model(name, path, models, seed=0)
            yield name, trace_onnx(path)


def measured(
    name: str, trace: OnnxTrace, store: Store, runtime: str, threads: int, precision: str
) -> None:
    """What of a network the store does not have yet is measured."""
    found = get_runtime(runtime)
    device = local_device_key(found, thread_count=threads)
    space = options_of(trace, device, precision)
    model = fitted(store, device, precision)
    most = MOST_LARGE_OPERATORS if name in LARGE else MOST_OPERATORS
    operators = operator_specs(space, model.costs, model.measured, most=most)
    done = measure_subjects(
        [replace(spec, precision=precision) for spec in operators],
        model_of=trace_models(trace),
        device=device,
        runtime=found,
        config=MeasureConfig(thread_count=threads),
    )
    store.add_measurements(done)
    steady = sum(one.status == "ok" for one in done)
    print(f"{device} {precision} {name}: {len(done)} operators, {steady} steady", flush=True)


def written(store: Store) -> None:
    """The file, of everything that was measured."""
    kinds = []
    for record in store.devices():
        for precision in PRECISIONS:
            model = fitted(store, record.key, precision)
            if len(model.points) >= LEAST_POINTS:
                kind = known.kind_of(record.key, precision)
                told = {"call_ms": figure(model.call_ms), "forms": forms(model.points)}
                kinds.append(kind._asdict() | told)
    made = f"scripts/data latency_tables, {platform.machine()}, {date.today()}"
    told = {"format": known.FORMAT, "made": made, "kinds": kinds}
    lines = json.dumps(told, separators=(",", ":")).replace('{"kind"', '\n{"kind"')
    known.DATA.parent.mkdir(exist_ok=True)
    write_atomic(known.DATA, (lines + "\n").encode())
    print(f"{known.DATA}: {len(kinds)} kinds, {len(lines) / 1000:.0f} kB")


def fitted(store: Store, device: str, precision: str) -> LatencyModel:
    """By the device's own measurements alone."""
    arithmetic = Arithmetic.of(precision)
    return LatencyModel.fit(
        device, store.measurements(device), store.graphs(), arithmetic=arithmetic
    )


def forms(points: Sequence[CostPoint]) -> list[dict[str, Any]]:
    """Points by form, each as [in-width, out-width, ms]."""
    found: dict[OperatorSpec, list[list[float]]] = {}
    for point in sorted(points, key=lambda one: one.spec):
        own = found.setdefault(form(point.spec), [])
        own.append([point.spec.in_width, point.spec.out_width, figure(point.ms)])
    return [
        {name: getattr(key, name) for name in FORM_FIELDS if getattr(key, name)} | {"points": own}
        for key, own in found.items()
    ]


def figure(value: float) -> float:
    """To four digits, as files have it."""
    return float(f"{value:.4g}")


def options_of(trace: OnnxTrace, device: str, precision: str) -> Space:
    """What plans decide on the device."""
    schemes = profitable_schemes(device, precision)
    bound = bind(
        trace.graph,
        Constraints(),
        round_to=preferred_multiple(device, precision),
        device=device,
        precision=precision,
    )
    return space_of(trace.graph, bound, schemes)


if __name__ == "__main__":
    main()
