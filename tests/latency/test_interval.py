"""The interval's ends: monotone, invertible, and as wide as errors are at a latency."""

from __future__ import annotations

import numpy as np
import pytest

from rlprune.latency.calibrate import fit_interval
from rlprune.latency.interval import MAX_HALF_WIDTH, Interval

LATENCIES = np.geomspace(0.001, 10.0, 2000)


@pytest.mark.parametrize("fixed_ms", [0.0, 0.05, 2.0])
@pytest.mark.parametrize("half_width", [0.02, 0.14, 0.6])
def test_what_fits_a_budget_is_just_what_lies_below_its_limit(
    half_width: float, fixed_ms: float
) -> None:
    interval = Interval.of(half_width, fixed_ms)
    upper = interval.high_ms(LATENCIES)
    assert (np.diff(upper) > 0).all() and (interval.low_ms(LATENCIES) < LATENCIES).all()
    budgets = np.geomspace(0.002, 9.0, 50)
    limits = interval.limit_ms(budgets)
    assert (interval.high_ms(limits) <= budgets).all()
    assert (interval.high_ms(limits * (1.0 + 1e-8)) > budgets).all()
    assert interval.half_width_at(100.0) == pytest.approx(half_width, abs=1e-3)
    assert interval.half_width_at(1e-6) <= MAX_HALF_WIDTH + 1e-9


def test_two_extremes_do_not_widen_what_plans_near_the_budget_get() -> None:
    """The residuals of ResNet-18's plans in one store: all eights and a few tens of channels were
    62 % and 28 % off, at 2 % and 11 % of the unpruned latency; the rest at most 13.6 %."""
    rng = np.random.default_rng(0)
    share = np.concatenate([[0.0225, 0.112], rng.uniform(0.2, 0.95, 21)])
    left_out = np.concatenate([[0.62, 0.28], np.abs(rng.normal(0.0, 0.06, 20)), [0.136]])
    interval = fit_interval(left_out, 6.0 * share, 6.0)
    assert interval.half_width_at(3.0) < 0.16
    assert interval.half_width_at(0.136) > 0.4


@pytest.mark.parametrize("fixed", [0.0, 0.03, 0.3])
@pytest.mark.parametrize("count", [10, 20, 40])
def test_nine_new_plans_in_ten_lie_within_wherever_they_are(count: int, fixed: float) -> None:
    """Errors with a part that does not grow, from none to most; plans from 2 % to the whole."""
    rng = np.random.default_rng(count)
    covered = []
    for _ in range(1500):
        share = rng.uniform(0.02, 1.0, count + 1)
        errors = np.abs(rng.normal(0.0, 0.05 * np.sqrt(1.0 + np.square(fixed / share))))
        errors = np.minimum(errors, MAX_HALF_WIDTH)
        interval = fit_interval(errors[:-1], share[:-1], 1.0)
        covered.append(errors[-1] <= interval.half_width_at(float(share[-1])))
    assert np.mean(covered) > 0.88
