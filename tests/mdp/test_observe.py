"""What a policy is shown: bounded, named, of one length for every network."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from synthetic import chain_graph, random_task, resnet_like, task_of

from rlprune.mdp.dynamics import PruningDynamics
from rlprune.mdp.observe import LIMIT, OBSERVATION_VERSION, SLOTS


def episode_observations(dynamics: PruningDynamics, rows: int, seed: int) -> np.ndarray:
    """All observations of one episode of random actions [steps, B, D]."""
    rng = np.random.default_rng(seed)
    seen = [dynamics.reset([np.random.default_rng((seed, row)) for row in range(rows)])]
    over = False
    while not over:
        step = dynamics.step(rng.uniform(-1, 1, (rows, dynamics.action_size)))
        seen.append(step[0])
        over = step[2]
    return np.array(seen)


def test_slots_are_named_once_and_versioned() -> None:
    assert len(set(SLOTS)) == len(SLOTS)
    assert OBSERVATION_VERSION == 2


def test_observations_are_finite_bounded_float32_for_any_depth_and_tables() -> None:
    tasks = [random_task(s, group_count=1 + s, noise=0.3 * (s % 3)) for s in range(10)]
    tasks += [random_task(11, folds=0), task_of(resnet_like((1, 1, 1)), seed=1)]
    for task in tasks:
        seen = episode_observations(PruningDynamics(task, budget_range=(0.0, 1.0)), 4, 1)
        assert seen.dtype == np.float32
        assert seen.shape[1:] == (4, len(SLOTS))
        assert np.isfinite(seen).all() and np.abs(seen).max() <= LIMIT


def test_a_group_is_told_where_it_lies() -> None:
    """Stem, streams and what lies beside them, siblings of a concat, and the classifier's input."""
    task = task_of(resnet_like((2, 1)))
    seen = episode_observations(PruningDynamics(task), 1, 0)[: task.site_count, 0]
    slots = dict(zip(SLOTS, seen.T, strict=True))
    streams = slots["stream"] == 1
    assert 0 < streams.sum() < len(streams)
    assert (slots["bypassed"] == ~streams).all(), "all but streams lie inside of a block"
    assert (slots["first"] == (np.arange(len(streams)) == 0)).all()
    assert (slots["last"] == 1).sum() == 1 and streams[slots["last"] == 1].all()
    assert (slots["sibling_share"] == 0).all(), "nothing is concatenated"


def test_few_values_are_cut_off() -> None:
    seen = episode_observations(PruningDynamics(task_of(resnet_like((3, 3, 3)))), 32, 2)
    # The two that say "no further level" are meant to be.
    meant = np.isin(SLOTS, ["grow_value", "shrink_value"])
    assert (np.abs(seen[..., ~meant]) >= LIMIT).mean() < 0.005


def test_every_slot_tells_something_apart() -> None:
    dynamics = [
        PruningDynamics(random_task(s, group_count=3 + s, noise=0.2 * (s % 2)), withheld_ratio=0.5)
        for s in range(12)
    ]
    seen = np.concatenate(
        [episode_observations(d, 8, s).reshape(-1, len(SLOTS)) for s, d in enumerate(dynamics)]
    )
    still = [name for name, spread in zip(SLOTS, seen.std(0), strict=True) if spread < 1e-6]
    assert still == ["interval"]  # the synthetic tables all have one interval


def test_withheld_curves_are_not_shown() -> None:
    dynamics = PruningDynamics(random_task(1), withheld_ratio=1.0)
    seen = dict(zip(SLOTS, np.moveaxis(episode_observations(dynamics, 64, 4), -1, 0), strict=True))
    assert (seen["profiled"] == 0).all()
    assert (seen["log_loss_scale"] == 0).all()
    hidden = seen["has_weight_norms"] == 0
    assert hidden.any() and not hidden.all()
    assert (seen["energy_50"][hidden] == 0).all()


def test_scale_of_the_device_does_not_show() -> None:
    graph = chain_graph([16, 32, 24])
    slow = task_of(graph, seed=1)
    fast = replace(slow, tables=slow.tables.scaled(8.0))
    one = episode_observations(PruningDynamics(slow), 4, 5)
    other = episode_observations(PruningDynamics(fast), 4, 5)
    assert np.allclose(one, other, atol=1e-4)
