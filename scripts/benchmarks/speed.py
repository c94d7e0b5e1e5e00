"""Time to plan, and to import the client: what a user waits for.

A plan is `make_plan` for CIFAR's ResNet-56, traced and tabled before, at budgets from a quarter to
three quarters of what can be reached; device `macs`, since a device's tables have the same size.
Wall and CPU time are medians of `COUNT` calls; an import is a fresh process, less the time in which
an empty one ends. `candidates/cpu` is the CPU time of a whole `rlprune.plan` that profiles on half
of 1,000 images and lets 64 plans race on the other half, over that of one that profiles on all of
them (networks of block types that no policy saw; `--quick`: one, 500 images). Nothing here is drawn
at random: `--seed` changes nothing.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

import rlprune
from benchmarks.harness import Bench, Row
from datasets import catalogue
from datasets.pack import CifarPack, shared_data
from rlprune.latency.macs import macs_tables
from rlprune.planning import make_plan
from rlprune.policy import POLICY_NAMES, get_policy
from rlprune.schemes import space_with
from rlprune.schemes.channels import keep_levels
from rlprune.sensitivity.energy import energy_profiles
from rlprune.solver.task import PruningTask

COUNT, IMPORT_COUNT = 21, 7
MOST_PLAN_MS, MOST_IMPORT_MS = 50.0, 700.0
SHARES = (0.25, 0.5, 0.75)
RACED = ("seresnet", "densenet")
CLIENT = "from rlprune.service.client import Client"


def main() -> None:
    bench = Bench("speed", __doc__)
    options = bench.parse()
    pack = CifarPack(shared_data(options.shared))
    trace = pack.traced("cifar10_resnet56")
    space = space_with(trace.graph, *keep_levels(trace.graph))
    task = PruningTask(space, macs_tables(space), energy_profiles(trace, space))
    count = 500 if options.quick else 1000

    def import_ms() -> list[Row]:
        took = run_ms(CLIENT) - run_ms("pass")
        return [Row("client/import/wall", took, "ms", MOST_IMPORT_MS, "min", IMPORT_COUNT, None)]

    with bench.measuring():
        for name in ("learned", "knapsack") if options.quick else POLICY_NAMES:
            bench.cell(f"plan/{name}", partial(time_plans, task, name))
        bench.cell("client/import", import_ms)
        for name in RACED[: 1 if options.quick else None]:
            bench.cell(f"search/{name}", partial(search_cpu, pack, name, count))


def time_plans(task: PruningTask, name: str) -> Iterator[Row]:
    """Median wall and CPU ms of a plan; the first, which fills caches, is left out."""
    policy, base = get_policy(name), task.base_ms
    least = make_plan(task, policy, base, device="macs", guard=False).least_latency_ms
    took = np.zeros((COUNT, 2))
    for index in range(COUNT):
        budget = least + SHARES[index % len(SHARES)] * (base - least)
        began = np.array([time.perf_counter(), time.process_time()])
        make_plan(task, policy, budget, device="macs", guard=False)
        took[index] = 1e3 * (np.array([time.perf_counter(), time.process_time()]) - began)
    wall, cpu = np.median(took, axis=0)
    yield Row(f"plan/{name}/wall", float(wall), "ms", MOST_PLAN_MS, "min", COUNT, None)
    yield Row(f"plan/{name}/cpu", float(cpu), "ms", None, "min", COUNT, None)


def search_cpu(pack: CifarPack, name: str, count: int) -> Iterator[Row]:
    """CPU time of a quick search over that of an instant plan, on as many images."""
    net = catalogue.load(name, pack=pack)
    trace = catalogue.traced(net)
    pixels, labels = pack.pixels("test")
    index = pack.splits["test_reward"][:count]
    took = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_DATA_HOME"] = folder  # planning opens the user's store
        images = Path(folder) / "images.npz"
        np.savez(images, x=net.preprocess(pixels[index]), y=labels[index].astype(np.int64))
        for effort in ("instant", "quick"):
            began = time.process_time()
            rlprune.plan(
                trace,
                device="macs",
                calibration=images,
                budget_ratio=0.5,
                round_to=8,
                effort=effort,
            )
            took[effort] = time.process_time() - began
    yield Row(f"search/cpu/{name}", took["quick"] / took["instant"], "x", None, "min", 1, None)


def run_ms(statement: str) -> float:
    """Median wall ms of a fresh interpreter that executes `statement`."""
    took = []
    for _ in range(IMPORT_COUNT):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", statement], check=True)
        took.append(1e3 * (time.perf_counter() - began))
    return statistics.median(took)


if __name__ == "__main__":
    main()
