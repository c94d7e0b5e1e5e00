"""One plan for one budget, by a policy; pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rlprune.constraints import BoundConstraints
from rlprune.errors import InputError
from rlprune.graph.types import IntArray
from rlprune.planning.describe import Decision, described, upper_ms
from rlprune.plans import PruningPlan
from rlprune.solver.pinned import PinnedTask
from rlprune.solver.task import PruningTask

if TYPE_CHECKING:
    from rlprune.policy.base import Policy

SMALLER_BUDGETS = 33
"""Latency budgets down to the least, tried where plans must be small and a policy knows latency."""


@dataclass(frozen=True)
class Ends:
    """Between what a task's plans lie."""

    pinned: PinnedTask
    """The task with what is pinned as one site."""
    least: IntArray
    """The plan of least latency [S]."""
    least_ms: float
    """Upper end of what that is predicted to take."""

    @staticmethod
    def of(task: PruningTask, constraints: BoundConstraints | None, device: str) -> Ends:
        """Raises InputError where the unpruned model is predicted to cost nothing."""
        from rlprune.solver.knapsack import least_choice

        if task.base_ms <= 0:
            raise InputError(f"the model costs nothing by {device!r}: there is nothing to prune")
        pinned = PinnedTask.of(task, constraints.pins if constraints else ())
        narrowest = least_choice(pinned.task)
        return Ends(pinned, pinned.expand(narrowest), upper_ms(pinned.task, narrowest))


def make_plan(
    task: PruningTask,
    policy: Policy,
    budget_ms: float,
    *,
    device: str,
    constraints: BoundConstraints | None = None,
    guard: bool = True,
    max_params: int | None = None,
) -> PruningPlan:
    """The policy's plan for one budget, with every figure a reader needs to judge it; pure.

    An infeasible budget is an answer, not an error: the plan of least latency, `feasible` False.
    The task's options are those the constraints leave; what is pinned is planned as one group.

    Args:
        budget_ms: positive and finite, as `PlanRequest` sees to it.
        guard: give the knapsack's plan where the policy may not answer alone (`policy.guard`).
        max_params: a second budget: parameters that a plan may have.

    Raises:
        InputError: the unpruned model is predicted to cost nothing.
    """
    from rlprune.policy.guard import refusal_reason

    ends = Ends.of(task, constraints, device)
    pinned, least, least_ms = ends.pinned, ends.least, ends.least_ms
    solved = _reference(pinned.task, budget_ms, max_params) if least_ms <= budget_ms else None
    feasible = solved is not None
    choice = reference = least if solved is None else pinned.expand(solved)
    untrained = task.profiles.initial_loss is not None
    decided, why = policy.name, ""
    if feasible and task.site_count:
        if guard and (why := refusal_reason(policy, untrained=untrained)):
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
    made = Decision(choice, least, reference, feasible, decided, why)
    return described(
        task, made, budget_ms, device=device, constraints=constraints, max_params=max_params
    )


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
