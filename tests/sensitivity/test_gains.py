"""How much of an error reaches the answers: told from one pass, held against errors put in."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

import rlprune
from rlprune.graph.from_onnx import OnnxTrace
from rlprune.runtime import get_runtime
from rlprune.runtime.base import Array, Session
from rlprune.schemes import removal_of, whole_space
from rlprune.sensitivity.calibration import CalibrationSet
from rlprune.sensitivity.gains import Gains, Variances
from rlprune.sensitivity.moments import run_once
from rlprune.sensitivity.one_pass import LINE, OnePass
from rlprune.sensitivity.reconstruct import Reconstruction

RUNTIME = get_runtime()
SIZE = (3, 16, 16)


class Stream(nn.Module):
    """Branches of different strength beside one stream, and a head."""

    def __init__(self, strengths: tuple[float, ...]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.first = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in strengths)
        self.second = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in strengths)
        self.strengths = strengths
        self.head = nn.Conv2d(16, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for first, second, strength in zip(self.first, self.second, self.strengths, strict=True):
            x = x + strength * second(torch.relu(first(x)))
        answer: torch.Tensor = self.head(x)
        return answer


def traced(strengths: tuple[float, ...]) -> OnnxTrace:
    torch.manual_seed(0)
    module = Stream(strengths).eval()
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight)
            nn.init.zeros_(part.bias)  # type: ignore[arg-type]
    return rlprune.trace(module, torch.zeros(1, *SIZE)).onnx


def images(count: int = 64) -> CalibrationSet:
    x = np.random.default_rng(0).standard_normal((count, *SIZE)).astype(np.float32)
    return CalibrationSet.single(x)


def gains_of(trace: OnnxTrace, data: CalibrationSet) -> Gains:
    seen = Variances(trace)
    run_once(trace, data, RUNTIME, [seen])
    return Gains.of(trace, seen)


def answers(session: Session, feed: str, x: Array) -> Array:
    return np.concatenate([session.run({feed: one[None]})[0] for one in x])


def with_error(model: onnx.ModelProto, tensor: str, error: Array) -> onnx.ModelProto:
    """The model with a constant error added to a tensor."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    nodes = list(made.graph.node)
    for node in nodes:
        for place, name in enumerate(node.input):
            if name == tensor:
                node.input[place] = "wrong"
    made.graph.initializer.append(numpy_helper.from_array(error, "error"))
    [maker] = [place for place, node in enumerate(nodes) if tensor in node.output]
    made.graph.node.insert(maker + 1, helper.make_node("Add", [tensor, "error"], ["wrong"]))
    return made


def reached(model: onnx.ModelProto, tensor: str, data: CalibrationSet) -> float:
    """What of an error put into a tensor, as a share of its variance, is in the answers'."""
    [feed] = [value.name for value in model.graph.input][:1]
    base = answers(RUNTIME.load(model.SerializeToString()), feed, data.x[:16])
    seen = onnx.ModelProto()
    seen.CopyFrom(model)
    seen.graph.output.append(onnx.ValueInfoProto(name=tensor))
    session = RUNTIME.load(seen.SerializeToString())
    own = np.concatenate([session.run({feed: one[None]})[1] for one in data.x[:16]])
    # About the channels' means, as gains have it: a gate's lie far from 0.
    spread = 0.05 * np.sqrt(own.var(axis=(0, 2, 3)).mean())
    error = spread * np.random.default_rng(1).standard_normal((1, *own.shape[1:]))
    wrong = RUNTIME.load(with_error(model, tensor, error.astype(np.float32)).SerializeToString())
    moved = answers(wrong, feed, data.x[:16]) - base
    axes = (0, *range(2, base.ndim))
    whole = (base - base.mean(axis=axes, keepdims=True)).var()
    return float(np.square(moved).mean() / whole / 0.05**2)


@pytest.mark.parametrize("strengths", [(1.0, 1.0, 1.0), (0.3, 1.0, 2.0)])
def test_an_error_put_in_reaches_the_answers_by_its_gain(strengths: tuple[float, ...]) -> None:
    trace, data = traced(strengths), images()
    gains = gains_of(trace, data)
    for node in trace.model.graph.node:
        [tensor] = node.output
        if node.op_type == "Conv" and tensor != trace.model.graph.output[0].name:
            found = reached(trace.model, tensor, data)
            assert 0.4 < gains.reaching[tensor] / found < 2.5


