"""Least-squares reconstruction: channels that stay stand in for those that go, without running data
again.

With the mean and covariance of a layer's inputs in the dense network, taken once, the weights that
come nearest to its old answers from any subset of its inputs are one linear solve (channel pruning
by reconstruction, He et al. 2017, section 3.1; here with the dense network's inputs, so that a
solution depends on the subset alone and is kept). Layers that share a weight share the solve: their
moments are summed. No labels are read.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from rlprune.graph.from_onnx import OnnxTrace
from rlprune.graph.types import FloatArray, IntArray
from rlprune.graph.walk import Node
from rlprune.runtime.base import Runtime
from rlprune.sensitivity.calibration import CalibrationSet
from rlprune.sensitivity.moments import InputMoments, Seen, run_once
from rlprune.surgery.importance import mixing_axes
from rlprune.surgery.removal import BoolArray, Removal, kept_mask

MAX_INPUTS = 1 << 13
"""What a layer's outputs are each made of, at most; one that reads more stays as it was cut. The
covariance of VGG-16's first linear layer, 25,088 inputs, would take 5 GiB and never have images
enough."""
MAX_CACHE_BYTES = 1 << 28

Shift = Literal["own", "one", "none"]
"""What is added behind the layers that share a weight: to each its own, to all the same, nothing"""


@dataclass(frozen=True)
class Layer:
    """The layers of one weight that mix their input channels, and what they read in the dense
    network."""

    outputs: tuple[str, ...]
    """Of each layer."""
    tensor: str
    """The weight's name."""
    places: tuple[tuple[str, float], ...]
    """Of each layer the constant that takes its shift, and times what: its bias, or the mean of the
    BatchNorm or the constant of the Add behind it. Empty where one of them has none."""
    shift: Shift
    """What the layers have places for."""
    weight: FloatArray
    """[C_out, C_in * K], K positions of the kernel to each channel; of G groups C_in / G."""
    shape: tuple[int, ...]
    """Of the weight as the file has it, with the out- and in-axis moved to the front."""
    axes: tuple[int, int]
    """(out, in) in the file."""
    read: tuple[IntArray, IntArray]
    """Group and unit of every input channel [C_in]; of a grouped convolution of each group's, which
    lose the same ones [C_in / G]."""
    made: tuple[IntArray, IntArray]
    """Group and unit of every output channel [C_out]."""
    means: FloatArray
    """Of each layer's inputs [layers, G, d], d of each group, d = C_in * K of one group."""
    shares: FloatArray
    """Of what was seen, each layer's [layers], 1 together."""
    covariance: FloatArray
    """About the layers' own means [G, d, d], ridge included on the diagonal."""

    def stay(self, removal: Removal) -> BoolArray:
        """Which of its inputs stay, by channels and taps [d]."""
        channels = kept_mask(*self.read, removal.kept)
        positions = self.weight.shape[1] // len(channels)
        return np.repeat(channels, positions) & self.taps(len(channels) * positions, removal)

    def taps(self, size: int, removal: Removal) -> BoolArray:
        """Which of the `size` numbers that whole kernels read of some channels stay."""
        return np.resize(removal.taps(self.tensor, self.shape[2:]), size)

    def change(self, weight: FloatArray, shifts: FloatArray, removal: Removal) -> LayerChange:
        """Of a weight [C_out', d'] and shifts [layers, C_out'], fewer than the layer has."""
        kernel = removal.extents(self.tensor, self.shape[2:])
        outputs, inputs = len(weight), weight.shape[1] // int(np.prod(kernel))
        moved = np.moveaxis(weight.reshape(outputs, inputs, *kernel), (0, 1), self.axes)
        added = {
            name: factor * shift
            for (name, factor), shift in zip(self.places, shifts, strict=bool(self.places))
        }
        return LayerChange(moved, added)

    def flat(self, change: LayerChange) -> FloatArray:
        """The weight of a change as [C_out', C_in' * K]."""
        moved = np.moveaxis(change.weight, self.axes, (0, 1))
        return moved.reshape(len(moved), -1)

    def padded(
        self, change: LayerChange, removal: Removal
    ) -> tuple[FloatArray, dict[str, FloatArray]]:
        """Weight (laid out and as wide as in the file) and what is added by name [C_out], 0 where
        units and taps go, of a change for that removal; for who cuts it another way."""
        outputs = kept_mask(*self.made, removal.kept)
        weight = np.zeros_like(self.weight)
        weight[np.ix_(outputs, self.stay(removal))] = self.flat(change)
        added = {name: np.zeros(len(outputs)) for name in change.added}
        for name, values in change.added.items():
            added[name][outputs] = values
        return np.moveaxis(weight.reshape(self.shape), (0, 1), self.axes), added

    @cached_property
    def output_moment(self) -> tuple[FloatArray, float]:
        """Of inputs with outputs [G, d, C_out / G], and the outputs' variance, all added up."""
        whole, _ = self.moment(self.shift)
        dense = self.weight.reshape(len(whole), -1, whole.shape[-1])  # [G, C_out / G, d]
        moment = whole @ dense.swapaxes(1, 2)
        return moment, float((moment * dense.swapaxes(1, 2)).sum())

    def moment(self, shift: Shift) -> tuple[FloatArray, FloatArray]:
        """What is solved with [G, d, d], and the mean that the shift makes up for: each layer's
        [layers, G, d], or one for all [1, G, d]."""
        if shift == "own" or (shift == "one" and len(self.outputs) == 1):
            return self.covariance, self.means
        means = self.means
        centre = np.einsum("k,kgi->gi", self.shares, means) if shift == "one" else 0.0 * means[0]
        apart = means - centre
        moment = self.covariance + np.einsum("k,kgi,kgj->gij", self.shares, apart, apart)
        return moment, centre[None]


