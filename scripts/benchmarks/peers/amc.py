"""AMC's agent and environment (He et al., ECCV 2018; mit-han-lab/amc), and its random control.

A DDPG agent walks the groups in order and gives each a keep ratio; ratios are bounded so that the
rest, at its least, still meets the budget; only the finished plan is evaluated, and its reward,
minus the loss, is credited to every step. Hyperparameters are the public code's. Departures: the
cost is the device's predicted latency and not FLOPs; a quarter of the episodes are warm-up (100 of
400 in the paper).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import truncnorm
from torch import Tensor, nn

from benchmarks.peers.search import HAIR, Search, SearchSpace
from rlprune.graph.types import FloatArray, IntArray
from rlprune.solver.costs import MoveCosts
from rlprune.solver.task import PruningTask

LEAST_RATIO = 0.2
"""Of a group's units that an action may keep (`lbound`)."""
WARMUP_RATIO = 0.25
STATE_SIZE = 11


class Walk:
    """Episodes of one task at one budget: the sites in order, a keep ratio each."""

    def __init__(self, task: PruningTask, budget_ms: float) -> None:
        self._space = SearchSpace.of(task, budget_ms)
        self._embedding = _embedding(task)

    def run(self, act: Callable[[FloatArray], float]) -> tuple[list[FloatArray], IntArray]:
        """One episode: its states [11], the one after the last step too, and the choice [S].

        `act` gives a keep ratio (0-1) for a state.
        """
        space = self._space
        shares, choice, last = space.task.shares, space.task.space.unpruned, 1.0
        states = [self._state(0, choice, last)]
        for group in range(len(choice)):
            last = act(states[-1])
            rest = np.concatenate([choice[:group], space.least[group:]])
            latency, moves = space.moves(rest)
            able = latency + moves[group] <= space.limit * (1 - HAIR)
            able &= np.arange(shares.shape[1]) < space.task.option_count[group]
            able[space.least[group]] = True
            choice[group] = np.where(able, np.abs(shares[group] - last), np.inf).argmin()
            states.append(self._state(group + 1, choice, last))
        return states, choice

    def _state(self, done: int, choice: IntArray, last: float) -> FloatArray:
        """AMC's eleven numbers: the layer, what is saved so far, what is still to come, a_t-1."""
        at = min(done, len(self._embedding) - 1)
        space = self._space
        saved = 1.0 - float(space.costs.latency_ms(choice[None])[0]) / space.task.base_ms
        rest = float(self._embedding[at + 1 :, -1].sum())
        return np.array([*self._embedding[at], saved, rest, last])


def _embedding(task: PruningTask) -> FloatArray:
    """Per site [S, 8], each column scaled to 0-1: place, units, inputs, height, width, stride,
    kernel, and share of the latency that it can save.

    Of the operators that write a group, or take other forms by a kernel or a block, the costliest
    by MACs speaks for it.
    """
    graph, widths = task.graph, task.graph.widths
    rows = np.zeros((task.site_count, 8))
    heaviest = np.full(task.site_count, -1.0)
    for index, op in enumerate(graph.operators):
        ins, outs = op.in_width.at(widths), op.out_width.at(widths)
        macs = float(op.macs_at(ins, outs))
        extent = (*op.out_spatial, 1, 1)[:2]
        groups = [group for group, _ in op.out_width.terms]
        for site in (*groups, *task.space.form_sites.get(index, ())):
            if macs > heaviest[site]:
                heaviest[site] = macs
                stride, kernel = (float(max(x, default=1)) for x in (op.stride, op.kernel))
                rows[site, 2:7] = float(ins), *extent, stride, kernel
    rows[:, 0] = np.arange(len(rows))
    rows[:, 1] = [site.values[-1] for site in task.space.sites]
    scaled = (rows - rows.min(0)) / np.maximum(np.ptp(rows, axis=0), 1e-9)
    _, moves = MoveCosts.of(task.tables).moves_ms(task.space.unpruned[None])
    scaled[:, 7] = np.ptp(moves[0], axis=-1) / task.base_ms
    return np.asarray(scaled, dtype=np.float64)


def random_policy(task: PruningTask, budget_ms: float, rng: np.random.Generator) -> Search:
    """Uniformly random ratios through the same environment: the control of Distiller's study."""
    walk = Walk(task, budget_ms)
    while True:
        yield walk.run(lambda _: float(rng.uniform(LEAST_RATIO, 1.0)))[1]