class Gated(nn.Module):
    """A stream and what it is multiplied with, told from its means."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.gate = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 1)
        self.head = nn.Conv2d(16, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        gate = torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        answer: torch.Tensor = self.head(x * gate)
        return answer


def test_an_error_in_a_gate_counts_by_how_little_the_gate_varies() -> None:
    torch.manual_seed(0)
    trace = rlprune.trace(Gated().eval(), torch.zeros(1, *SIZE)).onnx
    lighter = np.random.default_rng(2).standard_normal((64, 3, 1, 1)).astype(np.float32)
    data = CalibrationSet.single(images().x + lighter)
    gains = gains_of(trace, data)
    [product] = [node for node in trace.model.graph.node if node.op_type == "Mul"]
    found = {name: reached(trace.model, name, data) for name in product.input}
    gate = min(found, key=lambda name: found[name])
    stream = max(found, key=lambda name: found[name])
    assert found[gate] < 0.1 * found[stream]
    assert 0.3 < gains.reaching[gate] / found[gate] < 3.0


@pytest.mark.parametrize("spelled", ["gelu", "silu", "hard_swish"])
def test_an_activation_that_is_spelled_out_passes_an_error_on_once(spelled: str) -> None:
    """Taken for a gate beside a stream, each of three doubled what reaches the answers."""

    class Spelled(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if spelled == "gelu":
                return x * (torch.erf(x / 1.4142135) + 1.0) * 0.5
            if spelled == "silu":
                return x * torch.sigmoid(x)
            return x * torch.clamp(x + 3.0, 0.0, 6.0) / 6.0

    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3, padding=1), *(nn.Conv2d(16, 16, 3, padding=1) for _ in range(3))]
    net = nn.Sequential(*(part for layer in layers for part in (layer, Spelled())))
    trace = rlprune.trace(net.eval(), torch.zeros(1, *SIZE)).onnx
    first = next(node for node in trace.normal.nodes if node.op == "Conv")
    gain = gains_of(trace, images()).reaching[first.outputs[0]]
    assert gain == pytest.approx(1.0, rel=1e-6)


def test_a_weak_branch_counts_for_little_and_a_strong_one_for_more() -> None:
    trace, data = traced((0.2, 1.0, 3.0)), images()
    space = whole_space(trace.graph, ("channel", "block"))
    curve = OnePass.of(trace, space, data, RUNTIME).curve(space)
    blocks = [index for index, site in enumerate(space.sites) if site.scheme == "block"]
    lost = curve[blocks, 0]
    assert len(lost) == 2 and lost[0] < 0.7 * lost[1]  # the first of a stage is not offered


def test_nothing_is_lost_where_nothing_is_taken() -> None:
    trace, data = traced((1.0, 1.0)), images(16)
    gains = gains_of(trace, data)
    found = Reconstruction.of(trace, data, RUNTIME)
    removal = removal_of(trace, trace.graph.widths)
    assert gains.error(found.layers, removal, trace) == 0.0
    assert gains.reaching[trace.model.graph.output[0].name] == 1.0


class Pooled(nn.Module):
    """A mean over all places ahead of the answers."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 1))
        self.head = nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.head(self.body(x).mean((2, 3)))
        return answer


def test_a_mean_over_places_averages_errors_out() -> None:
    torch.manual_seed(0)
    trace = rlprune.trace(Pooled().eval(), torch.zeros(1, *SIZE)).onnx
    [head] = [node for node in trace.normal.nodes if node.op == "Gemm"]
    [*_, before] = [node.outputs[0] for node in trace.normal.nodes if node.op == "Conv"]
    noise = images().x
    plain = CalibrationSet.single(np.broadcast_to(noise[:, :, :1, :1], noise.shape).copy())
    # Of one colour an image's places say the same, and only errors differ from place to place; of
    # noise what is pooled varies as little as errors do.
    for data, least, most in ((plain, 1 / 18, 1 / 14), (CalibrationSet.single(noise), 0.3, 1.0)):
        gains = gains_of(trace, data)
        assert gains.reaching[before] == gains.reaching[head.inputs[0]] == 1.0
        assert least < gains.averaged[before] <= most


def test_counts_of_channels_lose_what_their_removal_does() -> None:
    """All counts of a group are told from one factorisation; one by one it is the same."""
    trace, data = traced((0.5, 1.0)), images()
    space = whole_space(trace.graph, ("channel", "shape"))
    found = OnePass.of(trace, space, data, RUNTIME)
    curve, (slope, offset) = found.curve(space), LINE
    for site in range(space.group_count):
        for option in range(0, space.option_count[site] - 1, 5):
            choice = space.unpruned.copy()
            choice[site] = option
            removal = removal_of(trace, space.settings_at(choice), space.schemes)
            error = found.gains.error(found.layers, removal, trace)
            expected = np.exp(offset) * error**slope
            assert curve[site, option] == pytest.approx(expected, rel=1e-6, abs=1e-9)
