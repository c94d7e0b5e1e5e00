"""What a user states, found among the names of a real trace."""

from __future__ import annotations

from math import nan

import numpy as np
import pytest
from onnx_nets import conv_net

import rlprune
from rlprune.constraints import Constraints, bind
from rlprune.errors import InputError
from rlprune.graph.from_onnx import trace_onnx
from rlprune.latency.device import preferred_multiple
from rlprune.schemes.channels import constrained_levels

WIDTHS = (16, 32, 48, 32)
NET = conv_net(WIDTHS)
TRACE = trace_onnx(NET)
GRAPH = TRACE.graph
ASK = {"device": "macs", "budget_ratio": 0.4}


def held(*patterns: str) -> list[int]:
    return sorted(bind(GRAPH, Constraints(hold=patterns), round_to=1).held)


def pins(*patterns: str, hold: tuple[str, ...] = ()) -> tuple[tuple[int, ...], ...]:
    return bind(GRAPH, Constraints(pin=patterns, hold=hold), round_to=1).pins


def test_hold_takes_every_group_that_a_matched_layer_makes_or_reads() -> None:
    assert held("conv0") == [0]
    assert held("conv1") == held("conv1.weight") == [0, 1]
    assert held("*weight") == [0, 1, 2, 3]
    assert held("fc*") == [3]  # its input; its output is held anyway


def test_pin_takes_what_the_matched_layers_make_and_joins_what_overlaps() -> None:
    assert pins("conv[13]") == ((1, 3),)
    assert pins("conv[01]", "conv[23].weight") == ((0, 1), (2, 3))
    assert pins("conv[01]", "conv[12]") == ((0, 1, 2),)
    assert pins("conv0") == ()  # alone it keeps its own ratio
    assert pins("*", hold=("conv1",)) == ((2, 3),)  # a held group is in no set


@pytest.mark.parametrize("field", ["hold", "pin"])
def test_a_pattern_that_matches_nothing_is_told_near_names(field: str) -> None:
    constraints = Constraints(**{field: ("conv2.wieght",)})
    with pytest.raises(InputError, match=r"conv2\.wieght.*near names.*conv2\.weight") as refusal:
        bind(GRAPH, constraints, round_to=8)
    assert refusal.value.field == field


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("round_to", 0),
        ("round_to", 5000),
        ("min_keep", 0),
        ("min_keep", 1.5),
        ("min_keep_ratio", 1.2),
        ("min_keep_ratio", nan),
        ("hold", ("",)),
        ("pin", ("x" * 1000,)),
        ("pin", ("x",) * 1000),
    ],
)
def test_a_value_that_is_none_names_its_field(field: str, value: object) -> None:
    with pytest.raises(InputError, match=field) as refusal:
        Constraints(**{field: value})  # type: ignore[arg-type]
    assert refusal.value.field == field


def test_levels_keep_to_every_constraint() -> None:
    stated = Constraints(round_to=4, min_keep=6, min_keep_ratio=0.5, hold=("conv0",))
    levels, count = constrained_levels(GRAPH, bind(GRAPH, stated, round_to=1))
    assert count[0] == 1 and (levels[0] == 16).all()
    for row, width in zip(levels[1:], WIDTHS[1:], strict=True):
        assert (row % 4 == 0).all() and row[0] == width // 2 and row[-1] == width


def test_pinned_groups_have_the_same_ratio_at_every_level_each_rounded_by_itself() -> None:
    for round_to, expected in ((1, 16), (2, 8), (8, 2), (16, 1)):
        bound = bind(GRAPH, Constraints(round_to, pin=("conv*",)), round_to=8)
        if round_to == 16:  # 16 channels in whole 16s: all or nothing, for three wider ones too
            with pytest.raises(InputError, match=r"'conv0' \(16\).*no keep ratio") as refusal:
                constrained_levels(GRAPH, bound)
            assert refusal.value.field == "pin"
            continue
        levels, count = constrained_levels(GRAPH, bound)
        assert count.tolist() == [expected] * 4
        assert (levels % round_to == 0).all()
        ratios = levels / levels[:, -1:]
        assert (ratios == ratios[0]).all()


def test_without_rounding_levels_are_even_shares_of_the_width() -> None:
    graph = trace_onnx(conv_net((40, 64), extent=8)).graph
    levels, count = constrained_levels(graph, bind(graph, Constraints(), round_to=1))
    assert levels[1].tolist() == list(range(4, 65, 4)) and count.tolist() == [16, 16]
    assert (np.diff(levels[0]) > 0).all() and levels[0, -1] == 40


