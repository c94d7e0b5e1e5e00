"""One plan with every figure a reader needs to judge it; pure."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from rlprune.constraints import BoundConstraints, Constraints
from rlprune.errors import InputError
from rlprune.graph.types import IntArray, PruningGraph
from rlprune.latency.types import MACS_DEVICE
from rlprune.planning.candidates import PENDING, propose
from rlprune.plans import Candidate, PlanEntry, PlanFigures, PruningPlan
from rlprune.schemes import Space
from rlprune.schemes.shapes import SHAPES
from rlprune.solver.pinned import PinnedTask
from rlprune.solver.task import PruningTask

if TYPE_CHECKING:
    from rlprune.policy.base import Policy

SMALLER_BUDGETS = 33
"""Latency budgets down to the least, tried where plans must be small and a policy knows latency."""

HOLDERS = 3
"""Kinds of operators that a note names as holding layers whole."""


def make_plan(
    task: PruningTask,
    policy: Policy,
    budget_ms: float,
    *,
    device: str,
    constraints: BoundConstraints | None = None,
    guard: bool = True,
    candidate_count: int = 0,
    max_params: int | None = None,
) -> PruningPlan:
    """The policy's plan for one budget, with every figure a reader needs to judge it; pure.

    An infeasible budget is an answer, not an error: the plan of least latency, `feasible` False.
    The task's options are those the constraints leave; what is pinned is planned as one group.

    Args:
        budget_ms: positive and finite, as `PlanRequest` sees to it.
        guard: give the knapsack's plan where the policy may not answer alone (`policy.guard`).
        candidate_count: also propose so many plans, for `candidates.choose` where the weights are;
            the plan is then the knapsack's.
        max_params: a second budget: parameters that a plan may have. Candidates are not held to it.

    Raises:
        InputError: the unpruned model is predicted to cost nothing.
    """
    from rlprune.policy.guard import refusal_reason
    from rlprune.solver.knapsack import least_choice

    if task.base_ms <= 0:
        raise InputError(f"the model costs nothing by {device!r}: there is nothing to prune")
    pinned = PinnedTask.of(task, constraints.pins if constraints else ())
    narrowest = least_choice(pinned.task)
    least, least_ms = pinned.expand(narrowest), _upper_ms(pinned.task, narrowest)
    solved = _reference(pinned.task, budget_ms, max_params) if least_ms <= budget_ms else None
    feasible = solved is not None
    choice = reference = least if solved is None else pinned.expand(solved)
    untrained = task.profiles.initial_loss is not None
    decided, why = policy.name, ""
    candidates: list[Candidate] = []
    if feasible and task.site_count:
        if candidate_count:
            decided, why = "knapsack", PENDING
            rng = np.random.default_rng(0)
            candidates = [
                Candidate(**_figures(task, pinned.expand(own)), policy=name)
                for name, own in propose(pinned.task, policy, budget_ms, candidate_count, rng)
            ]
        elif guard and (why := refusal_reason(policy, untrained=untrained)):
            decided, why = "knapsack", f"planned by: latency-constrained knapsack ({why})"
        elif policy.name != "knapsack":
            own_plan = _plan_within(policy, pinned.task, (least_ms, budget_ms), max_params)
            if own_plan is None:
                decided = "knapsack"
                why = (
                    "planned by: latency-constrained knapsack (no plan of "
                    f"{policy.name} is small enough)"
                )
            else:
                choice = pinned.expand(own_plan)
                if (choice == reference).all():
                    why = "the same plan as the latency-constrained knapsack's"
    figures = PlanFigures(**_figures(task, choice))
    same = (choice == reference).all()
    return PruningPlan(
        fingerprint=task.graph.fingerprint,
        policy=decided,
        profiled=task.profiles.profiled,
        device=device,
        budget_ms=budget_ms,
        feasible=feasible,
        base_latency_ms=task.base_ms,
        least_latency_ms=float(task.tables.latency_ms(least[None])[0]),
        predicted_latency_ms=figures.predicted_latency_ms,
        predicted_interval_ms=figures.predicted_interval_ms,
        groups=tuple(
            PlanEntry(
                name=site.name,
                scheme=site.scheme,
                width=site.values[-1],
                keep=keep,
                members=_members(task.space, index),
                constraint=constraints.why(index) if constraints else "",
            )
            for index, (site, keep) in enumerate(zip(task.space.sites, figures.keeps, strict=True))
        ),
        macs=figures.macs,
        params=figures.params,
        reference=figures if same else PlanFigures(**_figures(task, reference)),
        candidates=tuple(candidates),
        constraints=constraints.recorded if constraints else Constraints(),
        expected_divergence=expected_divergence(task, choice),
        note=_note(
            task,
            why,
            budget_ms,
            least,
            feasible,
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


def _reference(task: PruningTask, budget_ms: float, max_params: int | None) -> IntArray | None:
    """The knapsack's choice [S] for a latency that can be met; None where none is small enough."""
    from rlprune.solver.knapsack import solve
    from rlprune.solver.second_budget import solve_within

    if max_params is None:
        return np.asarray(solve(task, np.array([budget_ms]))[0])
    return solve_within(task, budget_ms, max_params)


