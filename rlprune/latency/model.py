"""`LatencyModel`: everything known of a device's speed, and what should be measured next.

Three layers: what operators cost alone (`costs`), what that is worth inside a model of this graph
(`calibrate`), and an interval from plans left out of the fit. The same measurements in the same
order give the same model; a fit takes milliseconds, so it is made anew whenever reports come in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rlprune.graph.types import FloatArray, IntArray, Operator, PruningGraph
from rlprune.latency.calibrate import (
    OTHER,
    Key,
    LatencyCorrection,
    PlanRows,
    calibrate,
    operator_keys,
)
from rlprune.latency.choose import calibration_keeps, operator_specs
from rlprune.latency.costs import CostPoint, OperatorCosts
from rlprune.latency.drift import CANARY, ENOUGH, Drift, device_drift
from rlprune.latency.operators import OVERHEAD, form
from rlprune.latency.sift import ENOUGH_POINTS, name_of, sift, sift_plans, sift_points
from rlprune.latency.tables import LatencyTables
from rlprune.latency.types import Measurement, ModelSubject, OperatorSpec

ENOUGH_OWN = 9
"""Pruned plans of a graph from which on other graphs have no say: a 90 % interval needs as many."""
CALIBRATION_COUNT = 21
"""Whole models wanted per graph: the unpruned one and twenty plans."""
MAX_ATTEMPT_COUNT = 30
"""... and tried, where some come out unstable or failed."""

RECHECK_COUNT = ENOUGH
"""Plans measured again of a device that has drifted."""

DEFAULT_CALL_MS = 0.008
MAX_BASE_OFF = 0.02
"""How far a fit may be from the unpruned model's latency before it is scaled to it."""
CHEAP_SHARE = 0.1
"""A call costs no more than this share of all operators."""
MIN_LOG_SD = 0.01
"""No operator is known better than this, whatever its sessions say."""


