"""Inputs made up for a model whose user gave none.

For networks that look at images, made-up scenes (`scenes`) do nearly as well as real ones. Their
scale is found from what the first layer makes of them: outputs nearest to the statistics of the
BatchNorm behind it, or to a standard normal. Other inputs are noise, scaled in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

from rlprune.graph.from_onnx import OnnxTrace
from rlprune.graph.types import PruningGraph
from rlprune.graph.walk import Node
from rlprune.runtime.base import Array, Runtime
from rlprune.sensitivity.scenes import random_scenes

COUNT = 1152
"""Of 384 a ResNet-32 at half its MACs loses a fifth more, of three times 384 hardly less than of
four times."""
POOL = 4
"""Times as many are drawn where those that are kept are chosen (`sources.balanced`)."""
MIN_COUNT = 64
MAX_VALUES = 1 << 25
"""Values of all inputs together (128 MiB of float32); of large inputs there are fewer."""
MAX_RUN_MACS = 6 * 10**10
"""Of one run of the model on all inputs: carrying out a plan takes some twenty such runs."""
SAMPLES = (4, 16)
"""Inputs that a scale is judged by, at least and at most."""
MAX_TRIED = 1 << 20
"""Values of them together; of large ones there are fewer."""
MAX_JUDGED = 1 << 22
"""Values of the first layer's answers to them that are looked at."""
MIN_IMAGE_SIDE = 16
MIXING = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True)
class Scale:
    """How pixels or noise become what a model takes: (raw * factor - mean) / std."""

    name: str
    factor: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    """One for all channels, or one for each."""
    std: tuple[float, ...] = (1.0,)

    def of(self, raw: Array) -> Array:
        """`raw` [..., C] as the model takes it, float32."""
        mean, std = (np.array(v, dtype=np.float32) for v in (self.mean, self.std))
        return np.asarray((raw.astype(np.float32) * np.float32(self.factor) - mean) / std)