def amc(task: PruningTask, budget_ms: float, episode_count: int, seed: int) -> Search:
    """DDPG over whole episodes."""
    walk = Walk(task, budget_ms)
    agent = Ddpg(DdpgConfig(memory_count=100 * task.site_count), seed)
    warmup = round(WARMUP_RATIO * episode_count)
    for number in range(-warmup, episode_count - warmup):
        actions: list[float] = []

        def act(state: FloatArray, number: int = number, actions: list[float] = actions) -> float:
            actions.append(agent.act(state, number))
            return actions[-1]

        states, choice = walk.run(act)
        loss = yield choice
        for step, action in enumerate(actions):
            over = step == len(actions) - 1
            agent.remember(states[step], action, -loss, states[step + 1], over)
            if number >= 0:
                agent.learn()


@dataclass(frozen=True, slots=True)
class DdpgConfig:
    """The defaults of amc_search.py."""

    memory_count: int
    hidden: int = 300
    actor_rate: float = 1e-4
    critic_rate: float = 1e-3
    batch_size: int = 64
    tau: float = 0.01
    noise: float = 0.5
    """Standard deviation of the truncated normal at the first episode after the warm-up."""
    noise_decay: float = 0.95
    baseline_decay: float = 0.5
    """Weight of the old mean in the moving average that rewards are taken against."""


class Ddpg:
    """Deep deterministic policy gradient (Lillicrap et al. 2016) with AMC's reward baseline."""

    def __init__(self, config: DdpgConfig, seed: int) -> None:
        self.config = config
        self.rng = np.random.default_rng(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._actor = _network(STATE_SIZE, config.hidden, nn.Sigmoid())
            self._critic = _network(STATE_SIZE + 1, config.hidden)
        self._actor_target = copy.deepcopy(self._actor)
        self._critic_target = copy.deepcopy(self._critic)
        self._actor_steps = torch.optim.Adam(self._actor.parameters(), config.actor_rate)
        self._critic_steps = torch.optim.Adam(self._critic.parameters(), config.critic_rate)
        self._memory: list[tuple[FloatArray, float, float, FloatArray, bool]] = []
        self._baseline: float | None = None

    def act(self, state: FloatArray, episode: int) -> float:
        """The actor's ratio with noise that shrinks from episode to episode; uniform before 0."""
        if episode < 0:
            return float(self.rng.uniform(LEAST_RATIO, 1.0))
        with torch.no_grad():
            mean = float(self._actor(_tensor(state[None])))
        spread = self.config.noise * self.config.noise_decay**episode
        low, high = (LEAST_RATIO - mean) / spread, (1.0 - mean) / spread
        return float(truncnorm.rvs(low, high, mean, spread, random_state=self.rng))

    def remember(
        self, state: FloatArray, action: float, reward: float, after: FloatArray, over: bool
    ) -> None:
        self._memory.append((state, action, reward, after, over))
        del self._memory[: -self.config.memory_count]

    def learn(self) -> None:
        """One step of critic and actor on a batch from memory."""
        config = self.config
        index = self.rng.integers(len(self._memory), size=config.batch_size)
        columns = zip(*(self._memory[i] for i in index), strict=True)
        state, action, reward, after, over = (_tensor(np.array(column)) for column in columns)
        mean = float(reward.mean())
        old = mean if self._baseline is None else self._baseline
        self._baseline = config.baseline_decay * old + (1 - config.baseline_decay) * mean
        with torch.no_grad():
            later = self._value(self._critic_target, after, self._actor_target(after)[:, 0])
            target = reward - self._baseline + (1 - over) * later
        error = (self._value(self._critic, state, action) - target).square().mean()
        self._critic_steps.zero_grad()
        error.backward()  # type: ignore[no-untyped-call]
        self._critic_steps.step()
        gain = self._value(self._critic, state, self._actor(state)[:, 0]).mean()
        self._actor_steps.zero_grad()
        (-gain).backward()  # type: ignore[no-untyped-call]
        self._actor_steps.step()
        for slow, fast in ((self._actor_target, self._actor), (self._critic_target, self._critic)):
            with torch.no_grad():
                for old_one, new in zip(slow.parameters(), fast.parameters(), strict=True):
                    old_one.lerp_(new, config.tau)

    @staticmethod
    def _value(critic: nn.Module, state: Tensor, action: Tensor) -> Tensor:
        value: Tensor = critic(torch.cat([state, action[:, None]], 1))[:, 0]
        return value


def _network(inputs: int, hidden: int, *last: nn.Module) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, 1),
        *last,
    )


def _tensor(values: FloatArray) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float32)