@dataclass(frozen=True)
class LatencyModel:
    """Latency on one device."""

    device: str
    costs: OperatorCosts
    """Of everything measured on the device."""
    points: tuple[CostPoint, ...]
    """What they were fitted to, and `donor`."""
    donor: OperatorCosts | None
    call_ms: float
    """What a call of the runtime costs besides its operators."""
    rows: tuple[PlanRows, ...]
    """Whole-model measurements, one entry per graph."""
    measured: frozenset[OperatorSpec]
    """Operators that were tried, whatever came of it."""
    attempts: Mapping[str, Mapping[tuple[int, ...], str]]
    """Per fingerprint the plans that were tried, and the best status of each."""
    failures: Mapping[str, str]
    """Per fingerprint why the first plan that failed did."""
    drift: Drift
    """Whether the device is still as fast as it was."""
    dropped: tuple[str, ...] = ()
    """Measurements that the fit could not use: what each was of, and why."""

    @staticmethod
    def fit(
        device: str,
        measurements: Sequence[Measurement],
        graphs: Mapping[str, PruningGraph],
        *,
        donor: OperatorCosts | None = None,
    ) -> LatencyModel:
        """Of all of a device's measurements; without any, every prediction is a rough guess.

        `donor`, another device's costs, makes the guess better: ten whole models are then enough
        to be of use, before any operator was measured here.

        Measurements of other devices and of graphs that are not in `graphs` are left out; those
        that cannot be used are named in `dropped`. Raises for nothing that was measured.
        """
        own, dropped = sift([one for one in measurements if one.device == device], graphs)
        drift = device_drift(own)
        operators = [one for one in own if isinstance(one.subject, OperatorSpec)]
        calls, points = _operator_points(
            [one for one in operators if one.status != "failed"],
            drift.control_ms.get(CANARY),
            dropped,
        )
        attempts: dict[str, dict[tuple[int, ...], str]] = {}
        failures: dict[str, str] = {}
        plans: dict[str, list[Measurement]] = {}
        for one in own:
            if isinstance(one.subject, ModelSubject):
                tried = attempts.setdefault(one.subject.fingerprint, {})
                if tried.get(one.subject.keeps) != "ok":
                    tried[one.subject.keeps] = one.status
                if one.status != "failed":
                    plans.setdefault(one.subject.fingerprint, []).append(one)
                else:
                    failures.setdefault(one.subject.fingerprint, one.reason)
        costs, kept, far = sift_points(points, donor)
        dropped += far
        points = _pooled(kept)
        if len(points) < len(kept):
            costs = OperatorCosts.fit(points, donor)
        rows = [
            _plan_rows(
                graphs[fingerprint],
                plans[fingerprint],
                drift.control_ms.get(fingerprint),
                dropped,
            )
            for fingerprint in sorted(plans.keys() & graphs.keys())
        ]
        return LatencyModel(
            device=device,
            costs=costs,
            points=tuple(points),
            donor=donor,
            call_ms=calls,
            rows=tuple(rows),
            measured=frozenset(
                one.subject for one in operators if isinstance(one.subject, OperatorSpec)
            ),
            attempts=attempts,
            failures=failures,
            drift=drift,
            dropped=tuple(dropped),
        )

    def correction(self, graph: PruningGraph) -> LatencyCorrection:
        """Factors and interval for this graph."""
        return self._fitted(graph)[1]

    def _fitted(self, graph: PruningGraph) -> tuple[OperatorCosts, LatencyCorrection]:
        """Costs of this graph's operators, and what they are worth in it.

        Once enough of its own plans were measured, nothing that is not of this graph's forms counts
        any more: other models teach what a runtime is apt to do, and where the model itself has
        said so their word only moves its least certain plans (seen to triple its interval).
        """
        own = [row for row in self.rows if row.graph.fingerprint == graph.fingerprint]
        if sum(int(row.judged.sum()) for row in own) < ENOUGH_OWN:
            return self.costs, calibrate(graph, self.costs, self.call_ms, self.rows)
        forms = {key for _, key in operator_keys(graph)}
        points = [point for point in self.points if form(point.spec) in forms]
        costs = OperatorCosts.fit(points, self.donor)
        return costs, calibrate(graph, costs, self.call_ms, own)

    def compile(
        self, graph: PruningGraph, levels: IntArray, level_count: IntArray
    ) -> LatencyTables:
        """Tables over the keep levels, calibration multiplied in."""
        costs, calibration = self._fitted(graph)
        # Equal operators have equal producers and so equal keys.
        keys = dict(zip(graph.operators, operator_keys(graph), strict=True))
        other_count = sum(keys[op][0] == OTHER for op in graph.operators)

        known: dict[tuple[Key, bytes, bytes], FloatArray] = {}  # nets repeat themselves

        def cost(op: Operator, in_width: IntArray, out_width: IntArray) -> FloatArray:
            key = keys[op]
            place = (key, in_width.tobytes(), out_width.tobytes())
            if place not in known:
                ins = np.repeat(in_width, len(out_width))
                outs = np.tile(out_width, len(in_width))
                ms = costs.ms(key[1], ins, outs) * calibration.factor(key, ins, outs)
                if key[0] == OTHER:  # what each takes is not known, only what all do
                    ms = ms + calibration.other_ms / other_count
                known[place] = ms.reshape(len(in_width), len(out_width))
            return known[place]

        tables = LatencyTables.compile(
            self.device,
            graph,
            levels,
            level_count,
            cost,
            overhead_ms=calibration.overhead_ms,
            interval=calibration.interval,
        )
        return self._held_to_base(graph, tables)

    def _held_to_base(self, graph: PruningGraph, tables: LatencyTables) -> LatencyTables:
        """The tables, scaled where they say something else of the unpruned model than was measured.

        It is measured beside every plan, and every fit meets it to within half a per cent, unless a
        measurement that nobody could tell from an honest one has bent the operators.
        """
        row = next((row for row in self.rows if row.graph.fingerprint == graph.fingerprint), None)
        if row is None or not row.base.any():
            return tables
        ratio = float(row.ms[row.base][0] / tables.latency_ms(tables.widths[None])[0])
        if not np.isfinite(ratio) or abs(np.log(ratio)) < MAX_BASE_OFF:
            return tables
        return replace(
            tables, overhead_ms=tables.overhead_ms * ratio, flat_ms=tables.flat_ms * ratio
        )

    def knows(self, graph: PruningGraph) -> bool:
        """Whether whole models of this graph were measured, so that predictions are worth much."""
        return any(row.graph.fingerprint == graph.fingerprint for row in self.rows)

    def missing(
        self, graph: PruningGraph, levels: IntArray, level_count: IntArray
    ) -> list[OperatorSpec | ModelSubject]:
        """What should be measured before plans for this graph are worth much; empty: ready.

        What was tried and failed is not asked for again; plans that came out unstable are made up
        for by others, within reason. A few plans are asked for again where the device has drifted.
        """
        wanted: list[OperatorSpec | ModelSubject] = [
            *operator_specs(graph, levels, level_count, self.costs, self.measured)
        ]
        tried = self.attempts.get(graph.fingerprint, {})
        settled = sum(status == "ok" for status in tried.values())
        room = min(CALIBRATION_COUNT - settled, MAX_ATTEMPT_COUNT - len(tried))
        if room > 0:
            plans = calibration_keeps(
                graph, levels, level_count, count=CALIBRATION_COUNT + len(tried)
            )
            fresh = [keeps for keeps in map(_counts, plans) if keeps not in tried]
            wanted += [ModelSubject(graph.fingerprint, keeps) for keeps in fresh[:room]]
        elif self.drift.stale:
            again = calibration_keeps(graph, levels, level_count, count=RECHECK_COUNT)
            wanted += [ModelSubject(graph.fingerprint, keeps) for keeps in map(_counts, again)]
        return wanted


