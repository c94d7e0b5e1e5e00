"""The built-in device `macs`: cost is exact MACs, for comparison with the literature only."""

from __future__ import annotations

import numpy as np

from rlprune.graph.types import FloatArray, IntArray
from rlprune.latency.tables import LatencyTables
from rlprune.latency.types import MACS_DEVICE
from rlprune.schemes import Form, Space


def macs_tables(space: Space) -> LatencyTables:
    """Tables whose `ms` are millions of MACs; the interval is the point itself."""
    return LatencyTables.compile(MACS_DEVICE, space, _mega_macs)


def _mega_macs(form: Form, in_width: IntArray, out_width: IntArray) -> FloatArray:
    """[I], [J] -> [I, J]."""
    # Operators without weights answer in the shape of the out-width alone.
    macs = form.operator.macs_at(in_width[:, None], out_width[None, :])
    return np.broadcast_to(macs / 1e6, (len(in_width), len(out_width)))
