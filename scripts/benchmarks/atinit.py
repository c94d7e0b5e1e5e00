"""A VGG planned before it is trained, then trained: beside the dense one, at equal epochs.

Three arms are trained on CIFAR-10 by one recipe (`datasets.training`), each from its own fresh
initialisation: dense; pruned by `rlprune.plan(at_init=...)` to half of the dense latency on this
machine, certified, and a tenth of the weights; and uniform, every layer by one ratio to both
budgets. Validated on `train_calib`; `test_reward` is looked at once, at the end; `test_report`
never. Latencies are of the trained nets on ONNX Runtime, each in turns with the dense one; sizes
and speeds are those of the worst seed. A run that was killed goes on after its last whole epoch,
with the plan it had. `--quick`: two epochs on 2,560 images.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from platformdirs import user_cache_path
from torch import nn

import rlprune
from benchmarks.harness import Bench, Row
from benchmarks.peers.figures import difference, right
from datasets.nets import vgg
from datasets.pack import CifarPack, exported, shared_data
from datasets.running import Clock
from datasets.training import Data, Recipe, train, work
from rlprune.graph.from_torch import TorchTrace
from rlprune.graph.load import load_onnx
from rlprune.latency.device import local_device_key
from rlprune.latency.measure import MeasureConfig, measure
from rlprune.latency.types import Measurement, ModelSubject
from rlprune.plans import PruningPlan
from rlprune.runtime import get_runtime
from rlprune.surgery.torch_saliency import BATCH_SIZE, WITH_IMAGES

STAGES = ((16, 24), (40, 40), (64, 64), (128, 128), (512, 512))
"""VGG-16's wide end (512) on a body of a quarter of its width; 29 MMACs, 3.3 M parameters."""
ARMS = ("dense", "pruned", "uniform")
EPOCHS, QUICK_EPOCHS = (4, 3, 2), (1, 0, 1)
QUICK_IMAGES = 2560
BUDGET_RATIO = 0.5
"""Of the dense latency: twice as fast."""
SIZE_RATIO = 0.099
"""Of the dense weights: ten times smaller, with BatchNorm, which plans count as folded away."""
LEAST_SMALLER, LEAST_FASTER, MOST_DROP, MOST_PLAN_SEC = 10.0, 2.0, 0.5, 10.0


@dataclass(frozen=True)
class Plans:
    """What is trained, and how long planning took."""

    pruned: PruningPlan
    uniform: PruningPlan
    first_sec: float
    """With measuring what this machine had not measured of the network."""
    again_sec: float
    """With that known: scoring and planning, without certifying."""


@dataclass
class Arm:
    """One network and what became of it."""

    module: nn.Module
    weights: int
    bytes: int = 0
    """Of the ONNX file."""
    right: dict[str, NDArray[np.bool_]] = field(default_factory=dict)
    """By images, whether each is classified right [N]."""
    measured: Measurement | None = None


@dataclass(frozen=True)
class Run:
    """One seed: its plans, and all arms by name."""

    plans: Plans
    arms: dict[str, Arm]


def main() -> None:
    bench = Bench("atinit", __doc__)
    add = bench.parser.add_argument
    add("--seeds", type=int, metavar="N", help="three by default")
    add("--work", type=Path, default=user_cache_path("rlprune") / "atinit", metavar="DIR")
    add("--budget-ratio", type=float, default=BUDGET_RATIO, metavar="R")
    add("--size-ratio", type=float, default=SIZE_RATIO, metavar="R")
    add("--score", default="synflow", choices=("synflow", "snip", "grasp"))
    options = bench.parse()
    torch.set_num_threads(1)

    def rows() -> Iterator[Row]:
        data = Data(CifarPack(shared_data(options.shared)))
        if options.quick:
            pixels, labels = data.train
            data.train = pixels[:QUICK_IMAGES], labels[:QUICK_IMAGES]
        count = options.seeds or (1 if options.quick else 3)
        seeds = range(options.seed, options.seed + count)
        with tempfile.TemporaryDirectory() as folder:
            if bench.is_again("vgg"):
                options.work = Path(folder)
            yield from report({seed: run_seed(seed, data, options) for seed in seeds})

    with bench.measuring():
        bench.cell("vgg", rows)


def run_seed(seed: int, data: Data, options: argparse.Namespace) -> Run:
    """All arms of one seed."""
    name = f"{options.score}-{options.budget_ratio:g}-{options.size_ratio:g}-seed{seed}"
    folder = options.work / (name + ("-quick" if options.quick else ""))
    folder.mkdir(parents=True, exist_ok=True)
    trace = rlprune.trace(fresh(seed), torch.zeros(1, 3, 32, 32))
    plans = planned(trace, data, options, folder)
    for arm_name, plan in (("pruned", plans.pruned), ("uniform", plans.uniform)):
        print(f"{arm_name}: {plan.keeps.tolist()}, {plan.params:,} parameters", flush=True)
    arms = trained(trace, plans, data, options, seed)
    judge(arms, data, folder)
    return Run(plans, arms)


