"""Artifacts: what was saved is what plans, and what does not fit is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from synthetic import random_task

from rlprune.errors import PolicyError
from rlprune.mdp.episode import ACTION_SIZE, ActionMode
from rlprune.mdp.observe import SLOTS
from rlprune.policy import DEFAULT_ARTIFACT, DEFAULT_CORRECTED, get_policy
from rlprune.policy.artifact import PolicyArtifact, Score
from rlprune.policy.learned import LearnedPolicy
from rlprune.policy.network import Network, Normalizer
from rlprune.solver.knapsack import budgets_at, least_keeps


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


def artifact(action: ActionMode = "offset") -> PolicyArtifact:
    return PolicyArtifact(
        random_network(actions=ACTION_SIZE[action]),
        action,
        seed=3,
        validation=Score(0.1, 0.05, 0.15, 0.2, 0.1, 0.3, 0.4, ("a", "b")),
        provenance={"trained_on": ["c"]},
    )


def test_what_was_saved_is_what_is_loaded(tmp_path: Path) -> None:
    saved = artifact()
    digest = saved.save(tmp_path)
    loaded = PolicyArtifact.load(tmp_path)
    seen = np.random.default_rng(1).normal(size=(50, len(SLOTS))).astype(np.float32)
    assert np.allclose(loaded.network.act(seen), saved.network.act(seen), atol=1e-6)
    assert (loaded.action, loaded.seed, loaded.validation) == ("offset", 3, saved.validation)
    assert loaded.digest == digest
    assert get_policy(str(tmp_path)).name == f"learned/{digest[:8]}"
    assert {p.name for p in tmp_path.iterdir()} == {"policy.json", "policy.safetensors"}


@pytest.mark.parametrize("action", ["offset", "correction", "ratio"])
def test_even_a_random_network_plans_within_the_budget(action: ActionMode) -> None:
    policy = LearnedPolicy(artifact(action))
    for seed in range(3):
        task = random_task(seed, noise=0.1 * seed)
        budget = np.append(budgets_at(task, np.array([0.1, 0.5, 0.9])), 1e-6)
        keeps = policy.plan(task, budget)
        assert (task.tables.upper_ms(keeps)[:3] <= budget[:3]).all()
        assert (keeps[3] == least_keeps(task)).all()
        assert all(keep in task.levels[g] for row in keeps for g, keep in enumerate(row))


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


def test_slots_that_never_varied_are_left_out() -> None:
    seen = np.random.default_rng(0).normal(size=(100, 3))
    seen[:, 1] = 4.0
    normal = Normalizer.fit(seen)(np.array([[0.0, 1e6, 1e6]], np.float32))
    assert normal[0, 1] == 0.0
    assert normal[0, 2] == 10.0  # clipped, as in training


@pytest.mark.parametrize("name", ["learned", "corrected"])
def test_what_ships_loads_and_plans_within_the_budget(name: str) -> None:
    if not {"learned": DEFAULT_ARTIFACT, "corrected": DEFAULT_CORRECTED}[name].exists():
        pytest.skip(f"no shipped {name} policy yet: scripts/data train_default_policy makes it")
    task = random_task(1)
    budget = budgets_at(task, np.array([0.25, 0.5, 0.75]))
    assert (task.tables.upper_ms(get_policy(name).plan(task, budget)) <= budget).all()
