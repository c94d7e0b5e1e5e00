"""Candidates are chosen where the weights are; without them a policy that proved nothing is not
taken.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from calibrated import own_images, traced
from hypothesis import given
from hypothesis import strategies as st
from synthetic import chain_graph, random_task, task_of

import rlprune
from rlprune.errors import CalibrationError, InputError
from rlprune.planning import candidates, make_plan
from rlprune.planning.candidates import (
    FINALISTS,
    LEAST_SEEN,
    choose,
    rungs,
)
from rlprune.planning.request import MAX_CANDIDATES
from rlprune.plans import PruningPlan
from rlprune.policy import DEFAULT_ARTIFACT, SamplingPolicy, get_policy
from rlprune.policy.artifact import PolicyArtifact, PolicyScore
from rlprune.policy.guard import recorded_gain, refusal_reason
from rlprune.policy.learned import LearnedPolicy
from rlprune.runtime import get_runtime
from rlprune.sensitivity.evaluate import Evaluation, Evaluator
from rlprune.service.client import Client
from rlprune.service.server import start
from rlprune.solver.knapsack import budgets_at
from rlprune.solver.task import PruningTask


@pytest.fixture
def task() -> PruningTask:
    return task_of(chain_graph([64, 96, 128, 64]), seed=3)


def proposed(task: PruningTask, count: int, policy: str = "learned") -> PruningPlan:
    budget = float(budgets_at(task, np.array([0.5]))[0])
    return make_plan(task, get_policy(policy), budget, device="d", candidate_count=count)


@pytest.mark.parametrize("seed", range(4))
def test_candidates_differ_and_keep_the_budget(seed: int) -> None:
    task = random_task(seed, noise=0.05 * seed)
    plan = proposed(task, 8)
    keeps = [one.keeps for one in plan.candidates]
    assert len(set(keeps)) == len(keeps) <= 8
    assert (task.tables.upper_ms(task.space.choice_of(np.array(keeps))) <= plan.budget_ms).all()
    assert all(k in task.space.settings[g] for row in keeps for g, k in enumerate(row))
    assert plan.candidates[0].policy == "knapsack"
    assert plan.reference is not None and keeps[0] == plan.reference.keeps == tuple(plan.keeps)


def test_the_policy_and_what_lies_around_it_and_the_knapsack_are_among_them() -> None:
    task = task_of(chain_graph([64, 96, 128, 64, 96, 128, 64, 96]), seed=3)
    plan = proposed(task, 12)
    budget = np.array([plan.budget_ms])
    keeps = {one.keeps for one in plan.candidates}
    blind = replace(task, profiles=replace(task.profiles, measured_loss=None))
    for name, asked in (("knapsack", task), ("learned", task), ("knapsack", blind)):
        choice = get_policy(name).plan(asked, budget)[0]
        assert tuple(task.space.settings_at(choice).tolist()) in keeps
    around = {one.policy.partition("/")[0].partition("~")[0] for one in plan.candidates[2:]}
    assert around == {"knapsack", "learned"}, "samples around both fill the rest"
    assert proposed(task, 12) == plan, "the same question has the same candidates"
    assert plan.policy == "knapsack" and "until the candidates are evaluated" in plan.note
    assert all(one.loss is None and not one.chosen for one in plan.candidates)


def test_samples_lie_around_the_policys_plan_within_the_budget() -> None:
    policy = get_policy("learned")
    assert isinstance(policy, SamplingPolicy)
    task = task_of(chain_graph([64, 96, 128, 64, 96, 128, 64, 96]), seed=3)
    budget = float(budgets_at(task, np.array([0.5]))[0])
    samples = policy.sample(task, budget, 100, np.random.default_rng(0))
    assert samples.shape == (100, 8) and (task.tables.upper_ms(samples) <= budget).all()
    own = policy.plan(task, np.array([budget]))[0]
    keeps, around = task.space.settings_at(samples), task.space.settings_at(own)
    near, far = (np.abs(keeps[part::2] - around).mean() for part in (0, 1))
    assert near < far and len(np.unique(samples, axis=0)) > 3


def test_what_is_proposed_loses_by_prediction_about_as_little_as_the_knapsack() -> None:
    task = task_of(chain_graph([64, 96, 128, 64, 96, 128]), seed=5)
    plan = proposed(task, 16)
    curve = task.curve
    chosen = task.space.choice_of(
        np.array([one.keeps for one in plan.candidates if "~" in one.policy])
    )
    predicted = curve[np.arange(len(curve)), chosen].sum(1)
    least = curve[np.arange(len(curve)), task.space.choice_of(np.array([plan.keeps]))[0]].sum()
    assert len(predicted) > 4 and np.median(predicted) < 1.25 * least


class Answers:
    """Evaluations with these divergences per image, and a note of what was asked for."""

    def __init__(self, of: dict[tuple[int, ...], np.ndarray]) -> None:
        self.of = of
        self.asked: list[tuple[tuple[int, ...], int, int]] = []

    def __call__(self, keeps: tuple[int, ...], start: int, stop: int) -> Evaluation:
        self.asked.append((keeps, start, stop))
        own = self.of[keeps][start:stop]
        return Evaluation.of(own + 1.0, own, 0.5)


def test_the_best_is_taken_where_it_is_better_by_more_than_noise(task: PruningTask) -> None:
    plan = proposed(task, 6)
    rng = np.random.default_rng(0)
    images = rng.exponential(1.0, 400)  # some images are hard for every plan
    rows = [images + 0.2 * i for i in range(len(plan.candidates))]
    rows[3] = images - 0.03 + rng.normal(0, 0.1, 400)
    keeps = [one.keeps for one in plan.candidates]
    chosen = choose(plan, Answers(dict(zip(keeps, rows, strict=True))), 400)
    assert tuple(chosen.keeps) == keeps[3] and chosen.policy == plan.candidates[3].policy
    assert [one.chosen for one in chosen.candidates] == [i == 3 for i in range(len(keeps))]
    assert chosen.predicted_latency_ms == plan.candidates[3].predicted_latency_ms
    assert chosen.macs == task.graph.macs(chosen.keeps)
    assert (
        f"best of {len(keeps)} candidates on 400 images" in chosen.note
        and "until" not in chosen.note
    )
    own = chosen.candidates[3]
    assert own.divergence == pytest.approx(rows[3].mean())
    assert own.loss == pytest.approx(rows[3].mean() + 1.0) and own.image_count == 400
    assert own.loss_se is not None and own.gain_se is not None and own.gain_se < own.loss_se
    assert PruningPlan.from_json(chosen.to_json()) == chosen
    chosen.check(task.graph)


def test_within_one_standard_error_the_knapsack_stays(task: PruningTask) -> None:
    plan = proposed(task, 6)
    rng = np.random.default_rng(0)
    images = rng.exponential(1.0, 400)
    keeps = [one.keeps for one in plan.candidates]
    rows = {row: images + 0.2 * i for i, row in enumerate(keeps)}
    noise = rng.normal(0, 1.0, 400)
    rows[keeps[2]] = images + noise - noise.mean() - 0.04  # standard error 0.05
    chosen = choose(plan, Answers(rows), 400)
    assert tuple(chosen.keeps) == keeps[0] and chosen.policy == "knapsack"
    assert f"latency-constrained knapsack (no other of {len(keeps)}" in chosen.note
    rows[keeps[2]] = np.full(400, np.nan)
    assert choose(plan, Answers(rows), 400).policy == "knapsack"


# --- the race ------------------------------------------------------------------------------------


@given(st.integers(2, MAX_CANDIDATES), st.integers(16, 5000))
def test_every_image_is_seen_by_some_and_fewer_go_on_each_time(plans: int, images: int) -> None:
    found = rungs(plans, images)
    starts, stops, counts = zip(*found, strict=True)
    assert starts[0] == 0 and stops[-1] == images and starts[1:] == stops[:-1]
    assert counts[0] == plans and list(counts) == sorted(set(counts), reverse=True)
    assert min(FINALISTS, plans) <= counts[-1]
    assert len(found) == 1 or stops[0] >= LEAST_SEEN
    assert sum((stop - start) * count for start, stop, count in found) <= plans * images


def test_sixty_four_plans_cost_less_than_eight_runs() -> None:
    seen = sum((stop - start) * count for start, stop, count in rungs(64, 1000))
    assert seen == 7400


def test_what_is_clearly_best_wins_the_race_and_the_knapsack_sees_the_end() -> None:
    task = task_of(chain_graph([64, 96, 128, 64, 96, 128, 64, 96]), seed=3)
    plan = proposed(task, 32)
    keeps = [one.keeps for one in plan.candidates]
    rng = np.random.default_rng(1)
    images = rng.exponential(1.0, 1000)
    rows = [images + 0.02 * i + rng.normal(0, 0.05, 1000) for i in range(len(keeps))]
    rows[0] += 5.0  # the knapsack's is the worst, and must not be left behind
    rows[20] -= 1.0
    answers = Answers(dict(zip(keeps, rows, strict=True)))
    chosen = choose(plan, answers, 1000)
    assert tuple(chosen.keeps) == keeps[20]
    assert [chosen.candidates[i].image_count for i in (0, 20)] == [1000, 1000]
    counts = [one.image_count for one in chosen.candidates]
    assert sorted(set(counts)) == [50, 200, 1000] and counts.count(1000) == 3
    seen = [np.arange(start, stop) for row, start, stop in answers.asked if row == keeps[20]]
    assert (np.concatenate(seen) == np.arange(1000)).all(), "no image twice"
    assert len(answers.asked) == sum(count for _, _, count in rungs(len(keeps), 1000))


def test_a_plan_by_parts_of_the_images_is_evaluated_as_by_all() -> None:
    images = own_images(TRACE, 90)
    evaluator = Evaluator(TRACE, images, runtime=get_runtime())
    keeps = np.maximum(1, TRACE.graph.widths // 2)
    whole = evaluator.evaluate(keeps)
    parts = evaluator.evaluate_part(keeps, 0, 50).merged_with(
        evaluator.evaluate_part(keeps, 50, 90)
    )
    for name in ("image_losses", "image_divergences", "fold_losses", "fold_divergences"):
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), atol=1e-5)
    assert parts.accuracy == pytest.approx(whole.accuracy)


def test_an_infeasible_budget_has_no_candidates(task: PruningTask) -> None:
    plan = make_plan(task, get_policy("learned"), 1e-6, device="d", candidate_count=8)
    assert not plan.feasible and plan.candidates == () and "until" not in plan.note


# --- the guard -----------------------------------------------------------------------------------


def learned(left_out: Any = None, validation: float | None = None) -> LearnedPolicy:
    """The default network with another record."""
    artifact = PolicyArtifact.load(DEFAULT_ARTIFACT)
    provenance = {} if left_out is None else {"left_out": left_out}
    score = None
    if validation is not None:
        score = PolicyScore(0.0, validation, validation + 1, 0.0, 0.0, 0.0, 0.5, ("m",))
    return LearnedPolicy(replace(artifact, provenance=provenance, validation=score))


@pytest.mark.parametrize(
    ("left_out", "validation", "alone"),
    [
        ({"gain_low": 0.01, "gain_high": 0.1}, -1.0, True),
        ({"gain_low": 0.0, "gain_high": 0.1}, 1.0, False),
        ({"gain_low": -0.05, "gain_high": 0.002}, 1.0, False),
        ({"gain_low": float("nan"), "gain_high": 0.1}, 1.0, False),
        ({"gain": 0.1}, 1.0, False),
        (None, 0.01, True),
        (None, -0.01, False),
        (None, None, False),
    ],
)
def test_a_policy_answers_alone_where_its_recorded_gain_is_above_zero(
    task: PruningTask, left_out: Any, validation: float | None, alone: bool
) -> None:
    policy = learned(left_out, validation)
    assert (refusal_reason(policy) == "") == alone
    budget = float(budgets_at(task, np.array([0.4]))[0])
    plan = make_plan(task, policy, budget, device="d")
    own = policy.plan(task, np.array([budget]))[0]
    raw = make_plan(task, policy, budget, device="d", guard=False)
    assert raw.policy == policy.name and raw.keeps.tolist() == task.space.settings_at(own).tolist()
    assert raw.reference is not None
    if alone:
        assert plan == raw
    else:
        assert plan.policy == "knapsack" and tuple(plan.keeps) == raw.reference.keeps
        assert f"latency-constrained knapsack ({refusal_reason(policy)})" in plan.note


def test_the_shipped_policy_is_guarded_by_its_own_card() -> None:
    """The card's leave-one-out interval decides, not the validation model that chose it."""
    import json

    card = json.loads((DEFAULT_ARTIFACT / "card.json").read_text())["provenance"]["left_out"]
    policy = LearnedPolicy.load(DEFAULT_ARTIFACT)
    assert recorded_gain(policy.artifact) == (card["gain_low"], card["gain_high"])
    assert bool(refusal_reason(policy)) == (card["gain_low"] <= 0)
    assert refusal_reason(get_policy("knapsack")) == ""


