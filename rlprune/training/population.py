"""A population of PPO agents on Ray: each in a process of its own, trained in rounds.

After every round the worse agents of an action mode take over a better one's weights and go on with
perturbed settings (population based training, Jaderberg et al. 2017). Workers keep no state: a
round is a function from a checkpoint to the next one, so a worker that dies, or a whole node, costs
one round of one agent, which Ray runs again elsewhere from the same checkpoint to the same result.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from rlprune.errors import PolicyError, UnavailableError
from rlprune.files import write_atomic
from rlprune.policy.artifact import PolicyArtifact
from rlprune.policy.learned import LearnedPolicy
from rlprune.policy.network import Network
from rlprune.solver.task import PruningTask
from rlprune.training.ppo import Agent, AgentConfig, agent_config
from rlprune.training.select import NamedTask, outcomes, relative_gain

LOG = logging.getLogger("rlprune.training")

RUN_FORMAT = "rlprune.population/1"
RUN_NAME = "population.json"
RESTART_LIMIT = 3
"""How often one agent's process may die before the run goes on without that agent."""
ROUND_TIMEOUT_SEC = 3600.0
"""A round that takes longer counts as a dead process."""

OnRound = Callable[[int, int, float], None]
"""(rounds done, rounds in all, best validation gain so far)."""


@dataclass(frozen=True)
class RoundResult:
    """What a worker hands back."""

    config: AgentConfig
    """As it is after exploring."""
    checkpoint: bytes
    network: bytes
    """The policy's tensors, as `Network.tensors` names them."""
    gain: float
    """Relative gain over the knapsack on the validation tasks."""
    train_gain: float
    """The same on the training tasks: the distance between both is what was memorised."""
    steps: int
    pid: int


@dataclass
class Member:
    """One agent between two rounds."""

    config: AgentConfig
    checkpoint: bytes = b""
    """Empty before its first round."""
    copy_from: int = -1
    """Whose weights it takes over in the next round; -1 keeps its own."""
    alive: bool = True
    best_network: bytes = b""
    """Of its best round: with few models, training longer may generalise worse."""
    best_gain: float = -math.inf
    best_round: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    """Per round: gain, train_gain, steps, pid."""


def run_population(
    tasks: Sequence[PruningTask],
    validation: Sequence[NamedTask],
    configs: Sequence[AgentConfig],
    *,
    steps: int,
    rounds: int,
    directory: Path,
    run_id: str,
    seed: int = 0,
    on_round: OnRound | None = None,
    on_start: Callable[[list[int]], None] | None = None,
) -> list[Member]:
    """Trains every agent for `steps` environment steps in `rounds` rounds; Ray must be running.

    After each round everything needed to go on is in `directory`; a later call with the same
    `run_id` goes on from there, another run's directory is refused. An interrupt leaves the last
    round's state behind.

    Args:
        on_start: called once with the process ids of the workers, before the first round.

    Raises:
        PolicyError: `directory` holds another run.
        UnavailableError: no agent is left alive.
    """
    import ray

    directory.mkdir(parents=True, exist_ok=True)
    members, done = _resume(directory, run_id) or ([Member(config) for config in configs], 0)
    shared = ray.put((list(tasks), list(validation)))
    cpus = float(ray.cluster_resources().get("CPU", 1.0))
    remote = ray.remote(
        # Fractions, so that on a small machine all agents of the population still have a process.
        num_cpus=min(1.0, max(0.01, math.floor(100 * cpus / len(members)) / 100)),
        max_restarts=RESTART_LIMIT,
        max_task_retries=RESTART_LIMIT,
    )(_Worker)
    workers = [remote.remote(shared) for _ in members]
    try:
        if on_start is not None:
            on_start(
                ray.get([worker.pid.remote() for worker in workers], timeout=ROUND_TIMEOUT_SEC)
            )
        for index in range(done, rounds):
            goal = math.ceil(steps / rounds)
            results = _run_round(workers, members, goal)
            _take(members, results, index + 1)
            if not any(member.alive for member in members):
                raise UnavailableError(
                    "every agent's process died; see Ray's logs, then train again"
                )
            if index + 1 < rounds:
                _exploit(members, np.random.default_rng([seed, index]))
            _write(directory, run_id, index + 1, members)
            if on_round is not None:
                on_round(index + 1, rounds, max(member.best_gain for member in members))
    finally:
        for worker in workers:
            ray.kill(worker, no_restart=True)
    return members


class _Worker:
    """Runs in a Ray process of its own."""

    def __init__(self, shared: tuple[list[PruningTask], list[NamedTask]]) -> None:
        self._tasks, self._validation = shared

    def pid(self) -> int:
        return os.getpid()

    def run(self, config: AgentConfig, checkpoint: bytes, better: bytes, steps: int) -> RoundResult:
        """One round from `checkpoint` (empty: from scratch), `better`'s weights taken over."""
        agent = Agent.restore(self._tasks, checkpoint) if checkpoint else Agent(self._tasks, config)
        if better:
            agent.exploit(better)
        progress = agent.train(steps)
        network = agent.network()
        policy = LearnedPolicy(PolicyArtifact(network, config.action, config.seed))
        training = [NamedTask(task.graph.fingerprint, task) for task in self._tasks]
        return RoundResult(
            config=agent.config,
            checkpoint=agent.checkpoint(),
            network=save_tensors(network.tensors()),
            gain=relative_gain(outcomes(policy, self._validation)),
            train_gain=relative_gain(outcomes(policy, training)),
            steps=progress.steps,
            pid=os.getpid(),
        )


