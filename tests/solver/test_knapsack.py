"""What the latency knapsack promises: within budget always, optimal where that can be checked."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import chain_graph, channel_space, random_task, resnet_like, task_of

from rlprune.graph.types import FloatArray, Group, IntArray, Operator, PruningGraph, Width
from rlprune.latency.macs import macs_tables
from rlprune.latency.tables import LatencyTables
from rlprune.schemes import Space
from rlprune.sensitivity.types import GroupProfiles
from rlprune.solver.costs import MoveCosts
from rlprune.solver.knapsack import least_choice, solve
from rlprune.solver.separable import Programme, greedy
from rlprune.solver.task import PruningTask


def summed_loss(task: PruningTask, choice: IntArray) -> FloatArray:
    return np.asarray(task.curve[np.arange(task.site_count), choice].sum(-1))


def budgets(task: PruningTask, positions: FloatArray) -> FloatArray:
    least, base = task.tables.upper_ms(np.stack([least_choice(task), task.space.unpruned]))
    return least + positions * (base - least)


def all_plans(task: PruningTask) -> IntArray:
    return np.array(list(itertools.product(*map(range, task.option_count))))


def best_losses(task: PruningTask, budget_ms: FloatArray) -> FloatArray:
    """Exact, by trying every plan."""
    plans = all_plans(task)
    latency, loss = task.tables.upper_ms(plans), summed_loss(task, plans)
    return np.array([loss[latency <= budget].min() for budget in budget_ms])


def worst_loss(task: PruningTask) -> float:
    return float(task.curve[:, 0].sum())


def test_move_costs_are_the_tables() -> None:
    for seed in range(20):
        task = random_task(seed, group_count=7, noise=0.3)
        costs = MoveCosts.of(task.tables)
        rng = np.random.default_rng(seed)
        choice = rng.integers(0, task.option_count, (5, task.site_count))
        latency, moves = costs.moves_ms(choice)
        assert np.array_equal(latency, task.tables.latency_ms(choice))
        for site in range(task.site_count):
            assert np.allclose(costs.site_moves_ms(choice, site)[1], moves[:, site])
            for option in range(int(task.option_count[site])):
                moved = choice.copy()
                moved[:, site] = option
                gain = task.tables.latency_ms(moved) - latency
                assert np.allclose(gain, moves[:, site, option], atol=1e-12)


def test_programme_is_the_exact_knapsack_where_costs_are_whole_steps() -> None:
    rng = np.random.default_rng(0)
    cost = rng.integers(0, 60, (4, 5, 4)).astype(float)
    cost -= cost.min(-1, keepdims=True)
    loss = rng.random((4, 5, 4))
    programme = Programme.solve(cost, loss, np.full(4, 128.0))  # two steps to the unit
    plans = np.array(list(itertools.product(range(4), repeat=5)))
    for row in range(4):
        costs = cost[row, np.arange(5), plans].sum(1)
        best = loss[row, np.arange(5), plans].sum(1)[costs <= 128].min()
        assert programme.value[0][row, 256] == pytest.approx(best)
        plan = programme.plans()[row, 8]  # at exactly the capacity
        assert cost[row, np.arange(5), plan].sum() <= 128
        assert loss[row, np.arange(5), plan].sum() == pytest.approx(best)


def test_programme_answers_alike_for_few_and_many_rows() -> None:
    rng = np.random.default_rng(1)
    cost, loss = rng.random((20, 6, 5)), rng.random((20, 6, 5))
    many = Programme.solve(cost, loss, np.full(20, 2.5))
    for row in range(20):
        one = Programme.solve(cost[row : row + 1], loss[row : row + 1], np.array([2.5]))
        assert np.array_equal(one.choice[:, 0], many.choice[:, row])
        assert np.array_equal(one.value[:, 0], many.value[:, row])


def test_greedy_is_within_capacity_and_never_above_the_cheapest_plans_loss() -> None:
    rng = np.random.default_rng(2)
    cost, loss = rng.random((50, 8, 6)), rng.random((50, 8, 6))
    capacity = cost.min(-1).sum(-1) * rng.uniform(1.0, 3.0, 50)
    choice = greedy(cost, loss, capacity)[..., None]
    cheapest = np.take_along_axis(loss, cost.argmin(-1)[..., None], 2).sum((1, 2))
    assert (np.take_along_axis(cost, choice, 2).sum((1, 2)) <= capacity + 1e-9).all()
    assert (np.take_along_axis(loss, choice, 2).sum((1, 2)) <= cheapest + 1e-9).all()


@pytest.mark.parametrize(
    ("noise", "mean_gap", "greatest_gap"), [(0.0, 5e-4, 0.06), (0.2, 2e-3, 0.15)]
)
def test_close_to_brute_force_on_small_graphs(
    noise: float, mean_gap: float, greatest_gap: float
) -> None:
    gaps = []
    for seed in range(60):
        task = random_task(seed, group_count=5, max_levels=5, noise=noise)
        budget_ms = budgets(task, np.linspace(0.0, 1.0, 6))
        gap = summed_loss(task, solve(task, budget_ms)) - best_losses(task, budget_ms)
        gaps.append(gap / worst_loss(task))
    assert np.min(gaps) >= -1e-9
    assert np.mean(gaps) < mean_gap
    assert np.max(gaps) < greatest_gap
    assert np.mean(np.array(gaps) < 1e-6) > 0.95


def separable_task(seed: int) -> PruningTask:
    """Every operator reads a fixed width, so costs add up exactly."""
    rng = np.random.default_rng(seed)
    widths = rng.integers(16, 65, 5)
    groups = tuple(Group(f"g{i}", int(w), ()) for i, w in enumerate(widths))
    operators = tuple(
        Operator(
            f"c{i}", "conv", "", (-1,), Width(int(rng.integers(1, 9))), Width(0, ((i, 1),)),
            (8, 8), (8, 8), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1),
        )
        for i in range(5)
    )  # fmt: skip
    graph = PruningGraph(f"separable-{seed}", groups, operators, ((1, 3, 8, 8),))
    space = channel_space(graph)
    loss = np.sort(rng.random((1, *space.settings.shape)), axis=-1)[..., ::-1].copy()
    loss[:, space.shares == 1.0] = 0.0
    profiles = GroupProfiles(graph.fingerprint, space.settings, space.option_count, None, loss)
    return PruningTask(space, macs_tables(space), profiles)


def test_equals_brute_force_where_costs_are_separable() -> None:
    for seed in range(15):
        task = separable_task(seed)
        budget_ms = budgets(task, np.linspace(0.02, 1.0, 9))
        found = summed_loss(task, solve(task, budget_ms))
        assert found == pytest.approx(best_losses(task, budget_ms), rel=1e-5, abs=1e-9)


def chain_optimum(task: PruningTask, budget_mmacs: float, unit: int) -> float:
    """Exact dynamic programme over (last group's level, MACs spent) of a chain."""
    curve = task.curve
    limit = int(budget_mmacs * 1e6 + 1e-3) // unit
    operators = task.graph.operators
    first = operators[0]
    table: dict[tuple[int, int], float] = {}
    for level in range(int(task.option_count[0])):
        keep = task.space.settings[0, level]
        spent = int(first.macs_at(np.int64(3), keep)) // unit
        table[level, spent] = float(curve[0, level])
    for group in range(1, task.site_count):
        grown: dict[tuple[int, int], float] = {}
        for (before, spent), loss in table.items():
            for level in range(int(task.option_count[group])):
                macs = operators[group].macs_at(
                    task.space.settings[group - 1, before], task.space.settings[group, level]
                )
                key = (level, spent + int(macs) // unit)
                if key[1] <= limit:
                    value = loss + float(curve[group, level])
                    grown[key] = min(grown.get(key, np.inf), value)
        table = grown
    head = operators[-1]
    ends = [
        loss
        for (level, spent), loss in table.items()
        if spent + int(head.macs_at(task.space.settings[-1, level], np.int64(10))) // unit <= limit
    ]
    return min(ends)


def test_equals_the_exact_programme_on_most_chains() -> None:
    gaps = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        graph = chain_graph([int(w) * 8 for w in rng.integers(2, 6, 7)], side=8)
        task = task_of(graph, seed=seed)
        task = PruningTask(task.space, macs_tables(task.space), task.profiles)
        budget_ms = budgets(task, np.array([0.2, 0.5, 0.8]))
        exact = [chain_optimum(task, float(budget), 80) for budget in budget_ms]
        gaps.append((summed_loss(task, solve(task, budget_ms)) - exact) / worst_loss(task))
    assert np.min(gaps) >= -1e-9
    assert np.mean(np.array(gaps) < 1e-6) > 0.9
    assert np.max(gaps) < 0.025


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    groups=st.integers(1, 9),
    noise=st.sampled_from([0.0, 0.1, 0.5]),
    positions=st.lists(st.floats(0.0, 1.2), min_size=1, max_size=4),
)
def test_always_within_a_budget_that_the_least_plan_meets(
    seed: int, groups: int, noise: float, positions: list[float]
) -> None:
    task = random_task(seed, group_count=groups, noise=noise)
    budget_ms = budgets(task, np.array(positions))
    choice = solve(task, budget_ms)
    assert (task.tables.upper_ms(choice) <= budget_ms).all()
    assert ((choice >= 0) & (choice < task.option_count)).all()


def test_budget_below_the_least_gives_the_least_plan() -> None:
    task = random_task(3)
    choice = solve(task, budgets(task, np.array([-0.5, 0.5])))
    assert np.array_equal(choice[0], least_choice(task))
    assert not np.array_equal(choice[1], least_choice(task))


def test_budget_of_the_whole_model_keeps_everything() -> None:
    task = random_task(4)
    assert np.array_equal(solve(task, budgets(task, np.array([1.001])))[0], task.space.unpruned)


def test_levels_that_lose_nothing_are_kept_as_far_as_the_budget_goes() -> None:
    task = random_task(5)
    flat = np.zeros(task.shares.shape)
    choice = solve(task, budgets(task, np.array([1.001])), loss=flat)
    assert np.array_equal(choice[0], task.space.unpruned)


def test_least_is_the_cheapest_of_all_plans_on_monotone_tables() -> None:
    for seed in range(10):
        task = random_task(seed, group_count=4, max_levels=4)
        latency = task.tables.upper_ms(all_plans(task))
        assert task.tables.upper_ms(least_choice(task)[None])[0] == pytest.approx(latency.min())


def test_least_is_near_the_cheapest_where_fewer_channels_may_cost_more() -> None:
    ratios = []
    for seed in range(40):
        task = random_task(seed, group_count=4, max_levels=4, noise=0.3)
        latency = task.tables.upper_ms(all_plans(task))
        ratios.append(task.tables.upper_ms(least_choice(task)[None])[0] / latency.min())
    assert np.mean(ratios) < 1.01
    assert np.max(ratios) < 1.1


def test_more_budget_never_loses_much_more() -> None:
    task = task_of(resnet_like((3, 3, 3)), seed=1, noise=0.05)
    loss = summed_loss(task, solve(task, budgets(task, np.linspace(0.0, 1.0, 40))))
    backward = np.maximum(np.diff(loss), 0.0)
    assert backward.max() < 0.01 * worst_loss(task)
    assert backward.sum() < 0.02 * worst_loss(task)


def test_a_rows_answer_does_not_depend_on_its_batch() -> None:
    task = task_of(resnet_like((2, 2, 2)), seed=2, noise=0.1)
    budget_ms = budgets(task, np.linspace(0.1, 0.9, 12))
    together = solve(task, budget_ms)
    apart = [solve(task, budget_ms[row : row + 1])[0] for row in range(12)]
    assert np.array_equal(together, np.array(apart))


def test_rows_may_bring_their_own_curves() -> None:
    task = random_task(6)
    curve = task.curve
    budget_ms = budgets(task, np.full(2, 0.4))
    steep = curve.copy()
    steep[0] *= 100.0
    both = solve(task, budget_ms, loss=np.stack([curve, steep]))
    assert np.array_equal(both[0], solve(task, budget_ms[:1])[0])
    assert both[1, 0] >= both[0, 0]


def lossless(space: Space, tables: LatencyTables) -> PruningTask:
    profiles = GroupProfiles(space.graph.fingerprint, space.settings, space.option_count, None)
    return PruningTask(space, tables, profiles)


def test_groups_without_operators_and_graphs_without_groups_are_solved() -> None:
    none = channel_space(PruningGraph("none", (), (), ((1, 3, 8, 8),)))
    empty = lossless(none, LatencyTables.compile("x", none, lambda *_: np.zeros((1, 1))))
    assert solve(empty, np.array([1.0, 2.0])).shape == (2, 0)
    assert least_choice(empty).shape == (0,)

    lonely = channel_space(PruningGraph("lonely", (Group("g", 16, ()),), (), ((1, 3, 8, 8),)))
    tables = LatencyTables.compile("x", lonely, lambda *_: np.zeros((1, 1)), overhead_ms=1.0)
    found = solve(lossless(lonely, tables), np.array([1.0]))
    assert lonely.settings_at(found)[0, 0] == 16
