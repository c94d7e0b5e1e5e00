"""One plan measured beside its unpruned model in a process of its own, which ends with it.

What a process did before tells on what it measures next (where its memory lies, what its allocator
holds), so a certificate's measurement never shares one with the measurements the plan came from.
Run as `python -m rlprune.planning.fresh FOLDER`; a folder and not a pipe carries the models, since
a runtime may write to the standard streams.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import onnx

from rlprune.errors import MeasurementError
from rlprune.graph.from_onnx import OnnxTrace
from rlprune.graph.types import IntArray
from rlprune.latency.collect import trace_models
from rlprune.latency.measure import MeasureConfig, measure
from rlprune.latency.types import Measurement, ModelSubject
from rlprune.runtime import get_runtime
from rlprune.store.encoding import measurement_from_json, measurement_to_json, subject_key

TIMEOUT_SEC = 600.0
SESSION_COUNT = 20
"""Fresh sessions of a certificate; more than elsewhere, since it is compared with a budget."""
_CONTROL, _PRUNED, _RESULT = "control.onnx", "pruned.onnx", "measurement.json"


def measure_fresh(trace: OnnxTrace, keeps: IntArray, *, device: str, runtime: str) -> Measurement:
    """Keep counts [G] of a traced model, measured now in a new process.

    Raises:
        MeasurementError: the process failed, or did not end in `TIMEOUT_SEC`.
    """
    subject = ModelSubject(trace.graph.fingerprint, tuple(int(keep) for keep in keeps))
    model_of = trace_models(trace)
    with tempfile.TemporaryDirectory(prefix="rlprune-") as name:
        folder = Path(name)
        (folder / _CONTROL).write_bytes(trace.model.SerializeToString())
        (folder / _PRUNED).write_bytes(model_of(subject).SerializeToString())
        command = [sys.executable, "-m", __name__, name, device, runtime, subject_key(subject)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=TIMEOUT_SEC, check=False
            )
        except subprocess.TimeoutExpired:
            raise MeasurementError(f"measuring took more than {TIMEOUT_SEC:.0f} s") from None
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise MeasurementError(f"the measuring process ended with {done.returncode}: {last}")
        return measurement_from_json(subject_key(subject), (folder / _RESULT).read_text())


def _main(folder: Path, device: str, runtime: str, subject: str) -> None:
    from rlprune.store.encoding import subject_from_key

    [measurement] = measure(
        [(subject_from_key(subject), onnx.load(folder / _PRUNED))],
        device=device,
        runtime=get_runtime(runtime),
        control=onnx.load(folder / _CONTROL),
        config=MeasureConfig(session_count=SESSION_COUNT),
    )
    (folder / _RESULT).write_text(measurement_to_json(measurement))


if __name__ == "__main__":
    _main(Path(sys.argv[1]), *sys.argv[2:5])
