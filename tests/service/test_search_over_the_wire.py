"""A round of a search over a real channel: what it answers, what it refuses, and that a server
keeps nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from onnx_nets import conv_net
from service_rig import Rig
from synthetic import channel_space

from rlprune.errors import InputError
from rlprune.graph.from_onnx import trace_onnx
from rlprune.graph.skeleton import strip
from rlprune.sensitivity.energy import energy_profiles, with_predictions
from rlprune.service.profile_messages import profiles_to
from rlprune.v1 import plans_pb2

TRACE = trace_onnx(conv_net())
SPACE = channel_space(TRACE.graph)
PROFILES = with_predictions(energy_profiles(TRACE, SPACE), SPACE)


def ask(rig: Rig, *evaluated: plans_pb2.EvaluatedPlan, **changes: object) -> plans_pb2.PruningPlan:
    fields: dict[str, object] = {
        "skeleton": strip(TRACE.model),
        "device": "macs",
        "budget_ratio": 0.5,
        "provisional": True,
        "candidates": 4,
        "profiles": profiles_to(PROFILES),
        "search": plans_pb2.Search(evaluated=evaluated),
    }
    request = plans_pb2.CreatePlanRequest(**{**fields, **changes})  # type: ignore[arg-type]
    found = rig.channel.call("PlanService/CreatePlan", request, plans_pb2.CreatePlanResponse)
    return found.plan


def evaluated(plan: plans_pb2.PruningPlan, losses: Callable[[int], float]) -> list[object]:
    return [
        plans_pb2.EvaluatedPlan(keeps=one.figures.keeps, divergence=losses(place), error=0.05)
        for place, one in enumerate(plan.candidates)
    ]


def test_rounds_build_on_what_they_are_told_and_nothing_is_kept(rig: Rig) -> None:
    before = rig.dump()
    first = ask(rig)
    assert 1 <= len(first.candidates) <= 4 and first.policy == "knapsack"
    told = evaluated(first, lambda place: 1.0 / (1 + place))
    second = ask(rig, *told)  # type: ignore[arg-type]
    seen = {tuple(one.figures.keeps) for one in first.candidates}
    assert not seen & {tuple(one.figures.keeps) for one in second.candidates}
    assert second.policy == "posterior race"
    assert ask(rig, *told) == second, "the same question, the same answer"  # type: ignore[arg-type]
    assert rig.dump()["plans"] == before["plans"]


def test_the_last_question_asks_for_the_best_alone(rig: Rig) -> None:
    first = ask(rig)
    best = len(first.candidates) - 1
    told = evaluated(first, lambda place: 0.001 if place == best else 2.0)
    last = ask(rig, *told, candidates=0)  # type: ignore[arg-type]
    assert not last.candidates
    keeps = [entry.keep for entry in last.groups]
    assert keeps == list(first.candidates[best].figures.keeps)


WIDTHS = [16, 32]


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"keeps": [16]}, "search.evaluated[0].keeps"),
        ({"keeps": [15, 32]}, "search.evaluated[0].keeps"),
        ({"keeps": [-1, 2**40]}, "search.evaluated[0].keeps"),
        ({"divergence": float("nan")}, "search.evaluated[0].divergence"),
        ({"divergence": -1.0}, "search.evaluated[0].divergence"),
        ({"divergence": float("inf")}, "search.evaluated[0].divergence"),
        ({"error": 2.0}, "search.evaluated[0].error"),
        ({"error": float("nan")}, "search.evaluated[0].error"),
    ],
)
def test_an_evaluated_plan_that_is_none_is_refused(
    rig: Rig, wrong: dict[str, object], field: str
) -> None:
    plain: dict[str, object] = {"keeps": WIDTHS, "divergence": 0.1, "error": 0.1}
    one = plans_pb2.EvaluatedPlan(**{**plain, **wrong})  # type: ignore[arg-type]
    with pytest.raises(InputError) as refusal:
        ask(rig, one)
    assert refusal.value.field == field


@pytest.mark.parametrize(
    ("changes", "field"),
    [({"policy": "uniform"}, "policy"), ({"max_params": 100}, "max_params")],
)
def test_a_search_does_not_go_with(rig: Rig, changes: dict[str, object], field: str) -> None:
    with pytest.raises(InputError) as refusal:
        ask(rig, **changes, **({"candidates": 0} if field == "max_params" else {}))
    assert refusal.value.field == field


def test_too_many_plans_are_refused(rig: Rig) -> None:
    one = plans_pb2.EvaluatedPlan(keeps=WIDTHS, divergence=0.1, error=0.1)
    with pytest.raises(InputError, match="more than 512"):
        ask(rig, *[one] * 513)


def test_losses_told_by_a_pass_are_checked(rig: Rig) -> None:
    sent = profiles_to(PROFILES)
    sent.predicted_loss.values[0] = -1.0
    with pytest.raises(InputError) as refusal:
        ask(rig, profiles=sent)
    assert refusal.value.field == "profiles.predicted_loss"
    sent.predicted_loss.values[0] = np.nan
    with pytest.raises(InputError):
        ask(rig, profiles=sent)
