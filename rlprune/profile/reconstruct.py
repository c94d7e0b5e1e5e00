"""Least-squares reconstruction: the channels that stay stand in for those that go, without data
being run again.

A layer that reads fewer channels cannot answer as before, but what went correlates with what
stayed. With the mean and covariance of a layer's inputs in the dense network, taken once, the
weights that come nearest to its old answers from any subset of its inputs are one linear solve
(channel pruning by reconstruction, He et al. 2017, section 3.1; here with the dense network's
inputs, so that a solution depends on nothing but the subset and is kept for the next plan). What
that is worth beside matched statistics: scripts/bench_proxies.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import numpy_helper

from rlprune.graph.types import FloatArray, IntArray
from rlprune.graph.walk import Node
from rlprune.graph.windows import explicit_pads
from rlprune.profile.calibration import Calibration
from rlprune.profile.statistics import LayerChange, open_batch, with_layers
from rlprune.runtime.base import Array, Runtime
from rlprune.surgery.importance import mixing_axes
from rlprune.surgery.onnx import BoolArray, kept_mask

if TYPE_CHECKING:
    from rlprune.graph.from_onnx import OnnxTrace

PLACES = 16
"""Windows of every image that a convolution's inputs are sampled at."""
BATCH = 100
MOST_VALUES = 1 << 28
"""Of all the layers' inputs of one batch (1 GiB); large images go in smaller batches."""
MOST_INPUTS = 1 << 13
"""What a layer's outputs are each made of, at most; one that reads more stays as it was cut. The
covariance of VGG-16's first linear layer, 25,088 inputs, would take 5 GiB and never have images
enough."""
RIDGE = 1e-3
"""Added to every input's variance, as a share of their mean; more where samples are few."""
MAX_CACHE_BYTES = 1 << 28


@dataclass(frozen=True)
class Layer:
    """A layer that mixes its input channels, and what it reads in the dense network."""

    output: str
    tensor: str
    """The weight's name."""
    bias: str
    """The bias's; empty where there is none."""
    weight: FloatArray
    """[C_out, C_in * K], K positions of the kernel to each channel."""
    shape: tuple[int, ...]
    """Of the weight as the file has it, with the out- and in-axis moved to the front."""
    axes: tuple[int, int]
    """(out, in) in the file."""
    read: tuple[IntArray, IntArray]
    """Group and unit of every input channel [C_in]."""
    made: tuple[IntArray, IntArray]
    """Group and unit of every output channel [C_out]."""
    mean: FloatArray
    """[C_in * K]."""
    covariance: FloatArray
    """[C_in * K, C_in * K], ridge included on the diagonal."""


