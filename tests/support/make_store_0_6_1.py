"""Made `data/store_0_6_1.sql`, a store as rlprune 0.6.1 (925f37d) left it; kept to show how.

In a checkout of that version: `PYTHONPATH=tests/support python make_store_0_6_1.py OUT.sql`.
A real server of 0.6.1 wrote it: a device that measured a small network and was planned for, a job
that a worker holds, a pending one, a parked one, and two plans.
"""

from __future__ import annotations

import sqlite3
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from onnx_nets import conv_net
from service_rig import BOARD, Rig, macs_cost

from rlprune.graph.from_onnx import trace_onnx
from rlprune.latency.types import OperatorSpec
from rlprune.store.jobs import JobQueue

SPEC = OperatorSpec("conv", "", 3, 16, (8, 8), (8, 8), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1)


def main(out: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        rig = Rig(Path(folder))
        net = conv_net((8, 16), extent=8)
        rig.device.register_device(BOARD, {"runtime": "made up", "thread_count": "1"})
        with rig.working(macs_cost(trace_onnx(net).graph)):
            rig.client.plan(net, device=BOARD, budget_ratio=0.7, policy="knapsack")
        rig.client.plan(net, device="macs", budget_ratio=0.5, policy="uniform")
        queue = JobQueue(rig.store)
        rig.store.register_device("board-2", {"runtime": "made up"})
        for number in range(3):
            queue.request(
                "board-2", [replace(SPEC, in_width=8 * (number + 1))], request_id=f"q{number}"
            )
        for _ in range(3):  # three leases that nobody finishes
            assert rig.device.lease("worker-that-dies", "board-2") is not None
            rig.now_offset += 31.0
        lease = rig.device.lease("worker-1", "board-2")
        assert lease is not None
        rig.close()
        with sqlite3.connect(rig.url.removeprefix("sqlite:///")) as raw:
            out.write_text("".join(f"{line}\n" for line in raw.iterdump()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
