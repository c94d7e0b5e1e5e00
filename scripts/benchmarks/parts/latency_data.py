"""What bench_latency measures: models, plans, and measurements kept from run to run in a store."""

from __future__ import annotations

import gzip
import os
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets.pack import CifarPack, shared_data
from rlprune.graph.from_onnx import OnnxTrace, trace_onnx
from rlprune.graph.skeleton import fill, strip
from rlprune.graph.types import IntArray
from rlprune.latency.collect import measure_subjects, trace_models
from rlprune.latency.costs import OperatorCosts
from rlprune.latency.measure import MeasureConfig
from rlprune.latency.model import CALIBRATION_COUNT, LatencyModel
from rlprune.latency.types import Measurement, ModelSubject, OperatorSpec
from rlprune.profile.types import keep_levels
from rlprune.runtime import Runtime
from rlprune.store import Store, open_store

MODELS = (
    "cifar10_resnet20",
    "mobilenet_v2",
    "shufflenet_v2_x1_0",
    "cifar10_resnet56",
    "efficientnet_b0",
)
MEASURE_ROUNDS = 4
PART = 24
"""Subjects measured in turns, and lost if the program is interrupted."""


@dataclass(frozen=True)
class Case:
    """One model on one device, and what was measured of it."""

    name: str
    trace: OnnxTrace
    levels: IntArray
    level_count: IntArray
    fitting: tuple[Measurement, ...]
    """What its latency model asked for: operators, the unpruned model, plans."""
    tests: tuple[Measurement, ...]
    """Plans that nothing was fitted to; failed ones are left out."""
    operator_sec: float
    """Device time of the operators; NaN where they had been measured before."""


def traced(name: str, shared: str | None) -> OnnxTrace:
    data = shared_data(shared)
    if name.startswith("cifar10"):
        return CifarPack(data).traced(name)
    path = data.parent / "models" / f"{name}.legacy.onnx.gz"
    emptied = trace_onnx(gzip.decompress(path.read_bytes()))
    return trace_onnx(fill(strip(emptied.model)))


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


def collect(
    name: str,
    trace: OnnxTrace,
    runtime: Runtime,
    device: str,
    work: Path,
    *,
    plan_count: int,
    seed: int,
    config: MeasureConfig | None = None,
) -> Case:
    """Measures what is not in the model's store under `work` yet."""
    url = f"sqlite:///{work / f'{runtime.name}-{name}.sqlite'}"
    with closing(open_store(url)) as store:
        store.register_device(device, {})
        store.put_graph(trace.graph, strip(trace.model))
        return _collect(name, trace, runtime, device, store, plan_count, seed, config)


def _collect(
    name: str,
    trace: OnnxTrace,
    runtime: Runtime,
    device: str,
    store: Store,
    plan_count: int,
    seed: int,
    config: MeasureConfig | None,
) -> Case:
    graph = trace.graph
    levels, level_count = keep_levels(graph)
    model_of = trace_models(trace)
    plans = random_plans(levels, level_count, plan_count, seed)
    wanted = [ModelSubject(graph.fingerprint, tuple(map(int, keeps))) for keeps in plans]

    def known() -> tuple[list[Measurement], list[Measurement]]:
        every = store.measurements(device)
        return (
            [one for one in every if one.subject not in wanted],
            [one for one in every if one.subject in wanted],
        )

    def measured(subjects: Sequence[OperatorSpec | ModelSubject], what: str) -> float:
        began = time.monotonic()
        for start in range(0, len(subjects), PART):
            store.add_measurements(
                measure_subjects(
                    subjects[start : start + PART],
                    model_of=model_of,
                    device=device,
                    runtime=runtime,
                    config=config,
                )
            )
            done = min(start + PART, len(subjects))
            print(
                f"  {runtime.name} {name}: {done} of {len(subjects)} {what}, "
                f"{time.monotonic() - began:.0f} s, load {os.getloadavg()[0]:.1f}",
                flush=True,
            )
        return time.monotonic() - began

    fresh = not known()[0]
    operator_sec = 0.0
    for _ in range(MEASURE_ROUNDS):
        model = LatencyModel.fit(device, known()[0], {graph.fingerprint: graph})
        missing = model.missing(graph, levels, level_count)
        missing = [one for one in missing if one not in wanted]
        operator_sec += measured([o for o in missing if isinstance(o, OperatorSpec)], "operators")
        models = [one for one in missing if isinstance(one, ModelSubject)]
        measured(models, "fitted plans")
        if not missing:
            break
    tried = {one.subject for one in known()[1]}
    measured([one for one in dict.fromkeys(wanted) if one not in tried], "unseen plans")
    fitting, tests = known()
    return Case(
        name=name,
        trace=trace,
        levels=levels,
        level_count=level_count,
        fitting=tuple(fitting),
        tests=tuple(one for one in tests if one.status != "failed"),
        operator_sec=operator_sec if fresh else float("nan"),
    )


def fitted(
    case: Case,
    device: str,
    own_count: int = CALIBRATION_COUNT,
    *,
    operators: bool = True,
    donor: OperatorCosts | None = None,
) -> LatencyModel:
    """The case's latency model from its operators and the first of its whole models."""
    plans = [one for one in case.fitting if isinstance(one.subject, ModelSubject)][:own_count]
    alone = [one for one in case.fitting if isinstance(one.subject, OperatorSpec)]
    graphs = {case.trace.graph.fingerprint: case.trace.graph}
    return LatencyModel.fit(device, [*(alone if operators else []), *plans], graphs, donor=donor)
