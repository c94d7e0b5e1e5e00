"""The demo's nets: trained, recorded and fine-tuned, each job in a process of its own."""

from __future__ import annotations

import argparse
from multiprocessing.pool import AsyncResult, Pool
from pathlib import Path

import safetensors.torch
import torch

import rlprune
from rlprune.graph.from_torch import trace_torch
from rlprune.latency.measure import measure
from rlprune.latency.types import ModelSubject
from rlprune.planning import profile_model, read_calibration
from rlprune.plans import PruningPlan
from rlprune.profile.calibration import CalibrationSet
from rlprune.profile.types import keep_levels
from rlprune.runtime import get_runtime
from rlprune.training.finetune import TrainConfig, fit, score, shifted
from rlprune.training.record import RecordConfig, record_model
from datasets.digits import NetSpec, Splits, build, digits, train_net

SEEN = (
    NetSpec("inverted", 40, 1),
    NetSpec("plain", 32, 2),
    NetSpec("squeeze", 32, 1),
    NetSpec("dense", 40, 1),
)
"""Trained on; the last chooses between agents. Each takes a millisecond or more."""
HELD_OUT = NetSpec("residual", 24, 2)
IMAGE_COUNT = 128
"""Images of a profile, and as many others that plans are judged on."""
RECORD_STEP = 16
"""Keep levels of the recorded nets; half as many as the multiples of 8 that plans are made of."""
JOB_SEC = 1800.0
"""Deadline of a job in the pool."""


def prepare(folder: Path, pool: Pool, options: argparse.Namespace) -> torch.nn.Module:
    """Trains all nets, records all but the one held out; that one, trained."""
    specs = [*SEEN, HELD_OUT]
    jobs = [pool.apply_async(train_one, (folder, spec, options.seed)) for spec in specs]
    recordings: list[AsyncResult[int]] = []
    for spec, job in zip(specs, jobs, strict=True):
        accuracy, latency_ms = job.get(JOB_SEC)
        print(f"  {spec.name}: accuracy {accuracy:.1%}, {latency_ms:.2f} ms", flush=True)
        if spec is not HELD_OUT:
            recordings.append(
                pool.apply_async(record_one, (folder, spec, options.seed, options.evaluations))
            )
    profile = pool.apply_async(profile_held_out, (folder, options.seed))
    print(f"  {sum(job.get(JOB_SEC) for job in recordings)} plans evaluated", flush=True)
    profile.get(JOB_SEC)
    return load_net(folder, HELD_OUT)


def train_one(folder: Path, spec: NetSpec, seed: int) -> tuple[float, float]:
    """Trains a net, keeps its weights; its accuracy on the calibration images, its latency here."""
    splits = digits(seed=seed)
    path = folder / f"{spec.name}.safetensors"
    if not path.exists():  # --keep goes on where it was stopped
        module = train_net(spec, splits, epoch_count=6, seed=seed)
        safetensors.torch.save_file(module.state_dict(), path)
    module = load_net(folder, spec)
    trace = trace_torch(module, torch.zeros(splits.shape)).onnx
    subject = ModelSubject(trace.graph.fingerprint, ())
    [measurement] = measure([(subject, trace.model)], device="here", runtime=get_runtime())
    return score(module, splits.calibration).accuracy, measurement.latency_ms


def load_net(folder: Path, spec: NetSpec) -> torch.nn.Module:
    module = build(spec)
    module.load_state_dict(safetensors.torch.load_file(folder / f"{spec.name}.safetensors"))
    return module


def part(splits: Splits, index: int) -> CalibrationSet:
    """The index-th `IMAGE_COUNT` calibration images."""
    where = slice(index * IMAGE_COUNT, (index + 1) * IMAGE_COUNT)
    return CalibrationSet.single(splits.calibration.x[where], splits.calibration.y[where])


def record_one(folder: Path, spec: NetSpec, seed: int, count: int) -> int:
    splits = digits(seed=seed)
    trace = trace_torch(load_net(folder, spec), torch.zeros(splits.shape)).onnx
    config = RecordConfig(evaluation_count=count, round_to=RECORD_STEP, seed=seed)
    path = folder / "recorded" / spec.name
    recorded = record_model(path, trace, part(splits, 0), part(splits, 1), config=config)
    assert recorded.evaluations is not None
    return len(recorded.evaluations.keeps)


def profile_held_out(folder: Path, seed: int) -> None:
    """Measures the losses that plans of the held-out net go by; the client finds them kept."""
    splits = digits(seed=seed)
    trace = trace_torch(load_net(folder, HELD_OUT), torch.zeros(splits.shape)).onnx
    images = read_calibration(trace, folder / "calibration.npz")
    profile_model(trace, *keep_levels(trace.graph), images)


def tune_one(folder: Path, plan_json: str, seed: int) -> tuple[float, float]:
    splits = digits(seed=seed)
    trace = trace_torch(load_net(folder, HELD_OUT), torch.zeros(splits.shape))
    plan = PruningPlan.from_json(plan_json)
    small = rlprune.apply(plan, trace, calibration=folder / "calibration.npz")
    cut = score(small, splits.report).accuracy
    config = TrainConfig(epoch_count=1, batch_size=32, seed=seed)
    fit(small, splits.train, config, augment=shifted)
    return cut, score(small, splits.report).accuracy
