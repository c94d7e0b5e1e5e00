"""Time and memory of tracing models and of applying plans, and how much of each may be pruned.

    scripts/bench_graph [--quick] [--seed N] [--json FILE] [--shared DIR]

- `trace/NET`: `rlprune.trace(path)` of a full ONNX file with weights, reading included. ResNet-50
  and Swin-T come from `bench_nets.py` through the older exporter, ViT-B/16 from `shared/models`,
  filled with random weights.
- `apply/NET`: `rlprune.apply(plan, trace)`, uniform at half the MACs, checker
  included.
- `memory/NET`: what `rlprune.apply(plan, path)` adds to a fresh process, which has imported what it
  needs, to read, trace and cut: its greatest resident size (VmHWM) at the end, less its resident
  size (VmRSS) before the file is opened, over the file's size. `memory_whole` is the same for the
  worst plan, which keeps everything.
- `cli/NET`: `rlprune apply PLAN MODEL -o OUT` in a fresh process, writing included: wall time from
  its start to its end, and its greatest resident size less that of the imported command.
- `prunable/FILE`: share of the MACs in operators with an axis that a plan may shrink.

One thread. Times are medians of n runs with 90 % intervals (order statistics). The targets are for
CPU time, which is wall time on a core of one's own; wall time stands beside it.
"""

from __future__ import annotations

import argparse
import gzip
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from bench_nets import export
from benchmarks.harness import LEVEL, Row, write_rows
from scipy.stats import binom

import rlprune

COUNT, QUICK_COUNT, PROCESS_COUNT = 11, 5, 5
TRACE_SEC = {"resnet50": 0.5, "swin_t": 3.0, "vit_b_16": 3.0}
APPLY_SEC = 1.0
MEMORY_RATIO = 3.0
BUDGET_RATIO = 0.5
PRUNABLE = {"cnn": 0.9, "transformer": 0.6}
TRANSFORMERS = ("vit", "swin")

