"""The main job, end to end, through public doors only, on scikit-learn's digits at 32x32.

Small CNNs of four block types are trained and recorded, and a policy is trained on them with PPO on
Ray. A server and a worker are started as processes of their own; over gRPC they are asked for plans
of a fifth net, of a block type that nothing was trained on, at three budgets. The plans are
measured by the worker, applied to the torch module and fine-tuned; one table tells how they
compare. At the end the worker's reports are in the store and change the next plan.

Budgets and "measured" are milliseconds of the unpruned model's predicted latency: a measurement is
its ratio to the unpruned model that ran interleaved with it. Accuracy is on images that nothing
else has looked at: after reconstruction ("cut"), and after an epoch of training ("tuned").
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from multiprocessing.pool import Pool
from pathlib import Path
from types import FrameType

import numpy as np
import torch
from demo_fleet import DemoError, server, wait_for_device, worker
from demo_nets import HELD_OUT, JOB_SEC, SEEN, part, prepare, tune_one
from rich.console import Console
from rich.table import Table

import rlprune
from rlprune.graph.from_torch import TorchTrace, trace_torch
from rlprune.latency.types import Measurement, ModelSubject
from rlprune.plans import PruningPlan
from rlprune.policy.corrected import fit_corrected
from rlprune.service.client import Client
from rlprune.store import open_store
from rlprune.training import TrainSummary, train
from rlprune.training.finetune import score
from rlprune.training.run import load_models, training_tasks
from datasets.digits import digits

POLICIES = ("uniform", "knapsack", "corrected", "learned")
BUDGET_SHARES = (0.75, 0.5, 0.25)
"""b in `least + b (base - least)`."""
MAX_OVER = 0.05
"""A measured plan may be this share over its budget."""
ASK_COUNT = 3
"""Plans asked for per budget at most: one that came out over its budget is asked for again, for by
then the server knows what was measured."""
CORE_COUNT = 2

CONSOLE = Console(width=None if sys.stdout.isatty() else 130)


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    budget_ms: float
    policy: str
    plan: PruningPlan
    measurement: Measurement

    @property
    def measured_ms(self) -> float:
        return self.measurement.control_ratio * self.plan.base_latency_ms

    @property
    def over(self) -> float:
        """How far above the budget it was measured, as a share; negative: below."""
        return self.measured_ms / self.budget_ms - 1.0

    @property
    def kept(self) -> bool:
        """Whether the budget was kept, or the device could not say."""
        return self.over <= MAX_OVER or self.measurement.status == "unstable"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", type=Path, metavar="DIR", help="leave everything made here")
    parser.add_argument("--steps", type=int, default=20_000, help="environment steps per agent")
    parser.add_argument("--evaluations", type=int, default=40, help="plans recorded per model")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, end)  # so that nothing started here outlives this
    started = time.monotonic()
    with ExitStack() as stack:
        folder = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        os.environ["XDG_DATA_HOME"] = str(folder / "data")  # nothing of the user's is touched
        try:
            run(folder.resolve(), options, stack)
        except (DemoError, rlprune.errors.RlpruneError) as error:
            print(f"demo failed: {error}", file=sys.stderr)
            return 1
    print(f"all steps done in {time.monotonic() - started:.0f} s")
    return 0


def end(number: int, frame: FrameType | None) -> None:
    """Leaves through every `with` on SIGTERM."""
    sys.exit(128 + number)


def run(folder: Path, options: argparse.Namespace, stack: ExitStack) -> None:
    torch.set_num_threads(1)
    splits = digits(seed=options.seed)
    spawning = multiprocessing.get_context("spawn")
    # Leaving this pool ends its processes at once, also where a step failed or SIGTERM came.
    pool = stack.enter_context(spawning.Pool(CORE_COUNT, torch.set_num_threads, (1,)))
    calibration = folder / "calibration.npz"
    images = part(splits, 0)
    np.savez(calibration, x=images.x, y=images.y)
    with phase("train and record the nets"):
        module = prepare(folder, pool, options)
    trace = trace_torch(module, torch.zeros(splits.shape))
    url = f"sqlite:///{folder / 'store.sqlite'}"
    with phase("train the policy: PPO agents on Ray"):
        learn(folder, url, options)
    with phase("start server and worker"):
        address = stack.enter_context(server(folder, url))
        stack.enter_context(worker(folder, address))
        client = stack.enter_context(Client(address))
        device = wait_for_device(client)
    with phase(f"measure {HELD_OUT.name} on {device}, plan it"):
        base = client.plan(
            trace.onnx, device=device, budget_ratio=1.0, policy="knapsack", calibration=calibration
        )
        asker = Asker(client, trace, device, str(calibration))
        plans = asker.first_plans(base)
    with phase("measure the plans; ask again where one is over its budget"):
        rows = asker.measured(plans)
    with phase("apply, reconstruct, fine-tune"):
        accuracies = fine_tune(folder, pool, rows, options.seed)
    with phase("ask again with the worker's reports in the store"):
        check_store(url, device, trace, rows)
        ask_again(asker, plans)
    show(rows, accuracies, base, score(module, splits.report).accuracy)
    late = [row for row in rows if not row.kept]
    if late:
        raise DemoError(f"{late[0].policy} at {late[0].budget_ms:.3f} ms is {late[0].over:+.1%}")


# --- the policy -----------------------------------------------------------------------------------


def learn(folder: Path, url: str, options: argparse.Namespace) -> TrainSummary:
    """Trains the policy, and on the same nets fits the corrected knapsack, which it has to beat."""
    with closing(open_store(url)) as store:
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
        tasks, _ = training_tasks(load_models([folder / "recorded"]), store=store, devices=())
    lived = sum(bool(agent["alive"]) for agent in summary.agents)
    print(f"  {lived} agents, the best saves {summary.relative_gain:+.1%} on {SEEN[-1].name}")
    fitted = fit_corrected([named.task for named in tasks], generations=15, budget_count=3)
    fitted.save(folder / "corrected.json")
    return summary


# --- plans ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asker:
    """Asks one server for plans of the held-out net on one device."""

    client: Client
    trace: TorchTrace
    device: str
    calibration: str

    def ask(self, budget_ms: float, policy: str) -> PruningPlan:
        plan = self.client.plan(
            self.trace.onnx,
            device=self.device,
            budget_ms=budget_ms,
            policy=policy,
            calibration=self.calibration,
            guard=False,  # the demo is about what the policy itself plans
        )
        if not plan.feasible:
            raise DemoError(f"{policy} found {budget_ms:.3f} ms infeasible: {plan.note}")
        return plan

    def first_plans(self, base: PruningPlan) -> list[PruningPlan]:
        """Of every policy at every budget, budgets descending, policies in order."""
        high = base.predicted_interval_ms[1] / base.predicted_latency_ms
        least = base.least_latency_ms * high  # a budget is held against the interval's upper end
        budgets = [least + b * (base.base_latency_ms - least) for b in BUDGET_SHARES]
        return [self.ask(budget, policy) for budget in budgets for policy in POLICIES]

    def measured(self, plans: Sequence[PruningPlan]) -> list[Row]:
        """Each plan with its measurement; plans over their budgets give way to later answers."""
        names = [POLICIES[index % len(POLICIES)] for index in range(len(plans))]
        rows: dict[int, Row] = {}
        asked = dict(enumerate(plans))
        for attempt in range(ASK_COUNT):
            keeps = np.stack([plan.keeps for plan in asked.values()])
            measurements = self.client.measure(self.trace.onnx, keeps, self.device)
            for (index, plan), measurement in zip(asked.items(), measurements, strict=True):
                if measurement.status == "failed":
                    raise DemoError(f"the worker could not run a plan: {measurement.reason}")
                rows[index] = Row(plan.budget_ms, names[index], plan, measurement)
            late = [index for index, row in rows.items() if row.over > MAX_OVER]
            if not late or attempt == ASK_COUNT - 1:
                break
            print(f"  {len(late)} over budget, asked for again", flush=True)
            asked = {index: self.ask(rows[index].budget_ms, names[index]) for index in late}
        return [rows[index] for index in sorted(rows)]


def fine_tune(
    folder: Path, pool: Pool, rows: Sequence[Row], seed: int
) -> list[tuple[float, float]]:
    """Accuracy on the report images per row: after reconstruction, and after fine-tuning."""
    plans = {tuple(row.plan.keeps): row.plan for row in rows}  # policies may agree
    jobs = {
        keeps: pool.apply_async(tune_one, (folder, plan.to_json(), seed))
        for keeps, plan in plans.items()
    }
    return [jobs[tuple(row.plan.keeps)].get(JOB_SEC) for row in rows]


# --- what came of it ------------------------------------------------------------------------------


def check_store(url: str, device: str, trace: TorchTrace, rows: Sequence[Row]) -> None:
    """Every measured plan is in the store, as reported by the worker."""
    with closing(open_store(url)) as store:
        reported = {measurement.subject for measurement in store.measurements(device)}
    for row in rows:
        keeps = tuple(int(keep) for keep in row.plan.keeps)
        if ModelSubject(trace.graph.fingerprint, keeps) not in reported:
            raise DemoError(f"the report on {row.policy} at {row.budget_ms:.3f} ms is not stored")
    print(f"  {len(reported)} measurements of {device} are in the store")


def ask_again(asker: Asker, plans: Sequence[PruningPlan]) -> None:
    """The learned plans once more: what the worker reported since must tell on them."""
    changed = False
    for before in plans[len(POLICIES) - 1 :: len(POLICIES)]:
        after = asker.ask(before.budget_ms, "learned")
        low, high = after.predicted_interval_ms
        changed |= after.predicted_interval_ms != before.predicted_interval_ms
        print(
            f"  {after.budget_ms:.3f} ms: predicted {before.predicted_latency_ms:.4f} before, "
            f"now {after.predicted_latency_ms:.4f} ({low:.4f} to {high:.4f}), "
            f"{int((after.keeps != before.keeps).sum())} of {len(after.keeps)} groups otherwise"
        )
    if not changed:
        raise DemoError("the second plans do not use what the worker reported")


def show(
    rows: Sequence[Row],
    accuracies: Sequence[tuple[float, float]],
    base: PruningPlan,
    accuracy: float,
) -> None:
    table = Table(
        title=f"{HELD_OUT.name}, never trained on: {base.base_latency_ms:.3f} ms, "
        f"accuracy {accuracy:.1%} before pruning"
    )
    for name in ("budget ms", "policy", "predicted", "measured", "over", "status", "cut", "tuned"):
        table.add_column(name, justify="left" if name in ("policy", "status") else "right")
    for index, (row, (cut, tuned)) in enumerate(zip(rows, accuracies, strict=True)):
        first = index % len(POLICIES) == 0
        table.add_row(
            f"{row.budget_ms:.3f}" if first else "",
            row.policy,
            f"{row.plan.predicted_latency_ms:.3f}",
            f"{row.measured_ms:.3f}",
            f"{row.over:+.1%}",
            row.measurement.status,
            f"{cut:.1%}",
            f"{tuned:.1%}",
            end_section=index % len(POLICIES) == len(POLICIES) - 1,
        )
    CONSOLE.print(table)


@contextmanager
def phase(title: str) -> Iterator[None]:
    print(f"{title} ...", flush=True)
    began = time.monotonic()
    yield
    print(f"  {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