# --- the whole way -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    images = own_images(TRACE, 128)
    path = tmp_path_factory.mktemp("images") / "images.npz"
    np.savez(path, x=images.x, y=images.y)
    return path


TRACE = traced("resnet_b")
ASK: dict[str, Any] = {"device": "macs", "budget_ratio": 0.6, "round_to": 8, "candidates": 6}


def test_profile_and_choice_see_different_images(
    calibration: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In process and through a server the same plan, chosen on what was not profiled on."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    seen: list[set[bytes]] = []
    from rlprune.sensitivity import evaluate

    class Spying(evaluate.Evaluator):
        def __init__(self, trace: Any, images: Any, **rest: Any) -> None:
            seen.append({image.tobytes() for image in images.x})
            super().__init__(trace, images, **rest)

    monkeypatch.setattr(evaluate, "Evaluator", Spying)
    plan = rlprune.plan(TRACE, calibration=calibration, **ASK)
    profiled, chosen_on = seen
    assert len(profiled) == len(chosen_on) == 64 and not profiled & chosen_on
    assert 2 <= len(plan.candidates) <= 6 and sum(one.chosen for one in plan.candidates) == 1
    assert all(one.loss is not None for one in plan.candidates)
    [taken] = [one for one in plan.candidates if one.chosen]
    assert taken.keeps == tuple(plan.keeps) and taken.policy == plan.policy
    assert taken.divergence is not None
    assert taken.divergence <= plan.candidates[0].divergence  # type: ignore[operator]
    assert plan.predicted_interval_ms[1] <= plan.budget_ms

    server = start("127.0.0.1:0", str(tmp_path / "s.sqlite"))
    try:
        with Client(server.address) as client:
            assert client.plan(TRACE, calibration=calibration, **ASK) == plan
            alone = client.plan(TRACE, device="macs", budget_ratio=0.6)
            assert (
                alone.policy == "knapsack" and "was not better on held-out networks" in alone.note
            )
            raw = client.plan(TRACE, device="macs", budget_ratio=0.6, guard=False)
            assert raw.policy.startswith("learned/")
    finally:
        server.stop(0.5)


def test_from_500_images_on_candidates_race_unless_another_plan_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setattr(candidates, "SOLVED_COUNT", 3)
    monkeypatch.setattr(candidates, "DEFAULT_COUNT", 4)
    images = own_images(TRACE, 500)
    for name, few in (("many.npz", images), ("few.npz", images.take(np.arange(499)))):
        np.savez(tmp_path / name, x=few.x, y=few.y)
    many = tmp_path / "many.npz"
    ask: dict[str, Any] = {"device": "macs", "budget_ratio": 0.6}

    plan = rlprune.plan(TRACE, calibration=many, **ask)
    assert len(plan.candidates) == 3
    assert plan == rlprune.plan(TRACE, calibration=many, **ask, candidates=3)
    others = [n for n, entry in enumerate(plan.groups) if entry.scheme != "channel"]
    assert others and any(
        all(one.keeps[n] == plan.groups[n].width for n in others) for one in plan.candidates
    )
    widths = rlprune.plan(TRACE, calibration=many, **ask, schemes="channels")
    assert len(widths.candidates) == 4
    server = start("127.0.0.1:0", str(tmp_path / "s.sqlite"))
    try:
        with Client(server.address) as client:
            assert client.plan(TRACE, calibration=many, **ask).candidates == plan.candidates
    finally:
        server.stop(0.5)
    for other in (
        {"candidates": 0},
        {"policy": "knapsack"},
        {"guard": False},
        {"max_params": 10**9},
        {"calibration": tmp_path / "few.npz"},
    ):
        assert rlprune.plan(TRACE, **{"calibration": many, **ask, **other}).candidates == ()


@pytest.mark.parametrize("count", [1, -2, 65])
def test_a_count_that_leaves_nothing_to_choose_is_refused(calibration: Path, count: int) -> None:
    with pytest.raises(InputError, match=f"{count} candidates; give 2 to 64"):
        rlprune.plan(TRACE, calibration=calibration, **{**ASK, "candidates": count})


def test_candidates_need_images_enough_to_halve(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give calibration"):
        rlprune.plan(TRACE, **ASK)
    few = own_images(TRACE, 20)
    np.savez(tmp_path / "few.npz", x=few.x, y=few.y)
    with pytest.raises(CalibrationError, match="20 samples are too few to halve"):
        rlprune.plan(TRACE, calibration=tmp_path / "few.npz", **ASK)


def test_the_first_images_of_a_sorted_file_are_no_class_alone_once_shuffled() -> None:
    images = own_images(TRACE, 200)
    by_class = images.take(np.argsort(images.y, kind="stable"))
    mixed = by_class.shuffled()
    assert sorted(image.tobytes() for image in mixed.x) == sorted(i.tobytes() for i in images.x)
    assert len(set(mixed.y[:50])) == len(set(images.y)) > len(set(by_class.y[:50]))
    assert (by_class.shuffled().y == mixed.y).all()


def test_halves_are_drawn_by_seed_and_disjoint() -> None:
    images = own_images(TRACE, 65)
    first, second = images.halves()
    keys = [{image.tobytes() for image in half.x} for half in (first, second)]
    assert (len(first), len(second)) == (32, 33) and not keys[0] & keys[1]
    assert (images.halves()[0].x == first.x).all()
    assert (images.halves(seed=1)[0].x != first.x).any()
