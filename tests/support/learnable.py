"""Training tasks whose true loss differs from the profile in a way that can be learned.

The profile says what each group loses alone; the truth weighs early groups more than late ones,
bends the losses, and charges neighbours that are both cut deep. What there is to learn is the same
in every graph, so it must carry over to one that was not trained on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from synthetic import resnet_like, task_of

from rlprune.graph.types import FloatArray, IntArray
from rlprune.sensitivity.predicted import energy_curve
from rlprune.solver.task import PruningTask


@dataclass(frozen=True)
class BentObjective:
    """5 sum_g weight(depth) * loss_g^1.3, and an interaction of neighbours' losses."""

    levels: IntArray
    curve: FloatArray
    weight: FloatArray

    def loss(self, keeps: IntArray) -> FloatArray:
        choice = (self.levels[None] < keeps[..., None]).sum(-1)  # [B, G]
        alone = self.curve[np.arange(len(self.levels)), choice]
        bent = self.weight * alone**1.3
        return np.asarray(5 * bent.sum(1) + 2.5 * (alone[:, 1:] * alone[:, :-1]).sum(1))


def learnable_task(seed: int, blocks: tuple[int, ...] = (2, 2)) -> PruningTask:
    """A small residual net, its loss curves drawn by the seed, with a bent objective."""
    rng = np.random.default_rng((seed, 7))
    graph = resnet_like(blocks, width=int(rng.choice([32, 48, 64])), side=16)
    task = task_of(graph, seed=seed)
    depth = np.linspace(1.0, -1.0, len(graph.groups))
    curve = task.curve
    # The factor that ships is of real networks; in this world weights say it as they are.
    assert task.profiles.energy_loss is not None
    foretold = energy_curve(graph, task.profiles.energy_loss)
    task = replace(task, profiles=replace(task.profiles, predicted_loss=foretold))
    return replace(task, objective=BentObjective(task.space.settings, curve, np.exp(1.2 * depth)))
