"""Devices that do not exist: random costs of the shapes that real devices have.

Few devices have measured what the recorded models need, and a policy that saw only one in training
reads its habits into every other. What a plan loses does not depend on the device, so training may
draw devices as it likes: cost per MAC by kind of operator, memory traffic, calls, slowness of thin
layers, and alignment, in ranges wider than those of the runtimes seen so far.
"""

from __future__ import annotations

import numpy as np

from rlprune.graph.types import FloatArray, IntArray, Operator, PruningGraph
from rlprune.latency.interval import Interval
from rlprune.latency.tables import LatencyTables
from rlprune.sensitivity.types import GroupProfiles

PREFIX = "synthetic-"


def synthetic_tables(graph: PruningGraph, profiles: GroupProfiles, seed: int) -> LatencyTables:
    """The tables of device `synthetic-SEED`; the same device for every graph."""
    rng = np.random.default_rng([seed, 3])
    per_mac = {
        "conv": 1.0,
        "conv_transpose": 1.0,
        "depthwise_conv": float(np.exp(rng.uniform(np.log(2), np.log(12)))),
        "linear": float(np.exp(rng.uniform(np.log(0.7), np.log(4)))),
    }
    pointwise = float(np.exp(rng.uniform(np.log(0.7), np.log(1.8))))
    per_value = float(np.exp(rng.uniform(np.log(2), np.log(60))))  # in MACs per value moved
    per_call = float(np.exp(rng.uniform(np.log(1e3), np.log(1e5))))
    align = int(rng.choice([1, 4, 8, 16]))
    thin = rng.uniform(0.0, 12.0, 2)  # channels at which half the speed is lost, in and out
    upper = float(rng.uniform(1.0, 1.1))

    def cost(op: Operator, in_width: IntArray, out_width: IntArray) -> FloatArray:
        ins, outs = in_width[:, None], out_width[None, :]
        full = [-(-width // align) * align for width in (ins, outs)]
        # The image's three channels are no thin layer: runtimes treat them apart.
        slow = 1.0 + thin[0] / np.maximum(full[0], 4) + thin[1] / np.maximum(full[1], 4)
        rate = per_mac.get(op.kind, 0.0)
        if op.kind == "conv" and max(op.kernel, default=1) == 1:
            rate *= pointwise
        if op.kind == "depthwise_conv":
            macs = op.macs_at(outs, full[1]) + 0 * ins
        else:
            macs = op.macs_at(*full)
        cells = [float(np.prod(extent)) for extent in (op.in_spatial, op.out_spatial)]
        moved = ins * cells[0] + outs * cells[1]
        return np.asarray((macs * rate * slow + moved * per_value + per_call) * 1e-6)

    return LatencyTables.compile(
        f"{PREFIX}{seed}",
        graph,
        profiles.levels,
        profiles.level_count,
        cost,
        interval=Interval(2.0 - upper, upper),
    )
