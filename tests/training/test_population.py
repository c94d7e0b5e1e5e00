"""Populations on Ray: side by side, through deaths and interruptions, chosen on unseen models."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from learnable import learnable_task

from rlprune.errors import PolicyError
from rlprune.training.population import Member, ray_session, run_population
from rlprune.training.ppo import AgentConfig
from rlprune.training.select import NamedTask

TINY = AgentConfig(rows=16, n_steps=8, batch_size=64, n_epochs=1, hidden=(16,))
TASKS = [learnable_task(0), learnable_task(1)]
UNSEEN = [NamedTask("unseen", learnable_task(100))]


@pytest.fixture(scope="module", autouse=True)
def ray_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        # Ray's first start would otherwise write a token into the home directory.
        patch.setenv("RAY_AUTH_TOKEN", "0123456789abcdef0123456789abcdef")
        with ray_session(None):
            yield


def population(directory: Path, run_id: str = "one", **options: object) -> list[Member]:
    configs = [replace(TINY, seed=seed, action=action) for seed, action in enumerate(MODES)]
    settings: dict[str, object] = {"steps": 512, "rounds": 2, **options}
    return run_population(
        TASKS,
        UNSEEN,
        configs,
        directory=directory,
        run_id=run_id,
        **settings,  # type: ignore[arg-type]
    )


MODES = ("offset", "offset", "correction")


def networks(members: list[Member]) -> list[bytes]:
    return [member.best_network for member in members]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> list[Member]:
    return population(tmp_path_factory.mktemp("undisturbed"))


def test_agents_run_in_processes_of_their_own(undisturbed: list[Member]) -> None:
    pids = {int(entry["pid"]) for member in undisturbed for entry in member.history}
    assert len(pids) == len(MODES)
    assert os.getpid() not in pids
    assert all(member.alive and len(member.history) == 2 for member in undisturbed)


def test_the_worse_of_a_mode_went_on_from_the_better(undisturbed: list[Member]) -> None:
    explored = [m.config.learning_rate != TINY.learning_rate for m in undisturbed]
    assert sorted(explored[:2]) == [False, True]
    assert not explored[2]  # alone in its mode


def test_a_killed_agent_comes_back_to_the_same_result(
    tmp_path: Path, undisturbed: list[Member]
) -> None:
    killed: list[int] = []

    def kill(pids: list[int]) -> None:
        killed.append(pids[1])
        os.kill(pids[1], signal.SIGKILL)

    members = population(tmp_path, on_start=kill)
    assert all(member.alive for member in members)
    assert killed[0] not in {int(entry["pid"]) for entry in members[1].history}
    assert networks(members) == networks(undisturbed)


def test_an_interrupted_run_goes_on_from_its_last_round(
    tmp_path: Path, undisturbed: list[Member]
) -> None:
    def interrupt(done: int, rounds: int, gain: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        population(tmp_path, on_round=interrupt)
    assert json.loads((tmp_path / "population.json").read_text())["done"] == 1
    rounds: list[int] = []
    members = population(tmp_path, on_round=lambda done, total, gain: rounds.append(done))
    assert rounds == [2]
    assert networks(members) == networks(undisturbed)


def test_checkpoints_of_another_run_are_refused(tmp_path: Path) -> None:
    population(tmp_path, rounds=1, steps=128)
    with pytest.raises(PolicyError, match="another run"):
        population(tmp_path, run_id="two")
