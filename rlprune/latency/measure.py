"""The estimator: what one inference costs here, in raw samples, or why that cannot be said.

On shared machines wall-time medians of fresh sessions were 70-90 % apart where thread-CPU time was
4 % apart, so for one thread the CPU time of the calling thread counts. Neighbours slow that too, by
1.4 to 2.2 for tenths of a second to seconds. Against it (ResNet-20 beside four busy processes):

- every sample of a subject stands between two samples of a control (A B A B), and ratios are taken;
- a sample takes some milliseconds: at 0.4 ms ratios repeated to 1.2-1.9 %, at 3 ms to 0.5-0.9 %;
- every subject gets several fresh sessions, in turns with the other subjects, since a session can
  be slow as a whole, and the interquartile mean of their ratios counts.

Only samples that were preempted are taken again: picking out "quiet" ones made it worse. A model
that the runtime refuses, or that is not steady, is a result with a status and a reason; nothing
here raises for what a device did. (Ideas: TVM's min_repeat_ms; Google Benchmark's interleaving.)
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import onnx

from rlprune.errors import MeasurementError
from rlprune.graph.types import FloatArray
from rlprune.latency.operators import canary_model
from rlprune.latency.types import CANARY, CONTROL, Measurement, Subject
from rlprune.runtime.base import Array, Runtime, Session

try:
    import resource
except ImportError:  # Windows has no context-switch counts; wall against CPU time must do there
    resource = None  # type: ignore[assignment]

MIN_SHARE = 0.2
"""A subject's sample takes at least about this share of its control's."""

Progress = Callable[[int, int], None]
"""(sessions done, sessions planned); the plan grows when an unstable subject gets more of them."""


class Reading(NamedTuple):
    """What the clock says at one moment; only differences mean anything."""

    cpu_ns: int
    """CPU time of the calling thread."""
    wall_ns: int
    preempted_count: int
    """Involuntary context switches of the calling thread."""


Clock = Callable[[], Reading]


def thread_clock() -> Reading:
    """This thread, now."""
    switches = 0
    if resource is not None and hasattr(resource, "RUSAGE_THREAD"):
        switches = resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw
    return Reading(time.thread_time_ns(), time.perf_counter_ns(), switches)


@dataclass(frozen=True, slots=True)
class MeasureConfig:
    """How long and how often to look; the defaults cost a small operator about 40 ms."""

    thread_count: int = 1
    """Threads the runtime computes on; CPU time counts with one, wall time with more."""
    warmup_count: int = 3
    """Runs thrown away at a session's start, at least: the first ones allocate memory."""
    warmup_ms: float = 1.0
    """Warm-up goes on until it has run this long."""
    min_sample_ms: float = 3.0
    """A sample repeats the model until it has run about this long."""
    sample_count: int = 5
    """Undisturbed samples wanted per session."""
    max_sample_count: int = 8
    """Samples per session after which it is left at that, however disturbed they were."""
    max_session_ms: float = 300.0
    """Sampling a session ends after this long (once half the samples wanted are there)."""
    session_count: int = 12
    """Fresh sessions per subject; even, since what is loaded first runs 1-2 % slower, and subject
    and control take turns in that."""
    extra_session_count: int = 8
    """Further sessions for a subject that is unstable after those."""
    max_wall_ratio: float = 1.15
    """A sample is disturbed where its thread was preempted, or where its wall time exceeds this
    many times its CPU time (one thread)."""
    max_error_ratio: float = 0.03
    """Unstable where the standard error of the sessions' ratios to the control is above this."""
    max_drift_ratio: float = 0.3
    """Unstable where the middle half of the control's sessions ranges over more than this share."""
    seed: int = 0
    """Of the random inputs."""


def measure(
    subjects: Sequence[tuple[Subject, onnx.ModelProto]],
    *,
    device: str,
    runtime: Runtime,
    control: onnx.ModelProto | None = None,
    control_precision: str | None = None,
    config: MeasureConfig | None = None,
    on_progress: Progress | None = None,
    clock: Clock = thread_clock,
) -> list[Measurement]:
    """Measures every subject, in the order given, one Measurement each.

    Without a control a small canary model takes its place; the condition `control` says which of
    the two it was (`given` or `canary`). Subject and control compute in the subject's precision,
    unless `control_precision` is given: then the condition names that. The outer loop is over
    sessions and the inner over subjects, so that a slow minute touches one session of all instead
    of all sessions of one.
    """
    config = config or MeasureConfig()
    bench = _Bench(runtime, control or canary_model(), config, clock, control_precision)
    named = control_precision or ("given" if control is not None else CANARY)
    trials = [_Trial(subject, model) for subject, model in subjects]
    planned = len(trials) * config.session_count
    done = 0
    left = trials

    def result(trial: _Trial) -> Measurement:
        return bench.measurement(trial, device, named)

    for session in range(config.session_count + config.extra_session_count):
        if session >= config.session_count:
            left = [trial for trial in left if result(trial).status == "unstable"]
            planned += len(left)
        for trial in left:
            if not trial.failure:
                bench.run_session(trial)
            done += 1
            if on_progress is not None:
                on_progress(done, planned)
    return [result(trial) for trial in trials]


