"""Reconstruction of one layer, or of layers that share a weight, against least squares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx_oracle import Net, numbers_in_weights
from reconstructing import RUNTIME, SIDE, halved, images_of, values

from rlprune.graph.from_onnx import OnnxTrace, trace_onnx
from rlprune.graph.types import FloatArray, IntArray
from rlprune.runtime.base import Array
from rlprune.sensitivity.reconstruct import Reconstruction
from rlprune.surgery.onnx import cut
from rlprune.surgery.removal import Removal

Reader = Callable[[Net, str], str]
"""Adds the layer that is looked at, reading six channels; gives its output."""


def convolution(*kernel: int, bias: bool = True, out: int = 5, **attrs: list[int] | str) -> Reader:
    def add(net: Net, x: str) -> str:
        inputs = [x, net.weight(out, 6, *kernel), *([net.weight(out)] if bias else [])]
        return str(net.add("Conv", *inputs, **attrs))

    return add


def linear(*, trans_b: int = 0, bias: bool = True, **attrs: float) -> Reader:
    def add(net: Net, x: str) -> str:
        flat = net.add("Flatten", net.add("GlobalAveragePool", x))
        weight = net.weight(5, 6) if trans_b else net.weight(6, 5)
        inputs = [flat, weight, *([net.weight(5)] if bias else [])]
        return str(net.add("Gemm", *inputs, transB=trans_b, **attrs))

    return add


def flattened(net: Net, x: str) -> str:
    """Each channel is read once per pixel."""
    weight = net.weight(6 * SIDE * SIDE, 5)
    return str(net.add("Gemm", net.add("Flatten", x), weight, net.weight(5)))


def token_product(net: Net, x: str) -> str:
    """A MatMul without bias over [N, pixels, channels]."""
    tokens = net.add("Reshape", x, net.ints(0, 0, -1))
    return str(net.add("MatMul", net.add("Transpose", tokens, perm=[0, 2, 1]), net.weight(6, 5)))


def token_layer(net: Net, x: str) -> str:
    """The same, its bias in an Add behind: the product is looked at."""
    product = token_product(net, x)
    net.add("Add", net.weight(1, 5), product)
    return product


def normed(net: Net, x: str) -> str:
    """A convolution without bias, a BatchNorm behind: the convolution is looked at."""
    made = convolution(3, 3, bias=False)(net, x)
    net.norm(made, 5)
    return made


READERS: dict[str, Reader] = {
    "pointwise": convolution(1, 1),
    "padded": convolution(3, 3, pads=[1] * 4),
    "padded on one side": convolution(3, 2, pads=[0, 1, 2, 0]),
    "strided": convolution(3, 3, pads=[1] * 4, strides=[2, 3]),
    "dilated": convolution(3, 3, pads=[2, 2, 2, 2], dilations=[2, 2]),
    "same upper": convolution(3, 3, auto_pad="SAME_UPPER", strides=[2, 2]),
    "same lower": convolution(2, 2, auto_pad="SAME_LOWER"),
    "without bias": convolution(3, 3, bias=False),
    "gemm": linear(),
    "gemm, transposed": linear(trans_b=1),
    "gemm without bias": linear(bias=False),
    "gemm, half the bias": linear(beta=0.5),
    "gemm without the bias it would halve": linear(bias=False, beta=0.5),
    "flattened": flattened,
    "matmul": token_product,
    "matmul with an Add behind": token_layer,
    "batch norm behind": normed,
    "one axis": convolution(5, strides=[2], pads=[3, 1]),
}


@dataclass(frozen=True)
class Layer:
    """One layer of a model that reads six channels whole."""

    trace: OnnxTrace
    output: str
    end: str = ""
    """What is added to or scaled behind it, as a net answers; the layer's own output if empty."""

    @property
    def has_bias(self) -> bool:
        return self.end not in ("", self.output) or len(self.node.input) > 2

    @property
    def node(self) -> onnx.NodeProto:
        [node] = [node for node in self.trace.model.graph.node if self.output in node.output]
        return node

    def rows(self, value: FloatArray) -> FloatArray:
        """One row per answer [R, C]."""
        axis = 1 if self.node.op_type == "Conv" else -1
        return np.moveaxis(value, axis, -1).reshape(-1, value.shape[axis])

    def answers(self, model: onnx.ModelProto, x: Array) -> FloatArray:
        """Behind the layer in `model`, which may be a corrected one [R, C_out]."""
        return self.rows(values(model, [self.end or self.output], x)[0])

    def inputs(self, x: Array) -> FloatArray:
        """All that goes into each answer in the dense network [R, D].

        The runtime itself finds it: a layer whose weight is the identity answers with its inputs.
        """
        model = onnx.ModelProto()
        model.CopyFrom(self.trace.model)
        [place] = [i for i, node in enumerate(model.graph.node) if self.output in node.output]
        del model.graph.node[place + 1 :]
        node = model.graph.node[place]
        [weight] = [t for t in model.graph.initializer if t.name == node.input[1]]
        count = int(np.prod(weight.dims)) // 5  # of five outputs
        eye = np.eye(count, dtype=np.float32)
        if node.op_type == "Conv":
            eye = eye.reshape(count, *weight.dims[1:])
        model.graph.initializer.append(numpy_helper.from_array(eye, "eye"))
        node.input[1] = "eye"
        del node.input[2:]
        return self.rows(values(model, [self.output], x)[0])


