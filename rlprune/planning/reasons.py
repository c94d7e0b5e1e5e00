"""What the reader of a plan should know of its latencies: why nothing meets the budget, and which
option would help; that no whole model could be measured."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from rlprune.constraints import BoundConstraints
from rlprune.errors import InputError
from rlprune.graph.types import IntArray
from rlprune.latency.types import CONTROL, MACS_DEVICE, Arithmetic
from rlprune.planning.beside import with_unpruned
from rlprune.planning.describe import plan_unit
from rlprune.planning.tables import latency_model, tables_for
from rlprune.plans import PruningPlan
from rlprune.schemes import space_of
from rlprune.solver.knapsack import least_choice
from rlprune.solver.task import PruningTask

if TYPE_CHECKING:  # clients import this room, and no database
    from rlprune.store import Store

MEASURE_THEM = "`rlprune measure MODEL --for-plans` on the device makes them more certain"
WORTH_NAMING = 0.01
"""Share of the least latency that an option must save to be named."""


def with_reasons(
    plan: PruningPlan, task: PruningTask, bound: BoundConstraints, store: Store
) -> PruningPlan:
    """`plan` of a task, its note completed by what only the store's measurements tell."""
    clauses = [plan.note, _unmeasured(plan, store)]
    if not plan.feasible and task.site_count and plan.least_latency_ms > 0:
        least = least_choice(task)
        if float(task.tables.upper_ms(least[None])[0]) > plan.budget_ms:
            clauses += [_holder(task, least, bound), _option(task, plan, bound, store)]
    plan = replace(plan, note="; ".join(clause for clause in clauses if clause))
    return with_unpruned(plan, task.graph, store)


def _arithmetic(plan: PruningPlan) -> Arithmetic:
    return Arithmetic.of(plan.precision, plan.constraints.keep_float)


def _unmeasured(plan: PruningPlan, store: Store) -> str:
    """Where latencies are rough: that nothing of the network was measured, or little, or what the
    device said where every whole model failed there."""
    if plan.device == MACS_DEVICE:
        return ""
    from rlprune.latency.model import ENOUGH_OWN

    model = latency_model(store, plan.device, _arithmetic(plan))
    statuses = model.attempts.get(plan.fingerprint, {}).values()
    if not statuses:
        return f"latencies are estimated from similar devices; {MEASURE_THEM}"
    settled = sum(status == "ok" for status in statuses)
    if 0 < settled < ENOUGH_OWN:
        plans = f"{settled} measured plan{'s' * (settled > 1)}"
        return f"latencies are estimated from {plans}; {MEASURE_THEM}"
    if any(status != "failed" for status in statuses):
        return ""
    reason = model.failures.get(plan.fingerprint) or "without a reason"
    which = "every model cut from it"
    if reason.startswith(CONTROL):
        which, reason = "the unpruned model itself", reason.removeprefix(CONTROL)
    return f"latencies are rough, for measuring {which} failed: {reason}"


def _holder(task: PruningTask, least: IntArray, bound: BoundConstraints) -> str:
    """What holds the most of the least choice's [S] latency: a group, or what no plan changes."""
    tables, operators = task.tables, task.graph.operators
    own = tables.operator_ms(least[None])[0]  # [O]
    touched = np.zeros((len(operators), task.site_count), dtype=np.bool_)
    touched[tables.operators.table, tables.operators.site] = True
    whole, shares = float(own.sum()) + tables.overhead_ms, own @ touched  # [S]
    fixed = float(own[~touched.any(1)].sum()) + tables.overhead_ms
    worst, unit = int(shares.argmax()), "MACs" if plan_unit(task) == "M MACs" else "latency"
    if fixed >= shares[worst]:
        alone = np.where(touched.any(1), 0.0, own)
        dearest = operators[int(alone.argmax())]
        named = f", first of all {dearest.kind} {dearest.name!r}" if alone.any() else ""
        return f"{fixed / whole:.0%} of its {unit} no plan changes{named}"
    site, why = task.space.sites[worst], bound.why(worst)
    return (
        f"{shares[worst] / whole:.0%} of its {unit} is in layers of group {site.name!r}, which "
        f"keeps {site.values[least[worst]]} of {site.values[-1]}" + (f" ({why})" if why else "")
    )


def _option(task: PruningTask, plan: PruningPlan, bound: BoundConstraints, store: Store) -> str:
    """The first option without which plans come clearly lower, and how low."""
    stated = bound.requested
    tries: dict[str, BoundConstraints] = {}
    if stated.min_keep > 1 or stated.min_keep_ratio > 0:
        loose = replace(stated, min_keep=1, min_keep_ratio=0.0)
        tries["without min_keep"] = replace(bound, requested=loose)
    if bound.round_to > 1:
        tries["with --round-to 1"] = replace(
            bound, round_to=1, requested=replace(stated, round_to=1)
        )
    for name, looser in tries.items():
        try:
            space = space_of(task.graph, looser, task.space.schemes)
        except InputError:  # pinned groups that share no ratio
            continue
        tables = tables_for(space, store, plan.device, _arithmetic(plan))
        least = least_choice(replace(task, space=space, tables=tables))
        least_ms = float(tables.latency_ms(least[None])[0])
        if least_ms < (1.0 - WORTH_NAMING) * plan.least_latency_ms:
            return f"{name} the least is {least_ms:.4g} {plan_unit(task)}"
    return ""
