"""Shares and paired differences are what they say, on numbers made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.peers.figures import Losses, Place, difference, over_cells, share_of_saving

N = 400


def losses(mean: float, *, noise: float = 0.0, seeds: int = 2) -> Losses:
    """A loss on every image that has this mean exactly; what makes images hard is the same."""
    hard = np.linspace(-1.0, 1.0, N)
    return {s: mean + hard + noise * np.resize([1.0, -1.0], N) for s in range(seeds)}


def test_hard_images_cancel_in_a_paired_difference() -> None:
    alone = difference(losses(1.0))
    paired = difference(losses(0.8), losses(1.0))
    assert alone is not None and paired is not None
    assert paired.mean == pytest.approx(-0.2) and paired.image_se == pytest.approx(0.0)
    assert alone.image_se == pytest.approx(np.linspace(-1, 1, N).std(ddof=1) / np.sqrt(N))
    assert paired.seed_se == pytest.approx(0.0) and paired.seed_count == 2


def test_seeds_are_compared_with_themselves_and_the_missing_left_out() -> None:
    own = {0: np.full(N, 1.0), 1: np.full(N, 3.0), 2: np.full(N, 9.0)}
    other = {0: np.full(N, 0.0), 1: np.full(N, 1.0)}
    found = difference(own, other)
    assert found is not None
    assert found.mean == 1.5 and found.seed_count == 2
    assert found.seed_se == pytest.approx(np.std([1.0, 2.0], ddof=1) / np.sqrt(2))
    assert difference(own, {7: np.zeros(N)}) is None


def test_the_share_is_of_sums_over_cells_where_the_search_clearly_saves() -> None:
    a, b, noisy = Place("a", "macs", 0.5), Place("b", "macs", 0.5), Place("b", "macs", 0.25)
    knapsack = {place: losses(1.0) for place in (a, b, noisy)}
    # In the third cell the search saves 0.01 with a standard error of 0.05.
    search = {a: losses(0.6), b: losses(0.8), noisy: losses(0.99, noise=1.0)}
    own = {a: losses(0.7), b: losses(1.0), noisy: losses(5.0)}
    found = share_of_saving(own, search, knapsack, np.random.default_rng(0))
    assert found is not None
    assert found.cell_count == 2 and found.model_count == 2
    assert found.saved == pytest.approx(0.3) and found.search_saved == pytest.approx(0.6)
    assert found.value == pytest.approx(0.5)
    # Model a alone gives 0.75, model b alone 0: with two models a draw has one alone half the time.
    assert found.interval == pytest.approx((0.0, 0.75))


def test_one_model_has_a_share_but_no_interval_and_no_saving_has_none() -> None:
    place = Place("a", "macs", 0.5)
    cells = {place: losses(1.0)}
    rng = np.random.default_rng(0)
    found = share_of_saving({place: losses(0.9)}, {place: losses(0.8)}, cells, rng)
    assert found is not None and found.value == pytest.approx(0.5) and found.interval is None
    assert share_of_saving(cells, {place: losses(1.1)}, cells, rng) is None
    assert share_of_saving({}, cells, cells, rng) is None


def test_cells_on_the_same_images_are_averaged_before_the_error_is_taken() -> None:
    places = [Place("a", "macs", share) for share in (0.25, 0.5)]
    rng = np.random.default_rng(0)
    noise = rng.normal(size=N)
    own = {place: {0: 0.1 + noise} for place in places}
    found = over_cells(own, {place: {0: np.zeros(N)} for place in places})
    assert found is not None
    # The same noise twice is no more certain than once.
    assert found.image_se == pytest.approx(noise.std(ddof=1) / np.sqrt(N))
    assert found.mean == pytest.approx(0.1 + noise.mean())
