"""The latency model on a device that is a formula: factors, intervals, gaps, feedback."""

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

from rlprune.graph.types import FloatArray, IntArray
from rlprune.latency.calibrate import half_width, operator_keys
from rlprune.latency.choose import calibration_plans, operator_grid, operator_specs
from rlprune.latency.known import Donor
from rlprune.latency.model import CALIBRATION_COUNT, LatencyModel
from rlprune.latency.operators import OVERHEAD
from rlprune.latency.types import Measurement, ModelSubject, OperatorSpec

GRAPH = residual_graph()
SPACE = channel_space(GRAPH)
GRAPHS = {GRAPH.fingerprint: GRAPH}
FACTORS = {"conv": 1.25, "activation": 0.0, "add": 0.5}


def operators(*, slow: float = 1.0) -> list[Measurement]:
    specs = [OVERHEAD, *operator_grid(SPACE)]
    return [
        operator_measurement(s, CALL_MS if s == OVERHEAD else law_ms(s) + CALL_MS, slow=slow)
        for s in specs
    ]


def plans(keeps: IntArray, *, noise: float = 0.0, seed: int = 0) -> list[Measurement]:
    truth = model_ms(GRAPH, keeps, FACTORS)
    base = float(model_ms(GRAPH, GRAPH.widths[None], FACTORS)[0])
    noisy = truth * np.exp(noise * np.random.default_rng(seed).standard_normal(len(keeps)))
    return [plan_measurement(GRAPH, k, ms, base) for k, ms in zip(keeps, noisy, strict=True)]


def calibration(count: int, *, noise: float = 0.0, seed: int = 0) -> list[Measurement]:
    keeps = calibration_plans(SPACE, count=count, seed=seed)
    return plans(keeps, noise=noise, seed=seed)


def unseen(count: int, seed: int = 99) -> IntArray:
    rng = np.random.default_rng(seed)
    return SPACE.settings_at(rng.integers(0, SPACE.option_count, (count, 4)))


def predicted(model: LatencyModel, keeps: IntArray) -> FloatArray:
    return model.compile(SPACE).latency_ms(SPACE.choice_of(keeps))


def test_recovers_the_factors_of_a_device() -> None:
    model = LatencyModel.fit(DEVICE, operators() + calibration(60), GRAPHS)
    fitted, wide = model.correction(GRAPH), np.array([64])
    factors = {key: float(fitted.factor(key, wide, wide)[0]) for key in fitted.factors}
    kinds = {cls for cls, _ in factors}
    assert {"conv", "activation+", "add+"} <= kinds
    conv = [value for (cls, _), value in factors.items() if cls == "conv"]
    assert np.mean(conv) == pytest.approx(1.25, abs=0.08)
    assert all(value >= 0.0 for value in factors.values())


def test_predicts_plans_it_has_not_seen() -> None:
    model = LatencyModel.fit(DEVICE, operators() + calibration(CALIBRATION_COUNT), GRAPHS)
    keeps = unseen(200)
    error = predicted(model, keeps) / model_ms(GRAPH, keeps, FACTORS) - 1.0
    assert np.mean(np.abs(error) < 0.05) > 0.9
    base = float(predicted(model, GRAPH.widths[None])[0])
    assert base == pytest.approx(model_ms(GRAPH, GRAPH.widths[None], FACTORS)[0], rel=0.02)


def test_compiled_tables_are_the_models_own_prediction() -> None:
    """Operators' costs times their factors, plus the call; nothing is lost in the tables."""
    model = LatencyModel.fit(DEVICE, operators() + calibration(6), GRAPHS)
    fitted, keeps = model.correction(GRAPH), unseen(20)
    expected = np.full(20, fitted.overhead_ms)
    for key, op in zip(operator_keys(GRAPH), GRAPH.operators, strict=True):
        ins, outs = op.in_width.at(keeps), op.out_width.at(keeps)
        expected += fitted.factor(key, ins, outs) * model.costs.ms(key[1], ins, outs)
    tables = model.compile(SPACE)
    np.testing.assert_allclose(tables.latency_ms(SPACE.choice_of(keeps)), expected, rtol=1e-9)
    assert tables.device == DEVICE and tables.interval == fitted.interval