def assert_nearest(layer: Layer, corrected: onnx.ModelProto, kept: IntArray, x: Array) -> None:
    """No weights over the `kept` of the six channels, and no bias where the file has one, answer
    nearer to the dense layer."""
    inputs, wanted = layer.inputs(x), layer.answers(layer.trace.model, x)
    stay = np.repeat(np.isin(np.arange(6), kept), inputs.shape[1] // 6)
    used = inputs[:, stay]
    if layer.has_bias:
        used = np.column_stack([used, np.ones(len(inputs))])
    best = used @ np.linalg.lstsq(used, wanted, rcond=None)[0]
    found = layer.answers(corrected, x)
    least = np.square(best - wanted).mean()
    assert least > 1e-3 * wanted.var()  # what went is missed
    assert np.square(found - wanted).mean() < 1.002 * least
    assert np.square(found - best).mean() < 1e-3 * wanted.var()


@pytest.mark.usefixtures("everywhere")
@pytest.mark.parametrize("name", READERS)
def test_no_weights_over_what_stays_answer_nearer(name: str) -> None:
    axes = 1 if name == "one axis" else 2
    net = Net(1, 3, *[SIDE] * axes)
    made = net.add("Relu", net.add("Conv", "x", net.weight(6, 3, *[3] * axes), pads=[1, 1] * axes))
    layer = READERS[name](net, made)
    end = net.nodes[-1].output[0]
    trace = trace_onnx(net.model(end))
    [kept] = halved(trace)
    few_rows = "gemm" in name or name == "flattened"
    images = images_of(trace, 2000 if few_rows else 128)
    gone = Removal([kept])
    corrected = Reconstruction.of(trace, images, RUNTIME).apply(cut(trace, gone), gone)
    onnx.checker.check_model(corrected, full_check=True)
    assert numbers_in_weights(corrected) == numbers_in_weights(cut(trace, gone))
    assert_nearest(Layer(trace, layer, end), corrected, kept, images.x)


@pytest.mark.usefixtures("everywhere")
@pytest.mark.parametrize("bias", ["none", "shared", "own"])
def test_layers_that_share_a_weight_are_solved_together_and_still_share_it(bias: str) -> None:
    net = Net(1, 3, SIDE, SIDE)
    weight = net.weight(5, 6, 3, 3)
    shared = net.weight(5)
    biases = {"none": ([], []), "shared": ([shared], [shared]), "own": ([shared], [net.weight(5)])}
    # The readers' inputs correlate in other ways, so that one weight cannot suit both.
    sides = [net.add("Relu", net.conv("x", 3, 6, kernel)) for kernel in (1, 3)]
    readers = [
        net.add("Conv", side, weight, *own, pads=[1] * 4)
        for side, own in zip(sides, biases[bias], strict=True)
    ]
    trace = trace_onnx(net.model(net.head(net.add("Add", *readers), 5)))
    by_width = {group.width: index for index, group in enumerate(trace.graph.groups)}
    assert sorted(by_width) == [5, 6]  # the weight ties what the two sides keep
    kept = [np.arange(group.width) for group in trace.graph.groups]
    kept[by_width[6]] = np.array([0, 2, 4])
    images = images_of(trace)
    gone = Removal(kept)
    corrected = Reconstruction.of(trace, images, RUNTIME).apply(cut(trace, gone), gone)

    nodes = [node for node in corrected.graph.node if node.output[0] in readers]
    assert {node.input[1] for node in nodes} == {weight}
    names = {name for node in nodes for name in node.input[2:]}
    assert len(names) == {"none": 0, "shared": 1, "own": 2}[bias]
    layers = [Layer(trace, reader) for reader in readers]
    inputs = [layer.inputs(images.x)[:, np.repeat([1, 0, 1, 0, 1, 0], 9) > 0] for layer in layers]
    rows = np.concatenate(inputs)
    which = np.repeat([0, 1], [len(one) for one in inputs])
    wanted = np.concatenate([layer.answers(trace.model, images.x) for layer in layers])
    found = np.concatenate([layer.answers(corrected, images.x) for layer in layers])
    # One shift where the file has one bias for both, or one for each.
    shifts = {"none": rows[:, :0], "shared": np.ones((len(rows), 1)), "own": np.eye(2)[which]}
    both = np.column_stack([rows, shifts[bias]])
    best = both @ np.linalg.lstsq(both, wanted, rcond=None)[0]
    assert np.square(found - wanted).mean() < 1.002 * np.square(best - wanted).mean()
