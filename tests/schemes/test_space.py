"""A space says what may be decided; options' indices and their values are two words for it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest
from synthetic import channel_space, random_graph, resnet_like
from toy_forms import KERNEL, TINT

from rlprune.constraints import Constraints, bind
from rlprune.errors import InputError
from rlprune.graph.types import FloatArray, IntArray
from rlprune.latency.tables import LatencyTables
from rlprune.schemes import (
    Form,
    Space,
    registry,
    scheme_named,
    space_of,
    space_with,
    variants,
    whole_space,
)
from rlprune.schemes.channels import keep_levels
from rlprune.solver.costs import MoveCosts

ALL = ("channel", "kernel", "tint")


@pytest.fixture
def space(monkeypatch: pytest.MonkeyPatch) -> Iterator[Space]:
    """Four groups, two kernels, and a site that changes two operators, one of them of a kernel."""
    monkeypatch.setattr(registry, "_OWN", (*registry._OWN, KERNEL, TINT))
    scheme_named.cache_clear()
    graph = resnet_like((1, 1), width=32)
    yield space_of(graph, bind(graph, Constraints(round_to=16), round_to=1), ALL)
    scheme_named.cache_clear()


def some(space: Space, count: int = 60, seed: int = 0) -> IntArray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, space.option_count, (count, len(space.sites)))


def cost(form: Form, in_width: IntArray, out_width: IntArray) -> FloatArray:
    """Nothing smooth or symmetric, and another for every form."""
    op = form.operator
    name = sum(map(ord, op.name + op.variant)) + 10 * sum(op.kernel)
    return np.sin(in_width[:, None] * 1.7 + name) + np.cos(out_width[None, :] * 0.3 + name) + 3.0


def test_values_of_options_are_of_these_options() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        space = channel_space(random_graph(rng, 6), round_to=int(rng.integers(1, 9)))
        choice = some(space, seed=seed)
        assert np.array_equal(space.choice_of(space.settings_at(choice)), choice)
        assert np.array_equal(space.settings_at(space.unpruned), space.graph.widths)


def test_so_are_those_of_schemes_whose_values_are_in_no_order(space: Space) -> None:
    choice = some(space)
    assert [site.scheme for site in space.sites] == [*["channel"] * 4, "kernel", "kernel", "tint"]
    assert space.schemes == ALL and space.group_count == 4
    assert space.ordered.tolist() == [*[True] * 6, False]
    assert np.array_equal(space.choice_of(space.settings_at(choice)), choice)
    assert space.settings_at(space.unpruned).tolist() == [*space.graph.widths, 3, 3, 7]


def test_options_chosen_elsewhere_make_the_same_space(space: Space) -> None:
    again = space_with(space.graph, space.settings, space.option_count, ALL)
    assert again == space
    assert set(space.sites[4].values) == set(whole_space(space.graph, ALL).sites[4].values)
    for place, value in ((4, 2), (6, 5)):  # no such kernel; the last leaves it as it is
        wrong = space.settings.copy()
        wrong[place, space.option_count[place] - 1] = value
        with pytest.raises(InputError, match="has no options"):
            space_with(space.graph, wrong, space.option_count, ALL)
    with pytest.raises(InputError, match="options of 4 sites, the model has 7"):
        space_with(space.graph, *keep_levels(space.graph), ALL)


def test_a_held_site_has_nothing_to_decide(space: Space) -> None:
    stated = Constraints(round_to=16, hold=("s0b0.conv1",))
    held = space_of(space.graph, bind(space.graph, stated, round_to=1), ALL)
    assert (held.option_count == 1).tolist() == [False, True, False, False, True, False, False]
    assert len(list(held.forms_of(1))) == 1


def test_counts_are_those_of_the_graph_that_a_choice_makes(space: Space) -> None:
    choice = some(space)
    keeps = space.settings_at(choice)[:, : space.group_count]
    graphs = [space.variant(one) for one in choice]
    macs = [int(graph.macs(own)) for graph, own in zip(graphs, keeps, strict=True)]
    params = [int(graph.params(own)) for graph, own in zip(graphs, keeps, strict=True)]
    assert space.macs(choice).tolist() == macs
    assert space.params(choice).tolist() == params
    whole = space.unpruned
    assert space.variant(whole) == space.graph
    smaller = whole.copy()
    smaller[4] = 0
    assert space.macs(smaller) < space.macs(whole) and space.params(smaller) < space.params(whole)


def test_plans_are_of_the_graphs_that_their_settings_make(space: Space) -> None:
    choice = some(space)
    found = variants(space.graph, space.settings_at(choice), ALL)
    places = np.concatenate([own for _, own in found])
    assert sorted(places.tolist()) == list(range(len(choice)))
    assert all(graph == space.variant(choice[at]) for graph, own in found for at in own)


def test_tables_are_the_sum_of_the_forms_that_are_chosen(space: Space) -> None:
    """Also of an operator that two sites decide on, and of two operators that one site does."""
    assert space.form_sites == {1: (4,), 2: (5, 6), 4: (6,)}
    assert [len(space.forms_of(index)) for index in (0, 1, 2, 4)] == [1, 2, 6, 3]
    tables = LatencyTables.compile("d", space, cost, overhead_ms=0.5)
    choice = some(space, 200)
    expected = np.zeros((len(choice), len(space.graph.operators)))
    for row, one in enumerate(choice):
        keeps = space.settings_at(one)[None, : space.group_count]
        for index, op in enumerate(space.variant(one).operators):
            own = cost(Form(index, op), op.in_width.at(keeps), op.out_width.at(keeps))
            expected[row, index] = own[0, 0]
    np.testing.assert_allclose(tables.operator_ms(choice), expected, rtol=1e-12)
    np.testing.assert_allclose(tables.latency_ms(choice), expected.sum(1) + 0.5, rtol=1e-12)
    assert len(tables.condensed.start) < len(tables.operators.start)


def test_moves_of_one_site_and_of_two_cost_what_the_tables_say(space: Space) -> None:
    tables = LatencyTables.compile("d", space, cost)
    costs, choice = MoveCosts.of(tables), some(space, 5)
    latency, moves = costs.moves_ms(choice)

    def gain(*moved: tuple[int, int]) -> FloatArray:
        other = choice.copy()
        for site, option in moved:
            other[:, site] = option
        return tables.latency_ms(other) - latency

    assert np.allclose(latency, tables.latency_ms(choice))
    for site, count in enumerate(space.option_count.tolist()):
        assert np.allclose(costs.site_moves_ms(choice, site)[1], moves[:, site])
        for option in range(count):
            assert np.allclose(moves[:, site, option], gain((site, option)), atol=1e-12)
    both = costs.edge_moves_ms(choice, moves)
    assert (costs.edges == [5, 6]).all(1).any(), "two sites of one operator are an edge"
    for edge, (left, right) in enumerate(costs.edges.tolist()):
        for one, two in product(range(space.option_count[left]), range(space.option_count[right])):
            expected = gain((left, one), (right, two))
            assert np.allclose(both[:, edge, one, two], expected, atol=1e-12)


def test_sites_taken_together_cost_what_they_do_apart(space: Space) -> None:
    tables = LatencyTables.compile("d", space, cost)
    place = np.array([0, 1, 2, 3, 4, 4, 5])  # both kernels at once
    merged = tables.merged(place, space.option_count[[0, 1, 2, 3, 4, 6]])
    choice = np.random.default_rng(1).integers(0, merged.option_count, (50, 6))
    np.testing.assert_array_equal(merged.latency_ms(choice), tables.latency_ms(choice[:, place]))
    np.testing.assert_array_equal(merged.operator_ms(choice), tables.operator_ms(choice[:, place]))
    assert merged.base_ms == tables.base_ms
