"""CPU time that a server spends on one CreatePlan of a model that it knows.

    scripts/bench create_plan [--old PYTHON] [--quick] [--seed N] [--json FILE]

A real server on a real port is called in blocks of calls; its CPU time is read before and after
each block. With `--old`, the interpreter of an environment that holds an earlier version, a server
of that version is called in turns with this one, block by block, with the same messages, and what
is told is the ratio of the two, with the 90 % interval of its mean over blocks. Models: ResNet-56
(CIFAR) and ResNet-50, with profiles as a client sends them. Devices: `macs`, and a board that
measured all that was asked for (made-up latencies in proportion to MACs). `--seed` draws budgets.
`provisional` calls are what this version's clients make; `stored` are those of earlier clients.
"""

from __future__ import annotations

import math
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import torch

import rlprune
from benchmarks.harness import Bench, Row, mean_and_interval
from datasets import nets
from rlprune.graph.from_onnx import OnnxTrace
from rlprune.graph.skeleton import strip
from rlprune.graph.types import PruningGraph
from rlprune.latency.types import Measurement, ModelSubject, Subject
from rlprune.planning import profile_model
from rlprune.schemes import space_with
from rlprune.schemes.channels import keep_levels
from rlprune.service.channel import Channel
from rlprune.service.device_client import DeviceClient
from rlprune.service.device_messages import measurement_to
from rlprune.service.profile_messages import profiles_to
from rlprune.v1 import plans_pb2, types_pb2

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


def _measured(subject: Subject, ms: float) -> types_pb2.Measurement:
    sessions = ((ms, ms * 1.01, ms), (ms, ms, ms * 0.99), (ms,) * 3, (ms,) * 3)
    return measurement_to(Measurement(BOARD, subject, sessions, sessions))


def macs_cost(graph: PruningGraph) -> Cost:
    """Latencies in proportion to multiply-accumulates: 1 ms per 10 million."""

    def cost(subject: Subject) -> float:
        if isinstance(subject, ModelSubject):
            return 0.05 + float(graph.macs(np.array(subject.settings))) / 1e7
        channels = subject.in_width * subject.out_width
        macs = channels if subject.kind in ("conv", "linear") else 0
        return 0.002 + macs * math.prod(subject.kernel) * math.prod(subject.out_spatial) / 1e7

    return cost


def traced(name: str) -> OnnxTrace:
    torch.manual_seed(0)
    if name == "resnet50":
        return rlprune.trace(nets.resnet50().eval(), torch.zeros(1, 3, 224, 224)).onnx
    blocks = [(1, 16)] * 9 + [(2, 32)] + [(1, 32)] * 8 + [(2, 64)] + [(1, 64)] * 8
    net = nets.resnet(16, nets.basic, *blocks)
    return rlprune.trace(net.eval(), torch.zeros(1, 3, 32, 32)).onnx


def questions(
    trace: OnnxTrace, device: str, count: int, rng: np.random.Generator
) -> list[plans_pb2.CreatePlanRequest]:
    space = space_with(trace.graph, *keep_levels(trace.graph, finer=True))
    profiles = profiles_to(profile_model(trace, space))
    return [
        plans_pb2.CreatePlanRequest(
            fingerprint=trace.graph.fingerprint,
            device=device,
            profiles=profiles,
            budget_ratio=float(rng.uniform(*SHARES)),
        )
        for _ in range(count)
    ]


def main() -> None:
    bench = Bench("create_plan", __doc__)
    bench.parser.add_argument("--old", metavar="PYTHON", help="interpreter of an earlier version's")
    options = bench.parse()
    pythons = {"new": sys.executable} | ({"old": options.old} if options.old else {})
    blocks = 4 if options.quick else 12
    with bench.measuring():
        for net in ("resnet56", "resnet50"):
            for device in ("macs", BOARD):
                measure = partial(compare, net, device, pythons, blocks, options.seed)
                bench.cell(f"{net}/{device}", measure)


def compare(
    net: str, device: str, pythons: dict[str, str], blocks: int, seed: int
) -> Iterator[Row]:
    """What a call costs each version, and this one as a share of the earlier one."""
    trace, name = traced(net), f"{net}/{device}"
    asked = questions(trace, device, BLOCK_CALLS * blocks, np.random.default_rng(seed))
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        servers = {
            version: stack.enter_context(closing(Served(python, Path(folder))))
            for version, python in pythons.items()
        }
        for server in servers.values():
            server.make_ready(asked[0], strip(trace.model), macs_cost(trace.graph))
        ways = {f"{version}/stored": (server, False) for version, server in servers.items()}
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
    for way, values in spent.items():
        mean, interval = mean_and_interval(values)
        yield Row(f"{name}/{way}/cpu", mean, "ms", None, "min", len(asked), interval)
    for way in ("new/stored", "new/provisional") if "old/stored" in spent else ():
        ratios = [new / old for new, old in zip(spent[way], spent["old/stored"], strict=True)]
        mean, interval = mean_and_interval(ratios)
        full = f"{name}/{way}_over_old"
        yield Row(full, mean, "x", MOST_RATIO, "min", len(asked), interval)


if __name__ == "__main__":
    main()
