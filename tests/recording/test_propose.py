"""Which plans are proposed: new ones, by what is known, on every device, and where policies go."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from synthetic import evaluations_of, random_tables, random_task, resnet_like, task_of

from rlprune.graph.types import FloatArray, IntArray
from rlprune.policy import get_policy
from rlprune.recording import propose
from rlprune.recording.evaluations import Evaluations
from rlprune.recording.propose import MIX, PlanProposer, Proposal
from rlprune.solver.task import PruningTask


@pytest.fixture(scope="module")
def task() -> PruningTask:
    return task_of(resnet_like((2, 2, 2)), seed=3)


def nothing(task: PruningTask) -> Evaluations:
    return Evaluations.none(task.site_count, 0.3, {})


def by_source(proposals: list[Proposal], source: str) -> list[Proposal]:
    return [proposal for proposal in proposals if proposal.source == source]


def test_proposals_are_new_and_run_out() -> None:
    task = random_task(0)
    possible = int(np.prod(task.option_count)) - 1
    count = min(possible, 150) + 10
    known = nothing(task)
    found = PlanProposer([task], known).propose(count, np.random.default_rng(0))
    plans = {tuple(proposal.keeps) for proposal in found}
    assert 0 < len(plans) == len(found) <= possible
    assert tuple(task.graph.widths) not in plans
    keeps = np.array(sorted(plans))
    known = evaluations_of(keeps, np.ones(len(keeps)))
    again = PlanProposer([task], known).propose(20, np.random.default_rng(0))
    assert not plans & {tuple(proposal.keeps) for proposal in again}


def test_every_source_has_its_share_and_the_policys_falls_to_the_others(task: PruningTask) -> None:
    rng = np.random.default_rng(0)
    with_policy = PlanProposer([task], nothing(task), get_policy("learned")).propose(100, rng)
    name = f"policy:{get_policy('learned').name}"
    assert {proposal.source for proposal in with_policy} == {*MIX, name} - {"policy"}
    without = PlanProposer([task], nothing(task)).propose(100, rng)
    assert {proposal.source for proposal in without} == {*MIX} - {"policy"}


class Fixed:
    """A policy that has one plan for every budget."""

    name = "fixed"

    def __init__(self, choice: IntArray) -> None:
        self.choice = choice

    def plan(self, task: PruningTask, budget_ms: FloatArray) -> IntArray:
        return np.repeat(self.choice[None], len(budget_ms), axis=0)


def test_a_policys_plans_are_evaluated_where_it_goes(task: PruningTask) -> None:
    wanted = task.space.settings[:, 0]
    proposer = PlanProposer([task], nothing(task), Fixed(task.space.choice_of(wanted)))
    found = by_source(proposer.propose(60, np.random.default_rng(0)), "policy:fixed")
    assert [tuple(proposal.keeps) for proposal in found] == [tuple(wanted)]


def test_budgets_are_of_every_device_and_kept_there(task: PruningTask) -> None:
    rng = np.random.default_rng(9)
    tables = random_tables(task.space, rng, noise=0.3)
    other = replace(task, tables=replace(tables, device="board-1"))
    found = PlanProposer([task, other], nothing(task)).propose(80, np.random.default_rng(0))
    for one in (task, other):
        own = [p for p in by_source(found, "knapsack") if p.device == one.tables.device]
        assert len(own) > 3
        for proposal in own:
            assert (
                one.tables.upper_ms(one.space.choice_of(proposal.keeps[None]))[0]
                <= proposal.budget + 1e-9
            )


def test_most_budgets_are_where_plans_do_not_guess(task: PruningTask) -> None:
    rng = np.random.default_rng(1)
    share = np.sort(rng.uniform(size=200))
    choice = (share[:, None] * (task.option_count - 1)).round().astype(np.int64)
    cost = task.tables.upper_ms(choice)
    accuracy = np.where(share > 0.5, 0.9, 0.1)  # below half the channels all is lost
    known = evaluations_of(task.space.settings_at(choice), 1.0 - share, accuracy)
    found = PlanProposer([task], known).propose(100, rng)
    floor = cost[share > 0.5].min()
    budgets = np.array([proposal.budget for proposal in found])
    budgets = budgets[np.isfinite(budgets)]
    assert (budgets > 0.85 * floor).mean() > 0.8
    assert (budgets < 0.85 * floor).any()


def test_children_are_of_plans_that_no_cheaper_one_beats(
    task: PruningTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each group of a child is one of its parents', or up to three groups moved by up to two."""
    monkeypatch.setattr(propose, "MIX", {"evolution": 1.0})
    good = np.stack(
        [task.space.settings_at(np.maximum(task.option_count - drop, 0)) for drop in (2, 4)]
    )
    beaten = good.copy()
    beaten[:, 0] = task.graph.widths[0]  # dearer than the good ones, and loses more
    known = evaluations_of(
        np.concatenate([good, beaten]), np.array([0.2, 0.4, 3.0, 3.0]), np.full(4, 0.9)
    )
    parents = [*good, task.graph.widths]
    found = PlanProposer([task], known).propose(60, np.random.default_rng(0))
    assert len(found) == 60
    mixed = 0
    for proposal in found:
        assert proposal.device == task.tables.device and np.isnan(proposal.budget)
        moved = [int((proposal.keeps != parent).sum()) for parent in parents]
        of_both = any(
            ((proposal.keeps == a) | (proposal.keeps == b)).all() for a in parents for b in parents
        )
        assert min(moved) <= 3 or of_both
        mixed += min(moved) > 3
    assert mixed > 5