@dataclass
class Reconstruction:
    """Reconstructs pruned models of one trace; keeps what it has solved. For one thread."""

    layers: Sequence[Layer]
    _solved: dict[tuple[str, bytes, bool], tuple[FloatArray, FloatArray]] = field(
        default_factory=dict
    )
    _bytes: int = 0

    @staticmethod
    def of(trace: OnnxTrace, images: Calibration, runtime: Runtime) -> Reconstruction:
        """Runs the dense network once to see what its layers read.

        Raises:
            CalibrationError: the model's batch is fixed to more than one.
            MeasurementError: the runtime refuses it.
        """
        tensors = {tensor.name: tensor for tensor in trace.model.graph.initializer}
        nodes = [node for node in trace.normal.nodes if _reads_groups(trace, node, tensors)]
        moments = _input_moments(trace, nodes, images, runtime)
        return Reconstruction(
            [
                _layer(trace, node, tensors[node.inputs[1]], *moments[node.outputs[0]])
                for node in nodes
            ]
        )

    def apply(self, pruned: onnx.ModelProto, kept: Sequence[IntArray]) -> onnx.ModelProto:
        """A copy of a model cut to the units `kept` of every group, its layers reconstructed."""
        changes = {}
        for layer, inputs in self.losing(kept):
            weight, shift = self._solve(layer, inputs)
            outputs = kept_mask(*layer.made, kept)
            shape = (int(outputs.sum()), int(inputs.sum()), *layer.shape[2:])
            moved = np.moveaxis(weight[outputs].reshape(shape), (0, 1), layer.axes)
            changes[layer.output] = LayerChange(moved, shift[outputs])
        return with_layers(pruned, changes)

    def uncut(
        self, layer: Layer, inputs: BoolArray, *, shifted: bool
    ) -> tuple[FloatArray, FloatArray]:
        """Weight (laid out and as wide as in the file, 0 where inputs go) and shift [C_out] of a
        layer that keeps `inputs` [C_in], for who cuts it another way.

        Not `shifted` it is the best there is without a shift, which is then 0.
        """
        weight, shift = self._solve(layer, inputs, shifted)
        whole = np.zeros_like(layer.weight)
        whole[:, np.repeat(inputs, whole.shape[1] // len(inputs))] = weight
        return np.moveaxis(whole.reshape(layer.shape), (0, 1), layer.axes), shift

    def losing(self, kept: Sequence[IntArray]) -> Iterator[tuple[Layer, BoolArray]]:
        """Layers that lose inputs to the units `kept` of every group, and what they keep [C_in]."""
        for layer in self.layers:
            inputs = kept_mask(*layer.read, kept)
            if not inputs.all():
                yield layer, inputs

    def _solve(
        self, layer: Layer, inputs: BoolArray, shifted: bool = True
    ) -> tuple[FloatArray, FloatArray]:
        """Weights [C_out, kept * K] and shift [C_out] of all outputs for the kept inputs [C_in]."""
        key = (layer.output, inputs.tobytes(), shifted)
        if key not in self._solved:
            stay = np.repeat(inputs, layer.weight.shape[1] // len(inputs))
            # Least squares in moments: W C[:, S] C[S, S]^-1, the means left to the shift if any.
            mean = layer.mean if shifted else np.zeros_like(layer.mean)
            moment = layer.covariance[stay]  # [kept * K, C_in * K]
            if not shifted:
                moment = moment + np.outer(layer.mean[stay], layer.mean)
            solved = np.linalg.solve(moment[:, stay], moment @ layer.weight.T)
            weight: FloatArray = np.asarray(solved.T, dtype=np.float64)
            shift = layer.weight @ mean - weight @ mean[stay]
            if self._bytes > MAX_CACHE_BYTES:
                self._solved.clear()
                self._bytes = 0
            self._solved[key] = weight, shift
            self._bytes += weight.nbytes + shift.nbytes
        return self._solved[key]


def _reads_groups(trace: OnnxTrace, node: Node, constants: Mapping[str, onnx.TensorProto]) -> bool:
    """Whether a layer mixes channels that may be pruned, by weights and a bias that are known."""
    axes = mixing_axes(node, trace.normal.shapes)
    if axes is None or node.op == "ConvTranspose" or node.inputs[1] not in constants:
        return False
    if float(node.attrs.get("alpha", 1.0)) != 1.0 or float(node.attrs.get("beta", 1.0)) == 0.0:
        return False
    if len(node.inputs) > 2 and node.inputs[2] and node.inputs[2] not in constants:
        return False
    shape = trace.normal.shapes[node.inputs[1]]
    if int(np.prod(shape, dtype=np.int64)) // shape[axes[1]] > MOST_INPUTS:
        return False
    return bool((trace.channels.axis_units(node.inputs[1], axes[0])[0] >= 0).any())


def _layer(
    trace: OnnxTrace,
    node: Node,
    tensor: onnx.TensorProto,
    mean: FloatArray,
    covariance: FloatArray,
) -> Layer:
    read, made = mixing_axes(node, trace.normal.shapes) or (1, 0)
    weight = np.moveaxis(numpy_helper.to_array(tensor).astype(np.float64), (made, read), (0, 1))
    return Layer(
        output=node.outputs[0],
        tensor=tensor.name,
        bias=node.inputs[2] if len(node.inputs) > 2 else "",
        weight=weight.reshape(len(weight), -1),
        shape=weight.shape,
        axes=(made, read),
        read=trace.channels.axis_units(tensor.name, read),
        made=trace.channels.axis_units(tensor.name, made),
        mean=mean,
        covariance=covariance,
    )


def _input_moments(
    trace: OnnxTrace, nodes: Sequence[Node], images: Calibration, runtime: Runtime
) -> dict[str, tuple[FloatArray, FloatArray]]:
    """Mean [D] and ridged covariance [D, D] of what each node reads, by its output's name."""
    model = open_batch(trace.model)
    constants = {tensor.name for tensor in model.graph.initializer}
    [feed] = [value.name for value in model.graph.input if value.name not in constants]
    wanted = [name for name in dict.fromkeys(node.inputs[0] for node in nodes) if name != feed]
    answer_count = len(model.graph.output)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    each = sum(int(np.prod(trace.normal.shapes[name], dtype=np.int64)) for name in wanted)
    batch = max(1, min(BATCH, MOST_VALUES // max(each, 1)))
    sums: dict[str, list[FloatArray]] = {}
    count: dict[str, int] = {}
    rng = np.random.default_rng(0)
    session = runtime.load(model.SerializeToString())
    try:
        for start in range(0, len(images), batch):
            x = np.ascontiguousarray(images.x[start : start + batch])
            answers = session.run({feed: x})[answer_count:]
            values = {feed: x, **dict(zip(wanted, answers, strict=True))}
            for node in nodes:
                rows = _rows(trace, node, values[node.inputs[0]], rng)  # [R, D]
                square = (rows.T @ rows).astype(np.float64)
                first = rows.sum(0, dtype=np.float64)
                if node.outputs[0] in sums:
                    sums[node.outputs[0]][0] += first
                    sums[node.outputs[0]][1] += square
                else:
                    sums[node.outputs[0]] = [first, square]
                count[node.outputs[0]] = count.get(node.outputs[0], 0) + len(rows)
    finally:
        session.close()
    moments = {}
    for name, (first, square) in sums.items():
        mean = first / count[name]
        covariance = square / count[name] - np.outer(mean, mean)
        ridge = max(RIDGE, 0.1 * len(mean) / count[name])
        covariance[np.diag_indices(len(mean))] += ridge * np.diag(covariance).mean() + 1e-12
        moments[name] = mean, covariance
    return moments


def _rows(trace: OnnxTrace, node: Node, value: Array, rng: np.random.Generator) -> Array:
    """What one output reads, for a sample of outputs: [R, C_in * K]."""
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
    chosen = rng.choice(total, min(PLACES, total), replace=False)
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