def test_intervals_cover_nine_plans_in_ten() -> None:
    """Over many synthetic devices with 4 % noise, ten calibration plans each."""
    hits = []
    keeps = unseen(40)
    base = float(model_ms(GRAPH, GRAPH.widths[None], FACTORS)[0])
    for seed in range(30):
        measured = operators() + calibration(CALIBRATION_COUNT, noise=0.04, seed=seed)
        tables = LatencyModel.fit(DEVICE, measured, GRAPHS).compile(SPACE)
        again = plans(keeps, noise=0.04, seed=1000 + seed)
        truth = np.array([one.control_ratio for one in again]) * base
        low, high = tables.interval_ms(SPACE.choice_of(keeps))
        hits.append(np.mean((truth >= low) & (truth <= high)))
    assert 0.86 < np.mean(hits) < 0.98


@pytest.mark.parametrize("count", [3, 6, 10, 20, 60])
def test_the_conformal_width_covers_exchangeable_errors(count: int) -> None:
    rng = np.random.default_rng(count)
    errors = np.abs(0.05 * rng.standard_normal((4000, count + 1)))
    covered = [row[-1] <= half_width(row[:-1]) for row in errors]
    assert np.mean(covered) > 0.88


def test_more_evidence_narrows_the_interval() -> None:
    widths = []
    for count in (0, 4, 40):
        measured = operators() + calibration(count, noise=0.02) * (count > 0)
        widths.append(LatencyModel.fit(DEVICE, measured, GRAPHS).correction(GRAPH).half_width)
    assert widths == sorted(widths, reverse=True)


def test_everything_is_missing_at_first_and_nothing_once_measured() -> None:
    empty = LatencyModel.fit(DEVICE, [], {})
    missing = empty.missing(SPACE)
    specs = [one for one in missing if isinstance(one, OperatorSpec)]
    models = [one for one in missing if isinstance(one, ModelSubject)]
    assert specs == operator_specs(SPACE, empty.costs)
    assert len(models) == CALIBRATION_COUNT
    assert models[0].settings == tuple(GRAPH.widths.tolist())
    full = LatencyModel.fit(DEVICE, operators() + calibration(CALIBRATION_COUNT), GRAPHS)
    assert full.missing(SPACE) == []


def test_what_failed_is_not_asked_for_again() -> None:
    failed = [
        Measurement(DEVICE, subject, (), (), status="failed", reason="no kernel")
        for subject in LatencyModel.fit(DEVICE, [], {}).missing(SPACE)
    ]
    asked = {one.subject for one in failed}
    measured, rounds = failed, 0
    while missing := LatencyModel.fit(DEVICE, measured, GRAPHS).missing(SPACE):
        assert not asked & set(missing)
        asked |= set(missing)
        measured = measured + [
            Measurement(DEVICE, subject, (), (), status="failed") for subject in missing
        ]
        rounds += 1
        assert rounds < 5


def test_unstable_plans_are_made_up_for_by_others() -> None:
    shaky = [replace(one, status="unstable") for one in calibration(CALIBRATION_COUNT)[-2:]]
    measured = operators() + calibration(CALIBRATION_COUNT)[:-2] + shaky
    missing = LatencyModel.fit(DEVICE, measured, GRAPHS).missing(SPACE)
    assert len(missing) == 2 and all(isinstance(one, ModelSubject) for one in missing)
    assert not {one.subject for one in measured} & set(missing)


