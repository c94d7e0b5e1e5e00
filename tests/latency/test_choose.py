"""Which operators and plans get measured."""

from __future__ import annotations

import numpy as np
from hand_graphs import conv, law_ms, operator_measurement, residual_graph
from synthetic import channel_space

from rlprune.graph.types import Group, PruningGraph, Width
from rlprune.latency.choose import calibration_plans, operator_grid, operator_specs
from rlprune.latency.costs import OperatorCosts
from rlprune.latency.model import LatencyModel
from rlprune.latency.operators import OVERHEAD, form
from rlprune.latency.types import OperatorSpec

NOTHING = OperatorCosts.fit([])


def test_the_call_overhead_comes_first_and_far_fewer_than_the_grid_are_asked_for() -> None:
    graph = residual_graph()
    space = channel_space(graph)
    chosen = operator_specs(space, NOTHING)
    assert chosen[0] == OVERHEAD and len(set(chosen)) == len(chosen)
    grid = operator_grid(space)
    assert set(chosen[1:]) <= set(grid)
    assert len(chosen) < 0.5 * len(grid)


def test_what_plans_spend_their_time_on_is_looked_at_most() -> None:
    graph = residual_graph()
    chosen = operator_specs(channel_space(graph), NOTHING)
    kinds = [spec.kind for spec in chosen[1:]]
    assert kinds[0] == "conv"
    assert kinds.count("conv") > len(kinds) / 2


def test_asking_again_settles_and_what_failed_counts_as_tried() -> None:
    graph = residual_graph()
    space = channel_space(graph)
    measured: set[OperatorSpec] = set()
    costs, rounds = NOTHING, []
    while len(rounds) < 6 and (asked := operator_specs(space, costs, measured)):
        assert not measured & set(asked)
        measured |= set(asked)
        rounds.append(len(asked))
        tried = [operator_measurement(spec, law_ms(spec) + 0.01) for spec in sorted(measured)]
        costs = LatencyModel.fit(tried[0].device, tried, {}).costs
    assert operator_specs(space, costs, measured) == []
    assert rounds[0] == max(rounds)


def test_points_of_another_graph_spare_measuring_again() -> None:
    small, large = residual_graph(), residual_graph(fingerprint="s" * 64)
    first = operator_specs(channel_space(small), NOTHING)
    assert operator_specs(channel_space(large), NOTHING, frozenset(first)) == []


def test_operators_of_one_form_share_their_points() -> None:
    """Forty equal convolutions ask for no more than one."""
    widths = [Width(0, ((g, 1),)) for g in range(3)]
    groups = tuple(Group(f"g{g}", 32, ()) for g in range(3))
    ops = [conv("a", -1, widths[0], widths[1], 8)]
    two = PruningGraph("f", groups, tuple(ops), ((1, 3, 8, 8),))
    ops += [conv(f"c{n}", n, widths[n % 3], widths[(n + 1) % 3], 8) for n in range(40)]
    many = PruningGraph("f", groups, tuple(ops), ((1, 3, 8, 8),))
    assert operator_grid(channel_space(many)) == operator_grid(channel_space(two))


def test_points_reach_from_least_to_full_and_only_where_plans_go() -> None:
    graph = residual_graph()
    specs = operator_grid(channel_space(graph))
    assert len(set(specs)) == len(specs)
    convs = [s for s in specs if s.kind == "conv" and s.in_width > 3]
    assert {s.in_width for s in convs} >= {8, 64} and {s.out_width for s in convs} >= {8, 64}
    assert all(s.in_width % 8 == 0 and s.out_width % 8 == 0 for s in convs)
    pads = [s for s in specs if s.kind == "pad"]
    assert {(8, 16), (32, 64)} <= {(s.in_width, s.out_width) for s in pads}
    for spec in specs:
        assert spec.kind in {op.kind for op in graph.operators}
        assert form(spec).in_width == 0


def test_tied_widths_are_measured_together() -> None:
    """An addition's out-width is its in-width: a grid of both would measure what cannot be."""
    graph = residual_graph()
    specs = operator_grid(channel_space(graph))
    assert all(s.in_width == s.out_width for s in specs if s.kind in ("add", "activation"))


def test_calibration_plans_begin_with_base_and_least_and_stay_on_levels() -> None:
    graph = residual_graph()
    levels = channel_space(graph).settings
    plans = calibration_plans(channel_space(graph), count=12)
    assert plans.shape == (12, 4)
    np.testing.assert_array_equal(plans[0], graph.widths)
    np.testing.assert_array_equal(plans[1], levels[:, 0])
    assert len({tuple(plan) for plan in plans.tolist()}) == 12
    for group in range(4):
        assert set(plans[:, group].tolist()) <= set(levels[group].tolist())


def test_longer_calibration_begins_with_the_shorter() -> None:
    graph = residual_graph()
    short, long = (calibration_plans(channel_space(graph), count=n) for n in (6, 14))
    np.testing.assert_array_equal(short, long[:6])
    other = calibration_plans(channel_space(graph), count=14, seed=1)
    assert not np.array_equal(long, other)


def test_few_plans_are_all_that_a_small_graph_has() -> None:
    width = Width(0, ((0, 1),))
    graph = PruningGraph("f", (Group("g", 16, ()),), (conv("c", -1, Width(3), width, 8),), ())
    assert len(calibration_plans(channel_space(graph), count=11)) == 2
    fixed = PruningGraph("f", (), (conv("c", -1, Width(3), Width(16), 8),), ())
    assert calibration_plans(channel_space(fixed), count=11).shape == (1, 0)