def fresh(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return vgg(*STAGES)


def planned(trace: TorchTrace, data: Data, options: argparse.Namespace, folder: Path) -> Plans:
    """The plans, made once: measured latencies, and so plans, differ from run to run."""
    files = {name: folder / f"{name}.json" for name in ("pruned", "uniform", "seconds")}
    if all(path.is_file() for path in files.values()):
        known = [PruningPlan.load(files[name]) for name in ("pruned", "uniform")]
        return Plans(known[0], known[1], **json.loads(files["seconds"].read_text()))
    asked: dict[str, Any] = {
        "budget_ratio": options.budget_ratio,
        "max_params": int(options.size_ratio * trace.graph.params(trace.graph.widths)),
        "at_init": options.score,
    }
    if options.score in WITH_IMAGES:
        images = folder / "images.npz"
        np.savez(images, x=data.validation.x[:BATCH_SIZE], y=data.validation.labels[:BATCH_SIZE])
        asked["calibration"] = images
    seconds = {}
    for which in ("first_sec", "again_sec"):
        started = time.monotonic()
        rlprune.plan(trace, **asked)
        seconds[which] = time.monotonic() - started
    made = rlprune.plan(trace, certify=True, **asked)
    print(made.note, flush=True)
    uniform = rlprune.plan(trace, policy="uniform", **asked)
    made.save(files["pruned"])
    uniform.save(files["uniform"])
    files["seconds"].write_text(json.dumps(seconds))
    return Plans(made, uniform, **seconds)


def trained(
    trace: TorchTrace, plans: Plans, data: Data, options: argparse.Namespace, seed: int
) -> dict[str, Arm]:
    """All networks by name."""
    epochs = QUICK_EPOCHS if options.quick else EPOCHS
    clock = Clock(left=work(epochs) * len(ARMS))
    arms: dict[str, Arm] = {}
    for name in ARMS:
        module, of = fresh(seed), ""  # the dense net is the same whatever was planned
        if name != "dense":
            cut = rlprune.apply(getattr(plans, name), trace, calibration="none")
            module = reinitialised(cut, seed)
            of = f"-{options.score}-{options.budget_ratio:g}-{options.size_ratio:g}"
        state = options.work / f"{name}{of}-seed{seed}{'-quick' if options.quick else ''}.pt"
        recipe = Recipe(seed=seed)
        train(module, data, recipe, state, epochs=epochs, bfloat16=True, clock=clock)
        arms[name] = Arm(module, sum(p.numel() for p in module.parameters()))
    return arms


def reinitialised(module: nn.Module, seed: int) -> nn.Module:
    """Fresh weights for the shape that was cut: those cut out of wider layers are too small."""
    torch.manual_seed(seed)
    for part in module.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()  # type: ignore[operator]
    return module


def judge(arms: dict[str, Arm], data: Data, folder: Path) -> None:
    """Right answers, file size and latency of the trained nets, into the arms."""
    runtime = get_runtime()
    models = {}
    for name, arm in arms.items():
        path = folder / f"{name}.onnx"
        path.write_bytes(exported(arm.module.float().eval()))
        arm.bytes = path.stat().st_size
        models[name] = load_onnx(path)
        for value in models[name].graph.input:
            value.type.tensor_type.shape.dim[0].dim_value = 1
        arm.right = {
            "validation": right(arm.module, data.validation),
            "test_reward": right(arm.module, data.reward),
        }
    found = measure(
        [(ModelSubject(name, ()), model) for name, model in models.items()],
        device=local_device_key(runtime, batch=1),
        runtime=runtime,
        control=models["dense"],
        config=MeasureConfig(sample_count=10),
    )
    for arm, one in zip(arms.values(), found, strict=True):
        arm.measured = one


def report(runs: dict[int, Run]) -> Iterator[Row]:
    """The figures over all seeds."""
    count, first = len(runs), next(iter(runs.values()))
    again = float(np.mean([run.plans.again_sec for run in runs.values()]))
    yield Row("plan/again", again, "s", MOST_PLAN_SEC, "min", count, None)
    yield Row("plan/first", first.plans.first_sec, "s", None, "min", 1, None)
    dense = {seed: run.arms["dense"] for seed, run in runs.items()}
    for name in first.arms:
        arms = {seed: run.arms[name] for seed, run in runs.items()}
        ours = name == "pruned"
        for images in first.arms[name].right:
            own, whole = (
                {seed: np.where(arm.right[images], 100.0, 0.0) for seed, arm in of.items()}
                for of in (arms, dense)
            )
            accuracy, lost = difference(own), difference(whole, own)  # by the same images
            assert accuracy is not None and lost is not None
            yield accuracy.row(f"{name}/{images}", "%", "max")
            if name != "dense":
                target = MOST_DROP if ours else None
                yield lost.row(f"{name}/{images}_drop", "points", "min", target)
        if name == "dense":
            continue
        faster = [
            1 / one.control_ratio
            for arm in arms.values()
            if (one := arm.measured) is not None and one.status != "failed"
        ]
        smaller = [dense[seed].weights / arm.weights for seed, arm in arms.items()]
        files = [dense[seed].bytes / arm.bytes for seed, arm in arms.items()]
        for what, unit, values, least in (
            ("smaller", "x weights", smaller, LEAST_SMALLER),
            ("smaller_file", "x bytes", files, LEAST_SMALLER),
            ("faster", "x", faster, LEAST_FASTER),
        ):
            if values:  # the least of the seeds
                target = least if ours else None
                yield Row(f"{name}/{what}", min(values), unit, target, "max", len(values), None)


if __name__ == "__main__":
    main()
