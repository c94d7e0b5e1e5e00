"""PPO agents: they learn, repeat, survive as checkpoints, and numpy predicts as SB3 does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from learnable import learnable_task

from rlprune.errors import PolicyError
from rlprune.mdp.episode import ActionMode
from rlprune.mdp.observe import SLOTS
from rlprune.policy.artifact import PolicyArtifact
from rlprune.policy.learned import LearnedPolicy
from rlprune.policy.network import Network
from rlprune.training.ppo import Agent, AgentConfig
from rlprune.training.select import NamedTask, outcomes

TINY = AgentConfig(rows=16, n_steps=8, batch_size=64, n_epochs=2, hidden=(16, 16))


def same(left: Network, right: Network) -> bool:
    ours, theirs = left.tensors(), right.tensors()
    return all(np.array_equal(ours[name], theirs[name]) for name in ours | theirs)


@pytest.mark.parametrize("action", ["offset", "correction", "ratio"])
def test_numpy_predicts_as_sb3_does(action: ActionMode) -> None:
    agent = Agent([learnable_task(0)], replace(TINY, action=action, seed=1, learning_rate=0.01))
    agent.train(512)
    seen = np.random.default_rng(0).normal(0, 3, (200, len(SLOTS))).astype(np.float32)
    ours = agent.network().act(seen)
    assert np.abs(ours).max() > 0.01  # it has left the reference, so there is something to compare
    np.testing.assert_allclose(ours, agent.predict(seen), atol=1e-5)


def test_the_same_seed_gives_the_same_run_and_another_another() -> None:
    tasks = [learnable_task(0), learnable_task(1)]
    networks = []
    for seed in (5, 5, 6):
        agent = Agent(tasks, replace(TINY, seed=seed))
        agent.train(256)
        networks.append(agent.network())
    assert same(networks[0], networks[1])
    assert not same(networks[0], networks[2])


def test_an_agent_restored_between_intervals_goes_on_as_if_never_stopped() -> None:
    tasks = [learnable_task(0), learnable_task(1)]
    straight = Agent(tasks, TINY)
    straight.train(256)
    kept = straight.checkpoint()
    straight.train(256)
    restored = Agent.restore(tasks, kept)
    progress = restored.train(256)
    assert (progress.interval, progress.steps) == (2, 512)
    assert same(straight.network(), restored.network())


def test_exploiting_takes_the_weights_and_explores_from_there() -> None:
    tasks = [learnable_task(0)]
    better, worse = Agent(tasks, replace(TINY, seed=1)), Agent(tasks, replace(TINY, seed=2))
    better.train(256)
    worse.exploit(better.checkpoint())
    assert same(better.network(), worse.network())
    assert worse.config.seed == 2
    assert worse.config.learning_rate != better.config.learning_rate


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"\x02\x00\x00\x00\x00\x00\x00\x00{}"])
def test_a_damaged_checkpoint_is_refused(content: bytes) -> None:
    with pytest.raises(PolicyError, match="checkpoint"):
        Agent.restore([learnable_task(0)], content)


@pytest.mark.parametrize("action", ["offset", "correction"])
def test_it_learns_to_beat_the_knapsack_on_a_graph_it_never_saw(action: ActionMode) -> None:
    agent = Agent(
        [learnable_task(seed, (1, 2)) for seed in range(4)],
        AgentConfig(
            action=action,
            seed=1,
            rows=128,
            n_steps=16,
            batch_size=512,
            learning_rate=5e-3,
            hidden=(32, 32),
        ),
    )
    agent.train(20_000)
    policy = LearnedPolicy(PolicyArtifact(agent.network(), action, 0))
    unseen = [NamedTask(str(seed), learnable_task(seed)) for seed in (100, 101, 102)]
    results = outcomes(policy, unseen)
    assert sum(r.loss.sum() for r in results) < 0.97 * sum(r.reference_loss.sum() for r in results)
    assert all(result.differs_ratio.mean() > 0.05 for result in results)


def test_a_blind_agent_answers_alike_whatever_the_hidden_slots_hold() -> None:
    task = learnable_task(0)
    hidden = np.array([slot.startswith(("loss_", "energy_")) for slot in SLOTS])
    assert 0 < hidden.sum() < len(SLOTS)
    seen = np.random.default_rng(0).normal(0, 3, (50, len(SLOTS))).astype(np.float32)
    other = np.where(hidden, seen + 1, seen).astype(np.float32)
    config = replace(TINY, action="correction", learning_rate=0.01)
    for blind, alike in (((), False), (("loss_", "energy_"), True)):
        agent = Agent([task], replace(config, blind=blind))
        agent.train(512)
        restored = Agent.restore([task], agent.checkpoint())
        for network in (agent.network(), restored.network()):
            assert np.array_equal(network.act(seen), network.act(other)) == alike
