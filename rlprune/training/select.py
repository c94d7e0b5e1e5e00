"""How good a policy is, said honestly: gain over the knapsack, with an interval, per model.

One number per (model, device, budget): what the objective says the reference plan loses minus what
the policy's plan loses. The interval resamples whole models first and their budgets second, because
budgets of one model are not independent draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlprune.graph.types import FloatArray, IntArray
from rlprune.policy.artifact import Score
from rlprune.policy.base import Policy
from rlprune.policy.corrected import budgets_at
from rlprune.task.knapsack import solve
from rlprune.task.task import PruningTask

SCORE_SHARES = (0.15, 0.25, 0.35, 0.5, 0.65, 0.75, 0.85)
"""Budgets that policies are scored at: b in `least + b (base - least)`."""


@dataclass(frozen=True)
class NamedTask:
    """A task, and the name of the model it is of; tasks of one model are never split."""

    model: str
    task: PruningTask


@dataclass(frozen=True)
class Outcome:
    """A policy's plans of one task over budgets."""

    model: str
    device: str
    shares: FloatArray
    """b of each budget [B]."""
    loss: FloatArray
    """What the objective says the plans lose [B, nats]."""
    reference_loss: FloatArray
    """The same of the knapsack's plans [B]."""
    differs_ratio: FloatArray
    """Share of groups kept otherwise than by the knapsack [B]."""

    @property
    def gain(self) -> FloatArray:
        """Nats saved over the knapsack [B]."""
        return self.reference_loss - self.loss


def outcomes(
    policy: Policy, tasks: Sequence[NamedTask], shares: Sequence[float] = SCORE_SHARES
) -> list[Outcome]:
    """Plans every task at every budget and asks its objective."""
    results = []
    for named in tasks:
        task = named.task
        if task.objective is None:
            raise ValueError(f"task of {named.model!r} has no objective to score with")
        budget_ms = budgets_at(task, np.asarray(shares))
        reference: IntArray = solve(task, budget_ms)
        keeps = policy.plan(task, budget_ms)
        results.append(
            Outcome(
                model=named.model,
                device=task.tables.device,
                shares=np.asarray(shares, dtype=np.float64),
                loss=task.objective.loss(keeps),
                reference_loss=task.objective.loss(reference),
                differs_ratio=(keeps != reference).mean(1),
            )
        )
    return results


def score(results: Sequence[Outcome], *, seed: int = 0, resamples: int = 2000) -> Score:
    """Mean gain with its 90 % bootstrap interval over models, then over their cells."""
    models = sorted({result.model for result in results})
    gains = [np.concatenate([r.gain for r in results if r.model == m]) for m in models]
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    for index in range(resamples):
        picked = rng.integers(len(gains), size=len(gains))
        means[index] = np.mean(
            [gains[m][rng.integers(len(gains[m]), size=len(gains[m]))].mean() for m in picked]
        )
    low, high = np.quantile(means, [0.05, 0.95])
    return Score(
        gain=float(np.mean([g.mean() for g in gains])),
        gain_low=float(low),
        gain_high=float(high),
        differs_ratio=float(np.mean([r.differs_ratio.mean() for r in results])),
        models=tuple(models),
    )


def relative_gain(results: Sequence[Outcome]) -> float:
    """Mean over models of gain as a share of the knapsack's loss; what selection goes by.

    A share and not nats, so that one fragile model at one tight budget does not choose the policy.
    """
    models = sorted({result.model for result in results})
    shares = []
    for model in models:
        own = [r for r in results if r.model == model]
        lost = sum(float(r.reference_loss.sum()) for r in own)
        shares.append(sum(float(r.gain.sum()) for r in own) / max(lost, 1e-9))
    return float(np.mean(shares))
