"""The estimator: what one inference costs here, in raw samples, or why that cannot be said.

Shared machines lie. Wall-time medians of fresh sessions were seen 70-90 % apart where thread-CPU
time was 4 % apart, so for one thread the CPU time of the calling thread counts, and wall time is
kept beside it. But a neighbour on the same core slows CPU time too, and not evenly: on a rented
2-core machine with nothing else running in it, a convolution's CPU time went up by 1.4, an
addition's by 2.2, for tenths of a second to seconds at a time. Three things help:

- every sample of a subject stands between two samples of a control (A B A B), and ratios are taken;
- samples beside which the control was slower than it can be, or that were preempted, are thrown
  away, and sampling goes on until enough undisturbed ones are there or patience ends;
- a session can be slow as a whole (where its memory happens to lie), so every subject gets several
  fresh sessions, in turns with the other subjects.

A model the runtime refuses, or one that will not hold still, is a result with a status and a
reason; nothing here raises for what a device did. Sources: TVM's min_repeat_ms, Google Benchmark's
interleaving, `anchors/service.md` sections 2.4 and 3.5.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import onnx

from rlprune.errors import MeasurementError
from rlprune.graph.types import FloatArray, IntArray
from rlprune.latency.operators import canary_model
from rlprune.latency.types import Measurement, ModelSubject, OperatorSpec
from rlprune.runtime.base import Array, Runtime, Session

try:
    import resource
except ImportError:  # Windows has no context-switch counts; wall against CPU time must do there
    resource = None  # type: ignore[assignment]

MIN_SHARE = 0.2
"""A subject's sample takes at least about this share of its control's."""

Subject = OperatorSpec | ModelSubject
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
    min_sample_ms: float = 0.4
    """A sample repeats the model until it has run about this long. Short, since a quiet moment is:
    what one sample loses in precision, many of them in quiet moments win back."""
    sample_count: int = 6
    """Undisturbed samples wanted per session."""
    max_sample_count: int = 16
    """Samples per session after which it is left at that, however disturbed they were."""
    max_session_ms: float = 300.0
    """Sampling a session ends after this long (once half the samples wanted are there)."""
    session_count: int = 6
    """Fresh sessions per subject; even, since what is loaded first runs 1-2 % slower, and subject
    and control take turns in that."""
    extra_session_count: int = 4
    """Further sessions for a subject that is unstable after those."""
    max_control_ratio: float = 1.08
    """A sample is disturbed where a control sample beside it took longer than this many times the
    control's quick ones (their 5th percentile over the whole call)."""
    max_wall_ratio: float = 1.15
    """... or where its wall time exceeds this many times its CPU time (one thread)."""
    max_error_ratio: float = 0.03
    """Unstable where the standard error of the sessions' ratios to the control is above this."""
    max_drift_ratio: float = 0.3
    """Unstable where the control itself ranges over more than this share between sessions."""
    seed: int = 0
    """Of the random inputs."""


