"""The main job, end to end, through public doors only, on scikit-learn's digits at 32x32.

    scripts/demo [--keep DIR] [--steps N] [--evaluations N] [--seed N]

Small CNNs of four block types are trained and recorded, and a policy is trained on them with PPO on
Ray. A server and a worker are started as processes of their own; over gRPC they are asked for plans
of a fifth net, of a block type that nothing was trained on, at three budgets. The worker measures
the plans; one over its budget is asked for again, certified. The plans are applied to the torch
module and fine-tuned; one table tells how they compare.

Budgets and "measured" are milliseconds of the unpruned model's predicted latency: a measurement is
its ratio to the unpruned model that ran interleaved with it. Accuracy is on images that nothing
else has looked at: after reconstruction ("cut"), and after an epoch of training ("tuned").
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from multiprocessing.pool import Pool
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import rlprune
from datasets.digits import NetSpec, Splits, build, digits, train_net
from datasets.running import stoppable
from rlprune.errors import RlpruneError
from rlprune.finetuning.augment import shifted
from rlprune.finetuning.loop import TrainConfig, fit
from rlprune.finetuning.scoring import score
from rlprune.graph.from_torch import TorchTrace, trace_torch
from rlprune.plans import PruningPlan
from rlprune.recording.record import RecordConfig, record_model
from rlprune.sensitivity.calibration import CalibrationSet
from rlprune.service.client import Client
from rlprune.store import open_store
from rlprune.training import train

SEEN = (
    NetSpec("inverted", 40, 1),
    NetSpec("plain", 32, 2),
    NetSpec("squeeze", 32, 1),
    NetSpec("dense", 40, 1),
)
"""Trained on; the last chooses between agents. Each takes a millisecond or more."""
HELD_OUT = NetSpec("residual", 24, 2)
POLICIES = ("uniform", "knapsack", "learned")
BUDGET_SHARES = (0.75, 0.5, 0.25)
"""b in `least + b (base - least)`."""
IMAGE_COUNT = 128
"""Images of a profile, and as many others that plans are judged on."""
RECORD_STEP = 16
"""Keep levels of the recorded nets; half as many as the multiples of 8 that plans are made of."""
MAX_OVER = 0.05
"""A measured plan may be this share over its budget."""
CORE_COUNT = 2
JOB_SEC, START_SEC = 1800.0, 60.0
"""Deadlines of a job in the pool, and of a process that starts."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    policy: str
    plan: PruningPlan
    measured_ms: float

    @property
    def over(self) -> float:
        """How far above the budget it was measured, as a share; negative: below."""
        return self.measured_ms / self.plan.budget_ms - 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--keep", type=Path, metavar="DIR", help="leave everything made here")
    parser.add_argument("--steps", type=int, default=20_000, help="environment steps per agent")
    parser.add_argument("--evaluations", type=int, default=40, help="plans recorded per model")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started = time.monotonic()
    with stoppable(), ExitStack() as stack:  # nothing started here outlives this
        folder = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        os.environ["XDG_DATA_HOME"] = str(folder / "data")  # nothing of the user's is touched
        torch.set_num_threads(1)
        run(folder.resolve(), options, stack)
    print(f"all steps done in {time.monotonic() - started:.0f} s")


def run(folder: Path, options: argparse.Namespace, stack: ExitStack) -> None:
    splits = digits(seed=options.seed)
    spawning = multiprocessing.get_context("spawn")
    # Leaving this pool ends its processes at once, also where a step failed or SIGTERM came.
    pool = stack.enter_context(spawning.Pool(CORE_COUNT, torch.set_num_threads, (1,)))
    images = part(splits, 0)
    np.savez(folder / "calibration.npz", x=images.x, y=images.labels)
    with phase("train and record the nets"):
        prepare(folder, pool, options)
    url = f"sqlite:///{folder / 'store.sqlite'}"
    with phase("train the policy: PPO agents on Ray"), closing(open_store(url)) as store:
        summary = train(
            [folder / "recorded"],
            out=folder / "policy",
            store=store,
            validation=[SEEN[-1].name],
            agents=CORE_COUNT,
            steps=options.steps,
            rounds=4,
            seed=options.seed,
        )
        print(f"  the best agent saves {summary.relative_gain:+.1%} on {SEEN[-1].name}")
    with phase("start server and worker"):
        address = stack.enter_context(server(folder, url))
        stack.enter_context(process(folder, "worker", "work", f"--server={address}"))
        client = stack.enter_context(Client(address))
        device = wait_for_device(client)
    module = load(folder, HELD_OUT)
    trace = trace_torch(module, torch.zeros(splits.shape))
    with phase(f"plan {HELD_OUT.name} on {device}, measure, plan again where a budget is missed"):
        base, rows = measured(client, trace, device, folder / "calibration.npz")
    with phase("apply, reconstruct, fine-tune"):
        texts = [row.plan.to_json() for row in rows]
        jobs = {  # policies may agree
            text: pool.apply_async(tune_one, (folder, text, options.seed)) for text in set(texts)
        }
        accuracies = [jobs[text].get(JOB_SEC) for text in texts]
    with closing(open_store(url)) as store:
        print(f"{len(store.measurements(device))} measurements by the worker are in the store")
    show(rows, accuracies, base, score(module, splits.report).accuracy)
    late = [row for row in rows if row.over > MAX_OVER]
    if late:
        raise RlpruneError(f"{late[0].policy} is {late[0].over:+.1%} over its budget")


