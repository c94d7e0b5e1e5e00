"""Closing the loop: measure the plan on the device, and where it misses, correct and plan again.

Open-loop budgets are missed by 2 to 35 % in every published system. Here a plan counts as certified
only when its latency, as a ratio to the unpruned model that ran interleaved with it in processes of
its own, lies within the budget with what another measurement of the same kind may differ by. A plan
that stays far below its budget is corrected too: unused milliseconds are accuracy given away.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rlprune.errors import MeasurementError
from rlprune.graph.types import IntArray
from rlprune.latency.types import Measurement
from rlprune.plans import Certificate, MeasuredRound, PruningPlan

MAX_ROUNDS = 6
NUDGES = 5
"""Further budgets tried where the one asked for gives a plan that was measured already."""
STEP = 0.02
"""Share by which a budget goes beyond the only one known."""
CLOSE = 0.001
"""Budgets nearer than this share have no plan between them worth a measurement."""
ENOUGH_SLACK = 0.03
"""Share of the budget that may stay unused before a further round is spent on it."""

Ask = Callable[[float], PruningPlan]
"""A plan for a budget in ms; what was measured in between may tell on the answer."""
MeasureFresh = Callable[[IntArray], Measurement]
"""Measures keep counts [G] beside the unpruned model, in a new process."""


def certify_plan(
    ask: Ask,
    measure: MeasureFresh,
    plan: PruningPlan,
    *,
    max_rounds: int = MAX_ROUNDS,
    go_on: Callable[[], bool] = lambda: True,
) -> PruningPlan:
    """`plan`, or a better one for the same budget, with a certificate of what was measured.

    Milliseconds are those of the plan's `base_latency_ms`, the unpruned model's: a measurement
    counts by its ratio to the control. Each round measures one plan; the next asks for a budget
    scaled by how far the last one departed from its prediction, or, where that lies outside of what
    is known to fit and known not to, interpolated between the two. It ends where what was measured
    is within and uses enough, or where no plan lies between. Of the plans that kept the budget the
    one is returned that diverges least, where all were evaluated, else the slowest, for it gave up
    least; where none kept it, the plan of least latency measured, its certificate saying that it is
    not within.

    Args:
        plan: the first answer to the budget, feasible or not; its `budget_ms` is the budget.
        go_on: whether there is time for another round; the first is always measured.

    Raises:
        MeasurementError: `measure` could not measure at all.
    """
    budget_ms, base_ms = plan.budget_ms, plan.base_latency_ms
    asked, known = budget_ms, _Known()
    tried: list[tuple[PruningPlan, MeasuredRound]] = []
    made: PruningPlan | None = plan
    while made is not None and len(tried) < max_rounds and (not tried or go_on()):
        found = _round(made, measure(made.keeps), base_ms)
        tried.append((made, found))
        kept_it = _within(found, budget_ms)
        known = known.with_asked(asked, found.measured_latency_ms, fits=kept_it)
        whole = all(entry.keep == entry.width for entry in made.groups)
        # The upper end, where it is so far above that no plan could both be within and use enough.
        vague = found.measured_latency_ms <= (1.0 - ENOUGH_SLACK) * found.measured_interval_ms[1]
        used_ms = found.measured_interval_ms[1] if vague else found.measured_latency_ms
        enough = used_ms >= (1.0 - ENOUGH_SLACK) * budget_ms
        # Of a plan of least latency that is too slow nothing faster can be asked for.
        if (whole or enough) if kept_it else not made.feasible:
            break
        target_ms = _aim(found) * budget_ms
        wish = made.predicted_interval_ms[1] * target_ms / found.measured_latency_ms
        asked, made, known = _next(ask, known.between(wish, target_ms), known, tried, target_ms)
    kept = [one for one in tried if _within(one[1], budget_ms)]
    chosen, found = _best(kept) if kept else min(tried, key=lambda one: one[1].measured_latency_ms)
    certificate = Certificate(
        within=bool(kept),
        measured_latency_ms=found.measured_latency_ms,
        measured_interval_ms=found.measured_interval_ms,
        rounds=tuple(one for _, one in tried),
    )
    clauses = [chosen.note] if chosen.note and chosen.feasible == bool(kept) else []
    return replace(
        chosen,
        budget_ms=budget_ms,
        base_latency_ms=base_ms,  # a later plan's may be another: what was measured moved it
        feasible=bool(kept),
        certificate=certificate,
        note="; ".join([*clauses, _note(certificate, found, budget_ms)]),
    )


def _best(kept: list[tuple[PruningPlan, MeasuredRound]]) -> tuple[PruningPlan, MeasuredRound]:
    diverge = [_divergence(plan) for plan, _ in kept]
    known = [one for one in diverge if one is not None]
    if len(known) == len(kept):
        return kept[known.index(min(known))]
    return max(kept, key=lambda one: one[1].measured_latency_ms)


def _divergence(plan: PruningPlan) -> float | None:
    """What was found for the plan; None where it was not evaluated."""
    return next((one.divergence for one in plan.candidates if one.chosen), None)


def _round(plan: PruningPlan, measurement: Measurement, base_ms: float) -> MeasuredRound:
    if measurement.status == "failed":
        raise MeasurementError(f"the plan cannot be certified: {measurement.reason}")
    low, high = measurement.ratio_interval
    return MeasuredRound(
        keeps=tuple(int(keep) for keep in plan.keeps),
        predicted_latency_ms=plan.predicted_latency_ms,
        measured_latency_ms=measurement.control_ratio * base_ms,
        measured_interval_ms=(low * base_ms, high * base_ms),
        status=measurement.status,
        reason=measurement.reason,
    )


def _within(found: MeasuredRound, budget_ms: float) -> bool:
    return found.status == "ok" and found.measured_interval_ms[1] <= budget_ms


def _aim(found: MeasuredRound) -> float:
    """Share of the budget to come out at: in the middle of what is enough and what is within."""
    spread = found.measured_interval_ms[1] / found.measured_latency_ms
    return float(min(np.sqrt((1.0 - ENOUGH_SLACK) / spread), 0.99 / spread))


@dataclass(frozen=True)
class _Known:
    """The greatest budget asked for that was kept and the least that was not, each with what its
    plan was measured at."""

    fits: tuple[float, float] = (0.0, 0.0)
    misses: tuple[float, float] = (np.inf, np.inf)

    def with_asked(self, asked: float, measured_ms: float, *, fits: bool) -> _Known:
        if fits:
            return replace(self, fits=max(self.fits, (asked, measured_ms)))
        return replace(self, misses=min(self.misses, (asked, measured_ms)))

    @property
    def closed(self) -> bool:
        """Whether nothing lies between."""
        return self.misses[0] <= self.fits[0] * (1.0 + CLOSE)

    def between(self, wish: float, target_ms: float) -> float:
        """`wish`, or where it lies outside what is interpolated to come out at the target."""
        (low, low_ms), (high, high_ms) = self.fits, self.misses
        if low < wish < high:
            return wish
        if not np.isfinite(high):
            return low * (1.0 + STEP)
        if not low:
            return high * (1.0 - STEP)
        share = 0.5
        if high_ms > low_ms:
            share = float(np.clip(np.log(target_ms / low_ms) / np.log(high_ms / low_ms), 0.1, 0.9))
        return float(low ** (1.0 - share) * high**share)


def _next(
    ask: Ask,
    asked: float,
    known: _Known,
    tried: Sequence[tuple[PruningPlan, MeasuredRound]],
    target_ms: float,
) -> tuple[float, PruningPlan | None, _Known]:
    """The budget to ask for next and its plan, which was not measured yet; None where there is
    none between what is known."""
    for _ in range(NUDGES):
        if known.closed:
            break
        made = ask(asked)
        old = next((f for p, f in tried if np.array_equal(made.keeps, p.keeps)), None)
        if old is None:
            return asked, made, known
        # The same plan for another budget: go on from there.
        kept_it = old.measured_latency_ms < target_ms
        known = known.with_asked(asked, old.measured_latency_ms, fits=kept_it)
        asked = known.between(np.nan, target_ms)
    return asked, None, known


def _note(certificate: Certificate, found: MeasuredRound, budget_ms: float) -> str:
    share = found.measured_latency_ms / budget_ms
    rounds = f"{len(certificate.rounds)} round" + "s" * (len(certificate.rounds) > 1)
    if certificate.within:
        return f"certified: measured at {share:.1%} of the budget, {rounds}"
    why = found.reason or f"measured at {share:.1%} of the budget"
    return f"not certified after {rounds}: {why}"
