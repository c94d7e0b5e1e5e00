"""A plan's note says what holds the latency, which option would help, and what was not measured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from onnx_nets import conv_net
from planning_here import plan_here
from synthetic import channel_space

import rlprune
from rlprune.graph.from_onnx import OnnxTrace, trace_onnx
from rlprune.graph.skeleton import strip
from rlprune.latency.types import Measurement, OperatorSpec
from rlprune.planning import latency_model
from rlprune.store import Store, open_store

DEVICE = "board-1"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(open_store(f"sqlite:///{tmp_path / 'store.sqlite'}")) as opened:
        yield opened


def report(store: Store, trace: OnnxTrace, fixed_ms: float, reason: str = "") -> None:
    """Everything the planner lacks of a device on which every call takes `fixed_ms` more; with a
    reason, whole models fail."""
    store.put_graph(trace.graph, strip(trace.model))
    for _ in range(3):
        missing = latency_model(store, DEVICE).missing(channel_space(trace.graph))
        found = []
        for subject in missing:
            if isinstance(subject, OperatorSpec):
                samples = ((0.01,) * 3,) * 3
                found.append(Measurement(DEVICE, subject, samples, samples))
                continue
            macs = float(trace.graph.macs(np.array(subject.settings, dtype=np.int64)))
            samples = ((fixed_ms + macs * 1e-8,) * 3,) * 3
            found.append(
                Measurement(DEVICE, subject, (), (), status="failed", reason=reason)
                if reason
                else Measurement(DEVICE, subject, samples, samples)
            )
        store.add_measurements(found)


def test_an_infeasible_plan_names_the_group_and_the_option_that_would_help() -> None:
    net = conv_net((8, 64), extent=32)
    plan = rlprune.plan(net, device="macs", budget_ratio=0.02, round_to=8, policy="knapsack")
    assert not plan.feasible
    assert "% of its MACs is in layers of group 'conv0', which keeps 8 of 8" in plan.note
    finest = rlprune.plan(net, device="macs", budget_ratio=0.002, round_to=1, policy="knapsack")
    assert f"with --round-to 1 the least is {finest.least_latency_ms:.4g} M MACs" in plan.note
    # Nobody stated a step, so narrow groups have finer ones, and the budget is met.
    ask = {"device": "macs", "budget_ratio": 0.1, "policy": "knapsack"}
    assert rlprune.plan(net, **ask).feasible  # type: ignore[arg-type]


def test_what_was_held_is_named_as_the_reason() -> None:
    net = conv_net((64, 32), extent=32)
    plan = rlprune.plan(net, device="macs", budget_ratio=0.1, hold="conv0", policy="knapsack")
    assert "'conv0', which keeps 64 of 64 (held by 'conv0')" in plan.note


def test_what_no_plan_changes_is_named_and_no_budget_above_the_unpruned_latency_is_offered(
    store: Store,
) -> None:
    trace = trace_onnx(conv_net((16, 32)))
    report(store, trace, fixed_ms=5.0)
    plan = plan_here(trace, store, budget_ratio=0.5, device=DEVICE, policy="knapsack")
    assert not plan.feasible and "it may not even be faster" in plan.note
    assert "needs a budget" not in plan.note
    assert "of its latency no plan changes" in plan.note


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("control: input 'x' is of type STRING", "measuring the unpruned model itself failed"),
        ("no kernel for this", "measuring every model cut from it failed: no kernel for this"),
    ],
)
def test_a_plan_without_one_whole_model_measured_says_so_with_the_reason(
    store: Store, reason: str, expected: str
) -> None:
    trace = trace_onnx(conv_net((16, 32)))
    report(store, trace, fixed_ms=0.0, reason=reason)
    plan = plan_here(trace, store, budget_ratio=0.9, device=DEVICE, policy="knapsack")
    assert "latencies are rough" in plan.note and expected in plan.note
