"""Rank correlations over plans, what a choice costs, and their bootstrap intervals: pure.

A figure is a loss: less of it should go with more accuracy, and a correlation of 1 says that it
does for every pair of plans.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from rlprune.graph.types import FloatArray, IntArray

BAND = 0.15
"""How much more than the best a plan may diverge to be near the optimum, as a share."""
DRAWS = 2000
ENDS = (0.05, 0.95)
"""Of a 90 % interval."""

Statistic = Callable[[FloatArray, FloatArray], float]
"""Of a figure [N] and accuracies [N]."""


@dataclass(frozen=True)
class Outcome:
    """What the figures say of a network's plans, and what became of them."""

    figures: Mapping[str, FloatArray]
    """By name, of each plan [N]; less is better."""
    accuracies: FloatArray
    """After training, by seed and plan [seeds, N], in %."""

    @property
    def accuracy(self) -> FloatArray:
        """Of each plan, the mean over seeds [N]."""
        return np.asarray(self.accuracies.mean(0))


@dataclass(frozen=True)
class Told:
    """A statistic with its 90 % interval."""

    value: float
    interval: tuple[float, float]
    count: int
    """Plans that it is of."""


def near(
    values: FloatArray, count: int, *, band: float = BAND, first: int | None = None
) -> tuple[IntArray, float]:
    """`count` of the least `values` [N], least first, and by what share the last exceeds the least.

    Within the band they are taken evenly along their order, so that they differ as much as can be;
    where too few are within, the least are taken, beyond the band.

    Args:
        first: one that is taken in any case where it is within.
    """
    order = np.argsort(values, kind="stable")
    within = order[values[order] <= (1 + band) * values[order[0]]]
    if len(within) <= count:
        taken = order[:count]
    else:
        taken = within[np.linspace(0, len(within) - 1, count).round().astype(np.int64)]
        if first is not None and first in within and first not in taken:
            nearest = 1 + int(np.abs(values[taken[1:]] - values[first]).argmin())
            taken[nearest] = first  # the least stays
    return taken, float(values[taken].max() / values[order[0]] - 1)


def rank_correlation(figure: FloatArray, accuracy: FloatArray) -> float:
    """Spearman's, of the figure's negative with the accuracy; NaN where either does not vary."""
    if np.ptp(figure) == 0 or np.ptp(accuracy) == 0:
        return float("nan")
    return float(np.corrcoef(rankdata(-figure), rankdata(accuracy))[0, 1])


def regret(figure: FloatArray, accuracy: FloatArray) -> float:
    """How far the plan of least figure is below the best."""
    return float(accuracy.max() - accuracy[figure.argmin()])


def regret_of_any(_: FloatArray, accuracy: FloatArray) -> float:
    """How far a plan that is drawn blindly is below the best, on average."""
    return float(accuracy.max() - accuracy.mean())


def over_plans(outcomes: Sequence[Outcome], name: str, of: Statistic) -> Told:
    """The mean of a figure's statistic over networks; plans of each are drawn anew."""
    return _bootstrapped(outcomes, lambda one, own: of(one.figures[name][own], one.accuracy[own]))


def further(outcomes: Sequence[Outcome], name: str, other: str, of: Statistic) -> Told:
    """By how much one figure's statistic is above another's of the same plans."""

    def gain(one: Outcome, own: IntArray) -> float:
        accuracy = one.accuracy[own]
        return of(one.figures[name][own], accuracy) - of(one.figures[other][own], accuracy)

    return _bootstrapped(outcomes, gain)


def between_seeds(outcomes: Sequence[Outcome]) -> Told:
    """The rank correlation of accuracies by two seeds, mean over pairs: no figure that knows
    nothing of a seed can be expected to correlate with one seed's accuracies by more than its
    square root."""

    def pairs(one: Outcome, own: IntArray) -> float:
        rows = one.accuracies[:, own]
        found = [rank_correlation(-rows[i], rows[k]) for i in range(len(rows)) for k in range(i)]
        return float(np.mean(found))

    return _bootstrapped(outcomes, pairs)


def _bootstrapped(outcomes: Sequence[Outcome], of: Callable[[Outcome, IntArray], float]) -> Told:
    rng = np.random.default_rng(0)
    values, drawn = [], []
    for one in outcomes:
        count = len(one.accuracy)
        values.append(of(one, np.arange(count)))
        drawn.append([of(one, rng.integers(0, count, count)) for _ in range(DRAWS)])
    low, high = np.nanquantile(np.mean(drawn, axis=0), ENDS)
    count = sum(len(one.accuracy) for one in outcomes)
    return Told(float(np.mean(values)), (float(low), float(high)), count)
