"""`LatencyModel`: everything known of a device's speed, and what should be measured next.

Three layers: what operators cost alone (`costs`), what that is worth inside a model of this graph
(`calibrate`), and an interval from plans left out of the fit. The same measurements in the same
order give the same model; a fit takes milliseconds, so it is made anew whenever reports come in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

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
from rlprune.latency.choose import STATED_COUNT, calibration_plans, operator_specs
from rlprune.latency.costs import CostPoint, OperatorCosts
from rlprune.latency.drift import ENOUGH, Drift, device_drift
from rlprune.latency.known import Donor
from rlprune.latency.operators import form
from rlprune.latency.rows import DEFAULT_CALL_MS, counts, operator_points, plan_rows, pooled
from rlprune.latency.sift import sift, sift_points
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
)

ENOUGH_OWN = 9
"""Pruned plans of a graph from which on other graphs have no say: a 90 % interval needs as many."""
ENOUGH_FORMS = 0.2
"""Share of a graph's forms that were measured from which on operators of elsewhere have no say
either."""
CALIBRATION_COUNT = 21
"""Whole models wanted per graph: the unpruned one and twenty plans."""
MAX_ATTEMPT_COUNT = 30
"""... and tried, where some come out unstable or failed."""

RECHECK_COUNT = ENOUGH
"""Plans measured again of a device that has drifted."""

MAX_BASE_OFF = 0.02
"""How far a fit may be from the unpruned model's latency before it is scaled to it."""


@dataclass(frozen=True)
class LatencyModel:
    """Latency on one device."""

    device: str
    costs: OperatorCosts
    """Of everything measured on the device."""
    points: tuple[CostPoint, ...]
    """What they were fitted to, and `donor`."""
    donor: Donor | None
    """What they were fitted on top of: another device's costs."""
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
    over_f32: Mapping[str, float] = field(default_factory=dict)
    """Per fingerprint the unpruned latency over that in f32, where both were measured in turns."""

    @staticmethod
    def fit(
        device: str,
        measurements: Sequence[Measurement],
        graphs: Mapping[str, PruningGraph],
        *,
        arithmetic: Arithmetic = IN_F32,
        donor: Donor | None = None,
    ) -> LatencyModel:
        """Of all of a device's measurements; without any, every prediction is a rough guess.

        `donor`, another device's costs, makes the guess better: of the same runtime it is of use
        before anything was measured here.

        Measurements of other devices, in another arithmetic, and of graphs that are not in `graphs`
        are left out; those that cannot be used are named in `dropped`. Raises for nothing that was
        measured.
        """
        own, dropped = sift(
            [one for one in measurements if one.device == device and arithmetic.is_of(one.subject)],
            graphs,
        )
        beside = [one for one in own if one.beside_f32]
        own = [_without_precision(one) for one in own if not one.beside_f32]
        drift = device_drift(own)
        operators = [one for one in own if isinstance(one.subject, OperatorSpec)]
        calls, points = operator_points(
            [one for one in operators if one.status != "failed"],
            drift.control_ms.get(CANARY),
            dropped,
            DEFAULT_CALL_MS if donor is None else donor.call_ms,
        )
        elsewhere = None if donor is None else donor.costs
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
        costs, kept, far = sift_points(points, elsewhere)
        dropped += far
        points = pooled(kept)
        if len(points) < len(kept):
            costs = OperatorCosts.fit(points, elsewhere)
        rows = [
            plan_rows(
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
            over_f32={
                one.subject.fingerprint: one.control_ratio
                for one in beside
                if isinstance(one.subject, ModelSubject)
            },
        )

    def correction(self, graph: PruningGraph) -> LatencyCorrection:
        """Factors and interval for this graph."""
        return self._fitted(graph)[1]

    def _fitted(
        self, graph: PruningGraph, also: Sequence[Key] = ()
    ) -> tuple[OperatorCosts, LatencyCorrection]:
        """Costs of this graph's operators, also in other forms, and what they are worth in it.

        Where operators of its forms were measured, those of elsewhere have no say. Once enough of
        its own plans were measured, nothing that is not of this graph's forms counts
        any more: other models teach what a runtime is apt to do, and where the model itself has
        said so their word only moves its least certain plans (seen to triple its interval).
        """
        own = [row for row in self.rows if row.graph.fingerprint == graph.fingerprint]
        forms = {key for _, key in operator_keys(graph)}
        kernels = any(key not in forms for _, key in also)
        forms |= {key for _, key in also}
        points = [point for point in self.points if form(point.spec) in forms]
        known = len({form(point.spec) for point in points}) >= ENOUGH_FORMS * len(forms)
        elsewhere = None if known or self.donor is None else self.donor.costs
        if sum(int(row.judged.sum()) for row in own) < ENOUGH_OWN:
            points, own = list(self.points), list(self.rows)
        costs = OperatorCosts.fit(points, elsewhere, across_kernels=kernels)
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

    def missing(self, space: Space, few: int | None = None) -> list[OperatorSpec | ModelSubject]:
        """What should be measured before plans of these options are worth much; empty: ready.

        What was tried and failed is not asked for again; plans that came out unstable are made up
        for by others, within reason. A few plans are asked for again where the device has drifted.

        Args:
            few: whole models that are enough, and no operators: where somebody waits, and what
                operators cost is told from elsewhere (`donor`).
        """
        wanted: list[OperatorSpec | ModelSubject] = []
        precision, keep_float = self.arithmetic.precision, self.arithmetic.keep_float
        if few is None:
            wanted += [
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
        count = CALIBRATION_COUNT if few is None else few
        room = min(count - settled, MAX_ATTEMPT_COUNT - len(tried))
        if room > 0:
            plans = calibration_plans(space, count=CALIBRATION_COUNT + len(tried))
            if few is not None:
                plans = plans[STATED_COUNT:]  # the unpruned model runs beside every plan
            fresh = [plan for plan in map(counts, plans) if plan not in tried]
            wanted += [model(plan) for plan in fresh[:room]]
        elif self.drift.stale:
            again = calibration_plans(space, count=RECHECK_COUNT)
            wanted += [model(plan) for plan in map(counts, again)]
        return wanted


def _without_precision(one: Measurement) -> Measurement:
    """Operators named as a graph's are: in a model of one arithmetic all have the same."""
    if not isinstance(one.subject, OperatorSpec) or one.subject.precision == F32:
        return one
    return replace(one, subject=replace(one.subject, precision=F32))
