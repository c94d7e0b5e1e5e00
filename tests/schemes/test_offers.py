"""What a runtime does not profit from is not offered there, and older plans stay readable."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from residual_net import Residual, stack

from rlprune.constraints import Constraints, bind
from rlprune.graph.from_onnx import OnnxTrace
from rlprune.latency.types import PRECISIONS
from rlprune.planning.breakdown import explain_latency
from rlprune.plans import PlanEntry, PruningPlan
from rlprune.runtime import RUNTIMES
from rlprune.schemes import Space, costs, profitable_schemes, space_of, without_effect
from rlprune.schemes.profits import DATA, FORMAT, kernel_label, profits_of

EVERY = ("channel", "block", "shape")
MNN, ORT = "mnn-3.6.1.x86_64-some.t1.b1", "ort-1.31.1.x86_64-some.t1.b1"


@pytest.fixture(scope="module")
def trace() -> OnnxTrace:
    return stack(Residual.plain, 4, side=24)


def space_on(trace: OnnxTrace, device: str, precision: str = "f32") -> Space:
    bound = bind(trace.graph, Constraints(), round_to=8, device=device, precision=precision)
    return space_of(trace.graph, bound, EVERY)


def kernels(space: Space) -> list[tuple[int, ...]]:
    return [site.values for site in space.sites if site.scheme == "shape"]


def test_what_ships_is_of_runtimes_and_precisions_that_there_are() -> None:
    data = json.loads(DATA.read_text())
    assert data["format"] == FORMAT and set(data["runtimes"]) <= set(RUNTIMES)
    for by_precision in data["runtimes"].values():
        assert set(by_precision) <= set(PRECISIONS)
        for own in by_precision.values():
            assert own["schemes"][0] == "channel" and set(own["schemes"]) <= set(EVERY)


def test_mnn_is_offered_no_rectangle_of_a_3x3_without_an_extent_of_1(trace: OnnxTrace) -> None:
    for values in kernels(space_on(trace, MNN)):
        assert values[-1] == 303 and {101, 103, 301} <= set(values)
        assert all(1 in divmod(value, 100) for value in values[:-1])


def test_onnx_runtime_is_offered_them_all(trace: OnnxTrace) -> None:
    for precision in ("f32", "int8"):
        assert all(len(own) == 9 for own in kernels(space_on(trace, ORT, precision)))


@pytest.mark.parametrize("device", ["macs", "", "unheard-1.0.board.t1.b1"])
def test_of_what_was_not_measured_everything_is_offered(trace: OnnxTrace, device: str) -> None:
    assert all(len(own) == 9 for own in kernels(space_on(trace, device)))
    assert profitable_schemes(device, "f32") == EVERY


def test_sites_are_the_same_on_every_device(trace: OnnxTrace) -> None:
    found = [[(one.name, one.scheme) for one in space_on(trace, d).sites] for d in (MNN, ORT, "")]
    assert found[0] == found[1] == found[2]


def test_blocks_stay_where_leaving_them_out_saves_nothing(
    trace: OnnxTrace, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = profits_of(MNN, "f32")
    assert some is not None
    no_blocks = replace(some, schemes=("channel", "shape"))
    monkeypatch.setattr("rlprune.schemes.blocks.profits_of", lambda *_: no_blocks)
    blocks = [one for one in space_on(trace, MNN).sites if one.scheme == "block"]
    assert blocks and all(one.values == (1,) for one in blocks)


def test_kinds_of_convolutions_that_were_not_measured_have_no_label(trace: OnnxTrace) -> None:
    conv = next(op for op in trace.graph.operators if op.kind == "conv")
    assert kernel_label(conv) == "3x3"
    assert kernel_label(replace(conv, stride=(2, 2))) == "3x3/2"
    assert kernel_label(replace(conv, kind="depthwise_conv", groups=0)) == "depthwise_3x3"
    for other in (
        {"dilation": (2, 2)},
        {"stride": (1, 2)},
        {"groups": 4},
        {"kind": "conv_transpose"},
    ):
        assert kernel_label(replace(conv, **other)) == ""


def plan_of(trace: OnnxTrace, settings: dict[tuple[str, str], int], device: str) -> PruningPlan:
    """A plan written by hand, of these settings and all others as they are."""
    import rlprune

    made = rlprune.plan(trace, device="macs", budget_ratio=1.0, schemes=EVERY)
    entries = [
        replace(entry, keep=settings.get((entry.scheme, entry.name), entry.width))
        for entry in made.groups
    ]
    return replace(made, groups=tuple(entries), device=device)


def test_a_plan_with_an_option_that_is_not_offered_any_more_is_read(trace: OnnxTrace) -> None:
    plan = plan_of(trace, {("shape", "conv7"): 203}, "macs")
    plan.check(trace.graph)
    space = space_on(trace, MNN)
    with pytest.raises(ValueError, match="none of its site's options"):
        space.choice_of(plan.keeps)
    wider = space.with_settings(plan.keeps)
    assert np.array_equal(wider.settings_at(wider.choice_of(plan.keeps)), plan.keeps)
    site = next(one for one in wider.sites if (one.scheme, one.name) == ("shape", "conv7"))
    assert site.values[-1] == 303
    assert site.shares == tuple(sorted(site.shares))
    assert dict(zip(site.values, site.shares, strict=True))[203] == pytest.approx(6 / 9)
    assert explain_latency(trace, plan).after is not None


def test_what_lies_in_a_block_left_out_has_no_effect_and_no_cost(trace: OnnxTrace) -> None:
    plan = plan_of(trace, {("block", "b2"): 0, ("shape", "conv7"): 103}, "macs")
    gone = without_effect(trace.graph, plan.keeps, plan.schemes)
    named = {(plan.groups[index].scheme, plan.groups[index].name) for index in gone}
    assert named == {("channel", "conv12"), ("shape", "conv12"), ("shape", "conv14")}
    inside = [
        replace(entry, keep=1) if (entry.scheme, entry.name) == ("channel", "conv12") else entry
        for entry in plan.groups
    ]
    other = replace(plan, groups=tuple(inside))
    same = [costs(trace.graph, one.keeps, one.schemes) for one in (plan, other)]
    assert same[0] == same[1]


def test_words_of_a_left_out_block_need_no_model() -> None:
    assert PlanEntry("b1", "block", 1, 0, ()).option == "left out"
    assert PlanEntry("conv", "shape", 30303, 10303, ()).option == "1x3x3 of 3x3x3"