class _Sample(NamedTuple):
    cpu_ms: float
    wall_ms: float
    preempted: bool


@dataclass
class _Trial:
    """One subject on its way to becoming a Measurement."""

    subject: Subject
    model: onnx.ModelProto
    sessions: list[list[_Sample]] = field(default_factory=list)
    controls: list[list[_Sample]] = field(default_factory=list)
    """Beside every sample the mean of the control's samples before and after it."""
    taken_count: int = 0
    repeat_count: int = 0
    failure: str = ""
    load_average: float = float("nan")


@dataclass
class _Bench:
    """What all trials of one call share."""

    runtime: Runtime
    control: onnx.ModelProto
    config: MeasureConfig
    clock: Clock
    of_control: str | None = None
    """Precision of the control, where it is not its subjects'."""

    def run_session(self, trial: _Trial) -> None:
        """Loads subject and control afresh and takes their samples in turns."""
        config = self.config
        pairs: list[tuple[_Sample, _Sample]] = []
        loaded: list[_Loaded] = []
        try:
            if len(trial.sessions) % 2 == 0:
                control = self._load(self.control, self.control_precision(trial), loaded, CONTROL)
                subject = self._load(trial.model, trial.subject.precision, loaded)
            else:
                subject = self._load(trial.model, trial.subject.precision, loaded)
                control = self._load(self.control, self.control_precision(trial), loaded, CONTROL)
            # A plan that is much smaller than its control costs next to nothing to repeat.
            ratio = control.sample_ms / subject.sample_ms
            subject.repeat_count *= max(1, round(MIN_SHARE * ratio))
            until = self.clock().wall_ns + config.max_session_ms * 1e6
            before = control.sample(self.clock)
            good = 0
            while len(pairs) < config.max_sample_count and good < config.sample_count:
                sample = subject.sample(self.clock)
                after = control.sample(self.clock)
                pairs.append((sample, _mean(before, after)))
                good += not self._disturbed(sample)
                before = after
                if 2 * len(pairs) >= config.sample_count and self.clock().wall_ns > until:
                    break
        except MeasurementError as error:
            trial.failure = str(error)
            return
        finally:
            for one in loaded:
                one.session.close()
        kept = [pair for pair in pairs if not self._disturbed(pair[0])]
        if 2 * len(kept) < min(len(pairs), config.sample_count):
            kept = pairs  # too few would trade one noise for another
        trial.sessions.append([sample for sample, _ in kept])
        trial.controls.append([beside for _, beside in kept])
        trial.taken_count += len(pairs)
        trial.repeat_count = subject.repeat_count
        trial.load_average = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")

    def verdict(self, measurement: Measurement) -> tuple[str, str]:
        """Status and reason as things stand."""
        own = np.array(measurement.session_ms)
        control = np.array(measurement.control_session_ms)
        for name, values in (("run", own), ("run of the control", control)):
            if not np.all(np.isfinite(values)) or np.min(values) <= 0:
                return "failed", f"the clock gave {np.min(values)} ms for a {name}"
        error = _error_ratio(own / control)
        low, middle, high = np.percentile(control, (25, 50, 75))
        drift = float((high - low) / middle)
        if error > self.config.max_error_ratio:
            return "unstable", f"the ratio to the control is uncertain by {error:.1%}"
        if drift > self.config.max_drift_ratio:
            return "unstable", f"half of the control's sessions drifted over {drift:.0%}"
        return "ok", ""

    def measurement(self, trial: _Trial, device: str, control: str) -> Measurement:
        found = Measurement(
            device=device,
            subject=trial.subject,
            cpu_ms=_table(trial.sessions, "cpu_ms"),
            wall_ms=_table(trial.sessions, "wall_ms"),
            control_cpu_ms=_table(trial.controls, "cpu_ms"),
            control_wall_ms=_table(trial.controls, "wall_ms"),
            thread_count=self.config.thread_count,
            warmup_count=self.config.warmup_count,
            conditions=(
                ("runtime", f"{self.runtime.name} {self.runtime.version}"),
                ("control", control),
                ("ended_unix_sec", f"{time.time():.0f}"),
                ("load_average", f"{trial.load_average:.2f}"),
                ("session_count", str(len(trial.sessions))),
                ("sample_count", str(trial.taken_count)),
                (
                    "dropped_sample_count",
                    str(trial.taken_count - sum(map(len, trial.sessions))),
                ),
                ("repeat_count", str(trial.repeat_count)),
                ("min_sample_ms", f"{self.config.min_sample_ms:g}"),
                ("input_seed", str(self.config.seed)),
            ),
        )
        status, reason = ("failed", trial.failure) if trial.failure else self.verdict(found)
        return replace(found, status=status, reason=reason)

    def control_precision(self, trial: _Trial) -> str:
        """What the control computes in: as its subject, unless it was said."""
        return self.of_control or trial.subject.precision

    def _load(
        self, model: onnx.ModelProto, precision: str, loaded: list[_Loaded], whose: str = ""
    ) -> _Loaded:
        try:
            loaded.append(_Loaded.load(model, self.runtime, self.config, self.clock, precision))
        except MeasurementError as error:
            raise MeasurementError(f"{whose}{error}") from error
        return loaded[-1]

    def _disturbed(self, sample: _Sample) -> bool:
        if self.config.thread_count > 1:
            return False  # waiting is part of wall time
        return sample.preempted or sample.wall_ms > self.config.max_wall_ratio * sample.cpu_ms