def _plan_within(
    policy: Policy, task: PruningTask, budgets_ms: tuple[float, float], max_params: int | None
) -> IntArray | None:
    """The policy's choice [S], for the greatest latency budget of those between the least that can
    be met and the one asked for at which they are small enough."""
    least_ms, budget_ms = budgets_ms
    if max_params is None:
        return np.asarray(policy.plan(task, np.array([budget_ms]))[0])
    plans = policy.plan(task, np.linspace(least_ms, budget_ms, SMALLER_BUDGETS))
    small = np.flatnonzero(task.space.params(plans) <= max_params)
    return plans[small[-1]] if len(small) else None


def expected_divergence(task: PruningTask, choice: IntArray) -> float | None:
    """What a choice [S] loses by the curves that it was planned by, nats; None of a network that
    was not trained."""
    if task.profiles.initial_loss is not None or not task.site_count:
        return None
    return float(task.curve[np.arange(task.site_count), choice].sum())


def _upper_ms(task: PruningTask, choice: IntArray) -> float:
    """Upper end of the latency predicted for a choice [S]."""
    return float(task.tables.upper_ms(choice[None])[0])


def _figures(task: PruningTask, choice: IntArray) -> dict[str, Any]:
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
    why: str,
    budget_ms: float,
    least: IntArray,
    feasible: bool,
    constrained: bool,
    max_params: int | None,
) -> str:
    """What the reader should know, clauses joined by semicolons; empty where nothing is."""
    clauses: list[str] = []
    unit = plan_unit(task)
    if not task.site_count:
        clauses.append("nothing to prune: no group of channels may shrink")
    floor = _upper_ms(task, least)
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
    elif why:
        clauses.append(why)
    if feasible and max_params is not None:
        clauses.append(f"of at most {max_params:,} parameters")
    if task.profiles.initial_loss is not None:
        clauses.append(
            f"for an untrained network, by {task.profiles.initial_score}: the counts matter, not "
            "which channels stay"
        )
    elif not task.profiles.profiled:
        source = "shapes" if task.profiles.energy_loss is None else "weights and shapes"
        clauses.append(f"sensitivity is predicted from {source}; no calibration data was given")
    if task.tables.device == MACS_DEVICE:
        clauses.append("latencies are millions of MACs")
    return "; ".join([*clauses, *_held_clauses(task.graph)])


def _held_clauses(graph: PruningGraph) -> list[str]:
    """Which operators hold layers whole, most first; the graph's outputs always do."""
    reasons = [held.reason for held in graph.held if held.forced_by]
    by = Counter(reason.split()[0] for reason in reasons if not reason.startswith("graph output"))
    if not by:
        return []
    named = ", ".join(f"{count} by {operator}" for operator, count in by.most_common(HOLDERS))
    layers = "1 layer is" if by.total() == 1 else f"{by.total()} layers are"
    return [f"{layers} not prunable ({named}; rlprune trace tells which)"]
