"""A network run in parts gives what it gives when it is run whole, and runs every part once."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from datasets.digits import NetSpec, build
from rlprune.graph.from_onnx import OnnxTrace
from rlprune.graph.from_torch import trace_torch
from rlprune.runtime import get_runtime
from rlprune.runtime.base import Array, Runtime, Session
from rlprune.sensitivity.batching import Batching
from rlprune.sensitivity.calibration import CalibrationSet, EqualSizes
from rlprune.sensitivity.layers import LayerChange
from rlprune.sensitivity.parts import PartwiseRun, Stage, most_kept
from rlprune.sensitivity.reconstruct import with_layers

RUNTIME = get_runtime()
SIZE = (3, 16, 16)


class Twice(nn.Module):
    """One convolution's weight in two places, a branch around each."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.shared = nn.Conv2d(8, 8, 3, padding=1)
        self.between = nn.Conv2d(8, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        x = torch.relu(x + self.shared(x))
        x = torch.relu(x + self.between(x))
        answer: torch.Tensor = (x + self.shared(x)).mean((2, 3))
        return answer


def trace_of(name: str) -> OnnxTrace:
    torch.manual_seed(0)
    module = Twice().eval() if name == "twice" else build(NetSpec(name, 8, 1)).eval()
    return trace_torch(module, torch.zeros(1, *SIZE)).onnx


def convolutions(trace: OnnxTrace) -> list[onnx.NodeProto]:
    return [node for node in trace.model.graph.node if node.op_type == "Conv"]


class Layers:
    """The convolutions of a network, changed one after the other, each looked at before."""

    def __init__(self, trace: OnnxTrace, counts: list[int]) -> None:
        """`counts`: how many, in order, are looked at together."""
        samples = CalibrationSet.single(
            np.random.default_rng(0).standard_normal((6, *SIZE)).astype(np.float32)
        )
        answers = [value.name for value in trace.model.graph.output]
        self.batching = Batching.find(trace, samples, RUNTIME, answers)
        self.batches = list(samples.batches(4 * int(np.prod(SIZE))))
        self.trace = trace
        nodes = convolutions(trace)
        ends = np.minimum(np.cumsum(counts), len(nodes))
        self.chunks = [
            nodes[start:end] for start, end in zip([0, *ends], [*ends, len(nodes)], strict=False)
        ]
        self.chunks = [chunk for chunk in self.chunks if chunk]
        left = [{node.output[0] for node in chunk} for chunk in self.chunks]
        self.stages = [
            Stage([node.input[0] for node in chunk], set().union(*left[k:]))
            for k, chunk in enumerate(self.chunks)
        ]

    def changes(self) -> list[dict[str, LayerChange]]:
        """By stage, what was changed before it."""
        constants = {one.name: one for one in self.trace.model.graph.initializer}
        made: list[dict[str, LayerChange]] = [{}]
        for chunk in self.chunks:
            new = {
                node.input[1]: LayerChange(
                    -0.5 * np.asarray(onnx.numpy_helper.to_array(constants[node.input[1]]), float),
                    {},
                )
                for node in chunk
                if node.input[1] not in made[-1]
            }
            made.append({**made[-1], **new})
        return made

    def parts(self, runtime: Runtime) -> PartwiseRun:
        wanted = self.batching.computed(name for one in self.stages for name in one.wanted)
        prepared = self.batching.prepare(self.trace.model, wanted)
        return PartwiseRun(prepared, self.stages, self.feeds, runtime)

    @property
    def feeds(self) -> list[Mapping[str, Array]]:
        return [self.batching.feeds(batch) for batch in self.batches]

    def whole(self, stage: int, changes: dict[str, LayerChange]) -> list[dict[str, Array]]:
        """What the stage wants, from a run of the whole changed network."""
        wanted = self.batching.computed(self.stages[stage].wanted)
        model = with_layers(self.trace.model, changes)
        runs: list[tuple[EqualSizes, dict[str, Array]]] = list(
            self.batching.run(RUNTIME, model, wanted, self.batches)
        )
        return [values for _, values in runs]


@pytest.mark.parametrize("name", ["plain", "residual", "twice"])
@settings(max_examples=8, deadline=None)
@given(counts=st.lists(st.integers(1, 4), max_size=8))
def test_parts_hold_what_a_whole_run_of_the_changed_network_holds(
    name: str, counts: list[int]
) -> None:
    layers = Layers(trace_of(name), counts)
    parts = layers.parts(Counting())
    for stage, changes in enumerate(layers.changes()[:-1]):
        expected = layers.whole(stage, changes)
        for number, values in parts.run(stage, changes):
            for tensor in layers.stages[stage].wanted:
                assert np.allclose(values[tensor], expected[number][tensor], atol=1e-4)


def test_stages_that_are_passed_over_are_run_nevertheless() -> None:
    layers = Layers(trace_of("residual"), [1] * 8)
    last = len(layers.stages) - 1
    expected = layers.whole(last, {})
    for number, values in layers.parts(RUNTIME).run(last, {}):
        for tensor in layers.stages[last].wanted:
            assert np.allclose(values[tensor], expected[number][tensor], atol=1e-4)


def test_every_operator_runs_once_however_many_layers_change() -> None:
    counted = Counting()
    layers = Layers(trace_of("residual"), [1] * 99)
    parts = layers.parts(counted)
    for stage, changes in enumerate(layers.changes()[:-1]):
        list(parts.run(stage, changes))
    assert len(layers.stages) > 4
    assert len(counted.outputs) == len(set(counted.outputs))


def test_what_is_kept_is_what_lies_between_two_layers() -> None:
    """Of a residual network one tensor of the stream, and at most one of the branch."""
    layers = Layers(trace_of("residual"), [1] * 99)
    wanted = layers.batching.computed(name for one in layers.stages for name in one.wanted)
    prepared = layers.batching.prepare(layers.trace.model, wanted)
    shapes = layers.trace.normal.shapes
    largest = max(int(np.prod(shapes[name])) for name in wanted)
    assert largest <= most_kept(prepared, layers.stages, shapes) <= 3 * largest


class Counting:
    """A runtime that notes what its models compute, and whose answers last until the next run."""

    name, version = RUNTIME.name, RUNTIME.version

    def __init__(self) -> None:
        self.outputs: list[str] = []

    def refusal(self, precision: str) -> str:
        return RUNTIME.refusal(precision)

    def load(self, model: bytes, *, thread_count: int = 1, precision: str = "f32") -> Session:
        for node in onnx.load_from_string(model).graph.node:
            if node.input:  # constants are written into every part
                self.outputs.extend(node.output)
        return Fleeting(RUNTIME.load(model, thread_count=thread_count, precision=precision))


class Fleeting:
    """A session that spoils its last answers when it runs again, as the protocol lets it."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._last: list[Array] = []

    @property
    def input_names(self) -> list[str]:
        return self._session.input_names

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        for answer in self._last:
            answer.fill(7)
        self._last = [np.array(answer) for answer in self._session.run(feeds)]
        return self._last

    def close(self) -> None:
        self._session.close()
