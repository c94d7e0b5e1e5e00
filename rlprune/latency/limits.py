"""What no device can have measured: limits of physics on a measurement, whoever reports it.

Wide on purpose: they refuse what cannot be, not what is unlikely (`sift` looks at that), so that no
honest device is turned away, however slow.
"""

from __future__ import annotations

import math
import re

from rlprune.latency.types import (
    EXTENTS,
    INT8,
    PRECISIONS,
    Measurement,
    ModelSubject,
    OperatorSpec,
)

MIN_MS, MAX_MS = 1e-5, 1e6
"""Of one run: a few cycles of a processor, and a quarter of an hour."""
MAX_THREAD_COUNT = 1024
MAX_WARMUP_COUNT = 10**9
MAX_WIDTH = 2**24
"""Channels of an operator."""
MAX_EXTENT = 2**31 - 1
"""Of one axis; also of strides, kernels and pads."""
MAX_AXIS_COUNT = 16
MAX_WORK = 10**18
"""Multiply-accumulates, weights or elements of one operator: counted in 64 bits here."""

_WITH_WEIGHTS = ("conv", "depthwise_conv", "conv_transpose", "linear", "recurrent")
_WITHOUT = ("attention", "matmul", "norm", "activation", "add", "mul", "concat", "pool")
_MOVING = ("global_pool", "pad", "slice", "resize", "softmax", "layout", "other", "overhead")
KINDS = frozenset((*_WITH_WEIGHTS, *_WITHOUT, *_MOVING))
"""Kinds of operators that are measured; `graph.types.Operator` says what each is, and `overhead` is
`operators.OVERHEAD`."""

SAMPLES = ("cpu_ms", "wall_ms", "control_cpu_ms", "control_wall_ms")
_THREADS = re.compile(r"\.t(\d{1,9})\.")


def fault_of(one: Measurement) -> tuple[str, str] | None:
    """The part of a measurement that cannot be, and why; None where all of it may be."""
    if not 1 <= one.thread_count <= MAX_THREAD_COUNT:
        return "thread_count", f"thread_count must be 1 to {MAX_THREAD_COUNT}"
    threads = _THREADS.search(one.device)
    if threads is not None and int(threads[1]) != one.thread_count:
        return "thread_count", (
            f"measured with {one.thread_count} threads, the device key says {threads[1]}"
        )
    if not 0 <= one.warmup_count <= MAX_WARMUP_COUNT:
        return "warmup_count", f"warmup_count must be 0 to {MAX_WARMUP_COUNT}"
    return _subject_fault(one.subject) or _sample_fault(one)


def _sample_fault(one: Measurement) -> tuple[str, str] | None:
    session_count = len(one.cpu_ms)
    least = 0.0 if one.status == "failed" else MIN_MS  # a clock that stands still is a failure
    for name in SAMPLES:
        sessions = getattr(one, name)
        if any(not session for session in sessions):
            return name, "a session has no samples"
        for session in sessions:
            for value in session:
                if not (math.isfinite(value) and least <= value <= MAX_MS):
                    return name, f"sample {value:g} is not a time of {least:g} to {MAX_MS:g} ms"
    if not session_count and one.status != "failed":
        return "cpu_ms", f"a measurement of status {one.status!r} needs samples"
    if len(one.wall_ms) != session_count:
        return "wall_ms", f"{len(one.wall_ms)} sessions of wall time, {session_count} of CPU time"
    if len(one.control_cpu_ms) not in (0, session_count):
        return "control_cpu_ms", "the control needs as many sessions as its subject"
    if len(one.control_wall_ms) != len(one.control_cpu_ms):
        return "control_wall_ms", "the control needs as many sessions of wall as of CPU time"
    for cpu_name, wall_name in (SAMPLES[:2], SAMPLES[2:]):
        if [len(s) for s in getattr(one, cpu_name)] != [len(s) for s in getattr(one, wall_name)]:
            return wall_name, "every sample needs both its CPU and its wall time"
    return None


def _subject_fault(subject: OperatorSpec | ModelSubject) -> tuple[str, str] | None:
    if subject.precision not in PRECISIONS:
        return "subject.precision", f"no precision {subject.precision[:40]!r} is measured"
    if isinstance(subject, ModelSubject):
        if subject.keep_float and subject.precision != INT8:
            return "subject.keep_float", f"all is float in {subject.precision}"
        if any(not 0 <= value <= MAX_EXTENT for value in subject.settings):
            return "subject.keeps", "settings must be at least 0 and fit 32 bits"
        return None
    if subject.kind not in KINDS:
        return "subject.kind", f"no operator of kind {subject.kind[:40]!r} is measured"
    for name in ("in_width", "out_width", "groups"):
        if not 0 <= getattr(subject, name) <= MAX_WIDTH:
            return f"subject.{name}", f"{name} must be 0 to {MAX_WIDTH}"
    if subject.kind == "conv" and not subject.groups:
        return "subject.groups", "a convolution has at least one group"
    for name in EXTENTS:
        values = getattr(subject, name)
        least = -MAX_EXTENT if name == "pads" else 0
        if len(values) > MAX_AXIS_COUNT or any(not least <= v <= MAX_EXTENT for v in values):
            return f"subject.{name}", f"{name} must be at most {MAX_AXIS_COUNT} sane extents"
    widths = max(subject.in_width, 1) * max(subject.out_width, 1)
    cells = math.prod(max(v, 1) for v in subject.in_spatial)
    cells *= math.prod(max(v, 1) for v in subject.out_spatial)
    if widths * cells * math.prod(max(v, 1) for v in subject.kernel) > MAX_WORK**2:
        return "subject", "no device computes an operator of this size"
    if widths * math.prod(max(v, 1) for v in (*subject.out_spatial, *subject.kernel)) > MAX_WORK:
        return "subject", "no device computes an operator of this size"
    return None
