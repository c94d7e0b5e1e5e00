"""What `latency` measures: models, plans, and measurements kept from run to run in a store."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from datasets.pack import CifarPack, shared_data, shared_folder
from rlprune.graph.from_onnx import OnnxTrace, trace_onnx
from rlprune.graph.skeleton import fill, strip
from rlprune.graph.types import IntArray
from rlprune.latency.collect import measure_subjects, trace_models
from rlprune.latency.device import local_device_key
from rlprune.latency.known import Donor
from rlprune.latency.measure import MeasureConfig
from rlprune.latency.model import CALIBRATION_COUNT, LatencyModel
from rlprune.latency.types import Measurement, ModelSubject, OperatorSpec
from rlprune.runtime import Runtime, get_runtime
from rlprune.schemes import Space, space_with
from rlprune.schemes.channels import keep_levels
from rlprune.store import open_store

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
    device: str
    trace: OnnxTrace
    space: Space
    fitting: tuple[Measurement, ...]
    """What its latency model asked for: operators, the unpruned model, plans."""
    tests: tuple[Measurement, ...]
    """Plans that nothing was fitted to; failed ones are left out."""


@dataclass(frozen=True)
class Lab:
    """Some models, measured on whatever runtime is asked for; kept in `work`."""

    work: Path
    models: tuple[str, ...]
    plan_count: int
    """Unseen plans of each model."""
    seed: int
    session_count: int
    shared: str | None
    known: dict[str, list[Case]] = field(default_factory=dict)

    def within(self, work: Path) -> Lab:
        """The same in another folder, where nothing may be known yet."""
        return self if work == self.work else replace(self, work=work, known={})

    def cases(self, runtime: str) -> list[Case]:
        """Measures what is not in the models' stores yet."""
        if runtime not in self.known:
            self.work.mkdir(parents=True, exist_ok=True)
            self.known[runtime] = [self._case(get_runtime(runtime), name) for name in self.models]
        return self.known[runtime]

    def _case(self, runtime: Runtime, name: str) -> Case:
        trace, device = traced(name, self.shared), local_device_key(runtime)
        graph = trace.graph
        space = space_with(graph, *keep_levels(graph))
        plans = random_plans(space, self.plan_count, self.seed)
        wanted = [ModelSubject(graph.fingerprint, tuple(settings.tolist())) for settings in plans]
        url = f"sqlite:///{self.work / f'{runtime.name}-{name}.sqlite'}"
        with closing(open_store(url)) as store:
            store.register_device(device, {})
            store.put_graph(graph, strip(trace.model))

            def known(tests: bool) -> list[Measurement]:
                every = store.measurements(device)
                return [one for one in every if (one.subject in wanted) == tests]

            def measured(subjects: Sequence[OperatorSpec | ModelSubject], what: str) -> None:
                for start in range(0, len(subjects), PART):
                    found = measure_subjects(
                        subjects[start : start + PART],
                        model_of=trace_models(trace),
                        device=device,
                        runtime=runtime,
                        config=MeasureConfig(session_count=self.session_count),
                    )
                    store.add_measurements(found)
                    done = min(start + PART, len(subjects))
                    where = f"{runtime.name} {name}"
                    print(f"  {where}: {done} of {len(subjects)} {what}", flush=True)

            for _ in range(MEASURE_ROUNDS):
                model = LatencyModel.fit(device, known(False), {graph.fingerprint: graph})
                missing = [one for one in model.missing(space) if one not in wanted]
                measured([one for one in missing if isinstance(one, OperatorSpec)], "operators")
                measured([one for one in missing if isinstance(one, ModelSubject)], "fitted plans")
                if not missing:
                    break
            tried = {one.subject for one in known(True)}
            measured([one for one in dict.fromkeys(wanted) if one not in tried], "unseen plans")
            tests = tuple(one for one in known(True) if one.status != "failed")
            return Case(name, device, trace, space, tuple(known(False)), tests)


def traced(name: str, shared: str | None) -> OnnxTrace:
    if name.startswith("cifar10"):
        return CifarPack(shared_data(shared)).traced(name)
    path = shared_folder(shared) / "models" / f"{name}.legacy.onnx.gz"
    emptied = trace_onnx(gzip.decompress(path.read_bytes()))
    return trace_onnx(fill(strip(emptied.model)))


def random_plans(space: Space, count: int, seed: int) -> IntArray:
    """Settings [count, S]: half with every site drawn by itself, half around a common share."""
    rng = np.random.default_rng(seed)
    top = space.unpruned
    rows = []
    for index in range(count):
        share = rng.uniform(size=len(top))
        if index % 2:
            share = np.clip(rng.uniform() + rng.normal(0.0, 0.3, len(top)), 0.0, 1.0)
        rows.append(np.rint(share * top).astype(np.int64))
    return space.settings_at(np.array(rows))


def fitted(
    case: Case,
    own_count: int = CALIBRATION_COUNT,
    *,
    operators: bool = True,
    donor: Donor | None = None,
) -> LatencyModel:
    """The case's latency model from its operators and the first of its whole models."""
    plans = [one for one in case.fitting if isinstance(one.subject, ModelSubject)][:own_count]
    alone = [one for one in case.fitting if isinstance(one.subject, OperatorSpec)]
    graphs = {case.trace.graph.fingerprint: case.trace.graph}
    return LatencyModel.fit(
        case.device, [*(alone if operators else []), *plans], graphs, donor=donor
    )
