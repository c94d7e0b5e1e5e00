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
from rlprune.policy.corrected import LEAST_LOSS, budgets_at, telling
from rlprune.solver.knapsack import solve
from rlprune.solver.task import PruningTask

SCORE_SHARES = tuple(round(0.1 + 0.05 * step, 2) for step in range(17))
"""Budgets that policies are scored at: b in `least + b (base - least)`, 0.1 .. 0.9."""


@dataclass(frozen=True)
class NamedTask:
    """A task, and the name of the model it is of; tasks of one model are never split."""

    model: str
    task: PruningTask


@dataclass(frozen=True)
class Outcome:
    """A policy's plans of one task, at the budgets whose losses tell something (`telling`)."""

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
        loss, reference_loss = task.objective.loss(keeps), task.objective.loss(reference)
        useful = telling(reference_loss)
        results.append(
            Outcome(
                model=named.model,
                device=task.tables.device,
                shares=np.asarray(shares, dtype=np.float64)[useful],
                loss=loss[useful],
                reference_loss=reference_loss[useful],
                differs_ratio=(keeps != reference).mean(1)[useful],
            )
        )
    return results


def score(results: Sequence[Outcome], *, seed: int = 0, resamples: int = 2000) -> Score:
    """Mean gains with their 90 % bootstrap intervals over models, then over their cells."""
    models = sorted({result.model for result in results})
    cells = [
        np.concatenate([np.stack([r.gain, _saved(r)]) for r in results if r.model == m], axis=1)
        for m in models
    ]  # per model [2, cells]
    rng = np.random.default_rng(seed)
    means = np.empty((resamples, 2))
    for index in range(resamples):
        picked = [cells[m] for m in rng.integers(len(cells), size=len(cells))]
        means[index] = np.mean(
            [own[:, rng.integers(own.shape[1], size=own.shape[1])].mean(1) for own in picked],
            axis=0,
        )
    low, high = np.quantile(means, [0.05, 0.95], axis=0)
    gain, saved = np.mean([own.mean(1) for own in cells], axis=0)
    return Score(
        gain=float(gain),
        gain_low=float(low[0]),
        gain_high=float(high[0]),
        saved_ratio=float(saved),
        saved_low=float(low[1]),
        saved_high=float(high[1]),
        differs_ratio=float(np.mean([r.differs_ratio.mean() for r in results])),
        models=tuple(models),
    )


def relative_gain(results: Sequence[Outcome]) -> float:
    """Mean over models of the share of the knapsack's loss saved; what selection goes by.

    A share and not nats, so that one fragile model or tight budget does not choose the policy.
    """
    models = sorted({result.model for result in results})
    return float(
        np.mean(
            [np.concatenate([_saved(r) for r in results if r.model == m]).mean() for m in models]
        )
    )


def _saved(result: Outcome) -> FloatArray:
    return np.asarray(result.gain / np.maximum(result.reference_loss, LEAST_LOSS))
