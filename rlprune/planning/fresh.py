"""One plan measured beside its unpruned model in processes of its own, which end with it.

What a process did before tells on what it measures next (where its memory lies, what its allocator
holds), so a certificate's measurement never shares one with the measurements the plan came from.
And where the memory of a process lies tells on all its sessions alike: ratios of one process range
over 2-5 % of those of others, so several processes are asked, a few sessions each.
Run as `python -m rlprune.planning.fresh FOLDER`; a folder and not a pipe carries the models, since
a runtime may write to the standard streams.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import onnx

from rlprune.errors import MeasurementError
from rlprune.graph.from_onnx import OnnxTrace
from rlprune.latency.collect import trace_models
from rlprune.latency.device import threads_of
from rlprune.latency.measure import MeasureConfig, measure
from rlprune.latency.types import Measurement, ModelSubject
from rlprune.runtime import get_runtime
from rlprune.store.encoding import measurement_from_json, measurement_to_json, subject_key

TIMEOUT_SEC = 600.0
PROCESS_COUNT = 4
SESSION_COUNT = 4
"""Fresh sessions in each of the processes; together more than elsewhere, since a certificate is
compared with a budget."""
_CONTROL, _PRUNED, _RESULT = "control.onnx", "pruned.onnx", "measurement.json"


def measure_fresh(
    trace: OnnxTrace, subject: ModelSubject, *, device: str, runtime: str
) -> Measurement:
    """A traced model under a plan, measured now in new processes, one after the other.

    Raises:
        MeasurementError: a process failed, or did not end in `TIMEOUT_SEC`.
    """
    model_of = trace_models(trace)
    with tempfile.TemporaryDirectory(prefix="rlprune-") as name:
        folder = Path(name)
        unpruned = replace(subject, settings=())
        (folder / _CONTROL).write_bytes(model_of(unpruned).SerializeToString())
        (folder / _PRUNED).write_bytes(model_of(subject).SerializeToString())
        found: list[Measurement] = []
        while len(found) < PROCESS_COUNT and not (found and found[-1].status == "failed"):
            found.append(_one_process(folder, device, runtime, subject))
    return pooled(found)


def pooled(parts: Sequence[Measurement]) -> Measurement:
    """One measurement of the sessions of several processes, in order.

    One that failed speaks for all. Those that would not hold still are left out where at least as
    many did.
    """
    for one in parts:
        if one.status == "failed":
            return one
    steady = [one for one in parts if one.status == "ok"]
    restless = [one for one in parts if one.status != "ok"]
    kept = steady if len(steady) >= len(restless) else restless
    counts = {"process_count": len(kept)}
    for name in ("session_count", "sample_count", "dropped_sample_count"):
        counts[name] = sum(int(dict(one.conditions).get(name, 0)) for one in kept)
    conditions = dict(kept[-1].conditions) | {name: str(count) for name, count in counts.items()}
    return replace(
        kept[-1],
        cpu_ms=tuple(chain.from_iterable(one.cpu_ms for one in kept)),
        wall_ms=tuple(chain.from_iterable(one.wall_ms for one in kept)),
        control_cpu_ms=tuple(chain.from_iterable(one.control_cpu_ms for one in kept)),
        control_wall_ms=tuple(chain.from_iterable(one.control_wall_ms for one in kept)),
        conditions=tuple(conditions.items()),
    )


def _one_process(folder: Path, device: str, runtime: str, subject: ModelSubject) -> Measurement:
    key = subject_key(subject)
    command = [sys.executable, "-m", __name__, str(folder), device, runtime, key]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_SEC, check=False
        )
    except subprocess.TimeoutExpired:
        raise MeasurementError(f"measuring took more than {TIMEOUT_SEC:.0f} s") from None
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise MeasurementError(f"the measuring process ended with {done.returncode}: {last}")
    return measurement_from_json(key, (folder / _RESULT).read_text())


def _main(folder: Path, device: str, runtime: str, subject: str) -> None:
    from rlprune.store.encoding import subject_from_key

    [measurement] = measure(
        [(subject_from_key(subject), onnx.load(folder / _PRUNED))],
        device=device,
        runtime=get_runtime(runtime),
        control=onnx.load(folder / _CONTROL),
        config=MeasureConfig(session_count=SESSION_COUNT, thread_count=threads_of(device)),
    )
    (folder / _RESULT).write_text(measurement_to_json(measurement))


if __name__ == "__main__":
    _main(Path(sys.argv[1]), *sys.argv[2:5])
