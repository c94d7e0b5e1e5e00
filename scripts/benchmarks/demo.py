"""What is won, end to end, through public doors only: one network, one table, five minutes.

    scripts/demo [--keep DIR] [--seed N]

A small ResNet learns to read cluttered digits (made of scikit-learn's, so nothing is downloaded)
while a server and a worker, processes of their own, measure what its layers cost on this machine's
ONNX Runtime. Over gRPC they are then asked for plans within the same latencies, by more and more of
what a plan may use: one ratio for all widths, widths searched for, kernel shapes and blocks left
out as well, and all of that in int8. Plans are applied and measured; one that misses its budget is
asked for again, certified: the worker measures it, and it is corrected by that. Every pruned
network is trained for an epoch by `rlprune.finetune`.

Budgets and latencies in the table are shares of the unpruned network's in f32, also those of int8:
the files that were written, measured in turns with it. Accuracy is that of the same files in ONNX
Runtime, on images of handwriting that nothing else has looked at.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from multiprocessing.pool import AsyncResult
from pathlib import Path

import numpy as np
import onnx
import safetensors.torch
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import rlprune
from benchmarks.parts.demo_processes import RLPRUNE, process, server, wait_for_device
from datasets.digits import NetSpec, Splits, build, cluttered, train_net
from datasets.running import stoppable
from rlprune.errors import RlpruneError
from rlprune.finetuning.loop import TrainConfig
from rlprune.finetuning.memory import keep_freed_memory
from rlprune.graph.from_torch import TorchTrace
from rlprune.plans import PruningPlan
from rlprune.runtime import get_runtime
from rlprune.sensitivity.batching import open_batch
from rlprune.sensitivity.calibration import CalibrationSet
from rlprune.service.client import Client

NET = NetSpec("residual", 16, 3)
"""Its cost is in 3x3 convolutions; nine blocks, of which six can be left out."""
BUDGETS = (0.4, 0.3)
"""Shares of the unpruned network's latency in f32."""
CALIBRATION = 256
"""Images that plans are made from; as many others choose nothing but are watched while tuning."""
TUNING = TrainConfig(epoch_count=1, batch_size=64, learning_rate=0.03, distill_temperature=4.0)
"""With the unpruned network as teacher."""
CHECKS = 2
"""Processes that measure the written files."""
CORE_COUNT = 2
JOB_SEC = 1800.0
"""Deadline of a job in the pool."""


@dataclass(frozen=True, slots=True)
class Method:
    """One row: what its plans may use."""

    name: str
    schemes: str = "channels"
    policy: str = "search"
    precision: str = "f32"

    @property
    def slug(self) -> str:
        """As files are named."""
        return self.name.replace(" ", "-").replace(",", "")


ALL = "channels,shapes,blocks"
METHODS = (
    Method("uniform widths", policy="uniform"),
    Method("widths"),
    Method("widths, kernels and blocks", ALL),
    Method("the same in int8", ALL, precision="int8"),
)
WIDTHS, OPTIONS, OPTIONS_INT8 = METHODS[1:]
UNPRUNED, INT8 = "unpruned.onnx", "unpruned-int8.onnx"


@dataclass(frozen=True, slots=True)
class Tuned:
    """Accuracy of one plan's files on the report images."""

    cut: float
    tuned: float


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--keep", type=Path, metavar="DIR", help="leave everything made here")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started = time.monotonic()
    # Nothing started here outlives this.
    with stoppable(goes_on=options.keep is not None), ExitStack() as stack:
        folder = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        os.environ["XDG_DATA_HOME"] = str(folder.resolve() / "data")  # nothing of the user's
        torch.set_num_threads(1)
        run(folder.resolve(), options.seed, stack)
    print(f"all steps done in {time.monotonic() - started:.0f} s")


def run(folder: Path, seed: int, stack: ExitStack) -> None:
    splits = cluttered(seed=seed)
    write_images(folder, splits)
    # Leaving this pool ends its processes at once, also where a step failed or SIGTERM came.
    pool = stack.enter_context(multiprocessing.get_context("spawn").Pool(CORE_COUNT, quiet))
    with phase("start a server and a worker"):
        url = f"sqlite:///{folder / 'store.sqlite'}"
        address = stack.enter_context(server(folder, url))
        stack.enter_context(process(folder, "worker", "work", f"--server={address}"))
        client = stack.enter_context(Client(address))
        device = wait_for_device(client)
        print(f"  the worker is {device}")
    with phase(f"train {NET.name}; the worker measures its layers meanwhile"):
        training = pool.apply_async(train_one, (folder, seed))
        prepare(client, device, splits)
        print(f"  accuracy {training.get(JOB_SEC):.1%}")
    module = load(folder)
    trace = rlprune.trace(module, torch.zeros(splits.shape))
    with phase("quantise it, without pruning"):
        plain = write_unpruned(folder, trace)
        print(f"  int8 takes {plain:.2f} of the latency in f32")
    jobs: dict[tuple[Method, float], AsyncResult[Tuned]] = {}
    with phase("plan, measure, plan again where a budget is missed; apply, tune"):
        for method in METHODS:
            # A plan for int8 is held against the unpruned network in int8.
            whole = plain if method.precision == "int8" else 1.0
            asking = Asking(client, trace, device, folder, method, whole)
            for budget in asking.within_budget():
                jobs[method, budget] = pool.apply_async(tune_one, (folder, method, budget, seed))
        tuned = {cell: job.get(JOB_SEC) for cell, job in jobs.items()}
    with phase("measure the files that were written, in turns with the unpruned one"):
        ratios = measured(folder, [UNPRUNED, INT8, *(f"{file_of(*cell)}.onnx" for cell in tuned)])
    accuracies = {
        name: accuracy(onnx.load(folder / name), splits.report) for name in (UNPRUNED, INT8)
    }
    show(tuned, ratios, accuracies)
    for method, budget in tuned:
        least = ratios[f"{file_of(method, budget)}.onnx"].low
        if least > budget:
            raise RlpruneError(f"{method.name} takes {least:.3f} or more; {budget:g} was asked for")


