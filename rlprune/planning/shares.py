"""What of a model's MACs, parameters and latency goes with each of its groups."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rlprune.graph.types import FloatArray, PruningGraph
from rlprune.latency.tables import LatencyTables


@dataclass(frozen=True)
class GroupShares:
    """Shares (0-1) that go with each whole group [G]; neighbours share them, so they may exceed 1
    in sum."""

    macs: FloatArray
    params: FloatArray
    latency: FloatArray
    """Of what the device is predicted to need."""
    latency_ms: float
    """Of the unpruned model."""


def group_shares(graph: PruningGraph, tables: LatencyTables) -> GroupShares:
    """The shares on one device.

    No device was measured without a whole group. So an operator's time is taken to go in proportion
    to its MACs; where it sums nothing up, to the channels it writes.
    """
    widths = graph.widths
    keeps = np.tile(
        widths, (len(widths) + 1, 1)
    )  # [G + 1, G]: row g has group g gone, the last all
    np.fill_diagonal(keeps, 0)
    operator_ms = tables.operator_ms(tables.option_count[None] - 1)[0]  # [O]
    macs, latency = np.zeros((2, len(keeps)))
    params = graph.params(keeps).astype(np.float64)
    for op, ms in zip(graph.operators, operator_ms, strict=True):
        ins, outs = op.in_width.at(keeps), op.out_width.at(keeps)
        own = op.macs_at(ins, outs)
        macs += own
        work = own if own[-1] else outs
        latency += ms * work / max(int(work[-1]), 1)
    latency += tables.overhead_ms

    def gone(amount: FloatArray) -> FloatArray:
        return np.asarray(1.0 - amount[:-1] / max(float(amount[-1]), 1e-12))

    return GroupShares(gone(macs), gone(params), gone(latency), float(latency[-1]))