@dataclass
class Reconstruction:
    """Reconstructs pruned models of one trace; keeps what it has solved. For one thread."""

    layers: Sequence[Layer]
    _solved: dict[tuple[str, bytes, Shift], tuple[FloatArray, FloatArray]] = field(
        default_factory=dict
    )
    _bytes: int = 0

    @staticmethod
    def of(
        trace: OnnxTrace,
        samples: CalibrationSet,
        runtime: Runtime,
        kernels: Collection[str] = (),
    ) -> Reconstruction:
        """Runs the dense network once to see what its layers read.

        Args:
            kernels: weights of convolutions whose kernels may be cut, beside those of layers that
                may lose channels.

        Raises:
            CalibrationError: it does not run on the samples, or overflows on them.
        """
        moments = Reconstruction.moments(trace, len(samples), kernels)
        run_once(trace, samples, runtime, [moments])
        return Reconstruction.from_moments(trace, moments)

    @staticmethod
    def moments(trace: OnnxTrace, sample_count: int, kernels: Collection[str] = ()) -> InputMoments:
        """What it needs to know of a run of the dense network on so many samples."""
        tensors = {tensor.name: tensor for tensor in trace.model.graph.initializer}
        return InputMoments(trace, _sharing(trace, tensors, kernels), sample_count)

    @staticmethod
    def from_moments(trace: OnnxTrace, moments: InputMoments) -> Reconstruction:
        """By what was seen in such a run; raises as `of`."""
        tensors = {tensor.name: tensor for tensor in trace.model.graph.initializer}
        seen = moments.seen()
        return Reconstruction(
            [
                _layer(trace, nodes, tensors[name], seen[name])
                for name, nodes in moments.shared.items()
            ]
        )

    def apply(self, pruned: onnx.ModelProto, removal: Removal) -> onnx.ModelProto:
        """A copy of a model cut by `removal`, its layers reconstructed."""
        return with_layers(pruned, self.changes(removal))

    def changes(self, removal: Removal) -> dict[str, LayerChange]:
        """By weight, what becomes of the layers that lose inputs to `removal`."""
        changes = {}
        for layer, inputs in self.affected_layers(removal):
            weight, shifts = self._solve(layer, inputs, layer.shift)
            outputs = kept_mask(*layer.made, removal.kept)
            changes[layer.tensor] = layer.change(weight[outputs], shifts[:, outputs], removal)
        return changes

    def unexplained(self, removal: Removal) -> float:
        """Share (0-1) of the output variance that least squares cannot restore, in the layer that
        loses most."""
        return max((share for _, share in self.unexplained_by_layer(removal)), default=0.0)

    def unexplained_by_layer(self, removal: Removal) -> Iterator[tuple[Layer, float]]:
        """The same of every layer that loses inputs."""
        for layer, inputs in self.affected_layers(removal):
            whole, _ = layer.moment(layer.shift)
            moment, total = layer.output_moment
            moment = moment[:, inputs]  # [G, d', C_out / G]
            solved = np.linalg.solve(whole[:, inputs][:, :, inputs], moment)
            lost = 1.0 - float((moment * solved).sum()) / max(total, 1e-30)
            yield layer, min(max(lost, 0.0), 1.0)

    def affected_layers(self, removal: Removal) -> Iterator[tuple[Layer, BoolArray]]:
        """Layers that lose inputs, channels or taps, and which of them they keep [d]."""
        for layer in self.layers:
            inputs = layer.stay(removal)
            if not inputs.all():
                yield layer, inputs

    def _solve(
        self, layer: Layer, inputs: BoolArray, shift: Shift
    ) -> tuple[FloatArray, FloatArray]:
        """Weights [C_out, d'] and shifts [layers, C_out] of all outputs for the kept inputs [d]."""
        key = (layer.tensor, inputs.tobytes(), shift)
        if key not in self._solved:
            # Least squares in moments: W C[:, S] C[S, S]^-1, the means left to the shifts if any.
            whole, means = layer.moment(shift)
            dense = layer.weight.reshape(len(whole), -1, len(inputs))  # [G, C_out / G, d]
            moment = whole[:, inputs]  # [G, d', d]
            solved = np.linalg.solve(moment[:, :, inputs], moment @ dense.swapaxes(1, 2))
            part = np.asarray(solved.swapaxes(1, 2), dtype=np.float64)
            by_group = means.swapaxes(0, 1)  # [G, layers, d]
            lost = by_group @ dense.swapaxes(1, 2) - by_group[:, :, inputs] @ part.swapaxes(1, 2)
            weight: FloatArray = part.reshape(len(layer.weight), -1)
            shifts = lost.swapaxes(0, 1).reshape(len(means), -1)
            # To the bit the same for all that share a bias: it stays one.
            shifts = np.broadcast_to(shifts, (len(layer.outputs), shifts.shape[1]))
            if self._bytes > MAX_CACHE_BYTES:
                self._solved.clear()
                self._bytes = 0
            self._solved[key] = weight, shifts
            self._bytes += weight.nbytes + shifts.nbytes
        return self._solved[key]