def quiet() -> None:
    """What a process of the pool begins with: Ctrl+C is this program's to answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    keep_freed_memory()


def write_images(folder: Path, splits: Splits) -> None:
    """Files as a user would give them."""
    rows = np.arange(len(splits.calibration))
    parts = {
        "train": splits.train,
        "calibration": splits.calibration.take(rows[:CALIBRATION]),
        "validation": splits.calibration.take(rows[CALIBRATION:]),
        "report": splits.report,
    }
    for name, part in parts.items():
        np.savez(folder / f"{name}.npz", x=part.x, y=part.labels)


def images(folder: Path, name: str) -> CalibrationSet:
    with np.load(folder / f"{name}.npz") as file:
        return CalibrationSet.single(file["x"], file["y"])


def train_one(folder: Path, seed: int) -> float:
    """Trains the net, keeps its weights; its accuracy on the calibration images."""
    path = folder / "net.safetensors"
    if not path.exists():  # --keep goes on where it was stopped
        module = train_net(NET, images(folder, "train"), seed=seed)
        safetensors.torch.save_file(module.state_dict(), path)
    known = images(folder, "calibration")
    with torch.no_grad():
        answers = load(folder)(torch.from_numpy(known.x)).argmax(1).numpy()
    return float((answers == known.labels).mean())


def load(folder: Path) -> nn.Module:
    module = build(NET)
    module.load_state_dict(safetensors.torch.load_file(folder / "net.safetensors"))
    return module


def prepare(client: Client, device: str, splits: Splits) -> None:
    """Has measured what plans need. Latency does not depend on weights, so these may be any."""
    trace = rlprune.trace(build(NET), torch.zeros(splits.shape))
    for method in (WIDTHS, OPTIONS, OPTIONS_INT8):
        began = time.monotonic()
        client.plan(
            trace.onnx,
            device=device,
            policy="knapsack",
            schemes=method.schemes,
            precision=method.precision,
            budget_ratio=0.5,
        )
        print(f"  measured for {method.name}: {time.monotonic() - began:.0f} s", flush=True)


def write_unpruned(folder: Path, trace: TorchTrace) -> float:
    """Writes the network in f32 and in int8; the latency of the second over that of the first."""
    onnx.save(open_batch(trace.onnx.model), folder / UNPRUNED)
    quantised = rlprune.quantize(trace.onnx, calibration=folder / "calibration.npz")
    onnx.save(open_batch(quantised), folder / INT8)
    return measured(folder, [UNPRUNED, INT8])[INT8].middle


@dataclass(frozen=True, slots=True)
class Asking:
    """One method's plans, asked of the server, carried out and measured here."""

    client: Client
    trace: TorchTrace
    device: str
    folder: Path
    method: Method
    whole: float
    """Latency of the unpruned network in the method's precision, as a share of that in f32."""

    def within_budget(self) -> list[float]:
        """Writes a plan and its pruned network for each budget; those that were met.

        A plan that is measured over its budget is asked for again, certified: measured by the
        worker, and corrected by what it measured, until it is within.
        """
        budgets = list(BUDGETS)
        for budget in BUDGETS:
            self._write(budget, self._plan(budget))
        files = {budget: f"{file_of(self.method, budget)}-cut.onnx" for budget in BUDGETS}
        found = measured(self.folder, [UNPRUNED, *files.values()], process_count=1)
        for budget, file in files.items():
            taken = found[file].middle
            print(f"  {self.method.name}: {taken:.3f} of at most {budget:g}", flush=True)
            if taken > budget:
                plan = self._plan(budget, certify=True)
                print(f"    again: {plan.note}", flush=True)
                if plan.feasible:
                    self._write(budget, plan)
                else:
                    budgets.remove(budget)
        return budgets

    def _plan(self, budget: float, *, certify: bool = False) -> PruningPlan:
        return self.client.plan(
            self.trace.onnx,
            device=self.device,
            policy=self.method.policy,
            schemes=self.method.schemes,
            precision=self.method.precision,
            budget_ratio=min(1.0, budget / self.whole),
            calibration=self.folder / "calibration.npz",
            certify=certify,
        )

    def _write(self, budget: float, plan: PruningPlan) -> None:
        name, few = file_of(self.method, budget), self.folder / "calibration.npz"
        plan.save(self.folder / f"{name}.json")
        cut = rlprune.apply(plan, self.trace.onnx, calibration=few, on_result=lambda _: None)
        onnx.save(open_batch(cut), self.folder / f"{name}-cut.onnx")