PIXEL_SCALES = (
    Scale("pixels 0..1, less ImageNet's mean, by its deviation", 1 / 255,
          (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    Scale("pixels -1..1", 1 / 127.5, (1.0,)),
    Scale("pixels 0..1", 1 / 255),
    Scale("pixels 0..255"),
    Scale("pixels 0..255, less ImageNet's mean", 1.0, (123.675, 116.28, 103.53)),
)  # fmt: skip
"""The preprocessings in use, the most usual first: it is taken where nothing tells."""
NOISE_SCALES = tuple(Scale(f"deviation {factor:g}", factor) for factor in (1, 0.1, 10, 0.01, 100))


@dataclass(frozen=True)
class MadeUp:
    """Inputs of a model; what they are, in words."""

    arrays: Mapping[str, Array]
    """By graph input; axis 0 is the sample. The other axes are the input's, less an axis 0 that
    the trace has as 1 (the batch)."""
    kind: str


def default_count(graph: PruningGraph, *, pool: int = 1) -> int:
    """How many inputs are made up for a model: 1,152, fewer where they are large or the model costs
    much; `pool` times as many to choose from."""
    values = sum(math.prod(shape) for shape in graph.input_shapes)
    macs = int(graph.macs(graph.widths))
    affordable = pool * max(MIN_COUNT, MAX_RUN_MACS // max(macs, 1))
    return int(np.clip(min(MAX_VALUES // max(values, 1), affordable), MIN_COUNT, pool * COUNT))


def made_up_inputs(
    trace: OnnxTrace, count: int | None = None, *, seed: int = 0, runtime: Runtime | None = None
) -> MadeUp:
    """Inputs for every graph input of a traced model, the same for the same seed.

    Args:
        count: how many; by default `default_count`.
        runtime: what finds the scale of the inputs; without it the most usual is taken.

    Raises:
        MeasurementError: the runtime refuses the model's first layers.
    """
    rng = np.random.default_rng(seed)
    weights = {tensor.name for tensor in trace.model.graph.initializer}
    values = [value for value in trace.model.graph.input if value.name not in weights]
    shapes = {value.name: trace.normal.shapes[value.name] for value in values}
    if count is None:
        count = default_count(trace.graph)
    arrays: dict[str, Array] = {}
    kinds = []
    for value in values:
        shape = shapes[value.name]
        one = shape[1:] if shape and shape[0] == 1 else shape
        kind = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        if kind == np.bool_:
            arrays[value.name] = np.ones((count, *one), dtype=kind)
            kinds.append("true everywhere")
            continue
        if np.issubdtype(kind, np.integer) and kind != np.uint8:
            most = _vocabulary(trace, value.name)
            arrays[value.name] = rng.integers(0, most, (count, *one)).astype(kind)
            kinds.append(f"integers below {most}")
            continue
        raw, what, scales = _raw(count, one, rng)
        if kind == np.uint8:
            arrays[value.name] = np.clip(raw if "images" in what else 128 + 40 * raw, 0, 255)
            arrays[value.name] = arrays[value.name].astype(kind)
            kinds.append(f"{what}, {_text(one)}")
            continue
        channels_first = "images" in what and one[0] in (1, 3, 4)
        scale = _fitting(trace, value, raw, scales, channels_first, runtime)
        arrays[value.name] = _laid_out(scale.of(raw), channels_first).astype(kind)
        kinds.append(f"{what}, {_text(one)}, {scale.name}")
    return MadeUp(arrays, "; ".join(kinds))


def _raw(
    count: int, one: Sequence[int], rng: np.random.Generator
) -> tuple[Array, str, Sequence[Scale]]:
    """Unscaled inputs, channels last where they are images; what they are; scales to choose of."""
    first = len(one) == 3 and one[0] in (1, 3, 4) and min(one[1:]) >= MIN_IMAGE_SIDE
    last = len(one) == 3 and one[2] in (1, 3, 4) and min(one[:2]) >= MIN_IMAGE_SIDE
    if not (first or last):
        noise = _smooth_noise(count, one, rng)
        return noise, "noise", NOISE_SCALES
    channels = one[0] if first else one[2]
    height, width = one[1:] if first else one[:2]
    pixels = random_scenes(count, height, width, rng)
    if channels != 3:
        grey = pixels.mean(-1, keepdims=True)
        pixels = np.repeat(grey, channels, axis=-1).astype(np.uint8)
    usable = [scale for scale in PIXEL_SCALES if len(scale.mean) in (1, channels)]
    return pixels, "images of made-up scenes", usable


def _smooth_noise(count: int, one: Sequence[int], rng: np.random.Generator) -> Array:
    """Noise of deviation 1 whose neighbours along the longest axis are alike, more or less so.

    Signals and features in time are so, and independent values would hide from reconstruction
    that one channel can stand in for another.
    """
    noise = rng.standard_normal((count, *one)).astype(np.float32)
    if not one or max(one) < MIN_IMAGE_SIDE:
        return noise
    axis = 1 + int(np.argmax(one))
    frequency = np.arange(one[axis - 1] // 2 + 1, dtype=np.float32)
    steepness = rng.uniform(0, 1, (count, *[1] * len(one))).astype(np.float32)
    shape = [1] * (1 + len(one))
    shape[axis] = len(frequency)
    weight = np.maximum(frequency, 1).reshape(shape) ** -steepness  # white (0) to pink (1)
    spectrum = np.fft.rfft(noise, axis=axis) * weight
    smooth = np.fft.irfft(spectrum, n=one[axis - 1], axis=axis)
    deviation = smooth.std(axis=tuple(range(1, 1 + len(one))), keepdims=True)
    return np.asarray(smooth / np.maximum(deviation, 1e-6), dtype=np.float32)


def _laid_out(values: Array, channels_first: bool) -> Array:
    """Images [N, H, W, C] as [N, C, H, W] where the model takes them so."""
    return np.ascontiguousarray(np.moveaxis(values, -1, 1)) if channels_first else values


def _fitting(
    trace: OnnxTrace,
    value: onnx.ValueInfoProto,
    raw: Array,
    scales: Sequence[Scale],
    channels_first: bool,
    runtime: Runtime | None,
) -> Scale:
    """The scale that the first layer is made for, by what it makes of a few inputs."""
    found = None if runtime is None else _first_layer(trace, value)
    if found is None or runtime is None:
        return scales[0]
    model, wanted = found
    batched = trace.normal.shapes[value.name][:1] == (1,)
    kind = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    session = runtime.load(model.SerializeToString())
    least, most = SAMPLES
    few = raw[: int(np.clip(MAX_TRIED // max(raw[0].size, 1), least, most))]
    misfits = []
    try:
        for scale in scales:
            feed = _laid_out(scale.of(few), channels_first).astype(kind)
            answers = np.concatenate(
                [
                    np.asarray(session.run({value.name: one[None] if batched else one})[0])
                    for one in feed
                ]
            )
            misfits.append(_misfit(answers, wanted))
    finally:
        session.close()
    return scales[int(np.argmin(misfits))]


def _misfit(answers: Array, wanted: tuple[Array, Array] | None) -> float:
    """Median over channels of KL(found || wanted), both as normal distributions.

    answers [N, C, ...] behind a convolution, [..., C] otherwise; wanted: mean and variance [C].
    """
    axis = 1 if answers.ndim > 3 or wanted is not None else answers.ndim - 1
    rows = np.moveaxis(answers, axis, 0).reshape(answers.shape[axis], -1)  # [C, R]
    rows = rows[:, :: -(-rows.size // MAX_JUDGED)].astype(np.float64)
    mean, var = rows.mean(1), rows.var(1)
    live = var > 1e-12
    if not live.any() or not np.isfinite(rows).all():
        return math.inf
    expected, spread = (np.zeros(len(mean)), np.ones(len(mean))) if wanted is None else wanted
    spread = np.maximum(spread, 1e-12)
    ratio = np.maximum(var, 1e-12) / spread
    distance = 0.5 * (ratio + (mean - expected) ** 2 / spread - 1 - np.log(ratio))
    return float(np.median(distance[live]))


def _first_layer(
    trace: OnnxTrace, value: onnx.ValueInfoProto
) -> tuple[onnx.ModelProto, tuple[Array, Array] | None] | None:
    """The model up to the first layer that mixes this input's values, and the mean and variance
    that a BatchNorm behind it expects; None where there is no such layer."""
    reached = {value.name}
    before: dict[str, Node] = {}
    for node in trace.normal.nodes:
        if not reached.intersection(node.inputs):
            continue
        fed = [name for name in node.inputs if name and name not in trace.normal.weights]
        if len(node.outputs) != 1 or not all(name in reached for name in fed):
            continue  # takes another input too
        reached.add(node.outputs[0])
        before[node.outputs[0]] = node
        if node.op in MIXING:
            return _submodel(trace, value, before, node.outputs[0]), _expected(trace, node)
    return None


def _submodel(
    trace: OnnxTrace, value: onnx.ValueInfoProto, before: Mapping[str, Node], output: str
) -> onnx.ModelProto:
    """The nodes in `before` that `output` needs, as a model of that one output."""
    needed = {output}
    kept = []
    for proto, node in zip(
        reversed(trace.model.graph.node), reversed(trace.normal.nodes), strict=True
    ):
        if node.outputs and node.outputs[0] in before and needed.intersection(node.outputs):
            kept.append(proto)
            needed.update(node.inputs)
    model = onnx.ModelProto(ir_version=trace.model.ir_version)
    model.opset_import.extend(trace.model.opset_import)
    model.graph.name = "first layer"
    model.graph.input.append(value)
    model.graph.node.extend(reversed(kept))
    model.graph.initializer.extend(t for t in trace.model.graph.initializer if t.name in needed)
    model.graph.output.append(onnx.ValueInfoProto(name=output))
    return model


def _expected(trace: OnnxTrace, node: Node) -> tuple[Array, Array] | None:
    """Mean and variance [C] that a BatchNorm which alone reads the node's output expects."""
    readers = trace.normal.readers.get(node.outputs[0], ())
    if len(readers) != 1 or readers[0].op != "BatchNormalization":
        return None
    tensors = {tensor.name: tensor for tensor in trace.model.graph.initializer}
    found = [tensors.get(name) for name in readers[0].inputs[3:5]]
    if any(tensor is None for tensor in found):
        return None
    mean, var = (onnx.numpy_helper.to_array(t).astype(np.float64) for t in found if t is not None)
    return mean, var


def _vocabulary(trace: OnnxTrace, name: str) -> int:
    """How many rows the embedding has that an integer input chooses from; 2 where none is found."""
    behind = {name}
    for node in trace.normal.nodes:
        if node.op == "Gather" and len(node.inputs) > 1 and node.inputs[1] in behind:
            return max(int(trace.normal.shapes[node.inputs[0]][int(node.attrs.get("axis", 0))]), 1)
        if node.op in ("Cast", "Reshape", "Unsqueeze", "Squeeze", "Identity", "Slice", "Clip"):
            behind.update(o for o in node.outputs if behind.intersection(node.inputs[:1]) and o)
    return 2


def _text(one: Sequence[int]) -> str:
    return "x".join(map(str, one)) or "one number"