def prepare(folder: Path, pool: Pool, options: argparse.Namespace) -> None:
    """Trains all nets, records all but the one held out."""
    specs = [*SEEN, HELD_OUT]
    jobs = [pool.apply_async(train_one, (folder, spec, options.seed)) for spec in specs]
    recordings = []
    for spec, job in zip(specs, jobs, strict=True):
        print(f"  {spec.name}: accuracy {job.get(JOB_SEC):.1%}", flush=True)
        if spec != HELD_OUT:
            given = (folder, spec, options.seed, options.evaluations)
            recordings.append(pool.apply_async(record_one, given))
    print(f"  {sum(job.get(JOB_SEC) for job in recordings)} plans evaluated", flush=True)


def train_one(folder: Path, spec: NetSpec, seed: int) -> float:
    """Trains a net, keeps its weights; its accuracy on the calibration images."""
    splits, path = digits(seed=seed), folder / f"{spec.name}.safetensors"
    if not path.exists():  # --keep goes on where it was stopped
        module = train_net(spec, splits, epoch_count=6, seed=seed)
        safetensors.torch.save_file(module.state_dict(), path)
    return score(load(folder, spec), splits.calibration).accuracy


def load(folder: Path, spec: NetSpec) -> nn.Module:
    module = build(spec)
    module.load_state_dict(safetensors.torch.load_file(folder / f"{spec.name}.safetensors"))
    return module


def part(splits: Splits, index: int) -> CalibrationSet:
    """The index-th `IMAGE_COUNT` calibration images."""
    where = slice(index * IMAGE_COUNT, (index + 1) * IMAGE_COUNT)
    return CalibrationSet.single(splits.calibration.x[where], splits.calibration.labels[where])


def record_one(folder: Path, spec: NetSpec, seed: int, count: int) -> int:
    splits = digits(seed=seed)
    trace = trace_torch(load(folder, spec), torch.zeros(splits.shape)).onnx
    config = RecordConfig(evaluation_count=count, round_to=RECORD_STEP, seed=seed)
    path = folder / "recorded" / spec.name
    recorded = record_model(path, trace, part(splits, 0), part(splits, 1), config=config)
    assert recorded.evaluations is not None
    return len(recorded.evaluations.keeps)


def measured(
    client: Client, trace: TorchTrace, device: str, calibration: Path
) -> tuple[PruningPlan, list[Row]]:
    """The plan that keeps everything; every policy's at every budget, budgets descending."""

    def ask(
        policy: str,
        *,
        budget_ms: float | None = None,
        budget_ratio: float | None = None,
        certify: bool = False,
    ) -> PruningPlan:
        plan = client.plan(
            trace.onnx,
            device=device,
            policy=policy,
            calibration=calibration,
            guard=False,  # the demo is about what the policy itself plans
            budget_ms=budget_ms,
            budget_ratio=budget_ratio,
            certify=certify,
        )
        if not plan.feasible:
            raise RlpruneError(f"{policy} found {plan.budget_ms:.3f} ms infeasible: {plan.note}")
        return plan

    base = ask("knapsack", budget_ratio=1.0)
    high = base.predicted_interval_ms[1] / base.predicted_latency_ms
    least = base.least_latency_ms * high  # a budget is held against the interval's upper end
    budgets = [least + share * (base.base_latency_ms - least) for share in BUDGET_SHARES]
    plans = [(name, ask(name, budget_ms=budget)) for budget in budgets for name in POLICIES]
    keeps = np.stack([plan.keeps for _, plan in plans])
    rows = []
    for (name, plan), one in zip(plans, client.measure(trace.onnx, keeps, device), strict=True):
        if one.status == "failed":
            raise RlpruneError(f"the worker could not run a plan: {one.reason}")
        row = Row(name, plan, one.control_ratio * plan.base_latency_ms)
        if row.over > MAX_OVER:
            plan = ask(name, budget_ms=plan.budget_ms, certify=True)
            assert plan.certificate is not None
            row = Row(name, plan, plan.certificate.measured_latency_ms)
        rows.append(row)
    return base, rows