HIGH_WATER = """
import re
def peak():
    status = open('/proc/self/status').read()
    return {key: 1024 * int(kib) for key, kib in re.findall(r'(VmHWM|VmRSS):\\s+(\\d+)', status)}
"""
LIBRARY = """
import json, sys, onnx, rlprune
import rlprune.surgery.onnx, rlprune.graph.from_onnx
plan = rlprune.PruningPlan.load(sys.argv[1])
before = peak()['VmRSS']
pruned = rlprune.apply(plan, sys.argv[2], calibration="none")
print(peak()['VmHWM'] - before)
"""
COMMAND = """
import sys, onnx, rlprune
import rlprune.surgery.onnx, rlprune.graph.from_onnx
from rlprune.cli.app import app
before = peak()['VmRSS']
app(['apply', sys.argv[1], sys.argv[2], '-o', sys.argv[3], '--json'], standalone_mode=False)
print(peak()['VmHWM'] - before, file=sys.stderr)
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="ResNet-50 only, fewer runs")
    parser.add_argument("--seed", type=int, default=0, help="of ViT's random weights")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--shared", help="folder that holds models/")
    options = parser.parse_args()
    beside = Path(__file__).resolve().parent.parent.parent / "shared"
    shared = Path(options.shared or os.environ.get("RLPRUNE_SHARED") or beside) / "models"
    count = QUICK_COUNT if options.quick else COUNT

    print(f"load average {os.getloadavg()[0]:.1f}")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["XDG_DATA_HOME"] = name  # planning opens the user's store
        for net in ("resnet50",) if options.quick else tuple(TRACE_SEC):
            path = write_model(net, folder, shared, options.seed)
            if path is not None:
                report(rows, net_rows(net, path, folder, count))
                path.unlink()
    if shared.is_dir():
        for path in sorted(shared.glob("*.onnx.gz")):
            report(rows, [prunable_row(path)])
    else:
        print(f"prunable/*: skipped, no {shared}")
    if options.json:
        write_rows(options.json, rows)


def report(rows: list[Row], new: list[Row]) -> None:
    for row in new:
        interval = "" if row.interval is None else f"[{row.interval[0]:.3f}, {row.interval[1]:.3f}]"
        bound = {"min": "<=", "max": ">="}[row.sense]
        target = "" if row.target is None else f"target {bound} {row.target:g}"
        print(f"{row.name:34} {row.value:8.3f} {row.unit:8} {interval:17} {target}", flush=True)
    rows += new


def write_model(net: str, folder: Path, shared: Path, seed: int) -> Path | None:
    """The net as a full ONNX file; None, and said why, where what it is made from is missing."""
    path = folder / f"{net}.onnx"
    if net != "vit_b_16":
        export(net, path)
        return path
    source = shared / f"{net}.legacy.onnx.gz"
    if not source.is_file():
        print(f"trace/{net}: skipped, no {source}")
        return None
    model = onnx.load_model_from_string(gzip.decompress(source.read_bytes()))
    rng = np.random.default_rng(seed)
    for tensor in model.graph.initializer:
        size = int(np.prod(tensor.dims))
        if tensor.data_type == onnx.TensorProto.FLOAT and size >= 64:
            tensor.raw_data = (0.02 * rng.standard_normal(size, dtype=np.float32)).tobytes()
    path.write_bytes(model.SerializeToString())
    return path


def net_rows(net: str, path: Path, folder: Path, count: int) -> list[Row]:
    size = path.stat().st_size
    rows = time_rows(f"trace/{net}", partial(rlprune.trace, path), count, TRACE_SEC[net])
    trace = rlprune.trace(path)
    plan = rlprune.plan(trace, device="macs", budget_ratio=BUDGET_RATIO, policy="uniform")
    # Only ResNet-50 has the size that the target is for.
    target = APPLY_SEC if net == "resnet50" else None
    rows += time_rows(
        f"apply/{net}", partial(rlprune.apply, plan, trace, calibration="none"), count, target
    )
    whole = rlprune.plan(trace, device="macs", budget_ratio=1.0, policy="uniform")
    del trace
    pruned = str(folder / "pruned.onnx")
    for name, made in (("memory_whole", whole), ("memory", plan)):
        made.save(folder / "plan.json")
        arguments = [str(folder / "plan.json"), str(path), pruned]
        peaks = [int(run(HIGH_WATER + LIBRARY, arguments).stdout) for _ in range(PROCESS_COUNT)]
        rows.append(memory_row(f"{name}/{net}", peaks, size))
    peaks, walls, cpus = [], [], []
    for _ in range(PROCESS_COUNT):
        began, before = time.perf_counter(), os.times()
        done = run(HIGH_WATER + COMMAND, arguments)
        walls.append(time.perf_counter() - began)
        after = os.times()
        cpus.append(sum(after[2:4]) - sum(before[2:4]))  # of children that ended
        peaks.append(int(done.stderr.splitlines()[-1]))
    rows.append(median_row(f"cli/{net}/wall", walls, None))
    rows.append(median_row(f"cli/{net}/cpu", cpus, None))
    rows.append(memory_row(f"cli/{net}/memory", peaks, size))
    return rows


def memory_row(name: str, peaks: list[int], size: int) -> Row:
    """The greatest of several processes, over the file's size."""
    unit = f"x{size / 1e6:.0f} MB"
    return Row(name, max(peaks) / size, unit, MEMORY_RATIO, "min", len(peaks), None)


def time_rows(name: str, call: Callable[[], object], count: int, target: float | None) -> list[Row]:
    """CPU and wall seconds of `call`; the first run, which fills caches, is left out."""
    call()
    wall, cpu = [], []
    for _ in range(count):
        began = time.perf_counter(), time.process_time()
        call()
        wall.append(time.perf_counter() - began[0])
        cpu.append(time.process_time() - began[1])
    return [median_row(f"{name}/cpu", cpu, target), median_row(f"{name}/wall", wall, None)]


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


def run(code: str, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )


def prunable_row(path: Path) -> Row:
    name = path.name.removesuffix(".onnx.gz")
    share = rlprune.trace(gzip.decompress(path.read_bytes())).graph.prunable_macs_ratio()
    kind = "transformer" if name.startswith(TRANSFORMERS) else "cnn"
    return Row(f"prunable/{name}", share, "of MACs", PRUNABLE[kind], "max", 1, None)


if __name__ == "__main__":
    main()
