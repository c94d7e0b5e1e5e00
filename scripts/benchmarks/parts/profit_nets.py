"""Small networks of which some option has been taken, for `scripts/bench profits`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from rlprune.graph.types import FloatArray

Weigh = Callable[[FloatArray], FloatArray]
"""What is made of a convolution's weight [out, in, ...]."""


@dataclass(frozen=True)
class Kernel:
    """A kind of convolution, and where it is measured."""

    label: str
    """As `schemes.profits` names it."""
    extents: tuple[int, int]
    places: tuple[tuple[int, int], ...]
    """(channels, extent of the image)."""
    offered: tuple[int, ...]
    """Extents along one axis, the whole one among them."""
    depthwise: bool = False
    stride: int = 1

    def options(self) -> list[tuple[int, int]]:
        """All rectangles but the whole."""
        every = product(self.offered, self.offered)
        return [one for one in every if one != self.extents]


class Net:
    """A small network in the making."""

    def __init__(self, channels: int, extent: int) -> None:
        self.rng = np.random.default_rng(0)
        shape = (1, channels, extent, extent)
        self.input = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[TensorProto] = []
        self.at = "x"

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node; its output is where the network has come to."""
        name = f"y{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], **attributes))
        self.at = name
        return name

    def conv(
        self,
        shape: Sequence[int],
        *,
        stride: int = 1,
        groups: int = 1,
        weigh: Weigh | None = None,
    ) -> str:
        """Adds a convolution of a weight [out, in, height, width] that keeps the extent."""
        values = self.rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        values = values if weigh is None else weigh(values)
        weight, bias = f"w{len(self.nodes)}", f"b{len(self.nodes)}"
        zeros = np.zeros(shape[0], dtype=np.float32)
        self.weights.append(numpy_helper.from_array(values.astype(np.float32), weight))
        self.weights.append(numpy_helper.from_array(zeros, bias))
        rows, columns = shape[2:]
        begins, ends = ((rows - 1) // 2, (columns - 1) // 2), (rows // 2, columns // 2)
        return self.node(
            *("Conv", self.at, weight, bias),
            kernel_shape=[rows, columns],
            strides=[stride, stride],
            pads=[*begins, *ends],
            group=groups,
        )

    def model(self) -> onnx.ModelProto:
        """The network."""
        output = helper.make_tensor_value_info(self.at, TensorProto.FLOAT, None)
        graph = helper.make_graph(self.nodes, "net", [self.input], [output], self.weights)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
        made.ir_version = 9
        return onnx.shape_inference.infer_shapes(made)


def convolutions(
    kernel: Kernel, place: tuple[int, int], extents: Sequence[int], weigh: Weigh | None = None
) -> onnx.ModelProto:
    """Three convolutions with activations between."""
    channels, extent = place
    net = Net(channels, extent)
    for _ in range(3):
        shape = (channels, 1 if kernel.depthwise else channels, *extents)
        groups = channels if kernel.depthwise else 1
        net.conv(shape, stride=kernel.stride, groups=groups, weigh=weigh)
        net.node("Relu", net.at)
    return net.model()


def residual(place: tuple[int, int], inner: Sequence[int]) -> onnx.ModelProto:
    """A convolution, and a residual block for each inner width."""
    channels, extent = place
    net = Net(channels, extent)
    net.conv((channels, channels, 3, 3))
    net.node("Relu", net.at)
    for width in inner:
        shortcut = net.at
        net.conv((width, channels, 3, 3))
        net.node("Relu", net.at)
        net.conv((channels, width, 3, 3))
        net.node("Add", net.at, shortcut)
        net.node("Relu", net.at)
    return net.model()


def unstructured(density: float) -> Weigh:
    """The greatest weights stay."""

    def weigh(weight: FloatArray) -> FloatArray:
        least = np.quantile(np.abs(weight), 1.0 - density)
        return np.asarray(np.where(np.abs(weight) >= least, weight, 0.0))

    return weigh


def two_of_four(weight: FloatArray) -> FloatArray:
    """Of every four inputs of a tap the two greatest weights stay (2:4)."""
    fours = weight.reshape(weight.shape[0], -1, 4, *weight.shape[2:])
    place = np.abs(fours).argsort(2).argsort(2)
    return np.asarray(np.where(place >= 2, fours, 0.0).reshape(weight.shape))


def four_of_nine(weight: FloatArray) -> FloatArray:
    """Of every 3x3 kernel the four greatest taps stay, as PatDNN's patterns have it."""
    taps = weight.reshape(*weight.shape[:2], -1)
    place = np.abs(taps).argsort(2).argsort(2)
    return np.asarray(np.where(place >= taps.shape[2] - 4, taps, 0.0).reshape(weight.shape))


ZEROS: dict[str, Weigh] = {
    "unstructured_0.5": unstructured(0.5),
    "unstructured_0.1": unstructured(0.1),
    "2of4": two_of_four,
    "pattern_4of9": four_of_nine,
}


def words(extents: Sequence[int]) -> str:
    """`1x3`."""
    return "x".join(map(str, extents))
