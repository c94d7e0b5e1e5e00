"""The parts of `latency` that measure in new processes: repeats, certificates, speed."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import numpy as np

from benchmarks.harness import Row
from benchmarks.parts.latency_data import Case, Lab, traced
from datasets.nets import resnet50
from datasets.pack import exported
from rlprune.graph.from_onnx import trace_onnx
from rlprune.graph.skeleton import strip
from rlprune.graph.types import FloatArray, IntArray
from rlprune.latency.collect import measure_subjects, trace_models
from rlprune.latency.device import local_device_key
from rlprune.latency.macs import macs_tables
from rlprune.latency.model import LatencyModel
from rlprune.latency.types import Measurement, ModelSubject, OperatorSpec
from rlprune.planning import LocalPlanner, PlanRequest, make_plans, task_for
from rlprune.planning.fresh import measure_fresh
from rlprune.plans import PruningPlan
from rlprune.runtime import get_runtime
from rlprune.schemes import space_with
from rlprune.schemes.channels import keep_levels
from rlprune.sensitivity.energy import energy_profiles
from rlprune.solver.knapsack import budgets_at
from rlprune.solver.task import PruningTask
from rlprune.store import open_store

PROCESS_COUNT = 5
LEAST_MS = 1.0
"""Repeats are promised of models that take longer."""
SHARES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Budgets `least + b (base - least)` of the certified plans."""
POLICY = "knapsack"
BATCH = 4096

BUSY = "import numpy as np\na = np.ones((256, 256), np.float32)\nwhile True: a @ a"


@contextmanager
def neighbour() -> Iterator[None]:
    """A process that multiplies matrices without end."""
    child = subprocess.Popen([sys.executable, "-c", BUSY])
    try:
        yield
    finally:
        child.kill()
        child.wait()


def repeat_rows(runtime: str, lab: Lab) -> Iterator[Row]:
    """How far five measurements of one plan, each in a new process, are apart."""
    spreads = []
    with neighbour():
        for case in lab.cases(runtime):
            base = float(np.median([one.control_ms for one in case.tests]))
            if base <= LEAST_MS:
                continue
            for one in case.tests[: 1 if lab.plan_count < 20 else 3]:
                keeps = np.array(one.subject.settings)  # type: ignore[union-attr]
                found = [again(case, keeps, runtime).control_ratio for _ in range(PROCESS_COUNT)]
                spreads.append(float(np.ptp(found) / np.median(found)))
                print(
                    f"  {runtime} {case.name}: spread {spreads[-1]:.1%} over {PROCESS_COUNT} "
                    f"processes, load {os.getloadavg()[0]:.1f}",
                    flush=True,
                )
    if spreads:
        n = len(spreads)
        median = float(np.median(spreads))
        yield Row(f"{runtime}/repeat spread, median", median, "", 0.03, "min", n, None)
        yield Row(f"{runtime}/repeat spread, worst", max(spreads), "", 0.03, "min", n, None)


def again(case: Case, keeps: IntArray, runtime: str) -> Measurement:
    subject = ModelSubject(case.trace.graph.fingerprint, tuple(keeps.tolist()))
    return measure_fresh(case.trace, subject, device=case.device, runtime=runtime)


