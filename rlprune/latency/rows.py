"""A device's measurements as what a fit takes: a point per operator, a row per plan.

Where there was a control, ratios to it count, times what the control takes today: so the machine's
slow days drop out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlprune.graph.types import FloatArray, IntArray, PruningGraph
from rlprune.latency.calibrate import PlanRows
from rlprune.latency.costs import CostPoint
from rlprune.latency.operators import OVERHEAD
from rlprune.latency.sift import ENOUGH_POINTS, name_of, sift_plans
from rlprune.latency.types import Measurement, ModelSubject, OperatorSpec
from rlprune.schemes import check_schemes, other_sites, unpruned_settings, variants

DEFAULT_CALL_MS = 0.008
CHEAP_SHARE = 0.1
"""A call costs no more than this share of all operators."""
MIN_LOG_SD = 0.01
"""No operator is known better than this, whatever its sessions say."""


def counts(settings: IntArray) -> tuple[int, ...]:
    """Settings [S] as plain numbers."""
    return tuple(int(value) for value in settings)


def operator_points(
    measurements: Sequence[Measurement],
    canary_ms: float | None,
    dropped: list[str],
    usual_call_ms: float,
) -> tuple[float, list[CostPoint]]:
    """The call overhead in ms, and every measurement of an operator net of it.

    Ratios to the canary times the canary's latency today: so the machine's slow days drop out.
    Where the overhead was not measured, `usual_call_ms` is taken for it.
    """
    gross: list[tuple[OperatorSpec, float, float]] = []
    calls: list[float] = []
    for one in measurements:
        assert isinstance(one.subject, OperatorSpec)
        ms = one.control_ratio * canary_ms if one.control_cpu_ms and canary_ms else one.latency_ms
        if not np.isfinite(ms) or ms <= 0:
            continue
        if one.subject == OVERHEAD:
            calls.append(ms)
        else:
            gross.append((one.subject, ms, _log_sd(one)))
    call = float(np.median(calls)) if calls else usual_call_ms
    if len(gross) >= ENOUGH_POINTS:
        # Every operator's time has a call in it. The least of all may itself be odd.
        cheap = float(np.quantile([ms for _, ms, _ in gross], CHEAP_SHARE))
        if call > cheap and calls:
            dropped.append(f"{name_of(OVERHEAD)}: {call:.3g} ms, more than whole operators take")
        call = min(call, cheap)
    points = []
    for spec, ms, log_sd in gross:
        # An operator about as dear as an empty call is known to be cheap, and not much more.
        net = max(ms - call, 0.05 * ms)
        points.append(CostPoint(spec, net, min(1.0, log_sd * ms / net + MIN_LOG_SD)))
    return call, points


def pooled(points: Sequence[CostPoint]) -> list[CostPoint]:
    """One point an operator."""
    by_spec: dict[OperatorSpec, list[CostPoint]] = {}
    for point in points:
        by_spec.setdefault(point.spec, []).append(point)
    return [
        CostPoint(spec, *_pool([(point.ms, point.log_sd) for point in own]))
        for spec, own in by_spec.items()
    ]


def plan_rows(
    graph: PruningGraph,
    measurements: Sequence[Measurement],
    control_ms: float | None,
    dropped: list[str],
) -> PlanRows:
    """One row per plan, and one for the unpruned model, which every control measured."""
    control_count = sum(_has_control(one) for one in measurements)
    base_ms = control_ms if control_ms and control_count else float("nan")
    schemes = tuple(
        dict.fromkeys(
            name
            for one in measurements
            if isinstance(one.subject, ModelSubject)
            for name in one.subject.schemes
        )
    )
    schemes = check_schemes(schemes)
    unpruned = counts(unpruned_settings(graph, schemes))
    plans: list[tuple[tuple[int, ...], float, float, bool]] = []
    for one in measurements:
        assert isinstance(one.subject, ModelSubject)
        ms = one.control_ratio * base_ms if _has_control(one) else one.latency_ms
        settings = _complete(graph, one.subject, schemes)
        known = settings == unpruned and np.isfinite(base_ms)
        if np.isfinite(ms) and ms > 0 and not known:
            plans.append((settings, ms, _log_sd(one), one.status == "ok"))
    far = sift_plans(
        _macs(graph, [settings for settings, *_ in plans], schemes),
        np.array([ms for _, ms, *_ in plans]),
        base_ms,
    )
    by_plan: dict[tuple[int, ...], list[tuple[float, float, bool]]] = {}
    for why, (settings, *found) in zip(far, plans, strict=True):
        if why:
            dropped.append(f"{name_of(ModelSubject(graph.fingerprint, settings))}: {why}")
        else:
            by_plan.setdefault(settings, []).append((found[0], found[1], bool(found[2])))
    rows = []
    if np.isfinite(base_ms):
        rows.append((unpruned, base_ms, MIN_LOG_SD / np.sqrt(control_count), True))
    for settings, values in by_plan.items():
        ms, log_sd = _pool([(ms, log_sd) for ms, log_sd, _ in values])
        rows.append((settings, ms, log_sd, any(ok for _, _, ok in values)))
    return PlanRows(
        graph=graph,
        settings=np.array([row[0] for row in rows], dtype=np.int64).reshape(
            len(rows), len(unpruned)
        ),
        schemes=schemes,
        ms=np.array([row[1] for row in rows], dtype=np.float64),
        log_sd=np.array([row[2] for row in rows], dtype=np.float64),
        trusted=np.array([row[3] for row in rows], dtype=np.float64),
    )


def _complete(
    graph: PruningGraph, subject: ModelSubject, schemes: Sequence[str]
) -> tuple[int, ...]:
    """A subject's settings, and those of the sites of further schemes, which are as they are."""
    if subject.schemes == schemes:
        return subject.settings
    count = len(graph.groups)
    own = iter(subject.settings[count:])
    others = [
        next(own) if site.scheme in subject.schemes else site.values[-1]
        for site in other_sites(graph, schemes)
    ]
    return (*subject.settings[:count], *others)


def _macs(
    graph: PruningGraph, plans: Sequence[tuple[int, ...]], schemes: Sequence[str]
) -> FloatArray:
    """MACs of every plan [N]."""
    macs = np.zeros(len(plans))
    if plans:
        settings = np.array(plans, dtype=np.int64)
        for variant, places in variants(graph, settings, schemes):
            macs[places] = variant.macs(settings[places, : len(graph.groups)])
    return macs


def _has_control(one: Measurement) -> bool:
    """Whether the control was the unpruned model, in the same precision."""
    return one.beside_itself


def _log_sd(one: Measurement) -> float:
    """Standard error of the latency's logarithm, from how far its sessions are apart."""
    values = one.session_ratios or one.session_ms
    if len(values) < 2:
        return 0.1
    logs = np.log(np.maximum(values, 1e-9))
    return float(np.clip(np.std(logs, ddof=1) / np.sqrt(len(logs)), MIN_LOG_SD, 1.0))


def _pool(values: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Several (ms, log sd) of one subject: their median, and what is left of the error."""
    middle = float(np.median([ms for ms, _ in values]))
    log_sd = float(np.median([sd for _, sd in values])) / np.sqrt(len(values))
    return middle, max(float(log_sd), MIN_LOG_SD)
