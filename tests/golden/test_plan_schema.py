"""docs/plan.schema.json says what a plan file holds: of plans as made here, and of older ones."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden import golden_store, trace
from residual_net import Residual, stack

import rlprune
from rlprune.errors import PlanError
from rlprune.plans import Certificate, MeasuredRound, PlanEntry, PruningPlan, Unpruned

jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema (rlprune[dev])")

V1 = sorted((Path(__file__).parent / "data" / "plan_v1").glob("*.json"))
"""Plans as 0.8 wrote them, before the second version of the format."""
DOCS = Path(__file__).parents[2] / "docs"
SCHEMA = json.loads((DOCS / "plan.schema.json").read_text(encoding="utf-8"))
ORT = "ort-golden.t1.f32.b1"
QUESTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("plain", {"device": "macs", "budget_ratio": 0.5}),
    ("residual", {"device": ORT, "budget_ratio": 0.6, "hold": "*0", "min_keep": 4}),
    ("residual", {"device": ORT, "budget_ratio": 0.05}),
    ("plain", {"device": "macs", "budget_ratio": 0.6, "max_params": 9000}),
)


@pytest.fixture(scope="module")
def plans() -> list[PruningPlan]:
    """Answers to golden questions; the last was searched for."""
    x = np.random.default_rng(7).standard_normal((48, 3, 16, 16)).astype(np.float32)
    with golden_store():
        made = [rlprune.plan(trace(net), **options) for net, options in QUESTIONS]
        graph = trace("plain").graph
        x = x[:, :, : graph.input_shapes[0][2], : graph.input_shapes[0][3]]
        chosen = rlprune.plan(trace("plain"), device="macs", budget_ratio=0.6, calibration={"x": x})
    return [*made, chosen]


@pytest.fixture(scope="module")
def full(plans: list[PruningPlan]) -> dict[str, Any]:
    """A plan file in which every field holds something."""
    one = MeasuredRound((8, 8), 1.0, 1.1, (1.0, 1.2), "unstable", "sessions differ")
    data: dict[str, Any] = json.loads(plans[-1].to_json())
    certificate = Certificate(True, 1.1, (1.0, 1.2), (one,))
    data["unpruned"] = [asdict(Unpruned("f32", 1.0)), asdict(Unpruned("int8", 0.5))]
    data["certificate"] = json.loads(json.dumps(asdict(certificate)))
    return data


def check(data: dict[str, Any]) -> None:
    jsonschema.validate(data, SCHEMA, cls=jsonschema.Draft202012Validator)


def test_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_plans_that_are_made_keep_to_the_schema(
    plans: list[PruningPlan], full: dict[str, Any]
) -> None:
    assert not plans[2].feasible and plans[-1].candidates
    for plan in plans:
        check(json.loads(plan.to_json()))
    check(full)


def fields(data: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Places of all fields of the plan, of one entry in every list."""
    if isinstance(data, dict):
        own = [(*place, name) for name in data]
        return own + [deep for name in data for deep in fields(data[name], (*place, name))]
    if isinstance(data, list) and data:
        return fields(data[0], (*place, 0))
    return []


def test_a_field_is_required_where_a_plan_without_it_is_refused(full: dict[str, Any]) -> None:
    places = fields(full)
    assert len(places) > 50
    for *place, name in places:
        data = deepcopy(full)
        inner = data
        for step in place:
            inner = inner[step]
        del inner[name]
        if jsonschema.Draft202012Validator(SCHEMA).is_valid(data):
            PruningPlan.from_json(json.dumps(data))
        else:
            with pytest.raises(PlanError):
                PruningPlan.from_json(json.dumps(data))


def test_plans_of_older_versions_keep_to_it(full: dict[str, Any]) -> None:
    """docs/plan_format.md lists what each version began to write."""
    of_0_8 = deepcopy(full)
    del of_0_8["unpruned"], of_0_8["constraints"]["keep_float"]
    of_0_4 = deepcopy(of_0_8)
    del of_0_4["precision"], of_0_4["expected_divergence"]
    for one in of_0_4["candidates"]:
        del one["divergence"], one["image_count"]
    of_0_1 = deepcopy(of_0_4)
    for name in ("certificate", "constraints", "candidates"):
        del of_0_1[name]
    for entry in of_0_1["groups"]:
        del entry["constraint"]
    for data in (of_0_8, of_0_4, of_0_1):
        check(data)
        PruningPlan.from_json(json.dumps(data))


@pytest.mark.parametrize("path", V1, ids=lambda path: path.stem)
def test_plans_of_the_first_format_are_read_and_say_the_same(path: Path) -> None:
    data = json.loads(path.read_text())
    assert data["format"] == "rlprune.plan/1"
    check(data)
    plan = PruningPlan.load(path)
    assert [entry.keep for entry in plan.groups] == [one["keep"] for one in data["groups"]]
    now = json.loads(plan.to_json())
    assert now["format"] == "rlprune.plan/2"
    for one in now["groups"]:
        del one["option"]
    assert now | {"format": data["format"]} == data


def test_a_plan_of_the_first_format_is_applied_to_its_model() -> None:
    [path] = [path for path in V1 if path.stem == "schemes"]
    plan, traced = PruningPlan.load(path), stack(Residual.plain, 4, side=24)
    small = rlprune.trace(rlprune.apply(plan, traced, calibration="none")).graph
    assert int(small.macs(small.widths)) == plan.macs


def test_options_are_written_in_words_and_not_believed() -> None:
    [path] = [path for path in V1 if path.stem == "schemes"]
    plan = PruningPlan.load(path)
    data = json.loads(plan.to_json())
    said = {(one["scheme"], one["option"]) for one in data["groups"]}
    assert {("block", "left out"), ("block", "kept"), ("shape", "2x3 of 3x3")} <= said
    assert ("channel", "3 of 8 channels") in said
    data["groups"][0]["option"] = "1 of 8 channels"
    assert PruningPlan.from_json(json.dumps(data)) == plan


def test_an_option_of_a_scheme_that_is_not_installed_is_told_by_its_value() -> None:
    assert PlanEntry("one", "elsewhere", 8, 3, ()).option == "3 of 8"


def test_example_of_the_page_is_a_plan() -> None:
    page = (DOCS / "plan_format.md").read_text(encoding="utf-8")
    example = page.partition("```json\n")[2].partition("```")[0]
    check(json.loads(example))
    PruningPlan.from_json(example)


def test_page_tells_of_every_field(full: dict[str, Any]) -> None:
    page = (DOCS / "plan_format.md").read_text(encoding="utf-8")
    unsaid = {str(name) for *_, name in fields(full) if name != "format" and f"{name}`" not in page}
    assert not unsaid


def test_what_a_plan_cannot_say_is_refused(full: dict[str, Any]) -> None:
    for change in (
        {"format": "rlprune.plan/3"},
        {"budget_ms": -1},
        {"predicted_interval_ms": [1.0]},
        {"fingerprint": "abc"},
        {"constraints": {"round": 8}},
        {"macs": 1.5},
    ):
        with pytest.raises(jsonschema.ValidationError):
            check(full | change)