def measure(
    subjects: Sequence[tuple[Subject, onnx.ModelProto]],
    *,
    device: str,
    runtime: Runtime,
    control: onnx.ModelProto | None = None,
    config: MeasureConfig | None = None,
    on_progress: Progress | None = None,
    clock: Clock = thread_clock,
) -> list[Measurement]:
    """Measures every subject, in the order given, one Measurement each.

    Without a control a small canary model takes its place; the condition `control` says which of
    the two it was (`given` or `canary`). The outer loop is over sessions and the inner over
    subjects, so that a slow minute touches one session of all instead of all sessions of one.
    """
    config = config or MeasureConfig()
    bench = _Bench(runtime, control or canary_model(), config, clock)
    trials = [_Trial(subject, model) for subject, model in subjects]
    planned = len(trials) * config.session_count
    done = 0
    left = trials
    for session in range(config.session_count + config.extra_session_count):
        if session >= config.session_count:
            left = [trial for trial in left if bench.verdict(trial)[0] == "unstable"]
            planned += len(left)
        for trial in left:
            if not trial.failure:
                bench.run_session(trial)
            done += 1
            if on_progress is not None:
                on_progress(done, planned)
    return [bench.measurement(trial, device, given=control is not None) for trial in trials]


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
    """Per session one more than samples: control i and i + 1 stand beside sample i."""
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
    control_times: list[float] = field(default_factory=list)

    def run_session(self, trial: _Trial) -> None:
        """Loads subject and control afresh and takes their samples in turns."""
        config = self.config
        samples: list[_Sample] = []
        beside: list[_Sample] = []
        loaded: list[_Loaded] = []
        try:
            if len(trial.sessions) % 2 == 0:
                control = self._load(self.control, loaded, "control: ")
                subject = self._load(trial.model, loaded)
            else:
                subject = self._load(trial.model, loaded)
                control = self._load(self.control, loaded, "control: ")
            # A plan that is much smaller than its control costs next to nothing to repeat.
            ratio = control.sample_ms / subject.sample_ms
            subject.repeat_count *= max(1, round(MIN_SHARE * ratio))
            beside.append(self._control_sample(control))
            until = self.clock().wall_ns + config.max_session_ms * 1e6
            while len(samples) < config.max_sample_count:
                samples.append(subject.sample(self.clock))
                beside.append(self._control_sample(control))
                if 2 * len(samples) >= config.sample_count and self.clock().wall_ns > until:
                    break
                if (
                    len(samples) >= config.sample_count
                    and np.count_nonzero(self._stress(samples, beside) <= config.max_control_ratio)
                    >= config.sample_count
                ):
                    break
        except MeasurementError as error:
            trial.failure = str(error)
            return
        finally:
            for one in loaded:
                one.session.close()
        trial.sessions.append(samples)
        trial.controls.append(beside)
        trial.repeat_count = subject.repeat_count
        trial.load_average = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")

    def kept(self, trial: _Trial) -> list[tuple[list[_Sample], list[_Sample]]]:
        """Per session that counts: the samples that count, and the control samples beside them.

        The undisturbed samples, if they are half as many as were wanted; else the less disturbed
        half of what there is, since too few would trade one noise for another. The undisturbed
        sessions likewise; else all of them, since how far they are apart says how much to trust
        them. Judged by what is known of the control by now, not by what was known at the time.
        """
        config = self.config
        chosen = []
        worst: list[float] = []
        for samples, beside in zip(trial.sessions, trial.controls, strict=True):
            stress = self._stress(samples, beside)
            kept = _quiet(stress, config.max_control_ratio, config.sample_count)
            around = np.union1d(kept, kept + 1)
            chosen.append(([samples[i] for i in kept], [beside[i] for i in around]))
            worst.append(float(np.max(stress[kept])))
        quiet = [one for one, s in zip(chosen, worst, strict=True) if s <= config.max_control_ratio]
        return quiet if 2 * len(quiet) >= config.session_count else chosen

    def verdict(self, trial: _Trial) -> tuple[str, str]:
        """Status and reason as things stand."""
        if trial.failure:
            return "failed", trial.failure
        kept = self.kept(trial)
        own = np.array([np.median(self._times(samples)) for samples, _ in kept])
        control = np.array([np.median(self._times(beside)) for _, beside in kept])
        for name, values in (("run", own), ("run of the control", control)):
            if not np.all(np.isfinite(values)) or np.min(values) <= 0:
                return "failed", f"the clock gave {np.min(values)} ms for a {name}"
        error = _error_ratio(own / control)
        drift = float(np.ptp(control) / np.median(control))
        if error > self.config.max_error_ratio:
            return "unstable", f"the ratio to the control is uncertain by {error:.1%}"
        if drift > self.config.max_drift_ratio:
            return "unstable", f"the control drifted over {drift:.0%} of its median"
        return "ok", ""

    def measurement(self, trial: _Trial, device: str, *, given: bool) -> Measurement:
        status, reason = self.verdict(trial)
        kept = self.kept(trial)
        taken = sum(map(len, trial.sessions))
        return Measurement(
            device=device,
            subject=trial.subject,
            cpu_ms=_table((samples for samples, _ in kept), "cpu_ms"),
            wall_ms=_table((samples for samples, _ in kept), "wall_ms"),
            control_cpu_ms=_table((beside for _, beside in kept), "cpu_ms"),
            control_wall_ms=_table((beside for _, beside in kept), "wall_ms"),
            thread_count=self.config.thread_count,
            warmup_count=self.config.warmup_count,
            status=status,
            reason=reason,
            conditions=(
                ("runtime", f"{self.runtime.name} {self.runtime.version}"),
                ("control", "given" if given else "canary"),
                ("ended_unix_sec", f"{time.time():.0f}"),
                ("load_average", f"{trial.load_average:.2f}"),
                ("session_count", str(len(trial.sessions))),
                ("sample_count", str(taken)),
                ("dropped_sample_count", str(taken - sum(len(samples) for samples, _ in kept))),
                ("repeat_count", str(trial.repeat_count)),
                ("min_sample_ms", f"{self.config.min_sample_ms:g}"),
                ("input_seed", str(self.config.seed)),
            ),
        )

    def _load(self, model: onnx.ModelProto, loaded: list[_Loaded], whose: str = "") -> _Loaded:
        try:
            loaded.append(_Loaded.load(model, self.runtime, self.config, self.clock))
        except MeasurementError as error:
            raise MeasurementError(f"{whose}{error}") from error
        return loaded[-1]

    def _control_sample(self, control: _Loaded) -> _Sample:
        sample = control.sample(self.clock)
        self.control_times.append(self._times([sample])[0])
        return sample

    def _times(self, samples: list[_Sample]) -> FloatArray:
        by_cpu = self.config.thread_count == 1
        return np.array([s.cpu_ms if by_cpu else s.wall_ms for s in samples], dtype=np.float64)

    def _stress(self, samples: list[_Sample], beside: list[_Sample]) -> FloatArray:
        """How disturbed each sample was: the slower control beside it over the quick ones; with 1
        to 10 added where the sample itself was preempted."""
        quick = max(float(np.percentile(self.control_times, 5)), 1e-9)
        control = self._times(beside) / quick
        stress = np.maximum(control[:-1], control[1:])
        if self.config.thread_count > 1:
            return stress  # waiting is part of wall time
        wall = np.array([s.wall_ms / s.cpu_ms if s.cpu_ms > 0 else 1.0 for s in samples])
        preempted = np.array([s.preempted for s in samples]) | (wall > self.config.max_wall_ratio)
        return np.asarray(stress + np.where(preempted, np.clip(wall, 1.0, 10.0), 0.0))


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
        model: onnx.ModelProto, runtime: Runtime, config: MeasureConfig, clock: Clock
    ) -> _Loaded:
        feeds = random_inputs(model, seed=config.seed)
        session = runtime.load(model.SerializeToString(), thread_count=config.thread_count)
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