def test_a_slow_day_drops_out() -> None:
    """Operators measured while everything took 1.6 times as long give the same tables."""
    quiet = LatencyModel.fit(DEVICE, operators(), GRAPHS)
    specs = operators()
    half = len(specs) // 2
    mixed = LatencyModel.fit(DEVICE, specs[:half] + operators(slow=1.6)[half:], GRAPHS)
    keeps = unseen(10)
    ratio = predicted(mixed, keeps) / predicted(quiet, keeps)
    assert np.ptp(np.log(ratio)) < 0.01  # the same shape, whatever the canary's unit


def test_feedback_changes_the_next_prediction() -> None:
    """Reports that plans are 20 % slower than thought raise what is predicted for their like."""
    before = LatencyModel.fit(DEVICE, operators() + calibration(CALIBRATION_COUNT), GRAPHS)
    keeps = unseen(15, seed=5)
    base = float(model_ms(GRAPH, GRAPH.widths[None], FACTORS)[0])
    slower = 1.2 * model_ms(GRAPH, keeps, FACTORS)
    reports = [plan_measurement(GRAPH, k, ms, base) for k, ms in zip(keeps, slower, strict=True)]
    after = LatencyModel.fit(DEVICE, operators() + calibration(CALIBRATION_COUNT) + reports, GRAPHS)
    assert np.mean(predicted(after, keeps) / predicted(before, keeps)) > 1.04


def test_a_graph_never_measured_learns_from_another() -> None:
    """What this runtime fuses is known from another graph; its interval stays wide."""
    other = residual_graph(fingerprint="o" * 64)
    graphs = {**GRAPHS, other.fingerprint: other}
    alone = LatencyModel.fit(DEVICE, operators(), graphs)
    taught = LatencyModel.fit(DEVICE, operators() + calibration(40), graphs)
    keeps = unseen(50)
    truth = model_ms(other, keeps, FACTORS)

    def error(model: LatencyModel) -> float:
        space = channel_space(other)
        found = model.compile(space).latency_ms(space.choice_of(keeps))
        return float(np.mean(np.abs(np.log(found / truth))))

    assert error(taught) < error(alone)
    assert taught.correction(other).half_width == alone.correction(other).half_width


def test_other_devices_and_unknown_graphs_are_left_out() -> None:
    measured = operators() + calibration(CALIBRATION_COUNT)
    foreign = [replace(one, device="ort-1.other") for one in measured]
    mine = LatencyModel.fit(DEVICE, measured, GRAPHS)
    both = LatencyModel.fit(DEVICE, foreign + measured, GRAPHS)
    keeps = unseen(5)
    np.testing.assert_array_equal(predicted(mine, keeps), predicted(both, keeps))
    blind = LatencyModel.fit(DEVICE, measured, {})
    assert blind.rows == () and np.all(predicted(blind, keeps) > 0)


def test_the_same_measurements_give_the_same_tables() -> None:
    measured = operators() + calibration(CALIBRATION_COUNT, noise=0.03)
    first, again = (LatencyModel.fit(DEVICE, measured, GRAPHS).compile(SPACE) for _ in range(2))
    np.testing.assert_array_equal(first.operators.flat_ms, again.operators.flat_ms)
    np.testing.assert_array_equal(first.condensed.flat_ms, again.condensed.flat_ms)
    assert first.interval == again.interval


def test_a_new_device_is_of_use_after_ten_whole_models_by_another_devices_operators() -> None:
    """It is three times as fast, and fuses otherwise; none of its operators was measured."""
    other = LatencyModel.fit(DEVICE, operators(slow=3.0), {})
    donor = Donor(other.costs, other.call_ms)
    truth = model_ms(GRAPH, unseen(200), FACTORS)

    def errors(count: int, known: Donor | None) -> FloatArray:
        keeps = calibration_plans(SPACE, count=count)
        model = LatencyModel.fit(DEVICE, plans(keeps), GRAPHS, donor=known)
        return np.abs(np.log(predicted(model, unseen(200)) / truth))

    assert np.mean(errors(10, donor) < np.log(1.1)) >= 0.9
    # The less was measured, the more it is worth.
    assert np.median(errors(2, donor)) < np.median(errors(2, None))
