"""Which operators and plans get measured, and that every operator can be."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from hand_graphs import conv, residual_graph

from rlprune.errors import InputError
from rlprune.graph.types import Group, PruningGraph, Width
from rlprune.latency.measure import random_inputs
from rlprune.latency.operators import (
    OVERHEAD,
    calibration_keeps,
    canary_model,
    form,
    operator_model,
    operator_specs,
)
from rlprune.latency.types import OperatorSpec
from rlprune.profile.types import keep_levels
from rlprune.runtime import get_runtime

WINDOW = {"kernel": (3, 3), "stride": (2, 2), "pads": (1, 1, 1, 1), "dilation": (1, 1)}
SPECS = [
    (OperatorSpec("conv", "", 3, 16, (8, 8), (4, 4), **WINDOW), (1, 16, 4, 4)),
    (OperatorSpec("conv", "", 8, 16, (8, 8), (4, 4), **WINDOW, groups=4), (1, 16, 4, 4)),
    (OperatorSpec("conv", "", 8, 12, (9,), (9,), (3,), (1,), (1, 1), (1,)), (1, 12, 9)),
    (OperatorSpec("depthwise_conv", "", 8, 8, (8, 8), (4, 4), **WINDOW, groups=0), (1, 8, 4, 4)),
    (OperatorSpec("conv_transpose", "", 8, 4, (4, 4), (8, 8), (2, 2), (2, 2)), (1, 4, 8, 8)),
    (OperatorSpec("linear", "", 24, 10, (), ()), (1, 10)),
    (OperatorSpec("linear", "", 24, 10, (7,), (7,)), (1, 7, 10)),
    (OperatorSpec("matmul", "", 16, 7, (3, 7), (3, 7)), (1, 3, 7, 7)),
    (OperatorSpec("norm", "layer", 24, 24, (7,), (7,)), (1, 7, 24)),
    (OperatorSpec("norm", "batch", 8, 8, (4, 4), (4, 4)), (1, 8, 4, 4)),
    (OperatorSpec("norm", "instance", 8, 8, (4, 4), (4, 4)), (1, 8, 4, 4)),
    (OperatorSpec("activation", "relu6", 8, 8, (4, 4), (4, 4)), (1, 8, 4, 4)),
    (OperatorSpec("activation", "silu", 8, 8, (4, 4), (4, 4)), (1, 8, 4, 4)),
    (OperatorSpec("activation", "prelu", 8, 8, (4, 4), (4, 4)), (1, 8, 4, 4)),
    (OperatorSpec("activation", "hardswish", 8, 8, (), ()), (1, 8)),
    (OperatorSpec("activation", "never heard of", 8, 8, (4,), (4,)), (1, 8, 4)),
    (OperatorSpec("add", "", 8, 8, (4, 4), (4, 4)), (1, 8, 4, 4)),
    (OperatorSpec("mul", "", 8, 8, (4, 4), (4, 4)), (1, 8, 4, 4)),
    (OperatorSpec("concat", "", 9, 9, (4, 4), (4, 4)), (1, 9, 4, 4)),
    (OperatorSpec("concat", "", 1, 1, (4, 4), (4, 4)), (1, 1, 4, 4)),
    (OperatorSpec("pool", "max", 8, 8, (8, 8), (4, 4), **WINDOW), (1, 8, 4, 4)),
    (OperatorSpec("pool", "average", 8, 8, (8,), (4,), (2,), (2,)), (1, 8, 4)),
    (OperatorSpec("global_pool", "average", 8, 8, (4, 4), ()), (1, 8, 1, 1)),
    (OperatorSpec("pad", "", 8, 20, (4, 4), (5, 4)), (1, 20, 5, 4)),
    (OperatorSpec("slice", "", 8, 8, (9, 8), (5, 4)), (1, 8, 5, 4)),
    (OperatorSpec("slice", "", 16, 6, (4, 4), (4, 4)), (1, 6, 4, 4)),
    (OperatorSpec("resize", "linear", 8, 8, (4, 4), (8, 8)), (1, 8, 8, 8)),
    (OperatorSpec("softmax", "", 8, 8, (4,), (4,)), (1, 4, 8)),
    (OperatorSpec("layout", "transpose", 8, 8, (4, 5), (4, 5)), (1, 4, 5, 8)),
    (OperatorSpec("kind of the future", "", 8, 8, (4, 4), (4, 4)), (1, 8, 4, 4)),
]


@pytest.mark.parametrize(("spec", "shape"), SPECS, ids=lambda value: getattr(value, "kind", ""))
def test_every_kind_makes_a_model_that_runs(spec: OperatorSpec, shape: tuple[int, ...]) -> None:
    model = operator_model(spec)
    onnx.checker.check_model(model)
    session = get_runtime().load(model.SerializeToString())
    (output,) = session.run(random_inputs(model))
    assert output.shape == shape
    assert np.all(np.isfinite(output))


def test_equal_specs_give_equal_models() -> None:
    spec = SPECS[0][0]
    assert operator_model(spec) == operator_model(replace(spec))
    assert canary_model() == canary_model()


def test_operators_of_one_form_share_their_points() -> None:
    """Forty equal convolutions ask for no more than one."""
    widths = [Width(0, ((g, 1),)) for g in range(3)]
    groups = tuple(Group(f"g{g}", 32, ()) for g in range(3))
    ops = [conv("a", -1, widths[0], widths[1], 8)]
    two = PruningGraph("f", groups, tuple(ops), ((1, 3, 8, 8),))
    ops += [conv(f"c{n}", n, widths[n % 3], widths[(n + 1) % 3], 8) for n in range(40)]
    many = PruningGraph("f", groups, tuple(ops), ((1, 3, 8, 8),))
    levels, level_count = keep_levels(two)
    assert operator_specs(many, levels, level_count) == operator_specs(two, levels, level_count)


def test_points_reach_from_least_to_full_and_only_where_plans_go() -> None:
    graph = residual_graph()
    levels, level_count = keep_levels(graph)
    specs = operator_specs(graph, levels, level_count)
    assert specs[0] == OVERHEAD and len(set(specs)) == len(specs)
    convs = [s for s in specs if s.kind == "conv" and s.in_width > 3]
    assert {s.in_width for s in convs} >= {8, 64} and {s.out_width for s in convs} >= {8, 64}
    assert all(s.in_width % 8 == 0 and s.out_width % 8 == 0 for s in convs)
    pads = [s for s in specs if s.kind == "pad"]
    assert {(8, 16), (32, 64)} <= {(s.in_width, s.out_width) for s in pads}
    for spec in specs[1:]:
        assert spec.kind in {op.kind for op in graph.operators}
        assert form(spec).in_width == 0


def test_tied_widths_are_measured_together() -> None:
    """An addition's out-width is its in-width: a grid of both would measure what cannot be."""
    graph = residual_graph()
    specs = operator_specs(graph, *keep_levels(graph))
    assert all(s.in_width == s.out_width for s in specs if s.kind in ("add", "activation"))


