"""Populations on Ray: side by side, through deaths and interruptions, chosen on unseen models."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from learnable import learnable_task

from rlprune.errors import PolicyError
from rlprune.training.population import Member, run_population
from rlprune.training.ppo import AgentConfig
from rlprune.training.select import NamedTask

TINY = AgentConfig(rows=16, n_steps=8, batch_size=64, n_epochs=1, hidden=(16,))
TASKS = [learnable_task(0), learnable_task(1)]
AGENTS = 2
UNSEEN = [NamedTask("unseen", learnable_task(100))]


def population(directory: Path, run_id: str = "one", **options: object) -> list[Member]:
    configs = [replace(TINY, seed=seed) for seed in range(AGENTS)]
    settings: dict[str, object] = {"steps": 512, "rounds": 2, **options}
    return run_population(
        TASKS,
        UNSEEN,
        configs,
        directory=directory,
        run_id=run_id,
        **settings,  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, ray_cluster: None
) -> tuple[Path, list[Member]]:
    directory = tmp_path_factory.mktemp("undisturbed")
    return directory, population(directory)


def test_agents_run_side_by_side_in_processes_of_their_own(
    undisturbed: tuple[Path, list[Member]],
) -> None:
    members = undisturbed[1]
    pids = {int(entry["pid"]) for member in members for entry in member.history}
    assert len(pids) == AGENTS
    assert os.getpid() not in pids
    assert all(member.alive and len(member.history) == 2 for member in members)


def test_killed_agents_and_interrupted_runs_come_to_the_same_result(
    tmp_path: Path, undisturbed: tuple[Path, list[Member]]
) -> None:
    killed: list[int] = []

    def kill(pids: list[int]) -> None:
        killed.append(pids[1])
        os.kill(pids[1], signal.SIGKILL)

    def interrupt(done: int, rounds: int, gain: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        population(tmp_path, on_start=kill, on_round=interrupt)
    left = json.loads((tmp_path / "population.json").read_text())
    assert left["done"] == 1
    assert all(member["alive"] for member in left["members"])
    assert killed[0] not in {entry["pid"] for m in left["members"] for entry in m["history"]}

    rounds: list[int] = []
    members = population(tmp_path, on_round=lambda done, total, gain: rounds.append(done))
    assert rounds == [2]
    for ours, theirs in zip(members, undisturbed[1], strict=True):
        assert ours.best_network == theirs.best_network
        assert ours.checkpoint == theirs.checkpoint


def test_checkpoints_of_another_run_are_refused(undisturbed: tuple[Path, list[Member]]) -> None:
    with pytest.raises(PolicyError, match="another run"):
        population(undisturbed[0], run_id="two")
