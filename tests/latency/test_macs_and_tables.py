"""Tables say exactly what the operators cost, for any graph; MACs are exact."""

from __future__ import annotations

import numpy as np
from hand_graphs import residual_graph
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import channel_space

from rlprune.graph.types import FloatArray, Group, IntArray, Operator, PruningGraph, Width
from rlprune.latency.macs import macs_tables
from rlprune.latency.tables import LatencyTables
from rlprune.latency.types import MACS_DEVICE
from rlprune.schemes import Form, Space


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


def choices(space: Space, seed: int, count: int = 8) -> IntArray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, space.option_count, (count, len(space.sites)))


def odd_cost(form: Form, in_width: IntArray, out_width: IntArray) -> FloatArray:
    """Nothing smooth or symmetric, so that a swapped index shows."""
    name = sum(map(ord, form.operator.name + form.operator.variant))
    return np.sin(in_width[:, None] * 1.7 + name) + np.cos(out_width[None, :] * 0.3) + 3.0


@settings(max_examples=60, deadline=None)
@given(graph=graphs(), round_to=st.sampled_from([1, 3, 8]), seed=st.integers(0, 999))
def test_latency_is_the_sum_of_the_operators_costs(
    graph: PruningGraph, round_to: int, seed: int
) -> None:
    space = channel_space(graph, round_to=round_to)
    tables = LatencyTables.compile("d", space, odd_cost, overhead_ms=0.5)
    choice = choices(space, seed)
    expected = np.full(len(choice), 0.5)
    for index, op in enumerate(graph.operators):
        for row, plan in enumerate(space.settings_at(choice)):
            ins, outs = op.in_width.at(plan[None]), op.out_width.at(plan[None])
            expected[row] += odd_cost(Form(index, op), ins, outs)[0, 0]
    np.testing.assert_allclose(tables.latency_ms(choice), expected)


@settings(max_examples=40, deadline=None)
@given(graph=graphs(), seed=st.integers(0, 999))
def test_macs_tables_are_exact(graph: PruningGraph, seed: int) -> None:
    space = channel_space(graph)
    choice = choices(space, seed)
    macs = graph.macs(space.settings_at(choice))
    np.testing.assert_allclose(macs_tables(space).latency_ms(choice), macs / 1e6, rtol=1e-12)


@settings(max_examples=40, deadline=None)
@given(graph=graphs(), seed=st.integers(0, 999))
def test_condensed_tables_are_the_same_sum(graph: PruningGraph, seed: int) -> None:
    space = channel_space(graph, round_to=1)
    tables = LatencyTables.compile("d", space, odd_cost, overhead_ms=0.5)
    choice = choices(space, seed)
    whole = tables.operator_ms(choice).sum(-1) + 0.5
    np.testing.assert_allclose(tables.latency_ms(choice), whole, rtol=1e-13)
    assert len(tables.condensed.start) <= len(graph.operators)


def test_operators_of_the_same_totals_are_added_up_once() -> None:
    graph = residual_graph()
    space = channel_space(graph, round_to=1)
    tables = LatencyTables.compile("d", space, odd_cost, overhead_ms=0.5)
    choice = choices(space, seed=0)
    whole = tables.operator_ms(choice).sum(-1) + 0.5
    np.testing.assert_allclose(tables.latency_ms(choice), whole, rtol=1e-14)
    assert len(tables.operators.start) == len(graph.operators)
    # One for every two widths that an operator hangs on: 0 and 1, 0 and 3, 3 and both, 0 and both.
    assert len(tables.condensed.start) == 4


def test_macs_are_a_device_without_doubt() -> None:
    space = channel_space(residual_graph())
    tables = macs_tables(space)
    assert tables.device == MACS_DEVICE and tables.overhead_ms == 0.0
    whole = space.unpruned[None]
    np.testing.assert_array_equal(tables.upper_ms(whole), tables.latency_ms(whole))
