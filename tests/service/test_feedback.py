"""What devices report changes what is planned and what training is rewarded with."""

from __future__ import annotations

import numpy as np
import pytest
from onnx_nets import conv_net
from service_rig import BOARD, Rig, measured
from synthetic import channel_space

from rlprune.graph.from_onnx import trace_onnx
from rlprune.graph.types import FloatArray
from rlprune.latency.types import ModelSubject, OperatorSpec, Subject
from rlprune.mdp.dynamics import PruningDynamics
from rlprune.planning import task_for
from rlprune.sensitivity.energy import energy_profiles
from rlprune.store import Store, open_store

NET = conv_net((16, 32, 32), extent=32)
TRACE = trace_onnx(NET)
SPACE = channel_space(TRACE.graph)
PROFILES = energy_profiles(TRACE, SPACE)


ONE_OPERATOR = OperatorSpec(
    "conv", "", 16, 16, (8, 8), (8, 8), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)
)


def wide_first_is_dear(subject: Subject) -> float:
    """A device on which the first layer's width costs most, whatever the MACs say."""
    if isinstance(subject, ModelSubject):
        first, *rest = subject.settings
        return 0.1 + 0.2 * first + 0.001 * sum(rest)
    return 0.01 + 0.2 * subject.out_width * (subject.in_width == 3)


def rewards(store: Store) -> FloatArray:
    """Returns of 16 episodes with fixed budgets and actions, on tables read from the store [16]."""
    dynamics = PruningDynamics(task_for(SPACE, PROFILES, store, BOARD))
    dynamics.reset([np.random.default_rng(seed) for seed in range(16)])
    actions = np.random.default_rng(0).uniform(
        -1.0, 1.0, (len(SPACE.sites), 16, dynamics.action_size)
    )
    return np.sum([dynamics.step(action)[1] for action in actions], axis=0)


def test_reports_change_the_plan_and_the_reward(rig: Rig) -> None:
    rig.device.register_device(BOARD, {})
    rig.store.add_measurements([measured(BOARD, ONE_OPERATOR, 0.2)])
    # One operator is little, but something to predict with: the rest is queued meanwhile.
    asked = {"device": BOARD, "budget_ratio": 0.6, "policy": "knapsack"}
    first = rig.client.plan(NET, wait=False, **asked)
    first_rewards = rewards(rig.store)
    with rig.working(wide_first_is_dear):
        second = rig.client.plan(NET, **asked)
    assert second.fingerprint == first.fingerprint
    full = ModelSubject(second.fingerprint, tuple(int(width) for width in TRACE.graph.widths))
    assert second.base_latency_ms == pytest.approx(wide_first_is_dear(full), rel=0.1)
    assert first.base_latency_ms != pytest.approx(second.base_latency_ms, rel=0.1)
    assert tuple(second.keeps) != tuple(first.keeps)
    assert second.keeps[0] < first.keeps[0], "the first layer's width is what costs"
    assert np.abs(rewards(rig.store) - first_rewards).max() > 0.1
    # What training reads from the same store in another process is the same.
    apart = open_store(rig.url)
    np.testing.assert_array_equal(rewards(apart), rewards(rig.store))
    apart.close()
