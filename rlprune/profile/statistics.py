"""Statistics correction on ONNX files: what a cut network needs before its loss says anything.

Cutting channels shifts the mean and scale of everything downstream. Each weighted node's output is
mapped back, channel by channel, to the mean and variance it has in the dense network on the same
images. That is BatchNorm re-estimation where BatchNorm follows, and its equal where an exporter
folded it away (REPAIR, arXiv 2211.08403, corrects interpolated networks so). Two properties matter
here:

- `instrument` does it in one pass: each output is matched before it flows on, so later layers see
  corrected inputs, and the moments found on the way are all that `fold` needs.
- The dense network is measured on the same images, so an unchanged layer is mapped by the identity;
  re-estimating BatchNorm from few images would harm it (data/README: 2.5 points on ResNet-20).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from rlprune.errors import CalibrationError
from rlprune.graph.types import FloatArray, IntArray

MOST_GAIN_SQUARED = 100.0
"""A channel whose variance fell below a hundredth is scaled by 10 at most: it holds mostly
noise."""

_NOISE = 1e-6
"""Variance below this share of the squared mean is rounding: float32 sums of E[y^2] - E[y]^2."""


@dataclass(frozen=True, slots=True)
class Site:
    """The output of one weighted node, where channel statistics are matched."""

    tensor: str
    axis: int
    """Channel axis of `tensor`: 1, or -1 behind a MatMul."""
    reduced: tuple[int, ...]
    """Axes that statistics are taken over (behind a MatMul: of the rows [..., C] -> [M, C])."""


@dataclass(frozen=True, slots=True)
class Moments:
    """Mean and variance of every channel of a site [C]."""

    mean: FloatArray
    var: FloatArray

    def take(self, kept: NDArray[np.bool_]) -> Moments:
        return Moments(self.mean[kept], self.var[kept])

    @property
    def _least(self) -> FloatArray:
        return _NOISE * np.square(self.mean) + 1e-12

    @property
    def std(self) -> FloatArray:
        """What a matched channel is scaled to [C]."""
        return np.sqrt(np.maximum(self.var, self._least))

    @property
    def floor(self) -> FloatArray:
        """The least variance a channel that is to be matched to this one is taken to have [C]."""
        return np.maximum(self.var / MOST_GAIN_SQUARED, self._least)

    def gain_shift(self, found: Moments) -> tuple[FloatArray, FloatArray]:
        """(gain, shift) [C] such that found * gain + shift has these moments."""
        gain = self.std / np.sqrt(np.maximum(found.var, self.floor))
        return gain, self.mean - gain * found.mean


def pool(batches: Sequence[Moments], counts: IntArray) -> Moments:
    """Moments over all images from those of batches of `counts` images."""
    weight = counts / counts.sum()
    mean = weight @ np.stack([batch.mean for batch in batches])
    square = weight @ np.stack([batch.var + np.square(batch.mean) for batch in batches])
    return Moments(mean, np.maximum(square - np.square(mean), 0.0))


def find_sites(model: onnx.ModelProto) -> list[Site]:
    """Outputs of nodes with constant weights that feed a further such node.

    The last ones are left alone: their outputs are the logits, whose scale is the network's
    confidence.
    """
    constants = _constants(model.graph)
    wanted: set[str] = set()
    sites: list[Site] = []
    for node in reversed(model.graph.node):
        leads_on = any(output in wanted for output in node.output)
        weighted = _out_axis(node, constants) is not None
        if weighted and leads_on:
            rank = len(constants[node.input[1]].dims)
            axis = -1 if node.op_type == "MatMul" else 1
            sites.append(Site(node.output[0], axis, (0, *range(2, rank))))
        if weighted or leads_on:
            wanted.update(node.input)
    return sites[::-1]


def instrument(model: onnx.ModelProto, sites: Sequence[Site], *, match: bool) -> onnx.ModelProto:
    """A copy whose further outputs are mean and variance of every site [C], two per site in order.

    With `match` the sites' outputs are replaced by matched ones; what they are matched to are
    further inputs [C], named by `target_feeds`.
    """
    wanted = {site.tensor: site for site in sites}
    opset = _opset(model)
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        nodes.append(node)
        site = wanted.get(node.output[0]) if node.output else None
        if site is None:
            continue
        name = site.tensor
        raw = f"{name}//raw" if match else name
        node.output[0] = raw
        nodes.extend(_moment_nodes(site, raw, opset))
        graph.output.extend(_vector(f"{name}//found_{part}") for part in ("mean", "var"))
        if match:
            nodes.extend(_match_nodes(site, raw))
            graph.input.extend(_vector(f"{name}//{target}") for target in _TARGETS)
    if opset >= 18:
        axes = {_axes_name(site): site.reduced for site in sites}
        for name, reduced in axes.items():
            _store(graph, name, np.array(reduced, dtype=np.int64))
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]
    return made


_TARGETS = ("mean", "std", "floor")


def target_feeds(site: Site, target: Moments) -> dict[str, NDArray[np.float32]]:
    """What an instrumented model is fed for `site` to be matched to `target`."""
    values = (target.mean, target.std, target.floor)
    return {
        f"{site.tensor}//{name}": value.astype(np.float32)
        for name, value in zip(_TARGETS, values, strict=True)
    }


def fold(
    model: onnx.ModelProto,
    sites: Sequence[Site],
    found: Sequence[Moments],
    targets: Sequence[Moments],
) -> onnx.ModelProto:
    """A copy of `model` with the correction from `found` to `targets` in its weights and biases."""
    constants = _constants(model.graph)
    nodes = {node.output[0]: node for node in model.graph.node if node.output}
    changes = {}
    for site, have, target in zip(sites, found, targets, strict=True):
        node = nodes[site.tensor]
        axis = _out_axis(node, constants)
        if axis is None:
            continue
        gain, shift = target.gain_shift(have)
        weight = numpy_helper.to_array(constants[node.input[1]])
        along = [1] * weight.ndim
        along[axis] = -1
        changes[site.tensor] = LayerChange(weight * gain.reshape(along), shift, gain)
    return with_layers(model, changes)


@dataclass(frozen=True, slots=True)
class LayerChange:
    """Other weights for a layer."""

    weight: NDArray[np.floating]
    """In the file's layout."""
    shift: FloatArray
    """Added to every output channel [C]."""
    bias_gain: FloatArray | None = None
    """What the bias that is there is multiplied by [C]; it stays as it is if None."""


