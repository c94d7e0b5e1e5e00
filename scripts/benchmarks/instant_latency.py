"""Latency told before it is measured, and after few measurements, beside what it turns out to be.

    scripts/bench instant_latency [--work FOLDER] [--kinds RUNTIME.tN ...]

Plans for networks of the families held out, as a planner might choose them: made for random losses
and budgets of 0.3 to 0.8 of the MACs, all options. They are measured beside the unpruned network,
and told four ways:

    instant    the kind's own tables left out of what ships; what `--effort instant` measures
    shipped    the same with all that ships
    quick      what `--effort quick` measures before its search, all that ships
    measured   all that a network's latency is fitted to

A kind is a runtime and a number of threads. Rows: of how many plans the latency over the unpruned
network's, which budgets are stated in and which ran in turns, was told within 15 % and within 10 %
(`share`); the milliseconds, of two times of day (`ms`); and of how many the share lay within the
predicted interval (`covered`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from platformdirs import user_cache_path

from benchmarks.harness import Bench, Row, chosen
from datasets import catalogue
from datasets.latency_tables import options_of
from datasets.pack import exported
from rlprune.graph.from_onnx import OnnxTrace, trace_onnx
from rlprune.graph.skeleton import strip
from rlprune.graph.types import FloatArray, IntArray
from rlprune.latency.collect import measure_subjects, trace_models
from rlprune.latency.device import local_device_key
from rlprune.latency.known import Donor, Kind, donor, nearest
from rlprune.latency.macs import macs_tables
from rlprune.latency.measure import MeasureConfig
from rlprune.latency.model import LatencyModel
from rlprune.latency.types import (
    F32,
    Measurement,
    ModelSubject,
    Subject,
)
from rlprune.planning.effort import EFFORTS
from rlprune.runtime import get_runtime
from rlprune.schemes import Space
from rlprune.sensitivity.energy import shape_profiles
from rlprune.solver.knapsack import solve
from rlprune.solver.task import PruningTask
from rlprune.store import Store, open_store

NETS = ("seresnet", "densenet", "mobilenetv3", "convnext", "vovnet_deep")
KINDS = ("ort.t1", "openvino.t1", "mnn.t1", "ort.t2")
PLANS = 20
"""Of each network."""
BUDGETS = (0.3, 0.8)
SPREAD = 1.0
"""Of the logarithm of what sites are made out to lose."""
COVERED = 0.9
"""Of plans, whose latency is to lie within its 90 % interval."""
TARGETS = {("instant", 0.15): 0.8, ("measured", 0.1): 0.9}
ROUNDS = 3


@dataclass(frozen=True)
class Lab:
    """One network on one kind, and where its measurements are kept."""

    kind: Kind
    device: str
    net: str
    trace: OnnxTrace
    space: Space
    store: Store

    def known(self) -> list[Measurement]:
        """All measurements of the device."""
        return self.store.measurements(self.device)

    def measured(self, subjects: Sequence[Subject]) -> None:
        """Of subjects that are not kept yet."""
        kept = {one.subject for one in self.known()}
        fresh = [one for one in dict.fromkeys(subjects) if one not in kept]
        if fresh:
            self.store.put_graph(self.trace.graph, strip(self.trace.model))
            self.store.add_measurements(
                measure_subjects(
                    fresh,
                    model_of=trace_models(self.trace),
                    device=self.device,
                    runtime=get_runtime(self.kind.runtime),
                    config=MeasureConfig(thread_count=self.kind.threads),
                )
            )


def main() -> None:
    bench = Bench("instant_latency", __doc__)
    add = bench.parser.add_argument
    add("--work", type=Path, default=user_cache_path("rlprune") / "bench_instant_latency")
    add("--kinds", nargs="+", default=list(KINDS), metavar="RUNTIME.tN")
    add("--only", nargs="+", metavar="GLOB", help="kinds")
    options = bench.parse()
    options.work.mkdir(parents=True, exist_ok=True)
    nets, count = (NETS[:1], 5) if options.quick else (NETS, PLANS)
    with bench.measuring():
        for name in options.kinds:
            runtime, _, threads = name.rpartition(".t")
            kind = Kind(runtime, int(threads), F32)
            if chosen(options, name):
                found = partial(rows, kind, nets, count, options.seed, options.work)
                bench.cell(f"latency.{name}", found)


def rows(kind: Kind, nets: Sequence[str], count: int, seed: int, work: Path) -> Iterator[Row]:
    """What plans of these networks take, told and measured."""
    off: dict[str, list[Off]] = {}
    for net in nets:
        lab = lab_of(kind, net, work)
        settings = chosen_plans(lab.space, count, seed)
        subjects = [subject_of(lab, own) for own in settings]
        lab.measured(subjects)
        found = [one for one in lab.known() if one.subject in subjects and one.status == "ok"]
        for name, own in told(lab, found, subjects):
            off.setdefault(name, []).append(own)
            ms, share = (float(np.median(np.abs(each))) for each in (own.ms, own.share))
            print(f"  {net} {name}: off by {ms:.3f}, as shares {share:.3f} (medians)", flush=True)
    for name, parts in off.items():
        prefix = f"experience.latency.{kind.runtime}.t{kind.threads}.{name}"
        for what in ("ms", "share"):
            errors = np.abs(np.expm1(np.concatenate([getattr(one, what) for one in parts])))
            for limit in (0.15, 0.1):
                target = TARGETS.get((name, limit)) if what == "share" else None
                yield counted(f"{prefix}.{what}_within_{100 * limit:.0f}", errors <= limit, target)
        yield counted(f"{prefix}.covered", np.concatenate([one.covered for one in parts]), COVERED)


def counted(name: str, hit: NDArray[np.bool_], target: float | None) -> Row:
    """Of how many plans something holds [N]."""
    value = float(hit.mean())
    error = 1.645 * float(np.sqrt(value * (1 - value) / len(hit)))
    ends = (max(value - error, 0.0), min(value + error, 1.0))
    return Row(name, value, "of plans", target, "max", len(hit), ends)


@dataclass(frozen=True)
class Off:
    """How predictions of plans were off [N]."""

    ms: FloatArray
    """Logarithm of predicted over measured ms."""
    share: FloatArray
    """The same of the latency over the unpruned network's."""
    covered: NDArray[np.bool_]
    """Whether that lies within the predicted 90 % interval."""


