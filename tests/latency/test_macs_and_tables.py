"""Tables say exactly what the operators cost, for any graph; MACs are exact."""

from __future__ import annotations

import numpy as np
from hand_graphs import residual_graph
from hypothesis import given, settings
from hypothesis import strategies as st

from rlprune.graph.types import FloatArray, Group, IntArray, Operator, PruningGraph, Width
from rlprune.latency.macs import macs_tables
from rlprune.latency.tables import LatencyTables
from rlprune.latency.types import MACS_DEVICE
from rlprune.sensitivity.types import keep_levels


@st.composite
def graphs(draw: st.DrawFn) -> PruningGraph:
    """Any operators over any sums of groups, repeats and constants included."""
    group_count = draw(st.integers(1, 5))
    groups = tuple(Group(f"g{g}", draw(st.integers(1, 70)), ()) for g in range(group_count))

    def width() -> Width:
        chosen = draw(st.lists(st.integers(0, group_count - 1), max_size=3, unique=True))
        terms = tuple((g, draw(st.integers(1, 4))) for g in sorted(chosen))
        return Width(draw(st.integers(0 if terms else 1, 20)), terms)

    kinds = st.sampled_from(["conv", "depthwise_conv", "linear", "add", "pad", "conv_transpose"])
    ops = tuple(
        Operator(f"o{n}", draw(kinds), "", (n - 1,), width(), width(), (4, 4), (2, 3), (3, 3))
        for n in range(draw(st.integers(1, 6)))
    )
    return PruningGraph("f" * 64, groups, ops, ((1, 3, 4, 4),))


def plans(levels: IntArray, level_count: IntArray, seed: int, count: int = 8) -> IntArray:
    choice = np.random.default_rng(seed).integers(0, level_count, (count, len(level_count)))
    return levels[np.arange(len(level_count)), choice]


def odd_cost(op: Operator, in_width: IntArray, out_width: IntArray) -> FloatArray:
    """Nothing smooth or symmetric, so that a swapped index shows."""
    name = sum(map(ord, op.name))
    return np.sin(in_width[:, None] * 1.7 + name) + np.cos(out_width[None, :] * 0.3) + 3.0


@settings(max_examples=60, deadline=None)
@given(graph=graphs(), round_to=st.sampled_from([1, 3, 8]), seed=st.integers(0, 999))
def test_latency_is_the_sum_of_the_operators_costs(
    graph: PruningGraph, round_to: int, seed: int
) -> None:
    levels, level_count = keep_levels(graph, round_to=round_to)
    tables = LatencyTables.compile("d", graph, levels, level_count, odd_cost, overhead_ms=0.5)
    keeps = plans(levels, level_count, seed)
    expected = np.full(len(keeps), 0.5)
    for op in graph.operators:
        for row, plan in enumerate(keeps):
            ins, outs = op.in_width.at(plan[None]), op.out_width.at(plan[None])
            expected[row] += odd_cost(op, ins, outs)[0, 0]
    np.testing.assert_allclose(tables.latency_ms(keeps), expected)


@settings(max_examples=40, deadline=None)
@given(graph=graphs(), round_to=st.sampled_from([1, 8]), seed=st.integers(0, 999))
def test_a_groups_differences_are_those_of_whole_plans(
    graph: PruningGraph, round_to: int, seed: int
) -> None:
    levels, level_count = keep_levels(graph, round_to=round_to)
    tables = LatencyTables.compile("d", graph, levels, level_count, odd_cost)
    keeps = plans(levels, level_count, seed)
    for group in range(len(graph.groups)):
        changed = np.repeat(keeps[:, None, :], levels.shape[1], axis=1)  # [B, L, G]
        changed[:, :, group] = levels[group]
        whole = tables.latency_ms(changed.reshape(-1, keeps.shape[1])).reshape(len(keeps), -1)
        partial = tables.group_ms(keeps, group)
        np.testing.assert_allclose(partial - partial[:, :1], whole - whole[:, :1], atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(graph=graphs(), seed=st.integers(0, 999))
def test_macs_tables_are_exact(graph: PruningGraph, seed: int) -> None:
    levels, level_count = keep_levels(graph)
    tables = macs_tables(graph, levels, level_count)
    keeps = plans(levels, level_count, seed)
    np.testing.assert_allclose(tables.latency_ms(keeps), graph.macs(keeps) / 1e6, rtol=1e-12)


def test_operators_of_the_same_totals_are_added_up_once() -> None:
    graph = residual_graph()
    levels, level_count = keep_levels(graph, round_to=1)
    tables = LatencyTables.compile("d", graph, levels, level_count, odd_cost, overhead_ms=0.5)
    keeps = plans(levels, level_count, seed=0)
    whole = tables.operator_ms(keeps).sum(-1) + 0.5
    np.testing.assert_allclose(tables.latency_ms(keeps), whole, rtol=1e-14)
    assert len(tables.condensed.offset) < len(graph.operators)
    twice = tables.condensed.condensed
    np.testing.assert_array_equal(twice.flat_ms, tables.condensed.flat_ms)


def test_macs_are_a_device_without_doubt() -> None:
    graph = residual_graph()
    tables = macs_tables(graph, *keep_levels(graph))
    assert tables.device == MACS_DEVICE and tables.overhead_ms == 0.0
    np.testing.assert_array_equal(
        tables.upper_ms(graph.widths[None]), tables.latency_ms(graph.widths[None])
    )