@dataclass
class _Loaded:
    """A session with its inputs, warmed up, and how often to repeat it in a sample."""

    session: Session
    feeds: Mapping[str, Array]
    repeat_count: int = 1
    sample_ms: float = 1.0
    """What a sample was seen to take, at best."""

    @staticmethod
    def load(
        model: onnx.ModelProto,
        runtime: Runtime,
        config: MeasureConfig,
        clock: Clock,
        precision: str,
    ) -> _Loaded:
        feeds = random_inputs(model, seed=config.seed)
        session = runtime.load(
            model.SerializeToString(), thread_count=config.thread_count, precision=precision
        )
        loaded = _Loaded(session, feeds)
        runs: list[float] = []
        try:
            # A clock that stands still must not keep us here; the verdict will say what it is.
            while len(runs) < config.warmup_count or sum(runs) < config.warmup_ms:
                runs.append(loaded.sample(clock).wall_ms)
                if len(runs) >= 1000:
                    break
        except MeasurementError:
            session.close()
            raise
        # The fastest run: one slow warm-up run must not make all samples short.
        fastest = max(min(runs), 1e-3)
        loaded.repeat_count = max(1, round(config.min_sample_ms / fastest))
        loaded.sample_ms = fastest * loaded.repeat_count
        return loaded

    def sample(self, clock: Clock) -> _Sample:
        run, feeds = self.session.run, self.feeds
        begin = clock()
        for _ in range(self.repeat_count):
            run(feeds)
        end = clock()
        per_run = 1e-6 / self.repeat_count  # ns per sample -> ms per run
        return _Sample(
            (end.cpu_ns - begin.cpu_ns) * per_run,
            (end.wall_ns - begin.wall_ns) * per_run,
            end.preempted_count > begin.preempted_count,
        )


_FLOATS = ("FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16")
_INTEGERS = tuple(f"{sign}INT{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64))


def random_inputs(model: onnx.ModelProto, *, seed: int = 0) -> dict[str, Array]:
    """Inputs of every numeric type; open dimensions are 1.

    Floats are standard normal. Integers of more than a byte are zeros, valid as indices whatever
    they index; bytes with three axes or more are pixels, 0 to 127, else zeros. Booleans are true:
    a mask that lets everything pass is what costs most.

    Raises:
        MeasurementError: an input that is no tensor of numbers.
    """
    rng = np.random.default_rng(seed)
    known = {tensor.name for tensor in model.graph.initializer}
    feeds: dict[str, Array] = {}
    for value in model.graph.input:
        if value.name in known:
            continue
        tensor = value.type.tensor_type
        shape = [max(1, dim.dim_value) for dim in tensor.shape.dim]
        name = onnx.TensorProto.DataType.Name(tensor.elem_type)
        if name in _FLOATS:
            normal = rng.standard_normal(shape, dtype=np.float32)
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
            feeds[value.name] = normal if dtype == np.float32 else normal.astype(dtype)
        elif name in _INTEGERS:
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
            pixels = dtype.itemsize == 1 and len(shape) >= 3
            feeds[value.name] = rng.integers(0, 128 if pixels else 1, shape).astype(dtype)
        elif name == "BOOL":
            feeds[value.name] = np.ones(shape, dtype=np.bool_)
        else:
            kind = value.type.WhichOneof("value") or "undefined"
            what = name if kind == "tensor_type" else kind.removesuffix("_type")
            raise MeasurementError(
                f"input {value.name!r} is of type {what}; numbers and booleans can be made up"
            )
    return feeds


def _mean(a: _Sample, b: _Sample) -> _Sample:
    return _Sample(
        (a.cpu_ms + b.cpu_ms) / 2, (a.wall_ms + b.wall_ms) / 2, a.preempted or b.preempted
    )


def _error_ratio(values: FloatArray) -> float:
    """Standard error over median; of four values or more the one farthest out is forgiven."""
    centre = float(np.median(values))
    if len(values) >= 4:
        values = np.delete(values, np.argmax(np.abs(values - centre)))
    if len(values) < 2:
        return 0.0
    return float(np.std(values, ddof=1) / np.sqrt(len(values)) / centre)


def _table(sessions: list[list[_Sample]], name: str) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(getattr(sample, name) for sample in samples) for samples in sessions)
