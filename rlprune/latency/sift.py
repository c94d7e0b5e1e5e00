"""Which of a device's measurements a fit can use, and why it cannot use the others.

One report may be odd, by a fault or on purpose, and a latency model is made of all of them. What
cannot be (`limits`, also in stores from before there were limits), what contradicts itself, and
what is far from all that is like it is left out and named, so that someone can look at the device;
with all that is left the fit is plain regression.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from rlprune.errors import InputError
from rlprune.graph.types import FloatArray, PruningGraph
from rlprune.latency.costs import CostPoint, Costs, OperatorCosts
from rlprune.latency.limits import fault_of
from rlprune.latency.operators import form
from rlprune.latency.subjects import check_settings
from rlprune.latency.types import Measurement, ModelSubject, OperatorSpec

MAX_SPREAD = 20.0
"""A measurement's own sessions are not further apart than this, slowest over fastest."""
MAX_CPU_RATIO = 2.0
"""A thread's CPU time is at most its wall time; coarse clocks make it more."""
MANY_SD = 6.0
"""So many robust standard deviations from the others is far ..."""
FAR_OPERATOR, FAR_PLAN = np.log(8.0), np.log(2.0)
"""... and at least so far, in the natural logarithm: an operator from the regression over all, a
plan from the line through its graph's others (ms over MACs)."""
ENOUGH_POINTS, ENOUGH_PLANS = 8, 6
"""Fewer cannot outvote one."""
ROUNDS = 3


def sift(
    measurements: Sequence[Measurement], graphs: Mapping[str, PruningGraph]
) -> tuple[list[Measurement], list[str]]:
    """Those measurements of one device that mean something each by itself, and the others named."""
    kept, dropped = [], []
    for one in measurements:
        why = _why_not(one, graphs)
        if why:
            dropped.append(f"{name_of(one.subject)}: {why}")
        else:
            kept.append(one)
    return kept, dropped


def _why_not(one: Measurement, graphs: Mapping[str, PruningGraph]) -> str:
    fault = fault_of(one)
    if fault is not None:
        return fault[1]
    if isinstance(one.subject, ModelSubject) and one.subject.fingerprint in graphs:
        try:
            check_settings(graphs[one.subject.fingerprint], one.subject)
        except InputError as error:
            return str(error)
    if one.status == "failed":
        return ""
    for name, sessions in (("sessions", one.session_ms), ("control's", one.control_session_ms)):
        if sessions and max(sessions) > MAX_SPREAD * min(sessions):
            return f"its {name} are {max(sessions) / min(sessions):.3g} times apart"
    if one.thread_count == 1:
        cpu, wall = (sum(map(sum, times)) for times in (one.cpu_ms, one.wall_ms))
        if cpu > MAX_CPU_RATIO * wall:
            return f"{cpu / wall:.3g} times as much CPU as wall time"
    return ""


def sift_plans(macs: FloatArray, ms: FloatArray, base_ms: float) -> list[str]:
    """For each measured plan how far it is from the others; empty where it is not.

    The line that they are held to goes through medians (Theil and Sen), which less than half of
    them cannot bend.

    Args:
        macs: of every plan [N].
        ms: measured [N].
        base_ms: the unpruned model's latency, NaN where that is not known.
    """
    if len(ms) < ENOUGH_PLANS:
        return [""] * len(ms)
    logs = np.log(ms)
    size = np.log(np.maximum(macs, 1.0))
    rise, run = logs[:, None] - logs[None], size[:, None] - size[None]  # [N, N]
    apart = np.abs(run) > 0.05
    slope = float(np.median(rise[apart] / run[apart])) if apart.any() else 0.0
    off = logs - slope * size
    off -= np.median(off)
    limit = max(FAR_PLAN, MANY_SD * _robust_sd(off))
    far = np.abs(off) > limit
    if np.isfinite(base_ms):  # measured beside every plan, so it is sure
        far |= logs > np.log(base_ms) + limit
    return [
        f"{np.exp(by):.3g} times what the model's other plans suggest" if is_far else ""
        for by, is_far in zip(off, far, strict=True)
    ]


def sift_points(
    points: Sequence[CostPoint], donor: Costs | None
) -> tuple[OperatorCosts, list[CostPoint], list[str]]:
    """Costs from those points that are not far from the others; these; and the others named.

    The farthest of a form go first, since they bend what the rest is held to.
    """
    left, dropped = list(points), []
    costs = OperatorCosts.fit(left, donor)
    for _ in range(ROUNDS):
        if len(left) < ENOUGH_POINTS:
            break
        off = _off(left, costs)
        limit = max(FAR_OPERATOR, MANY_SD * _robust_sd(off))
        worst = 0.5 * np.max(np.abs(off))
        far = np.abs(off) > max(limit, worst)
        if not far.any():
            break
        dropped += [
            f"{name_of(point.spec)}: {np.exp(by):.3g} times what other operators suggest"
            for point, by, is_far in zip(left, off, far, strict=True)
            if is_far
        ]
        left = [point for point, is_far in zip(left, far, strict=True) if not is_far]
        costs = OperatorCosts.fit(left, donor)
    return costs, left, dropped


def _off(points: Sequence[CostPoint], costs: OperatorCosts) -> FloatArray:
    """How far points are from the regression over all of them, in the natural logarithm [N]."""
    off = np.zeros(len(points))
    by_form: dict[OperatorSpec, list[int]] = {}
    for index, point in enumerate(points):
        by_form.setdefault(form(point.spec), []).append(index)
    for key, indices in by_form.items():
        ins = np.array([points[index].spec.in_width for index in indices])
        outs = np.array([points[index].spec.out_width for index in indices])
        ms = np.array([points[index].ms for index in indices])
        off[indices] = np.log(ms) - costs.regression(key, ins, outs)
    return off - np.median(off)


def _robust_sd(off: FloatArray) -> float:
    """Standard deviation of normal values with this median of absolute deviations."""
    return 1.4826 * float(np.median(np.abs(off)))


def name_of(subject: OperatorSpec | ModelSubject) -> str:
    """A subject in a few words."""
    if isinstance(subject, ModelSubject):
        shown = ", ".join(map(str, subject.settings[:4]))
        more = ", ..." if len(subject.settings) > 4 else ""
        return f"model {subject.fingerprint[:12]} at ({shown}{more})"
    return f"{subject.kind[:40]} {subject.in_width} to {subject.out_width}"
