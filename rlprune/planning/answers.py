"""One answer to a question: the end that planning here and planning by a server share."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from rlprune.constraints import BoundConstraints
from rlprune.planning.make import make_plan
from rlprune.planning.proposals import Round, round_plan
from rlprune.planning.reasons import with_reasons
from rlprune.planning.request import PlanRequest, Unit
from rlprune.plans import PruningPlan
from rlprune.solver.task import PruningTask

if TYPE_CHECKING:
    from rlprune.policy import Policy
    from rlprune.store import Store


def answered(
    task: PruningTask,
    request: PlanRequest,
    budget: float,
    unit: Unit,
    *,
    policy: Policy,
    bound: BoundConstraints,
    store: Store,
    search: Round | None = None,
) -> PruningPlan:
    """The plan for one budget of a request, or the answer to one round of a search for it.

    Raises:
        InputError: the unpruned model is predicted to cost nothing.
    """
    budget_ms = budget * task.base_ms if unit == "ratio" else budget
    device = task.tables.device
    if search is not None:
        made = round_plan(task, search, budget_ms, device=device, constraints=bound)
    else:
        made = make_plan(
            task,
            policy,
            budget_ms,
            device=device,
            constraints=bound,
            guard=request.guard,
            max_params=request.max_params,
        )
    return with_reasons(replace(made, precision=request.precision), task, bound, store)
