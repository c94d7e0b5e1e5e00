"""Policies on pretrained ResNet-20 and ResNet-56: loss, accuracy and measured latency at a budget.

    scripts/bench_cifar [--quick] [--seed N] [--json FILE] [--final] [--shared DIR]
                        [--seeds N] [--calibration-images N] [--report-images N]

The device is this machine, one thread; budgets are `least + b (base - least)`. For every seed
other calibration images give the profile that policies see, and plans are reconstructed on them.
Nothing is fine-tuned. Calibrating and choosing use `test_reward`; the figure comes from the other
half of it, or, with --final, from `test_report`, and that reading is logged.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import platform
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from baseline_torch_pruning import TorchPruningPolicy
from bench_rows import Outcome, Row, plan_rows, print_table, write_rows
from bench_speed import time_plans
from bench_tasks import Split, kept_profiles, log_final, split_images
from cifar_pack import REPOSITORY, CifarPack, shared_data
from platformdirs import user_cache_path

from rlprune.errors import PolicyError
from rlprune.graph.from_onnx import OnnxTrace
from rlprune.graph.skeleton import strip
from rlprune.graph.types import FloatArray, IntArray
from rlprune.latency.collect import measure_subjects, trace_models
from rlprune.latency.device import local_device_key
from rlprune.latency.types import Measurement, ModelSubject
from rlprune.planning import task_for
from rlprune.planning.tables import latency_model
from rlprune.policy import Policy, get_policy
from rlprune.runtime import get_runtime
from rlprune.sensitivity.evaluate import Evaluation, Evaluator
from rlprune.sensitivity.types import keep_levels
from rlprune.solver.knapsack import budgets_at
from rlprune.solver.task import PruningTask
from rlprune.store import Store, open_store

NETWORKS = ("cifar10_resnet20", "cifar10_resnet56")
SHARES = (0.75, 0.5, 0.25)
MOST_PLAN_MS = 50.0
MOST_IMPORT_SEC = 0.7
CLIENT_IMPORT = """
import sys, time
start, cpu = time.perf_counter(), time.process_time()
import rlprune
rlprune.Client
print(time.process_time() - cpu, time.perf_counter() - start)
heavy = {"torch", "ray", "onnxruntime"} & set(sys.modules)
sys.exit(f"loaded {heavy}" if heavy else 0)
"""


@dataclass(frozen=True, slots=True)
class Setting:
    """How much is done."""

    networks: tuple[str, ...] = NETWORKS
    shares: tuple[float, ...] = SHARES
    seed_count: int = 3
    calibration_count: int = 1000
    report_count: int | None = None


QUICK = Setting(NETWORKS[:1], (0.75, 0.5), seed_count=1, calibration_count=256, report_count=1000)


@dataclass(frozen=True)
class Bench:
    """What is the same for every network."""

    pack: CifarPack
    split: Split
    setting: Setting
    policies: dict[str, Policy]
    store: Store
    device: str
    work: Path
    """Where profiles and latencies are kept between runs."""
    seed: int


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few minutes; figures are rough")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--final", action="store_true", help="report on test_report, and log it")
    parser.add_argument(
        "--shared", help="folder that holds data/; by default beside the repository"
    )
    parser.add_argument("--seeds", type=int, metavar="N", help="three by default")
    parser.add_argument("--calibration-images", type=int, metavar="N", help="1,000 by default")
    parser.add_argument("--report-images", type=int, metavar="N", help="all 5,000 by default")
    arguments = parser.parse_args()
    pack = CifarPack(shared_data(arguments.shared))
    setting = QUICK if arguments.quick else Setting()
    if arguments.seeds:
        setting = replace(setting, seed_count=arguments.seeds)
    if arguments.calibration_images:
        setting = replace(setting, calibration_count=arguments.calibration_images)
    if arguments.report_images:
        setting = replace(setting, report_count=arguments.report_images)
    split = split_images(pack, final=arguments.final)
    if arguments.final:
        beside = arguments.json or REPOSITORY / "bench_cifar.json"
        log_final(beside, f"seed {arguments.seed} quick {arguments.quick}")
    work = user_cache_path("rlprune") / "bench_cifar"
    work.mkdir(parents=True, exist_ok=True)
    store = open_store(f"sqlite:///{work / 'latency.db'}")
    device = local_device_key(get_runtime())
    print(
        f"{device}, {platform.python_version()}, load average {os.getloadavg()[0]:.1f}, seed "
        f"{arguments.seed}, {setting.seed_count} seeds of {setting.calibration_count} images, "
        f"report on {'test_report' if arguments.final else 'the other half of test_reward'}"
    )
    bench = Bench(pack, split, setting, dict(_policies()), store, device, work, arguments.seed)
    rows: list[Row] = []
    for name in setting.networks:
        rows += bench_network(bench, name)
    rows += import_rows()
    print(f"\n{'figure':52} {'value':>9} {'target':>9}  met")
    for row in rows:
        if row.target is not None:
            met = row.value <= row.target if row.sense == "min" else row.value >= row.target
            print(f"{row.name:52} {row.value:9.3f} {row.target:9.3f}  {'yes' if met else 'NO'}")
    if arguments.json:
        write_rows(arguments.json, rows)


def bench_network(bench: Bench, name: str) -> list[Row]:
    pack, setting, split, device = bench.pack, bench.setting, bench.split, bench.device
    trace = pack.traced(name)
    short = name.removeprefix("cifar10_")
    module, _ = pack.network(name)
    uniform = {name: bench.policies[name] for name in ("uniform", "uniform-plain")}
    policies = {**uniform, "global": TorchPruningPolicy(module), **bench.policies}
    levels, level_count = keep_levels(trace.graph)
    _measure_missing(trace, levels, level_count, bench.store, device)
    report = pack.images(name, split.report[: setting.report_count], trace)
    judge = Evaluator(trace, report, runtime=get_runtime(), reconstruct=False)
    dense = judge.base
    outcomes: list[Outcome] = []
    for seed in range(bench.seed, bench.seed + setting.seed_count):
        order = np.random.default_rng([seed, 2]).permutation(split.calibrate)
        images = pack.images(name, order[: setting.calibration_count], trace)
        evaluator = Evaluator(trace, images, runtime=get_runtime())
        profiles = kept_profiles(evaluator, levels, level_count, bench.work)
        task = task_for(trace.graph, profiles, bench.store, device)
        print(f"{short} seed {seed}: profile of {len(images)} images", flush=True)
        outcomes += _judge(evaluator, task, policies, setting.shares, seed, judge)
    measured = _measure_plans(trace, outcomes, device)
    rows = plan_rows(short, outcomes, measured, task.base_ms, len(report))
    print_table(short, rows, f"{dense.loss:.3f} nats, {dense.accuracy:.2%} of {len(report)}")
    if name == setting.networks[-1]:
        rows += plan_time_rows(task, [each for each in policies if each != "global"], short)
    return rows


def _judge(
    evaluator: Evaluator,
    task: PruningTask,
    policies: dict[str, Policy],
    shares: Sequence[float],
    seed: int,
    judge: Evaluator,
) -> Iterator[Outcome]:
    budgets = budgets_at(task, np.array(shares))
    judged: dict[tuple[int, ...], Evaluation] = {}
    for policy_name, policy in policies.items():
        plans = policy.plan(task, budgets)
        for share, budget, keeps in zip(shares, budgets, plans, strict=True):
            key = tuple(int(keep) for keep in keeps)
            if key not in judged:
                corrected = evaluator.corrected_model(keeps)
                judged[key] = judge.evaluate_model(corrected)
            found = judged[key]
            folds = tuple(float(loss) for loss in found.fold_losses)
            yield Outcome(policy_name, share, seed, key, folds, found.accuracy, float(budget))


def _measure_missing(
    trace: OnnxTrace, levels: IntArray, level_count: IntArray, store: Store, device: str
) -> None:
    store.put_graph(trace.graph, strip(trace.model))
    while missing := latency_model(store, device).missing(trace.graph, levels, level_count):
        print(f"measuring {len(missing)} operators and models on {device}", flush=True)
        store.add_measurements(
            measure_subjects(
                missing, model_of=trace_models(trace), device=device, runtime=get_runtime()
            )
        )


def _measure_plans(
    trace: OnnxTrace, outcomes: list[Outcome], device: str
) -> dict[tuple[int, ...], Measurement]:
    """Latency of the first seed's plans, in turns with the unpruned model."""
    first = min(outcome.seed for outcome in outcomes)
    plans = dict.fromkeys(outcome.keeps for outcome in outcomes if outcome.seed == first)
    subjects = [ModelSubject(trace.graph.fingerprint, keeps) for keeps in plans]
    found = measure_subjects(
        subjects, model_of=trace_models(trace), device=device, runtime=get_runtime()
    )
    return {one.subject.keeps: one for one in found if isinstance(one.subject, ModelSubject)}


