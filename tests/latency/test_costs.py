"""What an operator costs at any widths, from what it cost at a few."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
from hand_graphs import law_ms

from rlprune.latency.costs import CostPoint, OperatorCosts
from rlprune.latency.operators import form
from rlprune.latency.types import OperatorSpec

CONV = OperatorSpec("conv", "", 8, 8, (16, 16), (16, 16), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1))
GRID = (8, 16, 32, 64)


def points(noise: float = 0.0, seed: int = 0) -> list[CostPoint]:
    rng = np.random.default_rng(seed)
    specs = [replace(CONV, in_width=i, out_width=o) for i, o in itertools.product(GRID, GRID)]
    specs += [OperatorSpec("add", "", w, w, (16, 16), (16, 16)) for w in GRID]
    factors = np.exp(noise * rng.standard_normal(len(specs)))
    return [
        CostPoint(s, law_ms(s) * f, max(noise, 0.01)) for s, f in zip(specs, factors, strict=True)
    ]


def ms_at(costs: OperatorCosts, spec: OperatorSpec) -> float:
    return float(costs.ms(form(spec), np.array([spec.in_width]), np.array([spec.out_width]))[0])


def test_reproduces_what_was_measured() -> None:
    costs = OperatorCosts.fit(points())
    for point in points():
        assert abs(ms_at(costs, point.spec) / point.ms - 1.0) < 0.01


def test_interpolates_between_measured_widths() -> None:
    costs = OperatorCosts.fit(points())
    for ins, outs in itertools.product((24, 40, 48, 56), (24, 40, 48, 56)):
        spec = replace(CONV, in_width=ins, out_width=outs)
        assert abs(ms_at(costs, spec) / law_ms(spec) - 1.0) < 0.05


def test_an_operator_never_measured_gets_the_devices_regression() -> None:
    costs = OperatorCosts.fit(points())
    for other in (
        replace(CONV, in_width=48, out_width=48, kernel=(1, 1), pads=(0, 0, 0, 0)),
        replace(CONV, in_width=48, out_width=48, in_spatial=(32, 32), out_spatial=(32, 32)),
        OperatorSpec("mul", "", 32, 32, (16, 16), (16, 16)),
    ):
        assert 0.5 < ms_at(costs, other) / law_ms(other) < 2.0


def odd_ms(spec: OperatorSpec) -> float:
    """A device on which narrow inputs are dear, whatever the kernel."""
    return law_ms(spec) * (1.0 + 24.0 / spec.in_width)


def test_one_measured_width_is_enough_where_kernels_tell_of_one_another() -> None:
    row = replace(CONV, kernel=(1, 3), pads=(0, 1, 0, 1))
    once = replace(row, in_width=64, out_width=64)
    specs = [one.spec for one in points() if one.spec.kind == "conv"] + [once]
    measured = [CostPoint(spec, odd_ms(spec), 0.01) for spec in specs]

    def off(across_kernels: bool) -> float:
        costs = OperatorCosts.fit(measured, across_kernels=across_kernels)
        at = [replace(row, in_width=i, out_width=o) for i in (8, 12, 24, 64) for o in GRID]
        return float(np.mean([abs(np.log(ms_at(costs, spec) / odd_ms(spec))) for spec in at]))

    assert 2.0 * off(True) < off(False)


def test_kernels_that_tell_of_one_another_change_nothing_where_there_is_one_of_each() -> None:
    alone, together = (OperatorCosts.fit(points(), across_kernels=one) for one in (False, True))
    spec = replace(CONV, in_width=24, out_width=40)
    assert np.isclose(ms_at(alone, spec), ms_at(together, spec))


def test_without_any_measurement_more_work_still_costs_more() -> None:
    costs = OperatorCosts.fit([])
    ladder = [ms_at(costs, replace(CONV, in_width=w, out_width=w)) for w in GRID]
    assert ladder == sorted(ladder) and ladder[0] > 0


def test_noise_does_not_make_wider_cheaper() -> None:
    costs = OperatorCosts.fit(points(noise=0.08, seed=3))
    widths = np.array(GRID)
    for outs in GRID:
        ladder = costs.ms(form(CONV), widths, np.full(4, outs))
        assert np.all(np.diff(np.log(ladder)) > -0.03)


def test_a_staircase_that_was_clearly_measured_is_believed() -> None:
    """45 channels take ORT 1.6 times as long as 48."""
    measured = points() + [
        CostPoint(spec, 1.6 * law_ms(spec), 0.01)
        for spec in (replace(CONV, in_width=45, out_width=w) for w in GRID)
    ]
    costs = OperatorCosts.fit(measured)
    odd, even = (ms_at(costs, replace(CONV, in_width=w, out_width=32)) for w in (45, 48))
    assert odd > 1.3 * even
    assert abs(even / law_ms(replace(CONV, in_width=48, out_width=32)) - 1.0) < 0.05


def test_noisy_points_pull_less() -> None:
    wrong = replace(CONV, in_width=32, out_width=32)
    known = [point for point in points() if point.spec != wrong]
    doubtful = OperatorCosts.fit([*known, CostPoint(wrong, 2.0 * law_ms(wrong), 1.0)])
    certain = OperatorCosts.fit([*known, CostPoint(wrong, 2.0 * law_ms(wrong), 0.01)])
    assert ms_at(doubtful, wrong) < 1.1 * law_ms(wrong)
    assert ms_at(certain, wrong) > 1.6 * law_ms(wrong)


def test_the_order_of_points_does_not_matter() -> None:
    first, again = OperatorCosts.fit(points()), OperatorCosts.fit(points()[::-1])
    spec = replace(CONV, in_width=24, out_width=40)
    assert ms_at(first, spec) == ms_at(again, spec)