def told(
    lab: Lab, found: Sequence[Measurement], subjects: Sequence[Subject]
) -> Iterator[tuple[str, Off]]:
    """By each way."""
    ships = donor(nearest(lab.kind))
    left_out = donor(nearest(lab.kind, without=frozenset([lab.kind])))
    ways = [
        ("instant", left_out, EFFORTS["instant"].few),
        ("shipped", ships, EFFORTS["instant"].few),
        ("quick", ships, EFFORTS["quick"].few),
        ("measured", ships, None),
    ]
    known: list[Measurement] = []
    for name, begun, few in ways:
        for _ in range(ROUNDS if few is None else 1):
            missing = fitted(lab, known, begun).missing(lab.space, few)
            lab.measured([one for one in missing if one not in subjects])
            wanted = set(missing) - set(subjects)
            known += [one for one in lab.known() if one.subject in wanted]
            if not missing:
                break
        tables = fitted(lab, known, begun).compile(lab.space)
        settings = np.array(
            [one.subject.settings for one in found if isinstance(one.subject, ModelSubject)]
        )
        choice = lab.space.choice_of(settings)
        predicted, (low, high) = tables.latency_ms(choice), tables.interval_ms(choice)
        shares = np.array([one.control_ratio for one in found])
        ms, own = shares * np.median([one.control_ms for one in found]), shares * tables.base_ms
        covered = (low <= own) & (own <= high)
        yield name, Off(np.log(predicted / ms), np.log(predicted / own), covered)


def fitted(lab: Lab, known: Sequence[Measurement], begun: Donor | None) -> LatencyModel:
    """By these measurements."""
    graph = lab.trace.graph
    return LatencyModel.fit(lab.device, known, {graph.fingerprint: graph}, donor=begun)


def lab_of(kind: Kind, net: str, work: Path) -> Lab:
    """A network of random weights, on which latency does not depend."""
    torch.manual_seed(0)
    trace = trace_onnx(exported(catalogue.NETS[net].make().eval()))
    device = local_device_key(get_runtime(kind.runtime), thread_count=kind.threads)
    store = open_store(f"sqlite:///{work / f'{kind.runtime}.t{kind.threads}.{net}.db'}")
    return Lab(kind, device, net, trace, options_of(trace, device, F32), store)


def chosen_plans(space: Space, count: int, seed: int) -> IntArray:
    """Settings [count, S] of plans for random losses, by MACs."""
    rng = np.random.default_rng(seed)
    tables, profiles = macs_tables(space), shape_profiles(space)
    task = PruningTask(space, tables, profiles)
    made: list[IntArray] = []
    while len(made) < count:
        factor = np.exp(SPREAD * rng.standard_normal(task.site_count))
        loss = (task.curve * factor[:, None])[None]  # [1, S, L]
        budget = rng.uniform(*BUDGETS) * task.base_ms
        made.append(solve(task, np.array([budget]), loss=loss)[0])
    return space.settings_at(np.array(made))


def subject_of(lab: Lab, settings: IntArray) -> ModelSubject:
    """The network under a plan."""
    own = tuple(int(value) for value in settings)
    return ModelSubject(lab.space.graph.fingerprint, own, lab.space.schemes)


if __name__ == "__main__":
    main()
