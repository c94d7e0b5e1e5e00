"""`LatencyModel`: everything known of a device's speed, and what should be measured next.

Three layers: what operators cost alone (`costs`), what that is worth inside a model of this graph
(`calibrate`), and an interval from plans left out of the fit. The same measurements in the same
order give the same model; a fit takes milliseconds, so it is made anew whenever reports come in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rlprune.graph.types import FloatArray, IntArray, PruningGraph
from rlprune.latency.calibrate import (
    OTHER,
    Key,
    LatencyCorrection,
    PlanRows,
    calibrate,
    operator_keys,
    space_keys,
)
from rlprune.latency.choose import calibration_plans, operator_specs
from rlprune.latency.costs import CostPoint, OperatorCosts
from rlprune.latency.drift import ENOUGH, Drift, device_drift
from rlprune.latency.operators import OVERHEAD, form
from rlprune.latency.sift import ENOUGH_POINTS, name_of, sift, sift_plans, sift_points
from rlprune.latency.tables import LatencyTables
from rlprune.latency.types import (
    CANARY,
    F32,
    IN_F32,
    Arithmetic,
    Measurement,
    ModelSubject,
    OperatorSpec,
)
from rlprune.schemes import (
    CHANNEL_ONLY,
    Form,
    Space,
    check_schemes,
    other_sites,
    unpruned_settings,
    variants,
)

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
    arithmetic: Arithmetic = IN_F32
    """Of everything that it was fitted to; operators in it are named without their precision."""

    @staticmethod
    def fit(
        device: str,
        measurements: Sequence[Measurement],
        graphs: Mapping[str, PruningGraph],
        *,
        arithmetic: Arithmetic = IN_F32,
        donor: OperatorCosts | None = None,
    ) -> LatencyModel:
        """Of all of a device's measurements; without any, every prediction is a rough guess.

        `donor`, another device's costs, makes the guess better: ten whole models are then enough
        to be of use, before any operator was measured here.

        Measurements of other devices, in another arithmetic, and of graphs that are not in `graphs`
        are left out; those that cannot be used are named in `dropped`. Raises for nothing that was
        measured.
        """
        own, dropped = sift(
            [one for one in measurements if one.device == device and arithmetic.is_of(one.subject)],
            graphs,
        )
        own = [_without_precision(one) for one in own]
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
                if tried.get(one.subject.settings) != "ok":
                    tried[one.subject.settings] = one.status
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
            arithmetic=arithmetic,
        )

    def correction(self, graph: PruningGraph) -> LatencyCorrection:
        """Factors and interval for this graph."""
        return self._fitted(graph)[1]

    def _fitted(
        self, graph: PruningGraph, also: Sequence[Key] = ()
    ) -> tuple[OperatorCosts, LatencyCorrection]:
        """Costs of this graph's operators, also in other forms, and what they are worth in it.

        Once enough of its own plans were measured, nothing that is not of this graph's forms counts
        any more: other models teach what a runtime is apt to do, and where the model itself has
        said so their word only moves its least certain plans (seen to triple its interval).
        """
        own = [row for row in self.rows if row.graph.fingerprint == graph.fingerprint]
        if sum(int(row.judged.sum()) for row in own) < ENOUGH_OWN:
            return self.costs, calibrate(graph, self.costs, self.call_ms, self.rows, also)
        forms = {key for _, key in (*operator_keys(graph), *also)}
        points = [point for point in self.points if form(point.spec) in forms]
        costs = OperatorCosts.fit(points, self.donor)
        return costs, calibrate(graph, costs, self.call_ms, own, also)

    def compile(self, space: Space) -> LatencyTables:
        """Tables over the options, calibration multiplied in."""
        keys = space_keys(space)
        costs, calibration = self._fitted(space.graph, list(keys.values()))
        other_count = sum(key[0] == OTHER for key in operator_keys(space.graph))

        known: dict[tuple[Key, bytes, bytes], FloatArray] = {}  # nets repeat themselves

        def cost(form: Form, in_width: IntArray, out_width: IntArray) -> FloatArray:
            key = keys[form.index, form.options]
            place = (key, in_width.tobytes(), out_width.tobytes())
            if place not in known:
                ins = np.repeat(in_width, len(out_width))
                outs = np.tile(out_width, len(in_width))
                ms = costs.ms(key[1], ins, outs) * calibration.factor(key, ins, outs)
                if key[0] == OTHER:  # what each takes is not known, only what all do
                    ms = ms + calibration.other_ms / max(other_count, 1)
                known[place] = ms.reshape(len(in_width), len(out_width))
            return known[place]

        tables = LatencyTables.compile(
            self.device,
            space,
            cost,
            overhead_ms=calibration.overhead_ms,
            interval=calibration.interval,
        )
        return self._held_to_base(space.graph, tables)

    def _held_to_base(self, graph: PruningGraph, tables: LatencyTables) -> LatencyTables:
        """The tables, scaled where they say something else of the unpruned model than was measured.

        It is measured beside every plan, and every fit meets it to within half a per cent, unless a
        measurement that nobody could tell from an honest one has bent the operators.
        """
        row = next((row for row in self.rows if row.graph.fingerprint == graph.fingerprint), None)
        if row is None or not row.base.any():
            return tables
        ratio = float(row.ms[row.base][0] / tables.base_ms)
        if not np.isfinite(ratio) or abs(np.log(ratio)) < MAX_BASE_OFF:
            return tables
        return tables.scaled(ratio)

    def knows(self, graph: PruningGraph) -> bool:
        """Whether whole models of this graph were measured, so that predictions are worth much."""
        return any(row.graph.fingerprint == graph.fingerprint for row in self.rows)

    @property
    def empty(self) -> bool:
        """Whether nothing was measured that latencies could be predicted from."""
        return not self.points and not self.rows

    def missing(self, space: Space) -> list[OperatorSpec | ModelSubject]:
        """What should be measured before plans of these options are worth much; empty: ready.

        What was tried and failed is not asked for again; plans that came out unstable are made up
        for by others, within reason. A few plans are asked for again where the device has drifted.
        """
        precision, keep_float = self.arithmetic.precision, self.arithmetic.keep_float
        wanted: list[OperatorSpec | ModelSubject] = [
            replace(spec, precision=precision)
            for spec in operator_specs(space, self.costs, self.measured)
        ]
        fingerprint, schemes = space.graph.fingerprint, space.schemes

        def model(settings: tuple[int, ...]) -> ModelSubject:
            return ModelSubject(fingerprint, settings, schemes, precision, keep_float)

        tried = self.attempts.get(fingerprint, {})
        if schemes != CHANNEL_ONLY:  # what was tried of channels alone tells little of the others
            tried = {key: status for key, status in tried.items() if len(key) == len(space.sites)}
        settled = sum(status == "ok" for status in tried.values())
        room = min(CALIBRATION_COUNT - settled, MAX_ATTEMPT_COUNT - len(tried))
        if room > 0:
            plans = calibration_plans(space, count=CALIBRATION_COUNT + len(tried))
            fresh = [plan for plan in map(_counts, plans) if plan not in tried]
            wanted += [model(plan) for plan in fresh[:room]]
        elif self.drift.stale:
            again = calibration_plans(space, count=RECHECK_COUNT)
            wanted += [model(plan) for plan in map(_counts, again)]
        return wanted


def _without_precision(one: Measurement) -> Measurement:
    """Operators named as a graph's are: in a model of one arithmetic all have the same."""
    if not isinstance(one.subject, OperatorSpec) or one.subject.precision == F32:
        return one
    return replace(one, subject=replace(one.subject, precision=F32))


def _counts(settings: IntArray) -> tuple[int, ...]:
    return tuple(int(value) for value in settings)


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
    schemes = tuple(
        dict.fromkeys(
            name
            for one in measurements
            if isinstance(one.subject, ModelSubject)
            for name in one.subject.schemes
        )
    )
    schemes = check_schemes(schemes)
    unpruned = _counts(unpruned_settings(graph, schemes))
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
