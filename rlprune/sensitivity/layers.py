"""The layers of one weight: what they read, where it lies in the file, and what of their answers
least squares cannot restore once they read less.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import onnx
from onnx import numpy_helper

from rlprune.files import fields_of
from rlprune.graph.from_onnx import OnnxTrace
from rlprune.graph.types import FloatArray, IntArray
from rlprune.graph.walk import Node
from rlprune.sensitivity.moments import Seen
from rlprune.sensitivity.types import MAX_INPUTS
from rlprune.surgery.importance import mixing_axes
from rlprune.surgery.removal import BoolArray, Removal, kept_mask

MANY, MIXTURES = 1024, 128
"""Inputs beyond which shares are told in single precision, from so many random sums of the outputs:
squares summed over these are right on average, and within an eighth for each input."""

Shift = Literal["own", "one", "none"]
"""What is added behind the layers that share a weight: to each its own, to all the same, nothing"""


@dataclass(frozen=True, slots=True)
class LayerChange:
    """Other values for a weight, and what is added to the constants behind it."""

    weight: FloatArray
    """In the file's layout."""
    added: Mapping[str, FloatArray]
    """By the name of a bias, of a BatchNorm's mean or of an Add's constant [C]."""


@dataclass(frozen=True)
class Moment:
    """What some answers are made of, of which a part may go."""

    covariance: FloatArray
    """Of what is read [G, d, d], of G groups of a grouped convolution."""
    weight: FloatArray
    """What answers are made with [G, M, d]."""

    def lost(self, stay: BoolArray) -> float:
        """Share (0-1) of the answers' variance that least squares cannot restore from what stays
        [d]."""
        product, total = self._product
        moment = product[:, stay]  # [G, d', M]
        solved = np.linalg.solve(self.covariance[:, stay][:, :, stay], moment)
        lost = 1.0 - float((moment * solved).sum()) / max(total, 1e-30)
        return min(max(lost, 0.0), 1.0)

    def lost_in_order(self, order: IntArray) -> FloatArray:
        """The same from the first 0, 1, 2 ... in an order [d] -> [d + 1].

        With C = L L' the covariance in that order, what the first m inputs explain of W x is the
        sum of the squares of the first m columns of W L.
        """
        covariance, weight = self.covariance[:, order][:, :, order], self.weight[:, :, order]
        if len(order) > MANY:
            covariance, weight = covariance.astype(np.float32), mixed(weight).astype(np.float32)
        root = np.linalg.cholesky(covariance)  # [G, d, d]
        explained = np.square(weight @ root).sum((0, 1), dtype=np.float64)  # [d]
        total = np.concatenate([[0.0], np.cumsum(explained)])
        return np.asarray(np.clip(1.0 - total / max(float(total[-1]), 1e-30), 0.0, 1.0))

    @cached_property
    def _product(self) -> tuple[FloatArray, float]:
        """Of what is read with the answers [G, d, M], and the answers' variance, all added up."""
        product = self.covariance @ self.weight.swapaxes(1, 2)
        return product, float((product * self.weight.swapaxes(1, 2)).sum())


def mixed(weight: FloatArray) -> FloatArray:
    """Random sums of answers [G, M', d], M' at most `MIXTURES`."""
    if weight.shape[1] <= MIXTURES:
        return weight
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (MIXTURES, weight.shape[1]))
    return np.asarray(signs @ weight / np.sqrt(MIXTURES))


@dataclass(frozen=True)
class LayerSite:
    """Where the layers of one weight that mix their input channels lie in a network."""

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

    @property
    def taps_per_channel(self) -> int:
        """Positions of the kernel, K."""
        return int(self.weight.shape[1] // len(self.read[0]))

    def stay(self, removal: Removal) -> BoolArray:
        """Which of its inputs stay, by channels and taps [d]."""
        channels = kept_mask(*self.read, removal.kept)
        return np.repeat(channels, self.taps_per_channel) & self.taps(self.weight.shape[1], removal)

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


@dataclass(frozen=True)
class Layer(LayerSite):
    """Such layers, and what they read in the dense network."""

    means: FloatArray
    """Of each layer's inputs [layers, G, d], d of each group, d = C_in * K of one group."""
    shares: FloatArray
    """Of what was seen, each layer's [layers], 1 together."""
    covariance: FloatArray
    """About the layers' own means [G, d, d], ridge included on the diagonal."""

    def lost(self, stay: BoolArray) -> float:
        """Share (0-1) of their answers' variance that least squares cannot restore from the inputs
        that stay [d]."""
        return self._solved_with.lost(stay)

    def lost_in_order(self, order: IntArray, counts: IntArray) -> FloatArray:
        """The same from the first `counts` [L] of their channels in an order [C_in] -> [L]."""
        taps = self.taps_per_channel
        inputs = (order[:, None] * taps + np.arange(taps)).ravel()
        return self._solved_with.lost_in_order(inputs)[counts * taps]

    @cached_property
    def _solved_with(self) -> Moment:
        whole, _ = self.moment(self.shift)
        return Moment(whole, self.weight.reshape(len(whole), -1, whole.shape[-1]))

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


def sharing(trace: OnnxTrace, kernels: Collection[str] = ()) -> dict[str, list[Node]]:
    """By weight, the layers that read it and may be reconstructed; none where anything else reads
    it, or reads it another way: what is shared stays shared.

    Args:
        kernels: weights of convolutions whose kernels may be cut.
    """
    constants = {tensor.name: tensor for tensor in trace.model.graph.initializer}
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


def site_of(trace: OnnxTrace, nodes: Sequence[Node], tensor: onnx.TensorProto) -> LayerSite:
    """Of the layers that read a weight."""
    read, made = mixing_axes(nodes[0], trace.normal.shapes) or (1, 0)
    weight = np.moveaxis(
        np.asarray(numpy_helper.to_array(tensor), dtype=np.float64), (made, read), (0, 1)
    )
    places = _places(trace, nodes)
    shift: Shift = "own" if len({name for name, _ in places}) == len(nodes) else "one"
    return LayerSite(
        outputs=tuple(node.outputs[0] for node in nodes),
        tensor=tensor.name,
        places=places,
        shift=shift if places else "none",
        weight=weight.reshape(len(weight), -1),
        shape=weight.shape,
        axes=(made, read),
        read=trace.channels.axis_units(tensor.name, read),
        made=trace.channels.axis_units(tensor.name, made),
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


def layer_of(site: LayerSite, seen: Seen) -> Layer:
    """With what such layers read."""
    return Layer(
        **fields_of(site),
        means=seen.first / seen.count[:, None, None],
        shares=seen.count / seen.count.sum(),
        covariance=seen.covariance(),
    )
