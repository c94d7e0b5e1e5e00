"""A recogniser of convolutions and LSTMs: what the LSTMs take is predicted, not lost."""

from __future__ import annotations

import io
import warnings
from contextlib import closing
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from planning_here import plan_here
from torch import nn

from rlprune.graph.from_onnx import OnnxTrace, trace_onnx
from rlprune.graph.types import Operator, Width
from rlprune.latency.operators import operator_model, spec_at
from rlprune.planning.breakdown import explain_latency
from rlprune.planning.fresh import measure_fresh
from rlprune.runtime import get_runtime
from rlprune.store import open_store


class Recogniser(nn.Module):
    """Convolutions down to a row, two bidirectional LSTMs along it, a class a step."""

    def __init__(self, widths: tuple[int, ...] = (32, 64, 64), hidden: int = 128) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        last = 1
        for width in widths:
            layers += [nn.Conv2d(last, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
            last = width
        self.features = nn.Sequential(*layers)
        self.rows = nn.LSTM(last, hidden, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(2 * hidden, 40)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        row = self.features(x).mean(2).permute(0, 2, 1)
        return self.head(self.rows(row)[0])


@pytest.fixture(scope="module")
def trace() -> OnnxTrace:
    file = io.BytesIO()
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter says that it is old
        torch.onnx.export(Recogniser().eval(), (torch.zeros(1, 1, 32, 160),), file, dynamo=False)
    return trace_onnx(onnx.load_model_from_string(file.getvalue()))


@pytest.mark.parametrize("variant", ["lstm", "gru", "rnn"])
def test_one_of_them_alone_runs_with_its_shapes(variant: str) -> None:
    op = Operator("r", "recurrent", variant, (), Width(24), Width(64), (7,), (7,), groups=2)
    model = operator_model(spec_at(op, 24, 64))
    session = get_runtime().load(model.SerializeToString())
    (y,) = session.run({"x0": np.zeros((7, 1, 24), dtype=np.float32)})
    assert y.shape == (7, 2, 1, 32)


@pytest.mark.parametrize(("width", "heads"), [(40, 1), (192, 3)])
def test_attention_alone_runs_with_its_shapes(width: int, heads: int) -> None:
    q = Width(width)
    op = Operator("a", "attention", "", (), q, q, (12,), (12,), (20,))
    session = get_runtime().load(operator_model(spec_at(op, width, width)).SerializeToString())
    shapes = {"x0": (12, width // heads), "x1": (width // heads, 20), "x2": (20, width // heads)}
    feeds = {name: np.zeros((1, heads, *s), dtype=np.float32) for name, s in shapes.items()}
    (y,) = session.run(feeds)
    assert y.shape == (1, heads, 12, width // heads)


def test_a_net_of_which_lstms_take_a_third_is_predicted_on_this_machine(
    trace: OnnxTrace, tmp_path: Path, long: bool
) -> None:
    if not long:
        pytest.skip("measures for a minute: --long")
    with closing(open_store(f"sqlite:///{tmp_path / 'store.sqlite'}")) as store:
        for share in (0.85, 0.7):
            plan = plan_here(trace, store, budget_ratio=share, policy="knapsack")
            assert plan.feasible
            low, high = plan.predicted_interval_ms
            assert high / low < 1.3
            found = measure_fresh(trace, plan.keeps, device=plan.device, runtime="ort")
            said = plan.predicted_latency_ms / plan.base_latency_ms
            assert said == pytest.approx(found.control_ratio, rel=0.1)
        least = plan.least_latency_ms / plan.base_latency_ms
        whole = explain_latency(trace, store=store)
    recurrent = sum(op.ms[0] for op in whole.operators if op.kind == "recurrent")
    assert 0.2 * whole.before.predicted_ms < recurrent < least * whole.before.predicted_ms
