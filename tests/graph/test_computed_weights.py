"""Weights that a file computes from constants are computed once, and what reads them is cut."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx_oracle import Net, assert_pruned_right, run, some_keeps

import rlprune
from rlprune.graph import skeleton

Way = Callable[[Net, str, int], str]


def standardised(net: Net, weight: str, width: int) -> str:
    """As timm's StdConv is exported: a BatchNorm in training mode over the kernel's rows."""
    flat = net.add("Reshape", weight, net.ints(1, width, -1))
    ones, zeros = (
        net.constant(np.ones(width, np.float32)),
        net.constant(np.zeros(width, np.float32)),
    )
    rows = net.add("BatchNormalization", flat, ones, zeros, zeros, ones, outputs=3, training_mode=1)
    return net.add("Reshape", rows[0], net.add("Shape", weight))


def by_statistics(net: Net, weight: str, width: int) -> str:
    axes = net.ints(1, 2, 3)
    centred = net.add("Sub", weight, net.add("ReduceMean", weight, axes))
    spread = net.add("Sqrt", net.add("ReduceMean", net.add("Mul", centred, centred), axes))
    return net.add("Div", centred, net.add("Add", spread, net.constant(1e-5, np.float32)))


def weight_norm(net: Net, weight: str, width: int) -> str:
    unit = net.add("Div", weight, net.add("ReduceL2", weight, net.ints(1, 2, 3)))
    return net.add("Mul", unit, net.add("Exp", net.weight(width, 1, 1, 1)))


def masked(net: Net, weight: str, width: int) -> str:
    small = net.add("Less", net.add("Abs", weight), net.constant(0.02, np.float32))
    return net.add("Where", small, net.constant(0.0, np.float32), weight)


def half(net: Net, weight: str, width: int) -> str:
    array = numpy_helper.to_array(net.weights[-1]).astype(np.float16)
    net.weights[-1].CopyFrom(numpy_helper.from_array(array, weight))
    return net.add("Cast", weight, to=onnx.TensorProto.FLOAT)


def fake_quantised(net: Net, weight: str, width: int) -> str:
    scale = net.constant(np.full(width, 0.013, np.float32))
    zero = net.constant(np.zeros(width, np.int8))
    coded = net.add("QuantizeLinear", weight, scale, zero, axis=0)
    return net.add("DequantizeLinear", coded, scale, zero, axis=0)


def low_rank(net: Net, weight: str, width: int) -> str:
    """A kernel plus a product of two thin ones, as adapters leave it."""
    inputs = numpy_helper.to_array(net.weights[-1]).shape[1] * 9
    change = net.add("MatMul", net.weight(width, 2), net.weight(2, inputs))
    return net.add("Add", weight, net.add("Reshape", change, net.add("Shape", weight)))


def network(way: Way) -> onnx.ModelProto:
    net = Net("batch", 3, 12, 12)

    def conv(x: str, inputs: int, outputs: int) -> str:
        kernel = way(net, net.weight(outputs, inputs, 3, 3), outputs)
        return net.add("Conv", x, kernel, net.weight(outputs), pads=[1] * 4)

    x = net.add("Relu", conv("x", 3, 24))
    x = net.add("Relu", conv(x, 24, 32))
    model = net.model(net.head(x, 32))
    del model.graph.value_info[:]
    return model


@pytest.mark.parametrize(
    "way",
    [standardised, by_statistics, weight_norm, masked, half, fake_quantised, low_rank],
)
def test_computed_kernels_are_cut(way: Way) -> None:
    model = network(way)
    trace = rlprune.trace(model)
    assert [group.width for group in trace.graph.groups] == [24, 32]
    for keeps in some_keeps(trace):
        assert_pruned_right(trace, keeps)
    image = np.random.default_rng(1).standard_normal((2, 3, 12, 12)).astype(np.float32)
    np.testing.assert_allclose(
        run(trace.model, [image])[0], run(model, [image])[0], rtol=1e-4, atol=1e-5
    )


def test_a_skeleton_of_computed_weights_is_the_same_graph() -> None:
    trace = rlprune.trace(network(weight_norm))
    again = rlprune.trace(skeleton.strip(trace.model))
    assert again.graph.fingerprint == trace.graph.fingerprint
    # Stripped before it was traced, a file's weights are not there to compute with.
    assert rlprune.trace(skeleton.strip(network(weight_norm))).graph.groups == ()


def quantised(how: str) -> onnx.ModelProto:
    net = Net(1, 3, 12, 12)
    scale, zero = net.constant(0.02, np.float32), net.constant(0, np.int8)

    def coded(name: str) -> str:
        return net.add(
            "DequantizeLinear", net.add("QuantizeLinear", name, scale, zero), scale, zero
        )

    def conv(x: str, inputs: int, outputs: int) -> str:
        if how == "integers":
            kernel = net.constant(
                np.random.default_rng(0).integers(-99, 99, (outputs, inputs, 3, 3)), np.int8
            )
            weight = net.add("DequantizeLinear", kernel, scale, zero)
        else:
            weight = coded(net.weight(outputs, inputs, 3, 3))
        return net.add("Conv", coded(x), weight, pads=[1] * 4)

    x = net.add("Relu", conv("x", 3, 24))
    model = net.model(net.head(net.add("Relu", conv(x, 24, 32)), 32))
    del model.graph.value_info[:]
    return model


@pytest.mark.parametrize("how", ["integers", "floats"])
def test_a_quantised_file_is_named_and_left_as_it_is(how: str) -> None:
    trace = rlprune.trace(quantised(how))
    assert any("prune the float file before quantising" in note for note in trace.notes)
    count = sum(n.op_type == "DequantizeLinear" for n in trace.model.graph.node)
    assert count == 4


def test_constants_that_grow_absurdly_are_left_where_they_are() -> None:
    net = Net(1, 3, 12, 12)
    wide = net.add("Tile", net.weight(64, 1), net.ints(2**10, 2**14))
    x = net.add("Add", "x", net.add("Slice", wide, net.ints(0), net.ints(12), net.ints(0)))
    model = net.model(net.conv("x", 3, 8), x)
    with pytest.raises(rlprune.errors.ModelError):
        rlprune.trace(model)
