"""Closing the loop: measure the plan on the device, and where it misses, correct and plan again.

Open-loop budgets are missed by 2 to 35 % in every published system (`anchors/pruning.md` section
2). Here a plan counts as certified only when its latency, as a ratio to the unpruned model that ran
interleaved with it in processes of its own, lies within the budget with what another measurement
of the same kind may differ by. A plan that stays far below its budget is corrected too: unused
milliseconds are accuracy given away.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from rlprune.errors import MeasurementError
from rlprune.graph.types import IntArray
from rlprune.latency.types import Measurement
from rlprune.plans import Certificate, MeasuredRound, PruningPlan

MAX_ROUNDS = 3
ENOUGH_SLACK = 0.045
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
) -> PruningPlan:
    """`plan`, or a better one for the same budget, with a certificate of what was measured.

    Milliseconds are those of the plan's `base_latency_ms`, the unpruned model's: a measurement
    counts by its ratio to the control. Each round measures one plan; the next asks for a budget
    scaled by how far the last one departed from its prediction, kept between what is known to fit
    and what is known not to. Of the plans that kept the budget the slowest is returned, for it gave
    up least; where none did, the plan of least latency measured, its certificate saying that it is
    not within.

    Args:
        plan: the first answer to the budget, feasible or not; its `budget_ms` is the budget.

    Raises:
        MeasurementError: `measure` could not measure at all.
    """
    budget_ms, base_ms = plan.budget_ms, plan.base_latency_ms
    asked = budget_ms
    fits, misses = 0.0, np.inf  # greatest budget asked for that was kept, least that was not
    tried: list[tuple[PruningPlan, MeasuredRound]] = []
    made = plan
    for _ in range(max_rounds):
        found = _round(made, measure(made.keeps), base_ms)
        tried.append((made, found))
        if _within(found, budget_ms):
            fits = max(fits, asked)
            whole = all(entry.keep == entry.width for entry in made.groups)
            if whole or found.measured_latency_ms >= (1.0 - ENOUGH_SLACK) * budget_ms:
                break
        elif not made.feasible:
            break  # the plan of least latency; nothing faster can be asked for
        else:
            misses = min(misses, asked)
        scale = _aim(found) * budget_ms / found.measured_latency_ms
        asked = _between(made.predicted_interval_ms[1] * scale, fits, misses)
        made = ask(asked)
        if any(np.array_equal(made.keeps, old.keeps) for old, _ in tried):
            break  # the levels are not fine enough to come closer
    kept = [one for one in tried if _within(one[1], budget_ms)]
    chosen, found = (
        max(kept, key=lambda one: one[1].measured_latency_ms)
        if kept
        else min(tried, key=lambda one: one[1].measured_latency_ms)
    )
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


def _between(asked: float, fits: float, misses: float) -> float:
    """`asked`, or the middle of what is known where it lies outside."""
    if fits < asked < misses:
        return asked
    return float(np.sqrt(fits * misses)) if fits > 0.0 and np.isfinite(misses) else asked


def _note(certificate: Certificate, found: MeasuredRound, budget_ms: float) -> str:
    share = found.measured_latency_ms / budget_ms
    rounds = f"{len(certificate.rounds)} round" + "s" * (len(certificate.rounds) > 1)
    if certificate.within:
        return f"certified: measured at {share:.1%} of the budget, {rounds}"
    why = found.reason or f"measured at {share:.1%} of the budget"
    return f"not certified after {rounds}: {why}"
