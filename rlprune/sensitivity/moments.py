"""What a model's layers read: the sums over it that least-squares reconstruction solves with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rlprune.errors import CalibrationError, MeasurementError
from rlprune.graph.types import FloatArray
from rlprune.graph.walk import Node
from rlprune.graph.windows import explicit_pads
from rlprune.runtime.base import Array, Runtime
from rlprune.sensitivity.batching import Batching
from rlprune.sensitivity.calibration import CalibrationSet

if TYPE_CHECKING:
    from rlprune.graph.from_onnx import OnnxTrace

PLACES = 16
"""Windows of every sample that a convolution's inputs are taken at, at least."""
ROWS_PER_INPUT = 8
"""Windows of all samples together, for every input of a layer: of few large images more are taken.
With 16 windows of each of 32 lines of text the covariance of 576 inputs is mostly noise."""
BATCH = 100
MOST_VALUES = 1 << 28
"""Of all the layers' inputs of one batch (1 GiB); large images go in smaller batches."""
MOST_PRODUCTS = 2 * 10**10
"""Of a layer's covariance, beyond which no more than `PLACES` windows of a sample are taken."""
RIDGE = 1e-3
"""Added to every input's variance, as a share of their mean, at least."""
RIDGE_PER_INPUT = 0.2
"""The same for every input of a layer to every row that was seen: rows of one sample are alike."""


@dataclass
class Seen:
    """Sums over what the layers of one weight read."""

    first: FloatArray
    """[layers, D]."""
    square: FloatArray
    """Over all layers [D, D]."""
    count: FloatArray
    """Rows seen by each [layers]."""

    def covariance(self) -> FloatArray:
        """About the layers' own means, with the ridge."""
        total = self.count.sum()
        means = self.first / self.count[:, None]
        covariance: FloatArray = self.square / total - (means.T * (self.count / total)) @ means
        size = len(covariance)
        ridge = max(RIDGE, RIDGE_PER_INPUT * size / total)
        covariance[np.diag_indices(size)] += ridge * np.diag(covariance).mean() + 1e-12
        return covariance


def input_moments(
    trace: OnnxTrace,
    shared: Mapping[str, Sequence[Node]],
    samples: CalibrationSet,
    runtime: Runtime,
) -> dict[str, Seen]:
    """What the layers of each weight read, by its name."""
    answers = [value.name for value in trace.model.graph.output]
    batching = Batching.find(trace, samples, runtime, answers)
    nodes = [(name, k, node) for name, own in shared.items() for k, node in enumerate(own)]
    fed = set(batching.axes)
    wanted = [
        name for name in dict.fromkeys(node.inputs[0] for _, _, node in nodes) if name not in fed
    ]
    seen: dict[str, Seen] = {}
    rng = np.random.default_rng(0)
    model = batching.prepare(trace.model, [*wanted, answers[0]])
    try:
        session = runtime.load(model.SerializeToString())
        try:
            for batch in samples.batches(batch_values(trace, batching, wanted)):
                feeds = batching.feeds(batch)
                values = {**feeds, **dict(zip(wanted, session.run(feeds), strict=False))}
                for name, k, node in nodes:
                    rows = rows_read(trace, node, values[node.inputs[0]], len(samples), rng)
                    _add(seen, name, (k, len(shared[name])), rows)
        finally:
            session.close()
    except MeasurementError as error:
        raise CalibrationError(
            f"the model does not run on these inputs: {error}", field="calibration"
        ) from error
    for name, one in seen.items():
        if not (np.isfinite(one.square).all() and np.isfinite(one.first).all()):
            raise CalibrationError(
                f"on these inputs the layers with weight {name!r} read NaN, infinite or far too "
                "large values; give them as the model takes them",
                field="calibration",
            )
    return seen


def batch_values(trace: OnnxTrace, batching: Batching, wanted: Sequence[str]) -> int:
    """Input values that go in one batch, so that memory holds the tensors `wanted` of it."""
    if batching.answer_axes is None:
        return 1
    each = sum(int(np.prod(trace.normal.shapes[name], dtype=np.int64)) for name in wanted)
    traced = sum(int(np.prod(shape, dtype=np.int64)) for shape in trace.graph.input_shapes)
    return max(1, min(BATCH, MOST_VALUES // max(each, 1))) * traced


def _add(seen: dict[str, Seen], name: str, place: tuple[int, int], rows: Array) -> None:
    """Counts rows [R, D] that layer `place[0]` of `place[1]` with a weight reads."""
    layer, of = place
    size = rows.shape[1]
    if name not in seen:
        seen[name] = Seen(np.zeros((of, size)), np.zeros((size, size)), np.zeros(of))
    one = seen[name]
    with np.errstate(over="ignore", invalid="ignore"):
        one.square += rows.T @ rows
        one.first[layer] += rows.sum(0, dtype=np.float64)
    one.count[layer] += len(rows)


def rows_read(
    trace: OnnxTrace, node: Node, value: Array, sample_count: int, rng: np.random.Generator
) -> Array:
    """What one output reads, for a sample of the outputs of a batch: [R, C_in * K].

    Args:
        value: the layer's input in one batch.
        sample_count: in all batches.
    """
    if node.op != "Conv":
        return np.asarray(value, dtype=np.float32).reshape(-1, value.shape[-1])
    kernel = trace.normal.shapes[node.inputs[1]][2:]
    stride = list(node.attrs.get("strides", [1] * len(kernel)))
    dilation = list(node.attrs.get("dilations", [1] * len(kernel)))
    pads = explicit_pads(node, value.shape[2:], kernel, stride, dilation)
    sides = list(zip(pads[: len(kernel)], pads[len(kernel) :], strict=True))
    padded = np.pad(value, [(0, 0), (0, 0), *sides])
    extents = [
        (size - (k - 1) * d - 1) // s + 1
        for size, k, s, d in zip(padded.shape[2:], kernel, stride, dilation, strict=True)
    ]
    total = int(np.prod(extents))
    size = math.prod(trace.normal.shapes[node.inputs[1]][1:])  # in the dense network
    rows = min(ROWS_PER_INPUT * size, MOST_PRODUCTS // size**2)
    places = max(PLACES, -(-rows // sample_count))
    chosen = rng.choice(total, min(places, total), replace=False)
    corner = np.unravel_index(chosen, extents)  # per axis [P]
    offset = np.unravel_index(np.arange(int(np.prod(kernel))), kernel)  # per axis [K]
    index = tuple(
        at[:, None] * s + o[None] * d
        for at, s, o, d in zip(corner, stride, offset, dilation, strict=True)
    )
    windows = padded[(slice(None), slice(None), *index)]  # [N, C_in, P, K]
    return np.asarray(windows.transpose(0, 2, 1, 3), dtype=np.float32).reshape(
        -1, windows.shape[1] * windows.shape[3]
    )
