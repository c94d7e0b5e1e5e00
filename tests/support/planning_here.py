"""Planning in this process over a store of the test's own."""

from __future__ import annotations

from typing import Unpack

from rlprune.graph.from_onnx import OnnxTrace
from rlprune.planning import LocalPlanner, PlanRequest, make_plans
from rlprune.planning.request import PlanOptions
from rlprune.plans import PruningPlan
from rlprune.store import Store


def plan_here(trace: OnnxTrace, store: Store, **options: Unpack[PlanOptions]) -> PruningPlan:
    """What `rlprune.plan` gives for one budget, from `store`."""
    [plan] = make_plans(LocalPlanner(store), trace, PlanRequest.of(**options))
    return plan