@pytest.mark.parametrize(
    ("device", "multiple"),
    [("macs", 8), ("openvino-2026.1.x86_64", 1), ("mnn-3.2.arm", 1), ("ort-1.31.1.x86_64", 8),
     ("ncnn-2026.arm", 8), ("macs-board", 8)],
)  # fmt: skip
def test_the_device_decides_the_rounding_that_nobody_stated(device: str, multiple: int) -> None:
    assert preferred_multiple(device) == multiple


def test_macs_are_planned_in_steps_of_eight_unless_asked() -> None:
    """Who has no device at hand plans by MACs, and runs the plan on kernels of eight channels."""
    usual = rlprune.plan(TRACE, policy="uniform", **ASK)  # type: ignore[arg-type]
    assert usual.constraints.round_to == 8
    wide = np.array(WIDTHS) >= 32
    assert wide.any() and not (usual.keeps[wide] % 8).any()
    free = rlprune.plan(TRACE, policy="uniform", round_to=1, **ASK)  # type: ignore[arg-type]
    rounded = rlprune.plan(TRACE, policy="uniform", round_to=8, **ASK)  # type: ignore[arg-type]
    assert (free.keeps % 8).any() and not (rounded.keeps % 8).any()
    assert rounded.predicted_latency_ms < free.predicted_latency_ms <= free.budget_ms


@pytest.mark.parametrize("policy", ["uniform", "global", "knapsack", "learned"])
def test_every_policy_keeps_to_holds_and_pins_within_the_budget(policy: str) -> None:
    plan = rlprune.plan(
        TRACE,
        policy=policy,
        hold="conv0",
        pin=["conv[13]"],
        round_to=4,
        guard=False,
        **ASK,  # type: ignore[arg-type]
    )
    assert plan.feasible and plan.predicted_interval_ms[1] <= plan.budget_ms
    assert plan.keeps[0] == 16 and plan.keeps[1] == plan.keeps[3]
    assert [entry.constraint for entry in plan.groups] == [
        "held by 'conv0'", "pinned by 'conv[13]'", "", "pinned by 'conv[13]'",
    ]  # fmt: skip
    assert rlprune.PruningPlan.from_json(plan.to_json()) == plan
    pruned = rlprune.apply(plan, NET)
    shapes = {tensor.name: list(tensor.dims) for tensor in pruned.graph.initializer}
    assert shapes["conv0.weight"] == [16, 3, 3, 3]
    assert shapes["conv1.weight"][0] == shapes["fc.weight"][1] == plan.keeps[1]


@pytest.mark.parametrize(
    ("width", "expected"),
    [(4, [1, 2, 3, 4]), (8, list(range(1, 9))), (16, list(range(2, 17, 2))),
     (31, [*range(2, 31, 2), 31]), (32, [8, 16, 24, 32]), (40, [8, 16, 24, 32, 40])],
)  # fmt: skip
def test_narrow_groups_have_finer_steps_unless_the_step_was_stated(
    width: int, expected: list[int]
) -> None:
    graph = trace_onnx(conv_net((width, 64), extent=8)).graph
    levels, count = constrained_levels(graph, bind(graph, Constraints(), round_to=8))
    assert levels[0, : count[0]].tolist() == expected
    assert levels[1, : count[1]].tolist() == list(range(8, 65, 8))
    stated, count = constrained_levels(graph, bind(graph, Constraints(8), round_to=8))
    assert stated[0, : count[0]].tolist() == [*range(8, width, 8), width]


def test_a_budget_that_only_the_constraints_forbid_says_so() -> None:
    ask = {"device": "macs", "budget_ratio": 0.5, "policy": "uniform"}
    plan = rlprune.plan(TRACE, hold="*", **ask)  # type: ignore[arg-type]
    assert not plan.feasible and "no plan within the constraints meets" in plan.note
    assert (plan.keeps == WIDTHS).all()
    assert rlprune.plan(TRACE, **ask).feasible  # type: ignore[arg-type]


def test_plans_made_before_constraints_were_recorded_are_read() -> None:
    import json

    plan = rlprune.plan(TRACE, policy="uniform", **ASK)  # type: ignore[arg-type]
    data = json.loads(plan.to_json())
    del data["constraints"]
    for entry in data["groups"]:
        del entry["constraint"]
    older = rlprune.PruningPlan.from_json(json.dumps(data))
    assert older.constraints == Constraints() and (older.keeps == plan.keeps).all()