def _run_round(
    workers: Sequence[Any], members: Sequence[Member], steps: int
) -> list[RoundResult | None]:
    """Every living agent's round, side by side; None where a process died too often."""
    import ray

    calls = {}
    for index, (worker, member) in enumerate(zip(workers, members, strict=True)):
        if member.alive:
            better = members[member.copy_from].checkpoint if member.copy_from >= 0 else b""
            call = worker.run.remote(member.config, member.checkpoint, better, steps)
            calls[call] = index
    results: list[RoundResult | None] = [None] * len(members)
    ready, late = ray.wait(list(calls), num_returns=len(calls), timeout=ROUND_TIMEOUT_SEC)
    for call in ready:
        try:
            results[calls[call]] = ray.get(call)
        except ray.exceptions.RayActorError:
            continue  # the process died more often than RESTART_LIMIT
    for call in late:
        ray.kill(workers[calls[call]], no_restart=True)
    return results


def _take(members: Sequence[Member], results: Sequence[RoundResult | None], round_: int) -> None:
    for member, result in zip(members, results, strict=True):
        if result is None:
            member.alive = False
            continue
        member.config, member.checkpoint, member.copy_from = result.config, result.checkpoint, -1
        member.history.append(
            {
                "gain": result.gain,
                "train_gain": result.train_gain,
                "steps": result.steps,
                "pid": result.pid,
            }
        )
        if result.gain > member.best_gain:
            member.best_network, member.best_gain = result.network, result.gain
            member.best_round = round_


def _exploit(members: Sequence[Member], rng: np.random.Generator) -> None:
    """The worse third of each action mode copies one of the mode's better third."""
    for action in sorted({member.config.action for member in members}):
        own = [i for i, m in enumerate(members) if m.alive and m.config.action == action]
        # By the training gain, so that the validation models only choose and never train.
        own.sort(key=lambda i: members[i].history[-1]["train_gain"], reverse=True)
        third = max(1, len(own) // 3) if len(own) > 1 else 0
        for worse in own[len(own) - third :]:
            members[worse].copy_from = int(rng.choice(own[:third]))


def _write(directory: Path, run_id: str, done: int, members: Sequence[Member]) -> None:
    """The agents' files first, named by round; the JSON that names them makes them count."""
    described = []
    for index, member in enumerate(members):
        if member.alive and member.checkpoint:
            write_atomic(directory / _file(index, done, "checkpoint"), member.checkpoint)
        if member.best_round == done:
            write_atomic(directory / _file(index, done, "best"), member.best_network)
        described.append(
            {
                "config": asdict(member.config),
                "copy_from": member.copy_from,
                "alive": member.alive,
                "best_gain": member.best_gain if member.best_round else None,
                "best_round": member.best_round,
                "history": member.history,
            }
        )
    content = {"format": RUN_FORMAT, "run_id": run_id, "done": done, "members": described}
    write_atomic(directory / RUN_NAME, json.dumps(content, indent=1).encode())
    named = {_file(i, done, "checkpoint") for i in range(len(members))}
    named |= {_file(i, member.best_round, "best") for i, member in enumerate(members)}
    for path in directory.glob("agent*.safetensors"):
        if path.name not in named:
            path.unlink()


def _file(index: int, done: int, what: str) -> str:
    return f"agent{index}.round{done}.{what}.safetensors"


def _resume(directory: Path, run_id: str) -> tuple[list[Member], int] | None:
    """What `_write` left behind; None where nothing was begun."""
    path = directory / RUN_NAME
    # The folder is removed at the end, so nothing of others may lie in it.
    known = re.compile(r"\.|population\.json$|agent\d+\.round\d+\.\w+\.safetensors$")
    if strays := sorted(one.name for one in directory.glob("*") if not known.match(one.name)):
        raise PolicyError(
            f"{directory} is not a folder of checkpoints: it holds {strays[0]!r}; write elsewhere"
        )
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != RUN_FORMAT or content["run_id"] != run_id:
            raise PolicyError(
                f"{directory} holds checkpoints of another run (other models, devices, seed or "
                "agents); remove it or write somewhere else"
            )
        done = int(content["done"])
        members = []
        for index, item in enumerate(content["members"]):
            alive, best_round = bool(item["alive"]), int(item["best_round"])
            checkpoint = directory / _file(index, done, "checkpoint")
            best = directory / _file(index, best_round, "best")
            members.append(
                Member(
                    config=agent_config(item["config"]),
                    checkpoint=checkpoint.read_bytes() if alive else b"",
                    copy_from=int(item["copy_from"]),
                    alive=alive,
                    best_network=best.read_bytes() if best_round else b"",
                    best_gain=float(item["best_gain"]) if best_round else -math.inf,
                    best_round=best_round,
                    history=list(item["history"]),
                )
            )
        return members, done
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise PolicyError(
            f"{directory} holds damaged checkpoints ({error!r}); remove it"
        ) from error


def network_of(member: Member) -> Network:
    """The network of the member's best round."""
    return Network.from_tensors(load_tensors(member.best_network))
