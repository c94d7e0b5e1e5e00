"""What was measured of other models never makes this model's plans worse; and time that no operator
measured alone explains is a cost of its graph, not of its convolutions."""

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
from synthetic import channel_space, random_profiles

from rlprune.graph.types import FloatArray, IntArray, Operator, PruningGraph, Width
from rlprune.latency.choose import calibration_plans
from rlprune.latency.model import LatencyModel
from rlprune.latency.operators import OVERHEAD
from rlprune.latency.types import Measurement, ModelSubject, OperatorSpec
from rlprune.planning import make_plan
from rlprune.plans import PruningPlan
from rlprune.policy import get_policy
from rlprune.solver.task import PruningTask

A = residual_graph()
SPACE = channel_space(A)


def law(
    graph: PruningGraph, keeps: IntArray, factors: dict[str, float], odd_ms: float
) -> FloatArray:
    """A device on which short plans are `odd_ms` off what their operators say, up or down."""
    sign = np.where(keeps.sum(1) % 16 < 8, 1.0, -1.0)
    return model_ms(graph, keeps, factors) + odd_ms * sign


def measured(
    graph: PruningGraph, model: LatencyModel, factors: dict[str, float], odd_ms: float = 0.0
) -> list[Measurement]:
    """Everything that a model of the device lacks for a graph."""
    base = float(law(graph, graph.widths[None], factors, odd_ms)[0])
    rng = np.random.default_rng(len(graph.fingerprint))
    found = []
    for subject in model.missing(channel_space(graph)):
        if isinstance(subject, OperatorSpec):
            ms = CALL_MS if subject == OVERHEAD else law_ms(subject) + CALL_MS
            found.append(operator_measurement(subject, ms * np.exp(rng.normal(0.0, 0.02))))
        else:
            keeps = np.array(subject.settings, dtype=np.int64)
            ms = float(law(graph, keeps[None], factors, odd_ms)[0]) * np.exp(rng.normal(0.0, 0.01))
            found.append(plan_measurement(graph, keeps, ms, base))
    return found


def plan_of(model: LatencyModel, share: float) -> PruningPlan:
    profiles = random_profiles(SPACE, np.random.default_rng(3))
    task = PruningTask(SPACE, model.compile(SPACE), profiles)
    return make_plan(task, get_policy("knapsack"), share * task.base_ms, device=DEVICE)


def test_the_same_command_gives_the_same_plan_after_other_models_were_measured() -> None:
    """A store's history: A; its certificate; then three nets on which the runtime fuses otherwise,
    one of them all small maps, as a recurrent net's; then A again."""
    factors = {"conv": 1.25, "activation": 0.0, "add": 0.5}
    store = measured(A, LatencyModel.fit(DEVICE, [], {}), factors, odd_ms=0.004)
    graphs = {A.fingerprint: A}
    first = plan_of(LatencyModel.fit(DEVICE, store, graphs), 0.5)
    base = float(law(A, A.widths[None], factors, 0.004)[0])
    certified = float(law(A, first.keeps[None], factors, 0.004)[0])
    store += [plan_measurement(A, first.keeps, certified, base)]
    before = LatencyModel.fit(DEVICE, store, graphs)
    plan = plan_of(before, 0.5)
    for extent, foreign in (
        (1, {"conv": 5.0, "linear": 4.0}),
        (8, {"conv": 0.5, "activation": 1.0}),
        (32, {"conv": 2.0, "add": 3.0}),
    ):
        other = residual_graph(extent, fingerprint=chr(ord("a") + extent % 26) * 64)
        graphs[other.fingerprint] = other
        store += measured(other, LatencyModel.fit(DEVICE, store, graphs), foreign, odd_ms=0.002)
    after = LatencyModel.fit(DEVICE, store, graphs)
    again = plan_of(after, 0.5)
    assert after.correction(A).half_width <= before.correction(A).half_width * 1.001
    assert again.predicted_latency_ms == pytest.approx(plan.predicted_latency_ms, rel=0.01)
    assert again.keeps.tolist() == plan.keeps.tolist()


def test_extremes_do_not_set_the_interval_of_plans_near_the_budget() -> None:
    """With 4 us that no operator explains, plans of a fifth of the latency are far off."""
    store = measured(A, LatencyModel.fit(DEVICE, [], {}), {}, odd_ms=0.004)
    tables = LatencyModel.fit(DEVICE, store, {A.fingerprint: A}).compile(SPACE)
    low, high = tables.interval_ms(np.stack([0 * SPACE.unpruned, SPACE.unpruned]))
    wide = np.log(high / low)
    assert wide[1] < 0.7 * wide[0]


def with_operator(op: Operator, fingerprint: str) -> PruningGraph:
    """The graph with one operator more, between the pooling and the classifier."""
    *ops, pool, fc = A.operators
    place = len(A.operators) - 1
    tail = replace(op, inputs=(place - 1,))
    return replace(
        A, operators=(*ops, pool, tail, replace(fc, inputs=(place,))), fingerprint=fingerprint
    )


def fitted(graph: PruningGraph, extra_ms: float, alone_ms: float | None) -> LatencyModel:
    """A device on which the added operator takes `extra_ms`, measured alone as `alone_ms`."""
    model = LatencyModel.fit(DEVICE, [], {})
    base = float(model_ms(A, A.widths[None], {})[0]) + extra_ms
    found = []
    for subject in model.missing(channel_space(graph)):
        if isinstance(subject, ModelSubject):
            keeps = np.array(subject.settings, dtype=np.int64)
            ms = float(model_ms(A, keeps[None], {})[0]) + extra_ms
            found.append(plan_measurement(graph, keeps, ms, base))
        elif subject == OVERHEAD:
            found.append(operator_measurement(subject, CALL_MS))
        elif subject.kind in ("recurrent", "activation") and subject.variant in ("lstm", "topk"):
            found.append(operator_measurement(subject, (alone_ms or 0.001) + CALL_MS))
        else:
            found.append(operator_measurement(subject, law_ms(subject) + CALL_MS))
    return LatencyModel.fit(DEVICE, found, {graph.fingerprint: graph})


LSTM = Operator(
    "lstm", "recurrent", "lstm", (), Width(64), Width(512), (24,), (24,), groups=2
)  # fmt: skip
TOPK = Operator("topk", "activation", "topk", (), Width(64), Width(64), (), ())


@pytest.mark.parametrize(
    ("op", "alone_ms"), [(LSTM, 0.2), (TOPK, None)], ids=["measured alone", "of no known class"]
)
def test_a_quarter_of_the_time_in_one_operator_is_neither_lost_nor_charged_to_others(
    op: Operator, alone_ms: float | None
) -> None:
    base = float(model_ms(A, A.widths[None], {})[0])
    extra = base / 3
    graph = with_operator(op, "q" * 64)
    model = fitted(graph, extra, None if alone_ms is None else 0.8 * extra)
    space = channel_space(graph)
    tables = model.compile(space)
    rng = np.random.default_rng(5)
    choice = rng.integers(0, space.option_count, (200, 4))
    planned = space.choice_of(calibration_plans(SPACE, count=9))
    choice = np.concatenate([choice, 0 * space.unpruned[None], planned])
    truth = model_ms(A, space.settings_at(choice), {}) + extra
    error = np.log(tables.latency_ms(choice) / truth)
    assert np.abs(error).max() < 0.05
    assert model.correction(graph).half_width < 0.05
    own = tables.operator_ms(space.unpruned[None])[0, -2]
    assert own == pytest.approx(extra, rel=0.1)