def _sharing(
    trace: OnnxTrace, constants: Mapping[str, onnx.TensorProto], kernels: Collection[str]
) -> dict[str, list[Node]]:
    """By weight, the layers that read it and may be reconstructed; none where anything else reads
    it, or reads it another way: what is shared stays shared."""
    found: dict[str, list[Node]] = {}
    for node in trace.normal.nodes:
        if _reads_groups(trace, node, constants) or _may_be_cut(trace, node, constants, kernels):
            found.setdefault(node.inputs[1], []).append(node)
    return {
        name: nodes
        for name, nodes in found.items()
        if len(nodes) == len(trace.normal.readers[name])
        and len({mixing_axes(node, trace.normal.shapes) for node in nodes}) == 1
        and len({node.op for node in nodes}) == 1
    }


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
    if int(np.prod(shape, dtype=np.int64)) // shape[axes[1]] > MAX_INPUTS:
        return False
    return bool((trace.channels.axis_units(node.inputs[1], axes[0])[0] >= 0).any())


def _may_be_cut(
    trace: OnnxTrace,
    node: Node,
    constants: Mapping[str, onnx.TensorProto],
    kernels: Collection[str],
) -> bool:
    """Whether it is a convolution that may lose taps of its kernel."""
    if node.op != "Conv" or node.inputs[1] not in kernels or node.inputs[1] not in constants:
        return False
    if len(node.inputs) > 2 and node.inputs[2] and node.inputs[2] not in constants:
        return False
    return int(np.prod(trace.normal.shapes[node.inputs[1]][1:])) <= MAX_INPUTS


