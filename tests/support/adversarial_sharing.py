"""Nets that share weights, give out what is inside, group unevenly or quantise.

Each gives a net and the widths of the groups that may be cut of it; what else it makes is held.
"""

from __future__ import annotations

import numpy as np
from onnx import helper
from onnx_oracle import Built, Net, cases

CASES, case = cases()


@case(16)
def shared_weight_two_convs() -> Built:
    net = Net(1, 16, 8, 8)
    w = net.weight(16, 16, 3, 3)
    a = net.add("Conv", "x", w, pads=[1] * 4)
    b = net.add("Conv", net.add("Relu", net.conv("x", 16, 16)), w, pads=[1] * 4)
    return net, net.head(net.add("Concat", a, b, axis=1), 32)


@case(16)
def shared_weight_dw() -> Built:
    net = Net(1, 3, 8, 8)
    w = net.weight(16, 1, 3, 3)
    a = net.add("Conv", net.conv("x", 3, 16), w, pads=[1] * 4, group=16)
    b = net.add("Conv", net.conv("x", 3, 16), w, pads=[1] * 4, group=16)
    return net, net.head(net.add("Concat", a, b, axis=1), 32)


@case(16, 16)
def shared_weight_conv_and_matmul() -> Built:
    net = Net(1, 3, 8, 8)
    w = net.weight(16, 16)
    x = net.add("Relu", net.conv("x", 3, 16))
    g = net.add("Flatten", net.add("GlobalAveragePool", x))
    a = net.add("Gemm", g, w, transB=1)
    b = net.add("MatMul", net.add("Relu", a), w)
    return net, net.add("Gemm", b, net.weight(16, 5))


@case(8)
def quant() -> Built:
    net = Net(1, 3, 8, 8)
    x = net.conv("x", 3, 16)
    s = net.constant(np.float32(0.05))
    z = net.constant(np.int8(0))
    x = net.add("DequantizeLinear", net.add("QuantizeLinear", x, s, z), s, z)
    return net, net.head(net.conv(x, 16, 8), 8)


@case(8)
def quant_per_channel_weight() -> Built:
    net = Net(1, 3, 8, 8)
    x = net.conv("x", 3, 16)
    w = net.constant(net.rng.integers(-100, 100, (8, 16, 3, 3)).astype(np.int8))
    s = net.constant(np.full(8, 0.01, np.float32))
    z = net.constant(np.zeros(8, np.int8))
    w = net.add("DequantizeLinear", w, s, z, axis=0)
    x = net.add("Conv", x, w, pads=[1] * 4)
    return net, net.head(net.conv(x, 8, 8), 8)


@case(8)
def dw_on_input() -> Built:
    net = Net(1, 4, 8, 8)
    a = net.conv("x", 4, 16, group=4)
    return net, net.head(net.conv(a, 16, 8), 8)


@case(16)
def constant_times_weight() -> Built:
    net = Net(1, 6, 8)
    q = net.add("MatMul", net.weight(1, 6, 8), net.weight(8, 16))
    x = net.add("MatMul", "x", net.weight(8, 16))
    return net, net.add(
        "ReduceMean",
        net.add("MatMul", net.add("Mul", q, x), net.weight(16, 5)),
        net.ints(1),
        keepdims=0,
    )


@case()
def weight_read_as_two_products() -> Built:
    net = Net(1, 6, 8)
    w = net.weight(4, 4)
    x = net.add("Reshape", net.add("MatMul", "x", net.weight(8, 16)), net.ints(1, 6, 4, 4))
    x = net.add("Mul", x, w)
    y = net.add("Reshape", net.add("MatMul", "x", net.weight(8, 4)), net.ints(1, 6, 1, 4))
    x = net.add("Add", x, net.add("Add", y, w))
    return net, net.add(
        "ReduceMean",
        net.add("MatMul", net.add("Reshape", x, net.ints(1, 6, 16)), net.weight(16, 5)),
        net.ints(1),
        keepdims=0,
    )


@case(16)
def weight_also_output() -> Built:
    net = Net(1, 3, 8, 8)
    w = net.weight(16, 3, 3, 3)
    x = net.add("Conv", "x", w, pads=[1] * 4)
    x = net.head(x, 16)
    return net, net.add(
        "Add", x, net.add("ReduceMean", net.add("Identity", w), net.ints(0, 1, 2, 3), keepdims=0)
    )


@case(8)
def output_channels() -> Built:
    net = Net(1, 3, 8, 8)
    x = net.conv("x", 3, 16)
    return net, (net.head(net.conv(x, 16, 8), 8), x)


@case(8)
def output_relu_of_channels() -> Built:
    net = Net(1, 3, 8, 8)
    x = net.conv("x", 3, 16)
    r = net.add("Relu", x)
    return net, (net.head(net.conv(x, 16, 8), 8), r)


@case(8)
def output_mean_over_spatial() -> Built:
    net = Net(1, 3, 8, 8)
    x = net.conv("x", 3, 16)
    r = net.add("ReduceMean", x, net.ints(-1, -2))
    return net, (net.head(net.conv(x, 16, 8), 8), r)


@case(6, 6, 4, 8)
def split_opset18_uneven_numoutputs() -> Built:
    net = Net(1, 3, 8, 8, opset=18)
    x = net.conv("x", 3, 16)
    a, b, c = net.add("Split", x, outputs=3, axis=1, num_outputs=3)
    y = net.add("Concat", c, a, b, axis=1)
    return net, net.head(net.conv(y, 16, 8), 8)


@case(4, 4, 8)
def split_missing_output() -> Built:
    net = Net(1, 3, 8, 8)
    x = net.conv("x", 3, 16)
    net.nodes.append(helper.make_node("Split", [x, net.ints(4, 4, 8)], ["", "sb", "sc"], axis=1))
    return net, net.add("Add", net.head(x, 16), net.head(net.add("Concat", "sc", "sb", axis=1), 12))


@case(16, 12, 8)
def conv_transpose_output_shape() -> Built:
    net = Net(1, 3, 8, 8)
    x = net.conv("x", 3, 16)
    x = net.add("ConvTranspose", x, net.weight(16, 12, 2, 2), strides=[2, 2], output_shape=[16, 16])
    return net, net.head(net.conv(x, 12, 8), 8)


@case(16)
def lstm_first_output_unused() -> Built:
    net = Net(1, 3, 8, 8)
    x = net.add("Reshape", net.conv("x", 3, 16), net.ints(1, 16, 64))
    x = net.add("Transpose", x, perm=[2, 0, 1])
    net.nodes.append(
        helper.make_node(
            "LSTM",
            [
                x,
                net.weight(1, 32, 16),
                net.weight(1, 32, 8),
            ],
            ["", "yh"],
            hidden_size=8,
        )
    )
    return net, net.add("Gemm", net.add("Squeeze", "yh", net.ints(0)), net.weight(8, 5))