def _counts(keeps: IntArray) -> tuple[int, ...]:
    return tuple(int(keep) for keep in keeps)


def _operator_points(
    measurements: Sequence[Measurement], canary_ms: float | None, dropped: list[str]
) -> tuple[float, list[CostPoint]]:
    """The call overhead in ms, and every measurement of an operator net of it.

    Ratios to the canary times the canary's latency today: so the machine's slow days drop out.
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
    call = float(np.median(calls)) if calls else DEFAULT_CALL_MS
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


def _pooled(points: Sequence[CostPoint]) -> list[CostPoint]:
    """One point an operator."""
    by_spec: dict[OperatorSpec, list[CostPoint]] = {}
    for point in points:
        by_spec.setdefault(point.spec, []).append(point)
    return [
        CostPoint(spec, *_pool([(point.ms, point.log_sd) for point in own]))
        for spec, own in by_spec.items()
    ]


def _plan_rows(
    graph: PruningGraph,
    measurements: Sequence[Measurement],
    control_ms: float | None,
    dropped: list[str],
) -> PlanRows:
    """One row per plan, and one for the unpruned model, which every control measured."""
    control_count = sum(_has_control(one) for one in measurements)
    base_ms = control_ms if control_ms and control_count else float("nan")
    plans: list[tuple[tuple[int, ...], float, float, bool]] = []
    widths = _counts(graph.widths)
    for one in measurements:
        assert isinstance(one.subject, ModelSubject)
        ms = one.control_ratio * base_ms if _has_control(one) else one.latency_ms
        known = one.subject.keeps == widths and np.isfinite(base_ms)
        if np.isfinite(ms) and ms > 0 and not known:
            plans.append((one.subject.keeps, ms, _log_sd(one), one.status == "ok"))
    far = sift_plans(graph, [(keeps, ms) for keeps, ms, *_ in plans], base_ms)
    by_plan: dict[tuple[int, ...], list[tuple[float, float, bool]]] = {}
    for why, (keeps, *found) in zip(far, plans, strict=True):
        if why:
            dropped.append(f"{name_of(ModelSubject(graph.fingerprint, keeps))}: {why}")
        else:
            by_plan.setdefault(keeps, []).append((found[0], found[1], bool(found[2])))
    rows = []
    if np.isfinite(base_ms):
        rows.append((widths, base_ms, MIN_LOG_SD / np.sqrt(control_count), True))
    for keeps, values in by_plan.items():
        ms, log_sd = _pool([(ms, log_sd) for ms, log_sd, _ in values])
        rows.append((keeps, ms, log_sd, any(ok for _, _, ok in values)))
    return PlanRows(
        graph=graph,
        keeps=np.array([row[0] for row in rows], dtype=np.int64).reshape(
            len(rows), len(graph.groups)
        ),
        ms=np.array([row[1] for row in rows], dtype=np.float64),
        log_sd=np.array([row[2] for row in rows], dtype=np.float64),
        trusted=np.array([row[3] for row in rows], dtype=np.float64),
    )


def _has_control(one: Measurement) -> bool:
    """Whether the control was the unpruned model."""
    return bool(one.control_cpu_ms) and dict(one.conditions).get("control") != "canary"


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