def _layer(trace: OnnxTrace, nodes: Sequence[Node], tensor: onnx.TensorProto, seen: Seen) -> Layer:
    read, made = mixing_axes(nodes[0], trace.normal.shapes) or (1, 0)
    weight = np.moveaxis(
        np.asarray(numpy_helper.to_array(tensor), dtype=np.float64), (made, read), (0, 1)
    )
    places = _places(trace, nodes)
    shift: Shift = "own" if len({name for name, _ in places}) == len(nodes) else "one"
    return Layer(
        outputs=tuple(node.outputs[0] for node in nodes),
        tensor=tensor.name,
        places=places,
        shift=shift if places else "none",
        weight=weight.reshape(len(weight), -1),
        shape=weight.shape,
        axes=(made, read),
        read=trace.channels.axis_units(tensor.name, read),
        made=trace.channels.axis_units(tensor.name, made),
        means=seen.first / seen.count[:, None, None],
        shares=seen.count / seen.count.sum(),
        covariance=seen.covariance(),
    )


def _places(trace: OnnxTrace, nodes: Sequence[Node]) -> tuple[tuple[str, float], ...]:
    """Constants that take the shifts of layers with one weight, and that nothing else reads."""
    found = [_place(trace, node) for node in nodes]
    names = [place[0] for place in found if place is not None]
    alone = all(len(trace.normal.readers[name]) == names.count(name) for name in names)
    if len(names) < len(nodes) or not alone:
        return ()
    return tuple(place for place in found if place is not None)


def _place(trace: OnnxTrace, node: Node) -> tuple[str, float] | None:
    """The constant that one layer's shift goes into, and times what."""
    normal = trace.normal
    [output] = node.outputs
    made = normal.shapes[output]
    channel = 1 if node.op == "Conv" else len(made) - 1
    # As broadcasting lays it over the layer's answers.
    over = tuple(extent if axis == channel else 1 for axis, extent in enumerate(made))
    if len(node.inputs) > 2 and node.inputs[2]:
        name, factor = node.inputs[2], 1.0 / float(node.attrs.get("beta", 1.0))
        fits = node.op == "Conv" or _ends(over, normal.shapes[name])
        return (name, factor) if fits else None
    readers = normal.readers.get(output, ())
    if len(readers) != 1 or output in {value.name for value in trace.model.graph.output}:
        return None
    [behind] = readers
    if behind.op == "BatchNormalization" and channel == 1:
        mean = behind.inputs[3]
        return (mean, -1.0) if mean in normal.weights else None
    if behind.op == "Add":
        [added] = [name for name in behind.inputs if name != output]
        fits = added in normal.weights and _ends(over, normal.shapes[added])
        return (added, 1.0) if fits else None
    return None


def _ends(over: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether a constant of `shape`, laid over [.., C, ..], has a number for every channel."""
    return over[len(over) - len(shape) :] == shape and math.prod(over) == math.prod(shape)


@dataclass(frozen=True, slots=True)
class LayerChange:
    """Other values for a weight, and what is added to the constants behind it."""

    weight: FloatArray
    """In the file's layout."""
    added: Mapping[str, FloatArray]
    """By the name of a bias, of a BatchNorm's mean or of an Add's constant [C]."""


def with_layers(model: onnx.ModelProto, changes: Mapping[str, LayerChange]) -> onnx.ModelProto:
    """A copy of `model` in which the weights named have other values.

    Every tensor keeps its name, shape and type, however many layers read it, and none is added. A
    change that the type cannot hold, or of a weight that is not there, is left out.
    """
    made = deepcopy(model)
    constants = {tensor.name: tensor for tensor in made.graph.initializer}
    for name, change in changes.items():
        if name not in constants:
            continue  # of a branch that was left out
        new = {name: _cast(change.weight, constants[name])}
        for behind, added in change.added.items():
            if behind not in constants:
                continue  # of a layer that shares the weight, in such a branch
            old = np.asarray(numpy_helper.to_array(constants[behind]), dtype=np.float64)
            new[behind] = _cast(old + added.reshape(old.shape), constants[behind])
        if any(values is None for values in new.values()):
            continue
        for tensor, values in new.items():
            constants[tensor].CopyFrom(numpy_helper.from_array(np.asarray(values), tensor))
    return made


def _cast(values: FloatArray, like: onnx.TensorProto) -> NDArray[Any] | None:
    """In the type of another tensor; None where that overflows."""
    kind = helper.tensor_dtype_to_np_dtype(like.data_type)
    with np.errstate(over="ignore"):
        cast = np.ascontiguousarray(values).astype(kind)
    return cast if np.isfinite(cast.astype(np.float64)).all() else None