def test_calibration_plans_begin_with_base_and_least_and_stay_on_levels() -> None:
    graph = residual_graph()
    levels, level_count = keep_levels(graph)
    plans = calibration_keeps(graph, levels, level_count, count=12)
    assert plans.shape == (12, 4)
    np.testing.assert_array_equal(plans[0], graph.widths)
    np.testing.assert_array_equal(plans[1], levels[:, 0])
    assert len({tuple(plan) for plan in plans.tolist()}) == 12
    for group in range(4):
        assert set(plans[:, group].tolist()) <= set(levels[group].tolist())


def test_longer_calibration_begins_with_the_shorter() -> None:
    graph = residual_graph()
    short, long = (calibration_keeps(graph, *keep_levels(graph), count=n) for n in (6, 14))
    np.testing.assert_array_equal(short, long[:6])
    other = calibration_keeps(graph, *keep_levels(graph), count=14, seed=1)
    assert not np.array_equal(long, other)


def test_few_plans_are_all_that_a_small_graph_has() -> None:
    width = Width(0, ((0, 1),))
    graph = PruningGraph("f", (Group("g", 16, ()),), (conv("c", -1, Width(3), width, 8),), ())
    assert len(calibration_keeps(graph, *keep_levels(graph), count=11)) == 2


def test_an_operators_key_is_canonical() -> None:
    spec = SPECS[0][0]
    assert OperatorSpec.from_key(spec.key()) == spec
    for damaged in ("", "{}", '{"kind": "conv"}', "[1]"):
        with pytest.raises(InputError):
            OperatorSpec.from_key(damaged)