def file_of(method: Method, budget: float) -> str:
    """Name of a cell's files, without their endings."""
    return f"{method.slug}-{budget:g}"


def tune_one(folder: Path, method: Method, budget: float, seed: int) -> Tuned:
    """Fine-tunes a plan and writes the tuned file."""
    name, report = file_of(method, budget), images(folder, "report")
    plan, module = PruningPlan.load(folder / f"{name}.json"), load(folder)
    out = folder / name
    rlprune.finetune(
        module,
        plan,
        folder / "train.npz",
        out=out,
        validation=folder / "validation.npz",
        config=replace(TUNING, seed=seed),
        quantisation_aware="never",  # as much training for all
    )
    (out / "model.onnx").replace(folder / f"{name}.onnx")
    cut, tuned = (onnx.load(folder / f"{name}{end}.onnx") for end in ("-cut", ""))
    return Tuned(accuracy(cut, report), accuracy(tuned, report))


def accuracy(model: onnx.ModelProto, report: CalibrationSet) -> float:
    """Share (0-1) of the images that a file of an open batch is right on, in ONNX Runtime."""
    name, right = model.graph.input[0].name, 0
    with closing(get_runtime().load(model.SerializeToString())) as session:
        for start in range(0, len(report), 100):
            [answers] = session.run({name: report.x[start : start + 100]})
            labels = report.labels[start : start + 100]
            right += int((np.asarray(answers).argmax(1) == labels).sum())
    return right / len(report)


@dataclass(frozen=True, slots=True)
class Share:
    """A file's latency over that of the first one."""

    middle: float
    low: float
    """Where another such measurement lies 95 % above."""


def measured(folder: Path, names: list[str], *, process_count: int = CHECKS) -> dict[str, Share]:
    """Files by `rlprune measure`, each in turns with the first; the mean of several processes."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for _ in range(process_count):
        command = [*RLPRUNE, "measure", "--json", *names]
        told = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if told.returncode != 0:
            last = (told.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise RlpruneError(f"measuring ended with {told.returncode}: {last}")
        for row in json.loads(told.stdout)["models"]:
            found[row["model"]].append((row["ratio_to_first"], row["ratio_interval"][0]))
    means = {name: np.mean(each, axis=0) for name, each in found.items()}
    return {name: Share(float(middle), float(low)) for name, (middle, low) in means.items()}


def show(
    tuned: dict[tuple[Method, float], Tuned],
    ratios: dict[str, Share],
    unpruned: dict[str, float],
) -> None:
    """The table, and what is won in a sentence."""
    table = Table(
        title="latency as a share of the unpruned network's in f32, measured on this machine"
    )
    table.add_column("a plan may use")
    for budget in BUDGETS:
        for column in (f"latency\n(at most {budget:g})", "accuracy\ncut", "\ntuned"):
            table.add_column(column, justify="right")
    for name, what in ((UNPRUNED, "nothing: unpruned, f32"), (INT8, "nothing: unpruned, int8")):
        whole = f"{ratios[name].middle:.2f}", f"{unpruned[name]:.1%}"
        table.add_row(what, *whole, end_section=name == INT8)
    for method in METHODS:
        cells: list[str] = []
        for budget in BUDGETS:
            one = tuned.get((method, budget))
            if one is None:
                cells += ["none", "", ""]
                continue
            ratio = ratios[f"{file_of(method, budget)}.onnx"].middle
            cells += [f"{ratio:.2f}", f"{one.cut:.1%}", f"{one.tuned:.1%}"]
        table.add_row(method.name, *cells)
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    print(won(tuned, unpruned[UNPRUNED]))


def won(tuned: dict[tuple[Method, float], Tuned], unpruned: float) -> str:
    """One sentence: what the options are worth at the least latency, in points of accuracy."""
    budget = min(BUDGETS)
    losses = [
        f"{100 * (unpruned - tuned[method, budget].tuned):.1f} by {method.name}"
        for method in METHODS
        if (method, budget) in tuned
    ]
    return (
        f"Points of accuracy lost at {budget:g} of the latency, after an epoch of tuning: "
        f"{'; '.join(losses)}."
    )


@contextmanager
def phase(title: str) -> Iterator[None]:
    print(f"{title} ...", flush=True)
    began = time.monotonic()
    yield
    print(f"  {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
