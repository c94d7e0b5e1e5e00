"""Time and memory of tracing models and of applying plans, and how much of each may be pruned.

- `trace/NET`: `rlprune.trace(path)` of a full ONNX file with weights, reading included: ResNet-50,
  built and exported here, and ViT-B/16 of `shared/models`; weights are random.
- `apply/NET`: `rlprune.apply(plan, trace)`, uniform at half the MACs, checker included.
- `memory/NET`: what `rlprune.apply(plan, path)` adds to a fresh process, which has imported what it
  needs, to read, trace and cut: its greatest resident size (VmHWM) at the end, less its resident
  size (VmRSS) before the file is opened, over the file's size. `memory_whole` is the same for the
  worst plan, which keeps everything.
- `cli/NET`: `rlprune apply PLAN MODEL -o OUT` in a fresh process, writing included: wall time from
  its start to its end, and its greatest resident size less that of the imported command.
- `prunable/FILE`: share of the MACs in operators with an axis that a plan may shrink.

One thread. Times are medians of n runs with 90 % intervals (order statistics). The targets are for
CPU time, which is wall time on a core of one's own; wall time stands beside it. `--quick`:
ResNet-50 only, fewer runs.
"""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from scipy.stats import binom

import rlprune
from benchmarks.harness import Bench, Row
from datasets.nets import resnet50
from datasets.pack import exported, shared_folder

COUNT, QUICK_COUNT, PROCESS_COUNT = 11, 5, 5
TRACE_SEC = {"resnet50": 0.5, "vit_b_16": 3.0}
APPLY_SEC = {"resnet50": 1.0}
"""The other is larger than what the target is for."""
MEMORY_RATIO = 3.0
BUDGET_RATIO = 0.5
LEVEL = 0.9

HIGH_WATER = """
import json, re, sys, onnx, rlprune
import rlprune.surgery.onnx, rlprune.graph.from_onnx
def peak():
    status = open('/proc/self/status').read()
    return {key: 1024 * int(kib) for key, kib in re.findall(r'(VmHWM|VmRSS):\\s+(\\d+)', status)}
"""
LIBRARY = """
plan = rlprune.PruningPlan.load(sys.argv[1])
before = peak()['VmRSS']
pruned = rlprune.apply(plan, sys.argv[2], calibration="none")
print(peak()['VmHWM'] - before, file=sys.stderr)
"""
COMMAND = """
from rlprune.cli.app import app
before = peak()['VmRSS']
app(['apply', sys.argv[1], sys.argv[2], '-o', sys.argv[3], '--json'], standalone_mode=False)
print(peak()['VmHWM'] - before, file=sys.stderr)
"""


def main() -> None:
    bench = Bench("graph", __doc__)
    options = bench.parse()
    shared = shared_folder(options.shared) / "models"
    count = QUICK_COUNT if options.quick else COUNT
    with bench.measuring(), tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["XDG_DATA_HOME"] = name  # planning opens the user's store
        for net in ("resnet50",) if options.quick else tuple(TRACE_SEC):
            source = shared / f"{net}.legacy.onnx.gz"
            if net != "resnet50" and not source.is_file():
                print(f"trace/{net}: skipped, no {source}")
                continue
            bench.cell(net, partial(net_rows, net, shared, folder, count, options.seed))
        for path in sorted(shared.glob("*.onnx.gz")):
            bench.cell(f"prunable/{path.name}", partial(prunable_row, path))


def write_model(net: str, path: Path, shared: Path, seed: int) -> None:
    """The net as a full ONNX file of random weights."""
    if net == "resnet50":
        path.write_bytes(exported(resnet50().eval(), (1, 3, 224, 224)))
        return
    data = (shared / f"{net}.legacy.onnx.gz").read_bytes()
    model = onnx.load_model_from_string(gzip.decompress(data))
    rng = np.random.default_rng(seed)
    for tensor in model.graph.initializer:
        size = int(np.prod(tensor.dims))
        if tensor.data_type == onnx.TensorProto.FLOAT and size >= 64:
            tensor.raw_data = (0.02 * rng.standard_normal(size, dtype=np.float32)).tobytes()
    path.write_bytes(model.SerializeToString())


def net_rows(net: str, shared: Path, folder: Path, count: int, seed: int) -> Iterator[Row]:
    path = folder / f"{net}.onnx"
    write_model(net, path, shared, seed)
    size = path.stat().st_size
    read = partial(rlprune.trace, path)
    yield from time_rows(f"trace/{net}", read, count, TRACE_SEC[net])
    trace = read()
    plan = rlprune.plan(trace, device="macs", budget_ratio=BUDGET_RATIO, policy="uniform")
    cut = partial(rlprune.apply, plan, trace, calibration="none")
    yield from time_rows(f"apply/{net}", cut, count, APPLY_SEC.get(net))
    whole = rlprune.plan(trace, device="macs", budget_ratio=1.0, policy="uniform")
    del trace, cut
    plan.save(folder / "plan.json")
    whole.save(folder / "whole.json")
    unit = f"x{size / 1e6:.0f} MB"
    for name, code, file in (
        ("memory_whole", LIBRARY, "whole.json"),
        ("memory", LIBRARY, "plan.json"),
        ("cli", COMMAND, "plan.json"),
    ):
        peaks, walls, cpus = [], [], []
        arguments = [str(folder / file), str(path), str(folder / "pruned.onnx")]
        for _ in range(PROCESS_COUNT):
            began, before = time.perf_counter(), os.times()
            command = [sys.executable, "-c", HIGH_WATER + code, *arguments]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            walls.append(time.perf_counter() - began)
            cpus.append(sum(os.times()[2:4]) - sum(before[2:4]))  # of children that ended
            peaks.append(int(done.stderr.splitlines()[-1]))
        if name == "cli":
            yield median_row(f"cli/{net}/wall", walls, None)
            yield median_row(f"cli/{net}/cpu", cpus, None)
            name = "cli/memory"
        yield Row(f"{name}/{net}", max(peaks) / size, unit, MEMORY_RATIO, "min", len(peaks), None)
    path.unlink()


def time_rows(
    name: str, call: Callable[[], object], count: int, target: float | None
) -> Iterator[Row]:
    """CPU and wall seconds of `call`; the first run, which fills caches, is left out."""
    call()
    wall, cpu = [], []
    for _ in range(count):
        began = time.perf_counter(), time.process_time()
        call()
        wall.append(time.perf_counter() - began[0])
        cpu.append(time.process_time() - began[1])
    yield median_row(f"{name}/cpu", cpu, target)
    yield median_row(f"{name}/wall", wall, None)


def median_row(name: str, seconds: list[float], target: float | None) -> Row:
    """The median, and the narrowest pair of order statistics that covers it at `LEVEL`."""
    ordered, count = sorted(seconds), len(seconds)
    # P(fewer than k + 1 of n lie below the median) bounds what either side leaves out.
    outside = (1 - LEVEL) / 2
    rank = max(
        (k for k in range(count // 2 + 1) if binom.cdf(k, count, 0.5) <= outside), default=-1
    )
    interval = (ordered[rank], ordered[-1 - rank]) if rank >= 0 else None
    return Row(name, float(np.median(ordered)), "s", target, "min", count, interval)


def prunable_row(path: Path) -> Iterator[Row]:
    name = path.name.removesuffix(".onnx.gz")
    share = rlprune.trace(gzip.decompress(path.read_bytes())).graph.prunable_macs_ratio()
    target = 0.6 if name.startswith("vit") else 0.9
    yield Row(f"prunable/{name}", share, "of MACs", target, "max", 1, None)


if __name__ == "__main__":
    main()