def with_layers(model: onnx.ModelProto, changes: Mapping[str, LayerChange]) -> onnx.ModelProto:
    """A copy of `model` in which the layers that make the tensors named have other weights."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    constants = _constants(graph)
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        nodes.append(node)
        change = changes.get(node.output[0]) if node.output else None
        if change is None:
            continue
        # Of its own, since another node may read the same weight.
        node.input[1] = _store(graph, f"{node.output[0]}//weight", change.weight)
        shift = change.shift
        if node.op_type == "MatMul":
            tensor = node.output[0]
            node.output[0] = f"{tensor}//scaled"
            name = _store(graph, f"{tensor}//bias", shift)
            nodes.append(helper.make_node("Add", [node.output[0], name], [tensor]))
            continue
        shift = shift / _beta(node)
        if len(node.input) > 2 and node.input[2]:
            bias = numpy_helper.to_array(constants[node.input[2]])
            shift = shift + bias * (1.0 if change.bias_gain is None else change.bias_gain)
        del node.input[2:]
        node.input.append(_store(graph, f"{node.output[0]}//bias", shift))
    del graph.node[:]
    graph.node.extend(nodes)
    read = {name for node in nodes for name in node.input} | {o.name for o in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return made


def open_batch(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that takes any number of images, also where the file fixes it to one.

    A Reshape to a constant shape that leads with the fixed batch is made to copy it instead.

    Raises:
        CalibrationError: the file fixes the batch to something else than one.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    constants = _constants(graph)
    inputs = [value for value in graph.input if value.name not in constants]
    first = inputs[0].type.tensor_type.shape.dim[0]
    if first.HasField("dim_value"):
        if first.dim_value != 1:
            raise CalibrationError(
                f"the model's batch is fixed to {first.dim_value}; export it with a batch of "
                "1 or a dynamic one",
                field="model",
            )
        _open_reshapes(graph, constants, {value.name for value in inputs})
    for value in (*inputs, *graph.output):
        dims = value.type.tensor_type.shape.dim
        if dims:
            dims[0].dim_param = "N"
    del graph.value_info[:]
    return made


def _open_reshapes(
    graph: onnx.GraphProto, constants: dict[str, onnx.TensorProto], inputs: set[str]
) -> None:
    """Reshape(x, [1, ...]) -> Reshape(x, [0, ...]) wherever x depends on an input."""
    fed = set(inputs)
    for node in graph.node:
        if not any(name in fed for name in node.input):
            continue
        fed.update(node.output)
        if node.op_type != "Reshape" or node.input[1] not in constants:
            continue
        shape = numpy_helper.to_array(constants[node.input[1]]).copy()
        if shape.size and shape[0] == 1:
            kept = [attribute for attribute in node.attribute if attribute.name != "allowzero"]
            del node.attribute[:]
            node.attribute.extend(kept)
            shape[0] = 0
            node.input[1] = _store(graph, f"{node.output[0]}//shape", shape)


def _moment_nodes(site: Site, raw: str, opset: int) -> list[onnx.NodeProto]:
    """Nodes that leave mean and variance [C] of `raw` in `site.tensor//found_mean` and `_var`."""
    name = site.tensor
    data = raw
    nodes: list[onnx.NodeProto] = []
    if site.axis == -1:
        data = f"{name}//rows"
        nodes.append(helper.make_node("Flatten", [raw], [data], axis=-1))

    def mean(source: str, output: str) -> None:
        node = helper.make_node("ReduceMean", [source], [output], keepdims=0)
        if opset >= 18:
            node.input.append(_axes_name(site))
        else:
            node.attribute.append(helper.make_attribute("axes", site.reduced))
        nodes.append(node)

    mean(data, f"{name}//found_mean")
    # Two passes over a square are a third faster here than one ReduceSumSquare (ORT 1.31, Xeon).
    nodes.append(helper.make_node("Mul", [data, data], [f"{name}//square"]))
    mean(f"{name}//square", f"{name}//mean_square")
    squared = f"{name}//found_mean_square"
    nodes.append(helper.make_node("Mul", [f"{name}//found_mean"] * 2, [squared]))
    nodes.append(helper.make_node("Sub", [f"{name}//mean_square", squared], [f"{name}//found_var"]))
    return nodes


def _match_nodes(site: Site, raw: str) -> list[onnx.NodeProto]:
    """Nodes that map `raw` to the fed moments and leave it in `site.tensor`."""
    name = site.tensor
    mean, std, floor = (f"{name}//{target}" for target in _TARGETS)
    found, var = f"{name}//found_mean", f"{name}//var"
    nodes = [helper.make_node("Max", [f"{name}//found_var", floor], [var])]
    if site.axis == 1:
        # One pass over the data, where (y - m) * gain + mean would take three.
        inputs = [raw, std, mean, found, var]
        return [*nodes, helper.make_node("BatchNormalization", inputs, [name], epsilon=0.0)]
    return [
        *nodes,
        helper.make_node("Sqrt", [var], [f"{name}//found_std"]),
        helper.make_node("Div", [std, f"{name}//found_std"], [f"{name}//gain"]),
        helper.make_node("Sub", [raw, found], [f"{name}//centred"]),
        helper.make_node("Mul", [f"{name}//centred", f"{name}//gain"], [f"{name}//spread"]),
        helper.make_node("Add", [f"{name}//spread", mean], [name]),
    ]


def _axes_name(site: Site) -> str:
    return "//axes_" + "_".join(map(str, site.reduced))


def _out_axis(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> int | None:
    """The axis of the node's constant weight that its outputs lie on; None for other nodes."""
    if len(node.input) < 2 or node.input[1] not in constants:
        return None
    attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    rank = len(constants[node.input[1]].dims)
    bias = node.input[2] if len(node.input) > 2 else ""
    if bias and bias not in constants:
        return None
    match node.op_type:
        case "Conv":
            return 0
        case "ConvTranspose" if attributes.get("group", 1) == 1:
            return 1
        case "Gemm" if attributes.get("beta", 1.0) != 0.0:
            return 0 if attributes.get("transB", 0) else 1
        case "MatMul" if rank == 2:
            return 1
    return None


def _beta(node: onnx.NodeProto) -> float:
    values = [item.f for item in node.attribute if node.op_type == "Gemm" and item.name == "beta"]
    return values[0] if values else 1.0


def _constants(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """Initializers and tensors of Constant nodes, by name."""
    found = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    found[node.output[0]] = attribute.t
    return found


def _store(graph: onnx.GraphProto, name: str, value: NDArray[Any]) -> str:
    kind = value.dtype if value.dtype == np.int64 else np.float32
    graph.initializer.append(numpy_helper.from_array(value.astype(kind), name))
    return name


def _vector(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None])


def _opset(model: onnx.ModelProto) -> int:
    return max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
