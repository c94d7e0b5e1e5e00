"""What `scripts/bench macro` reads of its table is worth what it says, on tables made by hand."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from benchmarks.macro import BLOCKS, OPTIONS, RUNS, Table, Way, chosen, shrunk
from rlprune.graph.types import FloatArray

ALONE = np.array([[1.0 + 0.2 * block, 0.4 + 0.1 * block, 0.0] for block in range(BLOCKS)])
"""Losses of single changes, points."""


def table(extra: float = 0.0, noise: float = 0.0) -> Table:
    """A table where losses add up, but for `extra` where both last blocks are left out."""
    options = np.array(list(product(range(OPTIONS), repeat=BLOCKS)))
    loss = ALONE[np.arange(BLOCKS), options].sum(1)
    loss += extra * (options[:, -2:] == 0).all(1)
    runs = np.repeat(94.0 - loss[:, None], RUNS, axis=1)
    runs += noise * np.random.default_rng(0).normal(size=runs.shape)
    return Table(runs, 10.0 + (options * np.arange(5.0, 5.0 + BLOCKS)).sum(1))


BUDGETS: FloatArray = np.linspace(60.0, 140.0, 7)


def test_where_losses_add_up_single_changes_find_the_best_network() -> None:
    way = Way(table(), told=1)
    assert way.single == pytest.approx(ALONE)
    assert way.curve == pytest.approx(ALONE)
    assert way.lacks(BUDGETS, way.curve) == (pytest.approx(0.0), 1.0)
    assert way.residual(None, way.unread) == pytest.approx(0.0)
    assert all(loss == pytest.approx(0.0) for loss in way.terms.values())
    assert way.random(BUDGETS) > 0.3


def test_a_pair_that_saves_is_found_by_its_term_alone() -> None:
    way = Way(table(extra=-3.0), told=0)
    assert way.terms[6, 0, 7, 0] == pytest.approx(-3.0)
    assert way.lacks(BUDGETS, way.curve, way.pairs["as_read"]) == (pytest.approx(0.0), 1.0)
    assert way.lacks(BUDGETS, way.curve)[0] > 0.3
    assert way.believed(way.proposed(BUDGETS)) == "as_read"


def test_the_run_left_out_is_not_read() -> None:
    whole = table(noise=0.2)
    changed = whole.accuracy.copy()
    changed[:, 2] = 0.0
    one, other = Way(whole, told=2), Way(Table(changed, whole.mmacs), told=2)
    for curve in (lambda way: way.curve, shrunk, chosen):
        assert np.array_equal(curve(one), curve(other))
    assert one.terms == other.terms
    assert one.believed(one.proposed(BUDGETS)) == other.believed(other.proposed(BUDGETS))


def test_shrinking_brings_noisy_losses_of_one_kind_nearer_to_what_is_true() -> None:
    whole = table(noise=0.0)
    same = np.full((BLOCKS, OPTIONS), [1.0, 0.5, 0.0])
    loss = same[np.arange(BLOCKS), whole.options].sum(1)
    runs = 94.0 - loss[:, None] + 0.3 * np.random.default_rng(1).normal(size=whole.accuracy.shape)
    way = Way(Table(runs, whole.mmacs), told=0)
    wrong = np.abs(way.single - same).mean()
    assert np.abs(shrunk(way) - same).mean() < wrong
    assert np.abs(chosen(way) - same).mean() < wrong
