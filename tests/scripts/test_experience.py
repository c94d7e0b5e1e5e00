"""`scripts/bench experience`: what is compared with what."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.experience import cells
from benchmarks.parts.experience_plans import BUDGETS, METHODS, Cell, Judged
from benchmarks.parts.experience_rows import bootstrapped, headlines, logs

Known = dict[Cell, Judged]


def known(**losses: float) -> Known:
    """Of three networks at both budgets, each method's loss."""
    return {
        Cell(net, budget, method): Judged(loss * factor, 0.01, 0.9, 1000, 1.0)
        for net, factor in (("a", 1.0), ("b", 2.0), ("c", 0.5))
        for budget in BUDGETS
        for method, loss in losses.items()
    }


def test_every_method_is_asked_of_every_network_and_budget() -> None:
    asked = cells(["vovnet", "seresnet"], quick=False)
    assert len(asked) == len(set(asked)) == 2 * len(BUDGETS) * len(METHODS)


def test_differences_are_of_logarithms_and_of_the_best_of_others() -> None:
    found = known(instant=1.1, profile=1.0, uniform=2.0, energy=1.5)
    assert np.concatenate(logs(found, "instant", ["profile"])) == pytest.approx(math.log(1.1))
    rows = {row.name: row for row in headlines(found)}
    assert rows["experience.instant.over_profile"].value == pytest.approx(math.log(1.1))
    # Without `global` there is no best of the blind ones.
    assert "experience.instant.below_blind" not in rows
    found |= known(**{"global": 3.0})
    rows = {row.name: row for row in headlines(found)}
    assert rows["experience.instant.below_blind"].value == pytest.approx(1 - 1.1 / 1.5)


def test_a_race_is_held_to_the_upper_end_of_its_interval() -> None:
    found = known(quick=1.0, profile=1.0)
    for budget in BUDGETS:
        found[Cell("a", budget, "quick")] = Judged(1.3, 0.01, 0.9, 1000, 1.0)
    [row] = [row for row in headlines(found) if row.name == "experience.quick.over_profile"]
    assert row.interval is not None and row.value == row.interval[1] > 0.03
    assert not row.met


def test_what_made_up_images_keep_is_told_by_the_worst_cell() -> None:
    found = known(quick=1.0, **{"made_up.quick": 1.0})
    found[Cell("b", 0.5, "made_up.quick")] = Judged(1.0, 0.01, 0.45, 1000, 1.0)
    [row] = [row for row in headlines(found) if row.name == "experience.made_up.least_kept"]
    assert row.value == pytest.approx(0.5) and not row.met


def test_intervals_are_wide_where_networks_differ() -> None:
    alike = [np.array([0.1, 0.1])] * 4
    differ = [np.array([value, value]) for value in (-0.2, 0.0, 0.2, 0.4)]
    assert bootstrapped(alike) == (pytest.approx(0.1), (pytest.approx(0.1), pytest.approx(0.1)))
    mean, (low, high) = bootstrapped(differ)
    assert mean == pytest.approx(0.1) and low < 0.0 < 0.2 < high