def plan_time_rows(task: PruningTask, names: Iterable[str], network: str) -> list[Row]:
    """How long a plan takes in process, for a model already traced and tabled.

    Targets are held against CPU time, which neighbours on this machine disturb less; one thread
    computes and nothing waits, so on a quiet machine wall time, given beside it, is the same.
    """
    rows = []
    for name in names:
        took = np.array([time_plans(task, name)[::-1]])
        rows += _time_rows(f"{network}/plan_{name}", took, "ms", MOST_PLAN_MS)
    return rows


def import_rows() -> list[Row]:
    """How long importing the client takes in a fresh process, which must load nothing heavy."""
    took = []
    for _ in range(5):
        done = subprocess.run(
            [sys.executable, "-c", CLIENT_IMPORT], check=True, capture_output=True, text=True
        )
        took.append([float(value) for value in done.stdout.split()])
    return _time_rows("client/import", np.array(took), "s", MOST_IMPORT_SEC)


def _time_rows(name: str, took: FloatArray, unit: str, most: float) -> list[Row]:
    """CPU and wall time, medians and ranges, of samples [N, 2]."""
    rows = []
    for column, (clock, target) in enumerate((("cpu", most), ("wall", None))):
        one = took[:, column]
        ends = (float(one.min()), float(one.max()))
        rows.append(
            Row(f"{name}_{clock}", float(np.median(one)), unit, target, "min", len(one), ends)
        )
    return rows


def _policies() -> Iterator[tuple[str, Policy]]:
    for name in ("uniform", "uniform-plain", "knapsack", "learned"):
        try:
            yield name, get_policy(name)
        except PolicyError as error:
            print(f"{name} is left out: {error}")


if __name__ == "__main__":
    main()
