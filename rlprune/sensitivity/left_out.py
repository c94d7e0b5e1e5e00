"""What a branch that is left out added on average, added still: by a bias before its shortcut.

Without the branch a sum is its shortcut alone. Where that is made linearly, by a layer or a
BatchNorm whose output nothing else reads any more, the layer's bias takes the branch's mean output
in the dense network, and the sum has the mean that it had: exact for inverted residuals and for the
sublayers of pre-norm transformers. Behind an activation, as in ResNets, there is no such bias.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rlprune.graph.from_onnx import OnnxTrace
from rlprune.graph.types import FloatArray
from rlprune.graph.walk import Node
from rlprune.runtime.base import Runtime
from rlprune.sensitivity.batching import Batching
from rlprune.sensitivity.calibration import CalibrationSet
from rlprune.sensitivity.moments import batch_values
from rlprune.surgery.removal import Removal, kept_mask


@dataclass(frozen=True)
class _Bias:
    """A constant that is added to a tensor, channel by channel."""

    name: str
    factor: float
    """It counts so often less."""
    axis: int
    """Of the tensor, along which its numbers lie."""
    own_axis: int
    """Of the constant's own."""


@dataclass(frozen=True)
class BranchMeans:
    """Mean outputs of branches in the dense network, for who leaves some of them out."""

    trace: OnnxTrace
    means: Mapping[str, FloatArray]
    """By name of the addition that ends the branch [C]."""

    @staticmethod
    def of(
        trace: OnnxTrace,
        additions: Mapping[str, int],
        samples: CalibrationSet,
        runtime: Runtime,
    ) -> BranchMeans:
        """Runs the dense network once, where any of the branches has a bias before its shortcut.

        Args:
            additions: as `Removal.left_out` has them.
        """
        nodes = {node.name: node for node in trace.normal.nodes if node.name in additions}
        found: dict[str, tuple[str, _Bias]] = {}
        for name, place in additions.items():
            alone = Removal((), left_out={name: place})
            bias = _bias_before(trace, alone, _readers(trace, alone), nodes[name].outputs[0])
            if bias is not None and nodes[name].op == "Add":
                found[name] = nodes[name].inputs[1 - place], bias
        if not found:
            return BranchMeans(trace, {})
        answers = [value.name for value in trace.model.graph.output]
        batching = Batching.find(trace, samples, runtime, answers)
        wanted = batching.computed(tensor for tensor, _ in found.values())
        sums: dict[str, FloatArray] = {}
        counts = dict.fromkeys(found, 0)
        batches = samples.batches(batch_values(trace, batching, wanted))
        for _, values in batching.run(runtime, trace.model, wanted, batches):
            for name, (tensor, bias) in found.items():
                shape = trace.normal.shapes[nodes[name].outputs[0]]
                value = np.asarray(values[tensor], dtype=np.float64)
                over = value.ndim + bias.axis - len(shape)  # a branch may be broadcast
                rows = np.moveaxis(value, over, -1).reshape(-1, value.shape[over])
                sums[name] = sums.get(name, 0.0) + rows.sum(0)
                counts[name] += len(rows)
        return BranchMeans(
            trace, {name: np.asarray(own / counts[name]) for name, own in sums.items()}
        )

    def added(self, removal: Removal) -> dict[str, FloatArray]:
        """By name of a constant what it takes for the branches that are left out [C']."""
        trace = self.trace
        if not self.means.keys() & removal.left_out.keys():
            return {}
        readers = _readers(trace, removal)
        found: dict[str, FloatArray] = {}
        for node in trace.normal.nodes:
            if node.name not in removal.left_out or node.name not in self.means:
                continue
            bias = _bias_before(trace, removal, readers, node.outputs[0])
            if bias is None:
                continue
            stays = kept_mask(*trace.channels.axis_units(bias.name, bias.own_axis), removal.kept)
            more = bias.factor * self.means[node.name][stays]
            found[bias.name] = found.get(bias.name, 0.0) + more
        return found


def _readers(trace: OnnxTrace, removal: Removal) -> dict[str, int]:
    """How often every tensor is read once the branches are gone, as an answer of the model too."""
    read = {value.name: 1 for value in trace.model.graph.output}
    for node in reversed(trace.normal.nodes):
        if not any(name in read for name in node.outputs):
            continue
        names: Collection[str] = node.inputs
        if node.name in removal.left_out:
            names = [node.inputs[removal.left_out[node.name]]]
        for name in names:
            read[name] = read.get(name, 0) + 1
    return read


def _bias_before(
    trace: OnnxTrace, removal: Removal, readers: Mapping[str, int], tensor: str
) -> _Bias | None:
    """The constant that is added to a tensor and whose change nothing else feels."""
    node = trace.normal.makers.get(tensor)
    if node is None:
        return None
    if node.name in removal.left_out:
        place = removal.left_out[node.name]
        if node.op == "Sub" and place == 1:
            return None
        sources: Sequence[str] = [node.inputs[place]]
    elif node.op in ("Add", "Identity"):
        sources = node.inputs
    else:
        return _own_bias(trace, node)
    for source in sources:
        if source in trace.normal.weights:
            bias = _laid_over(trace, source, tensor)
        elif readers.get(source) == 1:
            bias = _bias_before(trace, removal, readers, source)
        else:
            continue
        if bias is not None:
            return bias
    return None


def _own_bias(trace: OnnxTrace, node: Node) -> _Bias | None:
    """The bias of a layer that adds one, where that alone reads it."""
    if node.op not in ("Conv", "Gemm", "BatchNormalization") or len(node.inputs) < 3:
        return None
    if not node.inputs[2]:
        return None
    if node.op == "Gemm":
        beta = float(node.attrs.get("beta", 1.0))
        bias = _laid_over(trace, node.inputs[2], node.outputs[0]) if beta else None
        return None if bias is None else _Bias(bias.name, 1 / beta, bias.axis, bias.own_axis)
    return _Bias(node.inputs[2], 1.0, 1, 0) if _alone(trace, node.inputs[2]) else None


def _laid_over(trace: OnnxTrace, name: str, tensor: str) -> _Bias | None:
    """A constant that broadcasting lays along one axis of a tensor."""
    whole, own = trace.normal.shapes[tensor], trace.normal.shapes[name]
    long = [axis for axis, extent in enumerate(own) if extent > 1]
    if len(long) != 1 or len(own) > len(whole) or not _alone(trace, name):
        return None
    axis = len(whole) - len(own) + long[0]
    return _Bias(name, 1.0, axis, long[0]) if whole[axis] == own[long[0]] else None


def _alone(trace: OnnxTrace, name: str) -> bool:
    return name in trace.normal.weights and len(trace.normal.readers.get(name, ())) == 1
