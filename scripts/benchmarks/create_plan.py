"""CPU time that a server spends on one CreatePlan of a model that it knows.

    scripts/bench_create_plan [--old PYTHON] [--quick] [--seed N] [--json FILE]

A real server on a real port is called in blocks of calls; its CPU time is read before and after
each block. With `--old`, the interpreter of an environment that holds an earlier version, a server
of that version is called in turns with this one, block by block, with the same messages, and what
is told is the ratio of the two, with the 90 % interval of its mean over blocks. Models: ResNet-56
(CIFAR) and ResNet-50, with profiles as a client sends them. Devices: `macs`, and a board that
measured all that was asked for (made-up latencies in proportion to MACs). Budgets are drawn.
`provisional` calls are what this version's clients make; `stored` are those of earlier clients.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import cifar_nets
import numpy as np
import psutil
import torch
from bench_nets import ResNet50
from bench_rows import Row, write_rows
from scipy.stats import t as student
from torch import nn

import rlprune
from rlprune.graph.from_onnx import OnnxTrace
from rlprune.graph.skeleton import strip
from rlprune.graph.types import PruningGraph
from rlprune.latency.types import Measurement, ModelSubject
from rlprune.planning import profile_model
from rlprune.profile.types import keep_levels
from rlprune.service.channel import Channel
from rlprune.service.device_client import DeviceClient
from rlprune.service.profile_messages import profiles_to
from rlprune.store.encoding import Subject
from rlprune.v1 import plans_pb2

Cost = Callable[[Subject], float]

SERVE = (
    "import sys; from rlprune.service.server import serve\n"
    "serve('127.0.0.1:0', sys.argv[1], on_ready=lambda a: print(a, flush=True))"
)
BOARD = "board-1"
BLOCK_CALLS = 25
MOST_RATIO = 0.5
SHARES = (0.35, 0.95)
"""Of the unpruned latency, between which budgets are drawn."""


class Served:
    """A server process of one version, and what is said to it."""

    def __init__(self, python: str, folder: Path) -> None:
        self._process = subprocess.Popen(
            [python, "-c", SERVE, str(folder / f"{uuid.uuid4().hex}.sqlite")],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=folder,
        )
        assert self._process.stdout is not None
        address = self._process.stdout.readline().strip()
        self._of = psutil.Process(self._process.pid)
        self._channel = Channel(address)
        self._device = DeviceClient(address)
        self._device.register_device(BOARD, {})

    def close(self) -> None:
        self._channel.close()
        self._device.close()
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def create(self, asked: plans_pb2.CreatePlanRequest) -> plans_pb2.CreatePlanResponse:
        asked.request_id = uuid.uuid4().hex
        return self._channel.call(
            "PlanService/CreatePlan", asked, plans_pb2.CreatePlanResponse, timeout_sec=120.0
        )

    def make_ready(self, asked: plans_pb2.CreatePlanRequest, skeleton: bytes, cost: Cost) -> None:
        """The server knows the model, and has all measurements that it wants of it."""
        known = plans_pb2.CreatePlanRequest()
        known.CopyFrom(asked)
        known.skeleton = skeleton
        while self.create(known).pending_job_count:
            while (job := self._device.lease("worker", BOARD)) is not None:
                found = [_measured(subject, cost(subject)) for subject in job.left]
                self._device.report(job.lease_id, uuid.uuid4().hex, found, done=True)

    def block_ms(self, asked: list[plans_pb2.CreatePlanRequest]) -> float:
        """CPU time of the server per call."""
        began = self._cpu_sec()
        for one in asked:
            self.create(one)
        time.sleep(0.05)  # what goes on after the answer is the call's, too
        return 1e3 * (self._cpu_sec() - began) / len(asked)

    def _cpu_sec(self) -> float:
        spent = self._of.cpu_times()
        return float(spent.user + spent.system)


def _measured(subject: Subject, ms: float) -> Measurement:
    sessions = ((ms, ms * 1.01, ms), (ms, ms, ms * 0.99), (ms,) * 3, (ms,) * 3)
    return Measurement(BOARD, subject, sessions, sessions)


def macs_cost(graph: PruningGraph) -> Cost:
    """Latencies in proportion to multiply-accumulates: 1 ms per 10 million."""

    def cost(subject: Subject) -> float:
        if isinstance(subject, ModelSubject):
            return 0.05 + float(graph.macs(np.array(subject.keeps))) / 1e7
        channels = subject.in_width * subject.out_width
        macs = channels if subject.kind in ("conv", "linear") else 0
        return 0.002 + macs * math.prod(subject.kernel) * math.prod(subject.out_spatial) / 1e7

    return cost


def resnet56() -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    for stage, width in enumerate((16, 32, 64)):
        for block in range(9):
            before = width // 2 if stage and not block else width
            stride = 2 if stage and not block else 1
            layers.append(cifar_nets.basic(before, width, stride, False))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def traced(name: str) -> OnnxTrace:
    torch.manual_seed(0)
    net = resnet56() if name == "resnet56" else ResNet50()
    side = 32 if name == "resnet56" else 224
    found = rlprune.trace(net.eval(), torch.zeros(1, 3, side, side))
    return found.onnx


def questions(
    trace: OnnxTrace, device: str, count: int, rng: np.random.Generator
) -> list[plans_pb2.CreatePlanRequest]:
    levels, level_count = keep_levels(trace.graph, finer=True)
    profiles = profiles_to(profile_model(trace, levels, level_count))
    return [
        plans_pb2.CreatePlanRequest(
            fingerprint=trace.graph.fingerprint,
            device=device,
            profiles=profiles,
            budget_ratio=float(rng.uniform(*SHARES)),
        )
        for _ in range(count)
    ]


def mean_and_interval(values: list[float]) -> tuple[float, tuple[float, float]]:
    own = np.array(values)
    half = student.ppf(0.95, len(own) - 1) * own.std(ddof=1) / np.sqrt(len(own))
    return float(own.mean()), (float(own.mean() - half), float(own.mean() + half))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--old", metavar="PYTHON", help="interpreter of an earlier version's")
    parser.add_argument("--quick", action="store_true", help="fewer blocks of calls")
    parser.add_argument("--seed", type=int, default=0, help="of the budgets")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    blocks = 4 if options.quick else 12
    rng = np.random.default_rng(options.seed)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pythons = {"new": sys.executable} | ({"old": options.old} if options.old else {})
        servers = {version: Served(python, folder) for version, python in pythons.items()}
        try:
            for net in ("resnet56", "resnet50"):
                trace = traced(net)
                for device in ("macs", BOARD):
                    asked = questions(trace, device, BLOCK_CALLS * blocks, rng)
                    for server in servers.values():
                        server.make_ready(asked[0], strip(trace.model), macs_cost(trace.graph))
                    rows += compare(f"{net}/{device}", servers, asked, blocks)
        finally:
            for server in servers.values():
                server.close()
    print(f"load average {os.getloadavg()[0]:.1f}")
    for row in rows:
        low, high = row.interval or (math.nan, math.nan)
        target = "" if row.target is None else f"target {row.target:g}"
        print(f"{row.name:36} {row.value:8.3f} {row.unit:2} ({low:.3f} .. {high:.3f}) {target}")
    if options.json:
        write_rows(options.json, rows)


def compare(
    name: str, servers: dict[str, Served], asked: list[plans_pb2.CreatePlanRequest], blocks: int
) -> list[Row]:
    """What a call costs each version, and this one as a share of the earlier one."""
    ways: dict[str, tuple[Served, bool]] = {
        f"{version}/stored": (server, False) for version, server in servers.items()
    }
    ways["new/provisional"] = (servers["new"], True)
    for server, _ in ways.values():
        server.block_ms(asked[:BLOCK_CALLS])  # fills caches
    spent: dict[str, list[float]] = {way: [] for way in ways}
    for block in range(blocks):
        own = asked[block * BLOCK_CALLS : (block + 1) * BLOCK_CALLS]
        for way, (server, provisional) in ways.items():
            for one in own:
                one.provisional = provisional
            spent[way].append(server.block_ms(own))
    rows = []
    for way, values in spent.items():
        mean, interval = mean_and_interval(values)
        rows.append(Row(f"{name}/{way}/cpu", mean, "ms", None, "min", len(asked), interval))
    for way in ("new/stored", "new/provisional") if "old/stored" in spent else ():
        ratios = [new / old for new, old in zip(spent[way], spent["old/stored"], strict=True)]
        mean, interval = mean_and_interval(ratios)
        full = f"{name}/{way}_over_old"
        rows.append(Row(full, mean, "x", MOST_RATIO, "min", len(asked), interval))
    return rows


if __name__ == "__main__":
    main()
