"""A planning question is checked once, and may be asked alike from everywhere."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import pkgutil
from collections.abc import Iterator
from types import FunctionType, ModuleType
from typing import Any

import pytest

import rlprune
import rlprune.planning
import rlprune.service
from rlprune.cli.plan import plan as plan_command
from rlprune.constraints import Constraints
from rlprune.errors import BudgetError, InputError
from rlprune.planning import PlanRequest
from rlprune.planning.request import SCORES, OneBudget, PlanOptions, SeveralBudgets
from rlprune.service.client import Client

MOST_PARAMETERS = 8
OPTIONS = frozenset(PlanOptions.__annotations__)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({}, "budget_ms"),
        ({"budget_ms": 1.0, "budget_ratio": 0.5}, "budget_ms"),
        *(({"budget_ms": bad}, "budget_ms") for bad in (0.0, -3.0, float("nan"), float("inf"))),
        ({"budget_ms": [1.0, float("nan")]}, "budget_ms"),
        ({"budget_ms": []}, "budget_ms"),
        ({"budget_ratio": 1.5}, "budget_ratio"),
        ({"budget_ratio": [0.5] * 65}, "budget_ratio"),
        ({"policy": ""}, "policy"),
        ({"effort": "some"}, "effort"),
        ({"effort": "quick", "at_init": "snip"}, "effort"),
        ({"effort": "quick", "max_params": 100}, "effort"),
        ({"effort": "quick", "policy": "knapsack"}, "effort"),
        ({"max_params": 0}, "max_params"),
        ({"at_init": "taylor"}, "at_init"),
        ({"certify": True, "device": "macs"}, "certify"),
        ({"threads": 0}, "threads"),
        ({"timeout_sec": float("nan")}, "timeout_sec"),
        ({"timeout_sec": -1.0}, "timeout_sec"),
        ({"round_to": 0}, "round_to"),
        ({"min_keep": 0}, "min_keep"),
        ({"min_keep_ratio": 2.0}, "min_keep_ratio"),
        ({"hold": ""}, "hold"),
        ({"pin": [""]}, "pin"),
    ],
)
def test_what_cannot_be_asked_is_refused_by_its_name(options: dict[str, Any], field: str) -> None:
    budget = {} if options.keys() & {"budget_ms", "budget_ratio"} or not options else {"ms": 1.0}
    with pytest.raises(InputError) as refusal:
        PlanRequest.of(**{f"budget_{unit}": ms for unit, ms in budget.items()}, **options)
    assert refusal.value.field == field
    assert isinstance(refusal.value, BudgetError) or not field.startswith("budget")


def test_a_request_is_told_as_it_was_stated_and_made_again_of_that() -> None:
    request = PlanRequest.of(
        budget_ratio=[0.5, 0.25], device="macs", hold="conv1", round_to=4, guard=False, wait=False
    )
    assert request.budgets == (0.5, 0.25) and request.unit == "ratio"
    assert request.constraints == Constraints(4, 1, 0.0, ("conv1",), ())
    stated = json.loads(request.to_json())
    assert stated == {
        "budget_ratio": [0.5, 0.25],
        "device": "macs",
        "hold": ["conv1"],
        "round_to": 4,
        "guard": False,
        "wait": False,
    }
    assert PlanRequest.of(**stated) == request


def test_an_option_that_is_none_is_refused_by_python() -> None:
    with pytest.raises(TypeError, match="budget"):
        PlanRequest.of(budget_ms=1.0, budget="2")  # type: ignore[call-arg]


def test_what_can_be_asked_in_one_way_can_be_asked_in_all() -> None:
    fields = {field.name for field in dataclasses.fields(PlanRequest)} - {"budgets", "unit"}
    constraints = {field.name for field in dataclasses.fields(Constraints)}
    assert fields - {"constraints"} | constraints | {"budget_ms", "budget_ratio"} == OPTIONS
    for one in (OneBudget, SeveralBudgets):
        assert frozenset(one.__annotations__) == OPTIONS
    here, there = (inspect.signature(plan).parameters for plan in (rlprune.plan, Client.plan))
    assert list(there)[1:] == list(here) and list(here)[-1] == "options"
    of_command = set(inspect.signature(plan_command).parameters)
    assert of_command >= OPTIONS


def test_scores_at_initialisation_are_those_there_are() -> None:
    from rlprune.surgery.torch_saliency import SCORES as THERE

    assert tuple(THERE) == SCORES


def functions(module: ModuleType) -> Iterator[tuple[str, FunctionType]]:
    """All functions and methods that a module defines, but for dataclasses' own `__init__`."""
    for owner in (module, *(one for one in vars(module).values() if inspect.isclass(one))):
        for name, one in vars(owner).items():
            one = one.__func__ if isinstance(one, staticmethod | classmethod) else one
            made = dataclasses.is_dataclass(owner) and name == "__init__"
            if inspect.isfunction(one) and one.__module__ == module.__name__ and not made:
                yield f"{module.__name__}.{one.__qualname__}", one


def test_no_function_on_the_way_of_a_plan_has_many_parameters() -> None:
    modules = [rlprune]
    for package in (rlprune.planning, rlprune.service):
        modules += [
            importlib.import_module(one.name)
            for one in pkgutil.iter_modules(package.__path__, f"{package.__name__}.")
        ]
    found = dict(one for module in modules for one in functions(module))
    assert len(found) > 100
    counts = {name: len(inspect.signature(one).parameters) for name, one in found.items()}
    assert {name: n for name, n in counts.items() if n > MOST_PARAMETERS} == {}
