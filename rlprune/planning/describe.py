"""A decision for one budget as a plan: what it costs, what its sites keep, what a reader should
know.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlprune.constraints import BoundConstraints, Constraints
from rlprune.graph.types import IntArray, PruningGraph
from rlprune.latency.types import MACS_DEVICE
from rlprune.plans import Candidate, PlanEntry, PlanFigures, PruningPlan
from rlprune.schemes import Space
from rlprune.schemes.shapes import SHAPES
from rlprune.sensitivity.types import GroupProfiles
from rlprune.solver.task import PruningTask

HOLDERS = 3
"""Kinds of operators that a note names as holding layers whole."""


@dataclass(frozen=True)
class Decision:
    """What was decided for one budget; choices [S] of the whole task."""

    choice: IntArray
    least: IntArray
    """The plan of least latency; the choice itself where the budget cannot be met."""
    reference: IntArray
    """The knapsack's, of a search what it planned first; the least where the budget cannot be
    met."""
    feasible: bool
    policy: str
    """Name of what decided."""
    why: str = ""
    """The same in words, where there is something to say of it."""
    candidates: tuple[Candidate, ...] = ()
    expected: float | None = None
    """What is believed to be lost after plans were evaluated, nats; None for what the task's curves
    add up to."""


def described(
    task: PruningTask,
    made: Decision,
    budget_ms: float,
    *,
    device: str,
    constraints: BoundConstraints | None = None,
    max_params: int | None = None,
) -> PruningPlan:
    """The plan of a decision, with every figure a reader needs to judge it; pure."""
    choice, reference = made.choice, made.reference
    own = PlanFigures(**figures(task, choice))
    same = (choice == reference).all()
    expected = expected_divergence(task, choice) if made.expected is None else made.expected
    return PruningPlan(
        fingerprint=task.graph.fingerprint,
        policy=made.policy,
        profiled=task.profiles.profiled or made.expected is not None,
        device=device,
        budget_ms=budget_ms,
        feasible=made.feasible,
        base_latency_ms=task.base_ms,
        least_latency_ms=float(task.tables.latency_ms(made.least[None])[0]),
        predicted_latency_ms=own.predicted_latency_ms,
        predicted_interval_ms=own.predicted_interval_ms,
        groups=tuple(
            PlanEntry(
                name=site.name,
                scheme=site.scheme,
                width=site.values[-1],
                keep=keep,
                members=_members(task.space, index),
                constraint=constraints.why(index) if constraints else "",
            )
            for index, (site, keep) in enumerate(zip(task.space.sites, own.keeps, strict=True))
        ),
        macs=own.macs,
        params=own.params,
        reference=own if same else PlanFigures(**figures(task, reference)),
        candidates=made.candidates,
        constraints=constraints.recorded if constraints else Constraints(),
        expected_divergence=expected,
        note=_note(
            task,
            made,
            budget_ms,
            bool(constraints and constraints.has_constraints),
            max_params,
        ),
    )


def _members(space: Space, index: int) -> tuple[str, ...]:
    """What shrinks or goes with a site: weight axes, or operators."""
    graph, site = space.graph, space.sites[index]
    if index < space.group_count:
        return tuple(f"{member.tensor}[{member.axis}]" for member in graph.groups[index].members)
    operators = [graph.operators[one] for one in site.operators]
    if site.scheme == SHAPES.name:
        [own] = operators
        return tuple(f"{own.weight}[{2 + axis}]" for axis in range(len(own.kernel)))
    return tuple(operator.name for operator in operators)


def expected_divergence(task: PruningTask, choice: IntArray) -> float | None:
    """What a choice [S] loses by the curves that it was planned by, nats; None of a network that
    was not trained."""
    if task.profiles.initial_loss is not None or not task.site_count:
        return None
    return float(task.curve[np.arange(task.site_count), choice].sum())


def upper_ms(task: PruningTask, choice: IntArray) -> float:
    """Upper end of the latency predicted for a choice [S]."""
    return float(task.tables.upper_ms(choice[None])[0])


def figures(task: PruningTask, choice: IntArray) -> dict[str, Any]:
    """What `PlanFigures` holds of a plan."""
    latency = float(task.tables.latency_ms(choice[None])[0])
    low, high = task.tables.interval_ms(choice[None])
    return {
        "keeps": tuple(int(value) for value in task.space.settings_at(choice)),
        "predicted_latency_ms": latency,
        "predicted_interval_ms": (float(low[0]), float(high[0])),
        "macs": int(task.space.macs(choice)),
        "params": int(task.space.params(choice)),
    }


def plan_unit(task: PruningTask) -> str:
    """What a task's latencies are counted in."""
    return "M MACs" if task.tables.device == MACS_DEVICE else "ms"


def _note(
    task: PruningTask,
    made: Decision,
    budget_ms: float,
    constrained: bool,
    max_params: int | None,
) -> str:
    """What the reader should know, clauses joined by semicolons; empty where nothing is."""
    clauses: list[str] = []
    unit, least, feasible = plan_unit(task), made.least, made.feasible
    if not task.site_count:
        clauses.append("nothing to prune: no group of channels may shrink")
    floor = upper_ms(task, least)
    if not feasible and max_params is not None and floor <= budget_ms:
        clauses.append(
            f"no plan{' within the constraints' if constrained else ''} of at most {max_params:,} "
            f"parameters was found: the plan of least latency has {int(task.space.params(least)):,}"
        )
    elif not feasible:
        least_ms = float(task.tables.latency_ms(least[None])[0])
        # A budget above the unpruned latency is no advice.
        needs = (
            f"it needs a budget of {floor:.4g} {unit} (upper end of its interval)"
            if floor <= task.base_ms
            else f"predicted at {least_ms:.4g} of {task.base_ms:.4g} {unit}, it may not even be "
            f"faster: its interval ends at {floor:.4g}"
        )
        clauses.append(
            f"no plan{' within the constraints' if constrained else ''} meets "
            f"{budget_ms:.4g} {unit}: this is the plan of least latency; {needs}"
        )
    elif made.why:
        clauses.append(made.why)
    if feasible and max_params is not None:
        clauses.append(f"of at most {max_params:,} parameters")
    if task.profiles.initial_loss is not None:
        clauses.append(
            f"for an untrained network, by {task.profiles.initial_score}: the counts matter, not "
            "which channels stay"
        )
    elif not task.profiles.profiled and made.expected is None:
        clauses.append(f"sensitivity is {_source(task.profiles)}")
    if task.tables.device == MACS_DEVICE:
        clauses.append("latencies are millions of MACs")
    return "; ".join([*clauses, *_held_clauses(task.graph)])


def _source(profiles: GroupProfiles) -> str:
    """Where sensitivity comes from that was not measured."""
    if profiles.passed_count:
        return f"told from one pass of the unpruned network on {profiles.passed_count} inputs"
    known = "shapes" if profiles.energy_loss is None else "weights and shapes"
    return f"predicted from {known}; no calibration data was given"


def _held_clauses(graph: PruningGraph) -> list[str]:
    """Which operators hold layers whole, most first; the graph's outputs always do."""
    reasons = [held.reason for held in graph.held if held.forced_by]
    by = Counter(reason.split()[0] for reason in reasons if not reason.startswith("graph output"))
    if not by:
        return []
    named = ", ".join(f"{count} by {operator}" for operator, count in by.most_common(HOLDERS))
    layers = "1 layer is" if by.total() == 1 else f"{by.total()} layers are"
    return [f"{layers} not prunable ({named}; rlprune trace tells which)"]