def random_inputs(model: onnx.ModelProto, *, seed: int = 0) -> dict[str, Array]:
    """Standard normal float32 for float inputs, zeros for integers (valid as indices); open
    dimensions are 1.

    Raises:
        MeasurementError: an input of a type that cannot be made up.
    """
    rng = np.random.default_rng(seed)
    known = {tensor.name for tensor in model.graph.initializer}
    feeds: dict[str, Array] = {}
    for value in model.graph.input:
        if value.name in known:
            continue
        tensor = value.type.tensor_type
        shape = [max(1, dim.dim_value) for dim in tensor.shape.dim]
        if tensor.elem_type == onnx.TensorProto.FLOAT:
            feeds[value.name] = rng.standard_normal(shape, dtype=np.float32)
        elif tensor.elem_type in (onnx.TensorProto.INT64, onnx.TensorProto.INT32):
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
            feeds[value.name] = np.zeros(shape, dtype=dtype)
        else:
            name = onnx.TensorProto.DataType.Name(tensor.elem_type)
            raise MeasurementError(f"input {value.name!r} is of type {name}; float32 is measured")
    return feeds


def _quiet(stress: FloatArray, limit: float, wanted_count: int) -> IntArray:
    """Indices, ascending, of what is within the limit, or of the less disturbed half."""
    within = np.flatnonzero(stress <= limit)
    if 2 * len(within) >= wanted_count:
        return within
    half = np.argsort(stress, kind="stable")[: (len(stress) + 1) // 2]
    return np.sort(half)


def _error_ratio(values: FloatArray) -> float:
    """Standard error over median; of four values or more the one farthest out is forgiven."""
    centre = float(np.median(values))
    if len(values) >= 4:
        values = np.delete(values, np.argmax(np.abs(values - centre)))
    if len(values) < 2:
        return 0.0
    return float(np.std(values, ddof=1) / np.sqrt(len(values)) / centre)


def _table(sessions: Iterable[list[_Sample]], name: str) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(getattr(sample, name) for sample in samples) for samples in sessions)