def tune_one(folder: Path, plan_json: str, seed: int) -> tuple[float, float]:
    """Accuracy on the report images: after reconstruction, and after fine-tuning."""
    splits = digits(seed=seed)
    trace = trace_torch(load(folder, HELD_OUT), torch.zeros(splits.shape))
    plan = PruningPlan.from_json(plan_json)
    small = rlprune.apply(plan, trace, calibration=folder / "calibration.npz")
    cut = score(small, splits.report).accuracy
    config = TrainConfig(1, batch_size=32, learning_rate=0.02, distill_weight=0.0, seed=seed)
    fit(small, splits.train, config, augment=shifted)
    return cut, score(small, splits.report).accuracy


def show(
    rows: list[Row], accuracies: list[tuple[float, float]], base: PruningPlan, accuracy: float
) -> None:
    table = Table(
        title=f"{HELD_OUT.name}, never trained on: {base.base_latency_ms:.3f} ms, "
        f"accuracy {accuracy:.1%} before pruning"
    )
    for name in ("budget ms", "policy", "predicted", "measured", "over", "cut", "tuned"):
        table.add_column(name, justify="left" if name == "policy" else "right")
    for index, (row, (cut, tuned)) in enumerate(zip(rows, accuracies, strict=True)):
        table.add_row(
            "" if index % len(POLICIES) else f"{row.plan.budget_ms:.3f}",
            row.policy,
            f"{row.plan.predicted_latency_ms:.3f}",
            f"{row.measured_ms:.3f}" + ("" if row.plan.certificate is None else ", certified"),
            f"{row.over:+.1%}",
            f"{cut:.1%}",
            f"{tuned:.1%}",
            end_section=index % len(POLICIES) == len(POLICIES) - 1,
        )
    Console(width=None if sys.stdout.isatty() else 130).print(table)


@contextmanager
def phase(title: str) -> Iterator[None]:
    print(f"{title} ...", flush=True)
    began = time.monotonic()
    yield
    print(f"  {time.monotonic() - began:.0f} s", flush=True)


@contextmanager
def process(folder: Path, name: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`rlprune ...` in a process of its own, ended with SIGTERM; its log lies in `folder`."""
    log = folder / f"{name}.log"
    command = [sys.executable, "-c", "from rlprune.cli import main; main()", *arguments]
    with log.open("w") as stderr:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True)
    try:
        yield child
        child.send_signal(signal.SIGTERM)
        if child.wait(30) != 0:
            raise RlpruneError(
                f"the {name} ended with {child.returncode}: {log.read_text()[-500:]}"
            )
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()


@contextmanager
def server(folder: Path, url: str) -> Iterator[str]:
    """A server with the policy just trained; its HOST:PORT."""
    own = f"--policy=learned={folder / 'policy'}"
    arguments = ("serve", "--listen=127.0.0.1:0", f"--store={url}", own)
    with process(folder, "server", *arguments) as child:
        assert child.stdout is not None
        ready = select.select([child.stdout], [], [], START_SEC)[0]
        line = child.stdout.readline() if ready else ""
        if not line.startswith("listening on "):
            raise RlpruneError(f"no server: {(folder / 'server.log').read_text()[-500:]}")
        yield line.removeprefix("listening on ").strip()


def wait_for_device(client: Client) -> str:
    """The key under which the worker introduced itself."""
    until = time.monotonic() + START_SEC
    while time.monotonic() < until:
        for record in client.devices():
            return record.key
        time.sleep(0.2)
    raise RlpruneError(f"no worker introduced itself within {START_SEC:.0f} s")


if __name__ == "__main__":
    main()
