"""The built-in device `macs`: cost is exact MACs, for comparison with the literature only."""

from __future__ import annotations

import numpy as np

from rlprune.graph.types import FloatArray, IntArray, Operator, PruningGraph
from rlprune.latency.tables import LatencyTables
from rlprune.latency.types import MACS_DEVICE


def macs_tables(graph: PruningGraph, levels: IntArray, level_count: IntArray) -> LatencyTables:
    """Tables whose `ms` are millions of MACs; the interval is the point itself."""
    return LatencyTables.compile(MACS_DEVICE, graph, levels, level_count, _mega_macs)


def _mega_macs(op: Operator, in_width: IntArray, out_width: IntArray) -> FloatArray:
    """[I], [J] -> [I, J]."""
    # Operators without weights answer in the shape of the out-width alone.
    macs = op.macs_at(in_width[:, None], out_width[None, :])
    return np.broadcast_to(macs / 1e6, (len(in_width), len(out_width)))
