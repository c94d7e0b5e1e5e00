"""The interval around a predicted latency: as wide as predictions of such latencies were wrong.

An error has a part that grows with the latency and a part that does not (what a call costs, what a
runtime does that no width changes). Of a plan that leaves 2 % of a network's latency the second is
nearly all, of one that leaves half it is nothing: one relative width for both would charge every
plan for errors that only the extremes make. So widths are relative, and wider for what is short.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rlprune.graph.types import FloatArray

MAX_HALF_WIDTH = 0.7
"""Natural logarithm of the widest interval's upper end over the prediction; with it below 1, a
slower plan's upper end is above a faster one's."""
HALVINGS = 60


@dataclass(frozen=True, slots=True)
class Interval:
    """Ends of the 90 % interval as functions of what is predicted."""

    low_ratio: float = 1.0
    """Lower end over the prediction, of latencies far above `fixed_ms`; at most 1."""
    high_ratio: float = 1.0
    """Upper end over the prediction, likewise; at least 1."""
    fixed_ms: float = 0.0
    """Latency at which the part of the error that does not grow is as large as the one that does;
    0 where all of it grows."""

    @staticmethod
    def of(half_width: float, fixed_ms: float = 0.0) -> Interval:
        """Equally wide on either side, in the natural logarithm."""
        return Interval(float(np.exp(-half_width)), float(np.exp(half_width)), fixed_ms)

    def half_width_at(self, ms: float) -> float:
        """Natural logarithm of the upper end over a prediction."""
        return float(np.log(self.high_ms(np.array([ms]))[0] / ms))

    def low_ms(self, ms: FloatArray) -> FloatArray:
        """Lower ends of predictions [...]."""
        return self._end(ms, self.low_ratio)

    def high_ms(self, ms: FloatArray) -> FloatArray:
        """Upper ends of predictions [...]; what is predicted slower has the higher one."""
        return self._end(ms, self.high_ratio)

    def limit_ms(self, budget_ms: FloatArray) -> FloatArray:
        """The greatest predictions [...] whose upper end is within the budgets, to the last digit
        where the whole error grows, to a millionth below it else."""
        if not self.fixed_ms:
            limit = budget_ms / self.high_ratio
            above = np.nextafter(limit, np.inf)
            limit = np.where(above * self.high_ratio <= budget_ms, above, limit)
            return np.where(
                limit * self.high_ratio <= budget_ms, limit, np.nextafter(limit, -np.inf)
            )
        low, high = budget_ms * np.exp(-MAX_HALF_WIDTH - 1e-9), budget_ms / self.high_ratio
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            fits = self.high_ms(middle) <= budget_ms
            low, high = np.where(fits, middle, low), np.where(fits, high, middle)
        return np.asarray(low * (1.0 - 1e-9))  # what is a hair faster must fit too

    def _end(self, ms: FloatArray, ratio: float) -> FloatArray:
        if not self.fixed_ms or ratio == 1.0:
            return np.asarray(ms * ratio)
        wider = np.sqrt(1.0 + np.square(self.fixed_ms / np.maximum(ms, 1e-12)))
        log = np.clip(np.log(ratio) * wider, -MAX_HALF_WIDTH, MAX_HALF_WIDTH)
        # A ratio given as wider than the widest stays as it is.
        log = np.maximum(log, np.log(ratio)) if ratio > 1.0 else np.minimum(log, np.log(ratio))
        return np.asarray(ms * np.exp(log))
