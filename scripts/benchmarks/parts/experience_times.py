"""Times of `experience`: from a file to an instant plan, and what searches said that they cost."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE

import numpy as np

from benchmarks.graph import write_model
from benchmarks.harness import Row
from benchmarks.parts.experience_plans import Known, network
from datasets.nets import basic, resnet
from datasets.pack import exported
from rlprune.planning.effort import EFFORTS

INSTANT_SEC = {"resnet20": 1.0, "resnet50": 5.0, "vit_b_16": 10.0}
"""Wall time from a file to an instant plan, in a new process; latency is counted in MACs."""
RESNET20 = tuple(
    (stride, width) for width, first in ((16, 1), (32, 2), (64, 2)) for stride in (first, 1, 1)
)
"""Its blocks, as (stride, channels)."""
PROCESSES = 3
COST_FACTOR = 1.5
"""By which what is said and what is taken may differ."""
INSTANT = """
import sys, time
began = time.perf_counter()
import rlprune
rlprune.plan(sys.argv[1], device="macs", budget_ratio=0.5, effort="instant")
print(time.perf_counter() - began)
"""


def instant_rows(net: str, shared: Path, seed: int) -> Iterator[Row]:
    """Median of new processes."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / f"{net}.onnx"
        if net == "resnet20":
            path.write_bytes(exported(resnet(16, basic, *RESNET20).eval()))
        else:
            write_model(net, path, shared, seed)
        own = {**os.environ, "XDG_DATA_HOME": name}  # planning opens the user's store
        command = [sys.executable, "-c", INSTANT, str(path)]
        took = [
            float(subprocess.run(command, env=own, stdout=PIPE, text=True, check=True).stdout)
            for _ in range(PROCESSES)
        ]
    ends = (min(took), max(took))
    name = f"experience.instant.{net}.time"
    yield Row(name, float(np.median(took)), "s", INSTANT_SEC[net], "min", PROCESSES, ends)


def cost_rows(known: Known, shared: str | None) -> Iterator[Row]:
    """The factor between what `quick` said and what it took, of the network where it is worst."""
    factors = {}
    for cell, found in known.items():
        if cell.method == "quick":
            graph = network(cell.net, shared)[1].graph
            said = EFFORTS["quick"].fitted(graph).cpu_sec(graph, cell.budget)
            factors[cell.name] = max(said / found.seconds, found.seconds / said)
    if factors:
        worst = max(factors, key=lambda name: factors[name])
        print(f"costs differ most from what was said at {worst}")
        name, ends = "experience.quick.cost_factor", (min(factors.values()), factors[worst])
        yield Row(name, factors[worst], "x", COST_FACTOR, "min", len(factors), ends)
