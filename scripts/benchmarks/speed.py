"""Time to plan, and to import the client: what a user waits for.

    scripts/bench_speed [--quick] [--seed N] [--json FILE] [--shared DIR]

A plan is `make_plan` for CIFAR's ResNet-56, traced and tabled before, at budgets from a quarter to
three quarters of what can be reached; device `macs`, since a device's tables have the same size.
Wall and CPU time are medians of `COUNT` calls; an import is a fresh process, less the time in which
an empty one ends. `candidates/cpu` is the CPU time of a whole `rlprune.plan` that profiles on half
of 1,000 images and lets 64 plans race on the other half, over that of one that profiles on all of
them (networks of block types that no policy saw; `--quick`: one, 500 images). Nothing here is drawn
at random: `--seed` is taken so that all benches are called alike, and changes nothing.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from datasets import catalogue
from benchmarks.harness import Row, write_rows
from datasets.pack import CifarPack, shared_data

import rlprune
from rlprune.latency.macs import macs_tables
from rlprune.planning import make_plan
from rlprune.policy import POLICY_NAMES, get_policy
from rlprune.profile.energy import energy_profiles
from rlprune.profile.types import keep_levels
from rlprune.task.task import PruningTask

COUNT = 21
IMPORT_COUNT = 7
MOST_PLAN_MS = 50.0
MOST_IMPORT_MS = 700.0
SHARES = (0.25, 0.5, 0.75)
RACED = ("seresnet", "densenet")
CLIENT = "from rlprune.service.client import Client"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the learned and the knapsack policy")
    parser.add_argument("--seed", type=int, default=0, help="changes nothing")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--shared", help="folder of the measuring pack")
    options = parser.parse_args()

    pack = CifarPack(shared_data(options.shared))
    trace = pack.traced("cifar10_resnet56")
    levels, level_count = keep_levels(trace.graph)
    task = PruningTask(
        trace.graph,
        macs_tables(trace.graph, levels, level_count),
        energy_profiles(trace, levels, level_count),
    )
    rows = []
    for name in ("learned", "knapsack") if options.quick else POLICY_NAMES:
        wall, cpu = time_plans(task, name)
        rows.append(Row(f"plan/{name}/wall", wall, "ms", MOST_PLAN_MS, "min", COUNT, None))
        rows.append(Row(f"plan/{name}/cpu", cpu, "ms", None, "min", COUNT, None))
    took = run_ms(CLIENT) - run_ms("pass")
    rows.append(Row("client/import/wall", took, "ms", MOST_IMPORT_MS, "min", IMPORT_COUNT, None))
    for name in RACED[: 1 if options.quick else None]:
        ratio = race_cpu(pack, name, 500 if options.quick else 1000)
        rows.append(Row(f"candidates/cpu/{name}", ratio, "x", None, "min", 1, None))
    print(f"load average {os.getloadavg()[0]:.1f}")
    for row in rows:
        target = "" if row.target is None else f"target {row.target:.0f}"
        print(f"{row.name:24} {row.value:7.2f} {row.unit} {target}")
    if options.json:
        write_rows(options.json, rows)


def time_plans(task: PruningTask, name: str) -> tuple[float, float]:
    """Median (wall, CPU) ms of a plan; the first, which fills caches, is left out."""
    policy = get_policy(name)
    base = task.base_ms
    least = make_plan(task, policy, base, device="macs", guard=False).least_latency_ms
    wall, cpu = [], []
    for index in range(COUNT):
        budget = least + SHARES[index % len(SHARES)] * (base - least)
        began = time.perf_counter(), time.process_time()
        make_plan(task, policy, budget, device="macs", guard=False)
        wall.append(1e3 * (time.perf_counter() - began[0]))
        cpu.append(1e3 * (time.process_time() - began[1]))
    return statistics.median(wall), statistics.median(cpu)


def race_cpu(pack: CifarPack, name: str, count: int) -> float:
    """CPU time of planning with candidates over that without, on as many images, from nothing."""
    net = catalogue.load(name, pack=pack)
    trace = catalogue.traced(net)
    pixels, labels = pack.pixels("test")
    index = pack.splits["test_reward"][:count]
    took = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_DATA_HOME"] = folder  # where profiles are kept, or a second run had them
        images = Path(folder) / "images.npz"
        np.savez(images, x=net.preprocess(pixels[index]), y=labels[index].astype(np.int64))
        for candidates in (0, 64):
            began = time.process_time()
            rlprune.plan(
                trace,
                device="macs",
                budget_ratio=0.5,
                round_to=8,
                calibration=images,
                candidates=candidates,
            )
            took[candidates] = time.process_time() - began
    return took[64] / took[0]


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
