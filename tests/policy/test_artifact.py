"""Artifacts: what was saved is what plans, and what does not fit is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from synthetic import random_task

from rlprune.errors import PolicyError
from rlprune.mdp import observe
from rlprune.mdp.episode import ACTION_SIZE, ActionMode
from rlprune.mdp.observe import SLOTS, SlotReader
from rlprune.policy import get_policy
from rlprune.policy.artifact import PolicyArtifact, PolicyScore
from rlprune.policy.learned import LearnedPolicy
from rlprune.policy.network import Network, Normalizer
from rlprune.solver.knapsack import budgets_at, least_choice


def random_network(seed: int = 0, *, inputs: int = len(SLOTS), actions: int = 1) -> Network:
    rng = np.random.default_rng(seed)
    sizes = [inputs, 16, 8, actions]
    layers = tuple(
        (
            rng.normal(0, 1 / np.sqrt(a), (b, a)).astype(np.float32),
            rng.normal(0, 0.1, b).astype(np.float32),
        )
        for a, b in pairwise(sizes)
    )
    return Network(Normalizer.fit(rng.normal(1, 2, (100, inputs))), layers)


def artifact(action: ActionMode = "ratio") -> PolicyArtifact:
    return PolicyArtifact(
        random_network(actions=ACTION_SIZE[action]),
        action,
        seed=3,
        validation=PolicyScore(0.1, 0.05, 0.15, 0.2, 0.1, 0.3, 0.4, ("a", "b")),
        provenance={"trained_on": ["c"]},
    )


def test_what_was_saved_is_what_is_loaded(tmp_path: Path) -> None:
    saved = artifact()
    digest = saved.save(tmp_path)
    loaded = PolicyArtifact.load(tmp_path)
    seen = np.random.default_rng(1).normal(size=(50, len(SLOTS))).astype(np.float32)
    assert np.allclose(loaded.network.act(seen), saved.network.act(seen), atol=1e-6)
    assert (loaded.action, loaded.seed, loaded.validation) == ("ratio", 3, saved.validation)
    assert loaded.digest == digest
    assert get_policy(str(tmp_path)).name == f"learned/{digest[:8]}"
    assert {p.name for p in tmp_path.iterdir()} == {"policy.json", "policy.safetensors"}


@pytest.mark.parametrize("action", ["correction", "ratio"])
def test_even_a_random_network_plans_within_the_budget(action: ActionMode) -> None:
    policy = LearnedPolicy(artifact(action))
    for seed in range(3):
        task = random_task(seed, noise=0.1 * seed)
        budget = np.append(budgets_at(task, np.array([0.1, 0.5, 0.9])), 1e-6)
        choice = policy.plan(task, budget)
        assert (task.tables.upper_ms(choice)[:3] <= budget[:3]).all()
        assert (choice[3] == least_choice(task)).all()
        assert ((choice >= 0) & (choice < task.option_count)).all()


def edited(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    """Changes the JSON and leaves the tensors alone."""

    def apply(path: Path) -> None:
        data = json.loads((path / "policy.json").read_text())
        change(data)
        (path / "policy.json").write_text(json.dumps(data))

    return apply


def with_tensors(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    """Changes the tensors and names their new digest, as a forger would."""

    def apply(path: Path) -> None:
        import hashlib

        tensors = load_file(path / "policy.safetensors")
        change(tensors)
        save_file(tensors, path / "policy.safetensors")
        digest = hashlib.sha256((path / "policy.safetensors").read_bytes()).hexdigest()
        edited(lambda data: data.update(sha256=digest))(path)

    return apply


def cut_short(path: Path) -> None:
    content = (path / "policy.safetensors").read_bytes()
    (path / "policy.safetensors").write_bytes(content[:-8])


def into_nan(tensors: dict[str, Any]) -> None:
    tensors["layer0.weight"][0, 0] = np.nan


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (edited(lambda d: d.update(format="rlprune.policy/9")), "rlprune.policy/9"),
        (edited(lambda d: d.update(observation_version=-1)), "observation version -1"),
        (edited(lambda d: d["slots"].append("weather")), "weather"),
        (edited(lambda d: d["slots"].append("kernel")), "twice"),
        (edited(lambda d: d["slots"].pop()), f"not {len(SLOTS) - 1} to 1"),
        (
            edited(lambda d: d.update(action="offset")),
            "'offset' is none of correction, ratio",
        ),
        (edited(lambda d: d.update(action="guess")), "guess"),
        (edited(lambda d: d.update(action="correction")), "1 actions"),
        (edited(lambda d: d.pop("seed")), "seed"),
        (cut_short, "not the file"),
        (with_tensors(into_nan), "layer0.weight"),
        (with_tensors(lambda t: t.pop("layer1.bias")), "layer1.bias"),
        (with_tensors(lambda t: t.update({"layer1.bias": np.zeros(3, np.float32)})), "layer1"),
        (lambda path: (path / "policy.json").unlink(), "policy.json"),
        (lambda path: (path / "policy.json").write_text("{"), "damaged"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, damage: Callable[[Path], None], named: str
) -> None:
    artifact().save(tmp_path)
    damage(tmp_path)
    with pytest.raises(PolicyError, match=named):
        PolicyArtifact.load(tmp_path)


def test_a_policy_that_knows_fewer_slots_plans_the_same_after_others_were_added(
    tmp_path: Path,
) -> None:
    """As one of today's would whose network gives the others no weight."""
    unknown = ("has_weight_norms", "stride", "loss_delta")
    known = [slot for slot in SLOTS if slot not in unknown][::-1]
    own = replace(artifact(), network=random_network(inputs=len(known)), slots=tuple(known))
    own.save(tmp_path)
    data = json.loads((tmp_path / "policy.json").read_text())
    assert data["slots"] == known
    place = [known.index(slot) if slot in known else len(known) for slot in SLOTS]
    (first, bias), *rest = own.network.layers
    padded = np.append(first, np.zeros((len(first), 1), np.float32), axis=1)[:, place]
    mean, scale = (np.append(part, 1.0)[place] for part in
                   (own.network.normalizer.mean, own.network.normalizer.scale))  # fmt: skip
    whole = replace(artifact(), network=Network(Normalizer(mean, scale), ((padded, bias), *rest)))
    task = random_task(2)
    budget = budgets_at(task, np.linspace(0.1, 0.9, 9))
    plans = LearnedPolicy.load(tmp_path).plan(task, budget)
    assert (plans == LearnedPolicy(whole).plan(task, budget)).all()
    seen = np.arange(len(SLOTS) + 1, dtype=np.float32)
    grown = SlotReader.of(known, ("new", *SLOTS))
    assert (grown(seen) == 1 + SlotReader.of(known)(seen)).all()


def test_slots_are_read_by_their_old_names_and_as_a_constant_once_retired(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(observe.RETIRED_SLOTS, "gone", 0.5)
    read = SlotReader.of(("gone", "energetic"))
    seen = np.arange(len(SLOTS), dtype=np.float32)
    assert read(seen).tolist() == [0.5, SLOTS.index("has_weight_norms")]


def test_slots_that_never_varied_are_left_out() -> None:
    seen = np.random.default_rng(0).normal(size=(100, 3))
    seen[:, 1] = 4.0
    normal = Normalizer.fit(seen)(np.array([[0.0, 1e6, 1e6]], np.float32))
    assert normal[0, 1] == 0.0
    assert normal[0, 2] == 10.0  # clipped, as in training


def test_what_ships_loads_and_plans_within_the_budget() -> None:
    task = random_task(1)
    budget = budgets_at(task, np.array([0.25, 0.5, 0.75]))
    assert (task.tables.upper_ms(get_policy("learned").plan(task, budget)) <= budget).all()
