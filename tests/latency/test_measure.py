"""The estimator, with time and faults under the test's control."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from rlprune.errors import MeasurementError
from rlprune.latency.measure import MeasureConfig, Reading, measure, random_inputs
from rlprune.latency.operators import canary_model, operator_model
from rlprune.latency.types import ModelSubject, OperatorSpec
from rlprune.runtime import get_runtime
from rlprune.runtime.base import Array

PLAN, OTHER = ModelSubject("f" * 64, (8,)), ModelSubject("f" * 64, (16,))
CONFIG = MeasureConfig()


def named_model(name: str) -> onnx.ModelProto:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], name, [value], [result])
    return helper.make_model(graph)


@dataclass
class Bench:
    """Clock and runtime in one: a run of model NAME in session S takes `cost(NAME, S)` ms."""

    cost: Callable[[str, int], float]
    name: str = "fake"
    version: str = "1"
    now_ms: float = 0.0
    cpu_ms: float = 0.0
    preempted: int = 0
    loads: list[str] = field(default_factory=list)
    open_count: int = 0
    neighbour: Callable[[float], float] = lambda _: 1.0
    """How much slower everything runs at a moment."""
    stall: Callable[[float], float] = lambda _: 0.0
    """ms of waiting for the processor that a run at a moment suffers."""

    def clock(self) -> Reading:
        return Reading(round(self.cpu_ms * 1e6), round(self.now_ms * 1e6), self.preempted)

    def load(self, model: bytes, *, thread_count: int = 1, precision: str = "f32") -> FakeSession:
        name = onnx.load_from_string(model).graph.name
        if name == "refused":
            raise MeasurementError("no kernel for this")
        self.open_count += 1
        self.loads.append(name)
        return FakeSession(self, name, self.loads.count(name) - 1)

    def run(self, name: str, session: int) -> None:
        spent = self.cost(name, session) * self.neighbour(self.now_ms)
        stall = self.stall(self.now_ms)
        self.preempted += stall > 0
        self.cpu_ms += spent
        self.now_ms += spent + stall


@dataclass
class FakeSession:
    bench: Bench
    name: str
    session: int
    input_names: list[str] = field(default_factory=lambda: ["x"])

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        self.bench.run(self.name, self.session)
        return []

    def close(self) -> None:
        self.bench.open_count -= 1


def steady(name: str, session: int) -> float:
    return {"subject": 2.0, "other": 1.0}.get(name, 4.0)


def taken(bench: Bench, *names: str, config: MeasureConfig = CONFIG) -> list:
    subjects = [
        (replace(PLAN, settings=(i + 1,)), named_model(name)) for i, name in enumerate(names)
    ]
    return measure(
        subjects,
        device="d",
        runtime=bench,
        control=named_model("control"),
        config=config,
        clock=bench.clock,
    )


def test_keeps_raw_samples_of_subject_and_control_and_the_conditions() -> None:
    (one,) = taken(Bench(steady), "subject")
    assert one.status == "ok" and one.reason == ""
    assert len(one.cpu_ms) == len(one.control_cpu_ms) == CONFIG.session_count
    assert all(len(samples) == CONFIG.sample_count for samples in one.cpu_ms)
    assert all(len(beside) == CONFIG.sample_count for beside in one.control_cpu_ms)
    assert one.latency_ms == pytest.approx(2.0)
    assert one.control_ms == pytest.approx(4.0)
    assert one.control_ratio == pytest.approx(0.5)
    conditions = dict(one.conditions)
    assert conditions["runtime"] == "fake 1" and conditions["control"] == "given"
    assert conditions["dropped_sample_count"] == "0"


def test_every_session_is_fresh_takes_turns_in_loading_and_is_closed() -> None:
    bench = Bench(steady)
    taken(bench, "subject", "other")
    assert bench.loads[:4] == ["control", "subject", "control", "other"]
    assert bench.loads[4:8] == ["subject", "control", "other", "control"]
    assert len(bench.loads) == 4 * CONFIG.session_count
    assert bench.open_count == 0


def test_short_models_are_repeated_within_a_sample() -> None:
    (one,) = taken(Bench(lambda name, session: 0.01 if name == "subject" else 0.02), "subject")
    assert int(dict(one.conditions)["repeat_count"]) == round(CONFIG.min_sample_ms / 0.01)
    assert one.latency_ms == pytest.approx(0.01)


@pytest.mark.parametrize("period_ms", [7.0, 30.0, 300.0])
def test_a_neighbour_that_comes_and_goes_cancels_in_the_ratio(period_ms: float) -> None:
    """It slows everything by half for half of the time."""
    bench = Bench(steady, neighbour=lambda now: 1.5 if int(now / period_ms) % 2 else 1.0)
    (one,) = taken(bench, "subject")
    assert one.control_ratio == pytest.approx(0.5, rel=0.02)


def test_preempted_samples_are_thrown_away_but_never_all_of_them() -> None:
    sometimes = Bench(steady, stall=lambda now: 3.0 if int(now / 10) % 3 == 0 else 0.0)
    (one,) = taken(sometimes, "subject")
    assert one.status == "ok"
    assert np.max(np.concatenate(one.wall_ms)) == pytest.approx(2.0)
    assert int(dict(one.conditions)["dropped_sample_count"]) > 0
    always = Bench(steady, stall=lambda now: 3.0)
    (one,) = taken(always, "subject")
    assert all(len(samples) == CONFIG.max_sample_count for samples in one.cpu_ms)
    assert one.latency_ms == pytest.approx(2.0)  # CPU time does not see the waiting


def test_with_more_threads_wall_time_counts() -> None:
    bench = Bench(steady, stall=lambda now: 1.0)
    (one,) = taken(bench, "subject", config=replace(CONFIG, thread_count=2))
    assert one.thread_count == 2
    assert one.latency_ms == pytest.approx(3.0)


def test_session_ratios_that_stay_apart_are_unstable_and_say_so() -> None:
    def moody(name: str, session: int) -> float:
        return 2.0 * (1.0 + 0.4 * (session % 5)) if name == "subject" else 4.0

    bench = Bench(moody)
    one, calm = taken(bench, "subject", "other")
    assert one.status == "unstable" and "uncertain" in one.reason
    assert len(one.cpu_ms) == CONFIG.session_count + CONFIG.extra_session_count
    assert calm.status == "ok" and len(calm.cpu_ms) == CONFIG.session_count


def test_a_drifting_control_is_unstable_even_where_ratios_agree() -> None:
    bench = Bench(lambda name, session: steady(name, session) * (1.0 + 0.2 * session))
    (one,) = taken(bench, "subject")
    assert one.status == "unstable" and "drifted" in one.reason


def test_one_session_off_is_forgiven() -> None:
    def once(name: str, session: int) -> float:
        return 3.0 if name == "subject" and session == 1 else steady(name, session)

    (one,) = taken(Bench(once), "subject")
    assert one.status == "ok" and one.control_ratio == pytest.approx(0.5)


def test_a_model_the_runtime_refuses_is_a_result_and_the_others_are_measured() -> None:
    bench = Bench(steady)
    refused, fine = taken(bench, "refused", "subject")
    assert refused.status == "failed" and "no kernel for this" in refused.reason
    assert refused.cpu_ms == () and np.isnan(refused.latency_ms)
    assert fine.status == "ok"
    assert bench.open_count == 0


def test_a_control_that_fails_is_named() -> None:
    bench = Bench(steady)
    (one,) = measure(
        [(PLAN, named_model("subject"))],
        device="d",
        runtime=bench,
        control=named_model("refused"),
        clock=bench.clock,
    )
    assert one.status == "failed" and one.reason.startswith("control: ")


def test_a_clock_that_stands_still_is_a_failure_not_a_zero() -> None:
    (one,) = taken(Bench(lambda name, session: 0.0), "subject")
    assert one.status == "failed" and "clock" in one.reason


def test_progress_counts_up_to_what_was_planned() -> None:
    bench, seen = Bench(steady), []
    measure(
        [(PLAN, named_model("subject")), (OTHER, named_model("other"))],
        device="d",
        runtime=bench,
        control=named_model("control"),
        on_progress=lambda done, planned: seen.append((done, planned)),
        clock=bench.clock,
    )
    total = 2 * CONFIG.session_count
    assert seen == [(done, total) for done in range(1, total + 1)]


def test_without_a_control_the_canary_stands_in() -> None:
    bench = Bench(lambda name, session: 2.0 if name == "subject" else 0.5)
    (one,) = measure([(PLAN, named_model("subject"))], device="d", runtime=bench, clock=bench.clock)
    assert dict(one.conditions)["control"] == "canary"
    assert one.control_ms == pytest.approx(0.5)


def test_inputs_that_cannot_be_made_up_fail_by_name() -> None:
    model = named_model("subject")
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.STRING
    bench = Bench(steady)
    (one,) = measure([(PLAN, model)], device="d", runtime=bench, clock=bench.clock)
    assert one.status == "failed" and "STRING" in one.reason


def test_inputs_are_seeded() -> None:
    first, again = (random_inputs(canary_model(), seed=3)["x0"] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, random_inputs(canary_model(), seed=4)["x0"])


def test_a_real_operator_on_the_real_runtime() -> None:
    """More work takes longer; nothing about how long."""
    small = OperatorSpec("conv", "", 8, 8, (16, 16), (16, 16), (3, 3), (1, 1), (1, 1, 1, 1))
    large = replace(small, in_width=64, out_width=64)
    measured = measure(
        [(spec, operator_model(spec)) for spec in (small, large)],
        device="d",
        runtime=get_runtime(),
    )
    assert all(one.status in ("ok", "unstable") for one in measured)
    assert measured[0].control_ratio < measured[1].control_ratio
    assert all(min(map(min, one.cpu_ms)) > 0 for one in measured)
