"""What is measured on a device: an operator at concrete widths, or a whole model under a plan.

A measurement keeps its raw samples and the conditions they were taken under; a mean without them
cannot be compared with anything (TVM issues 1627, 1932).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any

from rlprune.errors import InputError

ONE_SIDED_95 = 1.645
PROCESS_SD = 0.01
"""How far a process is from others beyond what its sessions say (natural logarithm): measurements
of a plan in five processes of twenty sessions ranged over 2.3 % (median)."""

F32, BF16, INT8 = "f32", "bf16", "int8"
PRECISIONS = (F32, BF16, INT8)
"""Precisions that models are measured and planned in."""
MACS_DEVICE = "macs"
"""The built-in device whose `ms` are millions of MACs; for comparison with papers only."""

CONTROL = "control: "
"""How the reason begins where the model measured in turns with, not the subject, failed."""

CANARY = "canary"
"""What stands in for a control that was not given, as the condition `control` has it."""

FAULT = "fault"
"""Condition of a failed measurement that took the measuring process down: crashed or hung it."""


def check_precision(precision: str) -> str:
    """The precision, if it is known.

    Raises:
        InputError: it is not; names those that are.
    """
    if precision not in PRECISIONS:
        raise InputError(
            f"no precision {precision[:40]!r}; give {', '.join(PRECISIONS)}", field="precision"
        )
    return precision


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """What a network computes in. Latencies of one arithmetic say nothing of another's: in int8,
    channels below 16 make ONNX Runtime slower the fewer they are."""

    precision: str = F32
    keep_float: tuple[str, ...] = ()
    """As `ModelSubject.keep_float`."""

    @staticmethod
    def of(precision: str, keep_float: Iterable[str] = ()) -> Arithmetic:
        """The same patterns in another order are the same arithmetic."""
        return Arithmetic(precision, tuple(sorted(set(keep_float))))

    def is_of(self, subject: Subject) -> bool:
        """Whether a subject is measured in it; an operator alone is of its precision throughout."""
        same = subject.precision == self.precision
        return same and (isinstance(subject, OperatorSpec) or subject.keep_float == self.keep_float)


IN_F32 = Arithmetic()


@dataclass(frozen=True, slots=True, order=True)
class OperatorSpec:
    """One operator at concrete widths and extents: what an operator measurement is of."""

    kind: str
    """As `graph.types.Operator.kind`."""
    variant: str
    in_width: int
    out_width: int
    in_spatial: tuple[int, ...]
    out_spatial: tuple[int, ...]
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    precision: str = F32
    """Of its arithmetic."""

    def key(self) -> str:
        """One canonical line of JSON; equal specs, equal keys."""
        told = asdict(self)
        if self.precision == F32:  # left out, so that keys of older stores are the same
            del told["precision"]
        return json.dumps(told, separators=(",", ":"), sort_keys=True)

    @staticmethod
    def from_key(key: str) -> OperatorSpec:
        """The inverse of `key`.

        Raises:
            InputError: not the key of an operator.
        """
        try:
            data: dict[str, Any] = json.loads(key)
            fields: dict[str, Any] = {
                name: tuple(value) if isinstance(value, list) else value
                for name, value in data.items()
            }
            return OperatorSpec(**fields)
        except (TypeError, ValueError, AttributeError) as error:
            raise InputError(f"not an operator key: {key[:80]!r} ({error})") from error


@dataclass(frozen=True, slots=True)
class ModelSubject:
    """A whole model under a plan: what a model measurement is of."""

    fingerprint: str
    settings: tuple[int, ...]
    """What every site is set to (`schemes.space`): units kept of every group, then the values of
    the sites of other schemes, in the order of `schemes`.

    Empty only where a control model is asked for by `latency.collect`: the unpruned model."""
    schemes: tuple[str, ...] = ("channel",)
    """Whose sites `settings` tells of; the sites of all others are as they are."""
    precision: str = F32
    """Of its arithmetic."""
    keep_float: tuple[str, ...] = ()
    """Patterns of layers that stay in float where the others are int8 (`constraints`)."""

    @property
    def arithmetic(self) -> Arithmetic:
        """What the model computes in."""
        return Arithmetic(self.precision, self.keep_float)


Subject = OperatorSpec | ModelSubject
EXTENTS = ("in_spatial", "out_spatial", "kernel", "stride", "pads", "dilation")
"""Fields of a spec with an entry per axis."""
FORM_FIELDS = tuple(
    f.name for f in fields(OperatorSpec) if not f.name.endswith(("_width", "precision"))
)
"""What a spec has besides its widths and its precision; operators of a graph have the same."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """Raw samples of one subject on one device, and of the control that ran interleaved with it.

    The millisecond that is compared with a budget is `latency_ms`; for a single-thread key the
    thread-CPU time over blocks and fresh sessions.
    """

    device: str
    subject: Subject
    cpu_ms: tuple[tuple[float, ...], ...]
    """Thread-CPU ms per run: a tuple per fresh session, an entry per sample (a block mean)."""
    wall_ms: tuple[tuple[float, ...], ...]
    """Wall ms of the same samples."""
    control_cpu_ms: tuple[tuple[float, ...], ...] = ()
    """Of the unchanged model, that ran before and after each sample (A B A B), the mean of the two;
    empty where there was no control."""
    control_wall_ms: tuple[tuple[float, ...], ...] = ()
    thread_count: int = 1
    warmup_count: int = 0
    status: str = "ok"
    """`ok`, `unstable` (sessions or control drifted apart), or `failed`."""
    reason: str = ""
    """Why it is not `ok`."""
    conditions: tuple[tuple[str, str], ...] = ()
    """Name and value of what else was known: runtime version, load average, context switches."""

    @staticmethod
    def failed(
        device: str, subject: Subject, reason: str, *, thread_count: int = 1, fault: bool = False
    ) -> Measurement:
        """Of what could not be measured, and why; `fault` where it took the process down."""
        return Measurement(
            device=device,
            subject=subject,
            cpu_ms=(),
            wall_ms=(),
            thread_count=thread_count,
            status="failed",
            reason=reason[:500],
            conditions=((FAULT, "child"),) if fault else (),
        )

    @property
    def beside_itself(self) -> bool:
        """Whether the control was the subject's own unpruned model in the same precision."""
        # Old measurements do not say what their control was.
        named = dict(self.conditions).get("control", "given")
        return bool(self.control_cpu_ms) and named == "given"

    @property
    def beside_f32(self) -> bool:
        """Whether the control was the unpruned model in f32, and the subject is not."""
        return self.status != "failed" and dict(self.conditions).get("control") == F32

    @property
    def session_ms(self) -> tuple[float, ...]:
        """Mean per session; CPU time for one thread, else wall time."""
        return _means(self.cpu_ms if self.thread_count == 1 else self.wall_ms)

    @property
    def control_session_ms(self) -> tuple[float, ...]:
        """The same of the control; empty without one."""
        return _means(self.control_cpu_ms if self.thread_count == 1 else self.control_wall_ms)

    @property
    def session_ratios(self) -> tuple[float, ...]:
        """Latency over the interleaved control's per session; empty without a control."""
        if not self.control_cpu_ms:
            return ()
        both = zip(self.session_ms, self.control_session_ms, strict=True)
        return tuple(ours / control if control > 0 else float("nan") for ours, control in both)

    @property
    def latency_ms(self) -> float:
        """Interquartile mean over the sessions; NaN where there are none."""
        return _middle(self.session_ms)

    @property
    def control_ms(self) -> float:
        """The same of the control; NaN without one."""
        return _middle(self.control_session_ms)

    @property
    def control_ratio(self) -> float:
        """Latency over the interleaved control's; NaN without one. What budgets are checked with.

        The interquartile mean over sessions of the ratio of their means, so that a session's drift
        cancels and a session that went wrong does not count.
        """
        return _middle(self.session_ratios)

    @property
    def ratio_interval(self) -> tuple[float, float]:
        """Where the ratio of another such measurement would lie, 95 % on either side; NaN without a
        control."""
        logs = [math.log(max(ratio, 1e-9)) for ratio in self.session_ratios]
        import statistics  # 10 ms, where nothing is measured for nothing

        error = statistics.stdev(logs) / math.sqrt(len(logs)) if len(logs) > 1 else 0.1
        process_count = int(dict(self.conditions).get("process_count", 1))
        # The next measurement errs as this one did, so the two differ by the root of two as much.
        differ = math.sqrt(2.0) * math.hypot(error, PROCESS_SD / math.sqrt(process_count))
        spread = math.exp(ONE_SIDED_95 * differ)
        return self.control_ratio / spread, self.control_ratio * spread


# numpy takes 30 us for six numbers; a fit asks for thousands of these.


def _means(sessions: tuple[tuple[float, ...], ...]) -> tuple[float, ...]:
    return tuple(sum(samples) / len(samples) for samples in sessions)


def _middle(values: tuple[float, ...]) -> float:
    """Interquartile mean: the mean without the lowest and the highest quarter."""
    if not values:
        return float("nan")
    cut = len(values) // 4
    kept = sorted(values)[cut : len(values) - cut]
    return sum(kept) / len(kept)
