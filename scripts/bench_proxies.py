"""Which cheap figure of a plan says most about its accuracy once fine-tuned.

    scripts/bench_proxies [--quick] [--seed N] [--json FILE] [--networks NAME ...] [--plans N]
                          [--seeds N] [--device KEY] [--work DIR] [--shared DIR]

For each network plans of equal predicted latency are drawn (a third around the knapsack's, a third
further off, a third at random), each is cut, reconstructed and fine-tuned in the same short way
with several seeds; the mean accuracy on images that nothing else saw is ranked against every proxy.
Seeds disagree, so no proxy can reach 1: the ceiling is the root of the reliability of that mean
(Spearman-Brown over the seeds' rank correlation). The distribution of the plans is printed, since
every correlation depends on it. Interrupted runs go on where they stopped.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import zoo_nets
from bench_rows import Row, write_rows
from bench_tasks import network_images
from cifar_pack import CifarPack, shared_data
from platformdirs import user_cache_path
from scipy.stats import spearmanr

import rlprune
from rlprune.finetuning.loop import TrainConfig, fit, flipped_and_shifted, score
from rlprune.graph.from_onnx import OnnxTrace
from rlprune.graph.from_torch import TorchTrace
from rlprune.graph.types import FloatArray, IntArray
from rlprune.mdp.objective import AdditiveObjective
from rlprune.planning.local import device_task, which_device
from rlprune.runtime import get_runtime
from rlprune.sensitivity.calibration import CalibrationSet
from rlprune.sensitivity.energy import energy_profiles, loss_curve
from rlprune.sensitivity.evaluate import Correction, Evaluator
from rlprune.sensitivity.measured import measure_profiles
from rlprune.sensitivity.torch_reconstruct import reconstruct_module
from rlprune.sensitivity.types import keep_levels
from rlprune.solver.knapsack import budgets_at, solve
from rlprune.solver.task import PruningTask
from rlprune.store import open_store
from rlprune.surgery.importance import unit_scores
from rlprune.surgery.onnx import kept_units
from rlprune.surgery.torch import prune_torch
from rlprune.surgery.torch_cut import Cut

NETWORKS = ("vgg", "mobilenetv1")
SHARE = 0.5
"""Budget `least + b (base - least)`."""
FULL_ENOUGH = 0.95
"""Plans use at least this share of the budget: then their latencies are equal but for the levels'
granularity."""
CORRECTIONS: tuple[Correction, ...] = ("none", "reconstruct")


@dataclass(frozen=True)
class Case:
    """One network and what is the same for all its plans."""

    name: str
    torch_trace: TorchTrace
    trace: OnnxTrace
    task: PruningTask
    evaluators: dict[Correction, Evaluator]
    train: CalibrationSet
    judge: CalibrationSet
    calibration: CalibrationSet


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one network, few plans and images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--networks", nargs="+", default=NETWORKS, metavar="NAME")
    parser.add_argument("--plans", type=int, default=33)
    parser.add_argument("--seeds", type=int, default=2, help="fine-tunings of every plan")
    parser.add_argument("--device", default="macs", help="whose latency is equal")
    parser.add_argument("--work", type=Path, default=user_cache_path("rlprune") / "bench_proxies")
    parser.add_argument("--shared", help="folder that holds data/")
    options = parser.parse_args()
    networks = options.networks[:1] if options.quick else options.networks
    plan_count = 6 if options.quick else options.plans
    image_count = 1000 if options.quick else 10_000
    torch.set_num_threads(1)
    pack = CifarPack(shared_data(options.shared))
    options.work.mkdir(parents=True, exist_ok=True)
    print(f"load average {os.getloadavg()[0]:.1f}, seed {options.seed}, device {options.device}")
    rows: list[Row] = []
    for name in networks:
        case = prepare(pack, name, options.device, image_count, options.seed)
        plans = draw(case.task, plan_count, np.random.default_rng([options.seed, 3]))
        path = options.work / f"{name}-{options.device}-{image_count}-{options.seed}.jsonl"
        accuracies = tuned(case, plans, options.seeds, path)
        rows += report(case, plans, accuracies)
    if options.json:
        write_rows(options.json, rows)


def prepare(pack: CifarPack, name: str, device: str, image_count: int, seed: int) -> Case:
    net = zoo_nets.load(name, pack=pack)
    torch_trace = rlprune.trace(net.module, torch.zeros(1, 3, 32, 32))
    trace = zoo_nets.traced(net)
    assert torch_trace.graph.fingerprint == trace.graph.fingerprint
    pixels, labels = pack.pixels("train")
    rng = np.random.default_rng([seed, 1])
    seen = np.setdiff1d(np.arange(len(labels)), pack.splits["train_calib"])
    index = rng.permutation(seen)[:image_count]
    train = CalibrationSet.single(net.preprocess(pixels[index]), labels[index].astype(np.int64))
    order = rng.permutation(pack.splits["test_reward"])
    profile, images, rest = (
        network_images(net, pack, index, trace)
        for index in (order[:500], order[500:1500], order[1500:])
    )
    runtime = get_runtime()
    levels, level_count = keep_levels(trace.graph)
    profiles = measure_profiles(Evaluator(trace, profile, runtime=runtime), levels, level_count)
    key, own = which_device(device, trace.graph)
    with closing(open_store()) as store:
        task = device_task(trace, profiles, store, key, own)
    evaluators = {
        correction: Evaluator(trace, images, runtime=runtime, correction=correction)
        for correction in CORRECTIONS
    }
    return Case(
        name,
        torch_trace,
        trace,
        task,
        evaluators,
        train,
        CalibrationSet.single(rest.x, rest.y),
        images,
    )


def draw(task: PruningTask, count: int, rng: np.random.Generator) -> IntArray:
    """Different plans [N, G] of equal latency, by knapsacks over curves bent more and more."""
    [budget] = budgets_at(task, np.array([SHARE]))
    curve = loss_curve(task.profiles, task.graph)
    top = np.maximum(curve.max(-1, keepdims=True), 1e-9)
    found: dict[tuple[int, ...], IntArray] = {}
    tries = 0
    while len(found) < count and tries < 200 * count:
        sigma = (0.5, 1.5, 4.0)[len(found) % 3] if tries else 0.0
        tries += 1
        shape = (task.group_count, 1)
        bent = (curve / top) ** np.exp(0.3 * sigma * rng.standard_normal(shape))
        bent = bent * top * np.exp(sigma * rng.standard_normal(shape))
        keeps = solve(task, np.array([budget]), loss=bent)[0]
        if task.tables.upper_ms(keeps[None])[0] >= FULL_ENOUGH * budget:
            found.setdefault(tuple(keeps.tolist()), keeps)
    return np.array(list(found.values()))


def tuned(case: Case, plans: IntArray, seed_count: int, path: Path) -> FloatArray:
    """Accuracy of every plan after fine-tuning with every seed [N, S]."""
    known: dict[tuple[tuple[int, ...], int], float] = {}
    if path.is_file():
        for line in path.read_text().splitlines():
            row = json.loads(line)
            known[tuple(row["keeps"]), row["seed"]] = row["accuracy"]
    began = time.monotonic()
    accuracies = np.zeros((len(plans), seed_count))
    for seed in range(seed_count):
        for index, keeps in enumerate(plans):
            key = (tuple(keeps.tolist()), seed)
            if key not in known:
                known[key] = tune(case, keeps, seed)
                with path.open("a") as file:
                    row = {"keeps": key[0], "seed": seed, "accuracy": known[key]}
                    file.write(json.dumps(row) + "\n")
                print(
                    f"  {case.name} seed {seed} plan {index + 1}/{len(plans)}: "
                    f"{known[key]:.2%}, {time.monotonic() - began:.0f} s",
                    flush=True,
                )
            accuracies[index, seed] = known[key]
    return accuracies


def tune(case: Case, keeps: IntArray, seed: int) -> float:
    """One epoch of fine-tuning; the plan is judged on images that nothing else saw."""
    module = prune_torch(case.torch_trace, keeps)
    few = case.train.take(np.arange(min(1000, len(case.train))))
    images = CalibrationSet.single(few.x, few.y)
    reconstruct_module(module, case.torch_trace, keeps, images, get_runtime())
    config = TrainConfig(epoch_count=1, seed=seed)
    fit(module, case.train, config, augment=flipped_and_shifted)
    return score(module, case.judge).accuracy


def proxies(case: Case) -> dict[str, Callable[[IntArray], FloatArray]]:
    """What is thought to grow with what a plan [N, G] loses -> [N]."""
    task, graph = case.task, case.trace.graph
    energy = energy_profiles(case.trace, task.levels, task.level_count)
    free = AdditiveObjective(task.levels, loss_curve(energy, graph))
    summed = AdditiveObjective(task.levels, loss_curve(task.profiles, graph))
    found: dict[str, Callable[[IntArray], FloatArray]] = {
        "weight energy, summed": free.loss,
        "single-group divergence, summed": summed.loss,
        "Taylor, summed": lambda plans: taylor(case, plans),
    }
    for correction, evaluator in case.evaluators.items():
        found[f"loss, {correction}"] = evaluated(evaluator, "loss")
        found[f"divergence, {correction}"] = evaluated(evaluator, "divergence")
    return found


def evaluated(evaluator: Evaluator, what: str) -> Callable[[IntArray], FloatArray]:
    return lambda plans: np.array([getattr(evaluator.evaluate(keeps), what) for keeps in plans])


def taylor(case: Case, plans: IntArray) -> FloatArray:
    """First-order Taylor (Molchanov et al. 2019, eq. 8): summed squares of gradient times weight of
    what is dropped, on the calibration images [N]."""
    module = case.torch_trace.module
    module.zero_grad()
    x, y = torch.from_numpy(case.calibration.x), torch.from_numpy(case.calibration.y)
    with torch.enable_grad():
        for part in torch.arange(len(y)).split(250):
            torch.nn.functional.cross_entropy(module(x[part]), y[part]).backward()  # type: ignore[no-untyped-call]
    salience = {
        name: (p.grad * p.detach()).square().numpy()
        for name, p in module.named_parameters()
        if p.grad is not None
    }
    module.zero_grad()
    total = sum(float(values.sum()) for values in salience.values())
    scores = unit_scores(case.torch_trace.onnx)

    def stays(keeps: IntArray) -> float:
        cut = Cut(case.torch_trace, kept_units(scores, keeps))
        return sum(
            float(cut.tensor(name, torch.from_numpy(values)).sum())
            for name, values in salience.items()
        )

    return np.array([total - stays(keeps) for keeps in plans])


def report(case: Case, plans: IntArray, accuracies: FloatArray) -> list[Row]:
    judged = accuracies.mean(1)
    latency = case.task.tables.latency_ms(plans) / case.task.base_ms
    agreement = float(
        np.mean(
            [
                spearmanr(accuracies[:, a], accuracies[:, b]).statistic
                for a in range(accuracies.shape[1])
                for b in range(a)
            ]
        )
        if accuracies.shape[1] > 1
        else 1.0
    )
    count = accuracies.shape[1]
    reliability = count * agreement / (1 + (count - 1) * agreement)
    ceiling = float(np.sqrt(reliability)) if reliability > 0 else np.nan
    quartiles = np.percentile(100 * judged, (0, 25, 50, 75, 100))
    print(
        f"\n{case.name}: {len(plans)} plans at {latency.min():.3f} to {latency.max():.3f} of the "
        f"unpruned latency; accuracy after fine-tuning, least to most by quarters: "
        + ", ".join(f"{value:.1f}" for value in quartiles)
        + f" %; seeds agree at {agreement:.3f}, ceiling {ceiling:.3f}"
    )
    name = case.name
    rows = [Row(f"{name}/ceiling", ceiling, "", None, "max", len(plans), None)]
    rng = np.random.default_rng(0)
    picks = rng.integers(0, len(plans), (1000, len(plans)))
    best = 0.0
    for proxy, function in proxies(case).items():
        values = function(plans)
        rank = float(-spearmanr(values, judged).statistic)
        drawn = [-spearmanr(values[pick], judged[pick]).statistic for pick in picks]
        interval = (float(np.nanpercentile(drawn, 5)), float(np.nanpercentile(drawn, 95)))
        best = max(best, rank)
        rows.append(Row(f"{name}/{proxy}", rank, "", None, "max", len(plans), interval))
        print(
            f"  {proxy:34} rank correlation {rank:6.3f} [{interval[0]:.3f}, {interval[1]:.3f}], "
            f"{rank / ceiling:5.2f} of the ceiling",
            flush=True,
        )
    share = best / ceiling
    rows.append(Row(f"{name}/best of ceiling", share, "", 0.85, "max", len(plans), None))
    print(f"  best: {share:.2f} of the ceiling, target >= 0.85: {'yes' if share >= 0.85 else 'NO'}")
    return rows


if __name__ == "__main__":
    main()
