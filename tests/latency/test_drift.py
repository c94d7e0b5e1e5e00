"""A device that throttles is noticed by its controls, and its milliseconds follow."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hand_graphs import (
    CALL_MS,
    DEVICE,
    law_ms,
    model_ms,
    operator_measurement,
    plan_measurement,
    residual_graph,
)
from synthetic import channel_space

from rlprune.latency.choose import calibration_plans, operator_grid
from rlprune.latency.drift import CANARY, ENOUGH, WINDOW, device_drift
from rlprune.latency.model import CALIBRATION_COUNT, LatencyModel
from rlprune.latency.operators import OVERHEAD
from rlprune.latency.types import Measurement, ModelSubject

GRAPH = residual_graph()
SPACE = channel_space(GRAPH)
GRAPHS = {GRAPH.fingerprint: GRAPH}
KEEPS = calibration_plans(SPACE, count=CALIBRATION_COUNT)
BASE = float(model_ms(GRAPH, GRAPH.widths[None], {})[0])


def operators(slow: float = 1.0) -> list[Measurement]:
    return [
        operator_measurement(s, CALL_MS if s == OVERHEAD else law_ms(s) + CALL_MS, slow=slow)
        for s in [OVERHEAD, *operator_grid(SPACE)]
    ]


def plans(count: int, slow: float = 1.0) -> list[Measurement]:
    truth = model_ms(GRAPH, KEEPS[:count], {})
    return [
        plan_measurement(GRAPH, keeps, slow * ms, slow * BASE)
        for keeps, ms in zip(KEEPS[:count], truth, strict=True)
    ]


def test_nothing_measured_says_nothing() -> None:
    drift = device_drift([])
    assert np.isnan(drift.ratio) and not drift.stale and drift.control_ms == {}


def test_a_steady_device_does_not_drift() -> None:
    drift = device_drift(operators() + plans(CALIBRATION_COUNT))
    assert drift.ratio == 1.0 and not drift.stale
    assert drift.control_ms == pytest.approx({CANARY: 0.1, GRAPH.fingerprint: BASE})


def test_noise_and_a_busy_neighbour_are_not_drift() -> None:
    rng = np.random.default_rng(0)
    noisy = []
    for index, one in enumerate(operators() + plans(CALIBRATION_COUNT)):
        slow = (1.3 if index % 20 < 10 else 1.0) * np.exp(0.05 * rng.standard_normal())
        control = tuple(tuple(ms * slow for ms in session) for session in one.control_cpu_ms)
        noisy.append(replace(one, control_cpu_ms=control))
    assert device_drift(noisy).ratio == 1.0


def test_throttling_is_noticed_by_every_control_and_ends_with_measuring_again() -> None:
    before = operators() + plans(CALIBRATION_COUNT)
    throttled = operators(slow=2.0)[:WINDOW]
    drift = device_drift(before + throttled)
    assert drift.ratio == pytest.approx(2.0) and drift.stale
    # The unpruned model was not measured since, but it is slower too.
    assert drift.control_ms[GRAPH.fingerprint] == pytest.approx(2 * BASE)
    again = device_drift(before + throttled + plans(ENOUGH, slow=2.0))
    assert not again.stale and again.ratio == pytest.approx(2.0)


def test_a_stale_model_asks_for_a_few_plans_again_and_its_milliseconds_follow() -> None:
    before = operators() + plans(CALIBRATION_COUNT)
    steady = LatencyModel.fit(DEVICE, before, GRAPHS)
    assert steady.missing(SPACE) == []
    throttled = before + plans(WINDOW, slow=2.0)
    stale = LatencyModel.fit(DEVICE, before + operators(slow=2.0)[:WINDOW], GRAPHS)
    asked = stale.missing(SPACE)
    assert [type(one) for one in asked] == [ModelSubject] * ENOUGH
    followed = LatencyModel.fit(DEVICE, throttled + plans(ENOUGH, slow=2.0), GRAPHS)
    assert followed.missing(SPACE) == []
    choice = SPACE.choice_of(KEEPS)
    old, new = (model.compile(SPACE).latency_ms(choice) for model in (steady, followed))
    np.testing.assert_allclose(new / old, 2.0, rtol=0.05)