def certify_rows(runtime: str, lab: Lab) -> Iterator[Row]:
    """Certified plans measured once more: how many keep their budget, how much is unused."""
    kept, slacks, rounds, refused = [], [], [], 0
    for case in lab.cases(runtime):
        with (
            tempfile.TemporaryDirectory() as folder,
            closing(open_store(f"sqlite:///{folder}/store.sqlite")) as store,
        ):
            store.register_device(case.device, {})
            store.put_graph(case.trace.graph, strip(case.trace.model))
            store.add_measurements(case.fitting)
            profiles = energy_profiles(case.trace, case.space)
            task = task_for(case.space, profiles, store, case.device)
            least = float(budgets_at(task, np.zeros(1))[0])
            for share in SHARES[:2] if lab.plan_count < 20 else SHARES:
                budget = least + share * (task.base_ms - least)
                request = PlanRequest.of(
                    budget_ms=budget, device=case.device, policy=POLICY, round_to=8, certify=True
                )
                [plan] = make_plans(LocalPlanner(store), case.trace, request)
                assert plan.certificate is not None
                rounds.append(len(plan.certificate.rounds))
                if not plan.certificate.within:
                    refused += 1
                    print(f"  {runtime} {case.name} b={share}: {plan.note}", flush=True)
                    continue
                found = again(case, plan.keeps, runtime)
                store.add_measurements([found])
                ratio = found.control_ratio * plan.base_latency_ms / budget
                kept.append(ratio <= 1.0)
                slacks.append(max(0.0, 1.0 - ratio - granularity(task, plan, budget)))
                print(
                    f"  {runtime} {case.name} b={share}: measured again at {ratio:.1%} of the "
                    f"budget after {rounds[-1]} rounds, load {os.getloadavg()[0]:.1f}",
                    flush=True,
                )
    if kept:
        n = len(kept)
        yield Row(f"{runtime}/certified kept", float(np.mean(kept)), "", 0.97, "max", n, None)
        yield Row(
            f"{runtime}/certified slack, mean", float(np.mean(slacks)), "", 0.04, "min", n, None
        )
    yield Row(f"{runtime}/not certified", refused, "", None, "min", len(rounds), None)
    mean = float(np.mean(rounds))
    yield Row(f"{runtime}/certify rounds", mean, "", 3, "min", len(rounds), None)


def granularity(task: PruningTask, plan: PruningPlan, budget_ms: float) -> float:
    """The least that widening one site by one option would add, as a share of the budget."""
    choice = task.space.choice_of(plan.keeps)
    wider = choice + np.eye(task.site_count, dtype=np.int64)[choice < task.space.unpruned]
    if not len(wider):
        return math.inf
    steps = task.tables.latency_ms(wider) - task.tables.latency_ms(choice[None])
    positive = steps[steps > 0]
    return float(positive.min() / budget_ms) if len(positive) else 0.0


def speed_rows(runtime_name: str, lab: Lab) -> Iterator[Row]:
    """A batch of plans of a ResNet-56, and the operators of a network of 50 layers."""
    trace = traced("cifar10_resnet56", lab.shared)
    space = space_with(trace.graph, *keep_levels(trace.graph))
    tables = macs_tables(space)
    choice = np.random.default_rng(0).integers(0, space.option_count, (BATCH, len(space.sites)))
    ways: list[tuple[str, float | None, Callable[[IntArray], FloatArray]]] = [
        ("", 10.0, tables.latency_ms),
        (" operator by operator", None, lambda choice: tables.operator_ms(choice).sum(-1)),
    ]
    for name, target, latency_ms in ways:
        took = []
        for _ in range(21):
            began = time.process_time()
            latency_ms(choice)
            took.append(1e3 * (time.process_time() - began))
        median = float(np.median(took))
        yield Row(f"{BATCH} plans{name}, CPU", median, "ms", target, "min", len(took), None)

    runtime = get_runtime(runtime_name)
    device = local_device_key(runtime)
    new = trace_onnx(exported(resnet50().eval(), (1, 3, 224, 224)))
    space = space_with(new.graph, *keep_levels(new.graph))
    measurements: list[Measurement] = []
    began = time.monotonic()
    while True:
        model = LatencyModel.fit(device, measurements, {})
        wanted = [one for one in model.missing(space) if isinstance(one, OperatorSpec)]
        if not wanted:
            break
        measurements += measure_subjects(
            wanted, model_of=trace_models(new), device=device, runtime=runtime
        )
    seconds = time.monotonic() - began
    yield Row("operators of a new ResNet-50", seconds, "s", 60.0, "min", len(measurements), None)
