"""The learned policy: an artifact's network, walked through the task's own dynamics.

It sees and does exactly what it saw and did in training, because `rlprune.mdp.dynamics` is the one
place where observations are made and actions become keeps.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rlprune.graph.types import FloatArray, IntArray
from rlprune.mdp.episode import plan_with
from rlprune.policy.artifact import PolicyArtifact
from rlprune.solver.task import PruningTask

SAMPLE_STD = (0.1, 0.2)
"""Of what is added to actions (-1..1) in samples, in turns: most plans that 0.3 leads to are worse
by more than evaluating them could win."""


@dataclass(frozen=True)
class LearnedPolicy:
    """Plans of a trained network; any thread may call it."""

    artifact: PolicyArtifact

    @staticmethod
    def load(directory: str | Path) -> LearnedPolicy:
        """From an artifact's directory.

        Raises:
            PolicyError: as `PolicyArtifact.load`.
        """
        return LearnedPolicy(PolicyArtifact.load(directory))

    @property
    def name(self) -> str:
        """`learned/` and the digest of its tensors."""
        return f"learned/{self.artifact.digest[:8] or 'unsaved'}"

    def plan(self, task: PruningTask, budget_ms: FloatArray) -> IntArray:
        """As `Policy.plan`."""
        return plan_with(
            task,
            np.asarray(budget_ms, dtype=np.float64),
            self.artifact.network.act,
            self.artifact.action,
        )

    def sample(
        self, task: PruningTask, budget_ms: float, count: int, rng: np.random.Generator
    ) -> IntArray:
        """As `SamplingPolicy.sample`: normal noise on every action."""
        std = np.resize(SAMPLE_STD, count)[:, None]

        def act(observations: NDArray[np.float32]) -> NDArray[np.floating]:
            actions = self.artifact.network.act(observations)
            return np.asarray(actions + std * rng.standard_normal(actions.shape))

        return plan_with(task, np.full(count, budget_ms), act, self.artifact.action)
