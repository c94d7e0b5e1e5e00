"""Nets that compute with the extents of their channels, batch fixed or open.

Each gives a net and the widths of the groups that may be cut of it; what else it makes is held.
"""

from __future__ import annotations

import numpy as np
from onnx import helper
from onnx_oracle import Built, Net, cases

CASES, case = cases()


@case(16)
def size_open_batch() -> Built:
    net = Net("batch", 3, 8, 8)
    x = net.conv("x", 3, 16)
    s = net.add("Cast", net.add("Size", x), to=1)
    return net, net.head(net.add("Div", x, s), 16)


@case(16)
def shape_open_batch_prod() -> Built:
    net = Net("batch", 3, 8, 8)
    x = net.conv("x", 3, 16)
    s = net.add("Cast", net.add("ReduceProd", net.add("Shape", x), keepdims=0), to=1)
    return net, net.head(net.add("Div", x, s), 16)


@case(16)
def shape_vector_used_open() -> Built:
    net = Net("batch", 3, 8, 8)
    x = net.conv("x", 3, 16)
    s = net.add("Cast", net.add("Shape", x), to=1)
    m = net.add("ReduceMax", s, keepdims=0)
    return net, net.head(net.add("Div", x, m), 16)


@case(16)
def shape_channel_fixed() -> Built:
    net = Net(1, 3, 8, 8)
    x = net.conv("x", 3, 16)
    s = net.add("Gather", net.add("Shape", x), net.constant(1, np.int64), axis=0)
    s = net.add("Sqrt", net.add("Cast", s, to=1))
    return net, net.head(net.add("Div", x, s), 16)


@case(16)
def expand_shape_chain() -> Built:
    net = Net(1, 3, 8, 8)
    x = net.conv("x", 3, 16)
    g = net.add("Sigmoid", net.conv(net.add("GlobalAveragePool", x), 16, 16, 1))
    s = net.add("Shape", x)
    return net, net.head(net.add("Mul", x, net.add("Expand", g, s)), 16)


@case(16)
def expand_open() -> Built:
    net = Net("b", 3, 8, 8)
    x = net.conv("x", 3, 16)
    g = net.add("Sigmoid", net.conv(net.add("GlobalAveragePool", x), 16, 16, 1))
    s = net.add("Shape", x)
    return net, net.head(net.add("Mul", x, net.add("Expand", g, s)), 16)


@case(8, 8)
def reshape_half_chain() -> Built:
    net = Net(1, 3, 8, 8)
    x = net.conv("x", 3, 16)
    s = net.add("Shape", x)
    c = net.add("Gather", s, net.ints(1), axis=0)
    h = net.add("Div", c, net.ints(2))
    t = net.add("Concat", net.ints(1), net.ints(2), h, net.ints(64), axis=0)
    y = net.add("Transpose", net.add("Reshape", x, t), perm=[0, 2, 1, 3])
    t2 = net.add("Concat", net.ints(1), c, net.ints(8), net.ints(8), axis=0)
    return net, net.head(net.conv(net.add("Reshape", y, t2), 16, 8), 8)


@case(8, 8)
def slice_half_chain() -> Built:
    net = Net("b", 3, 8, 8)
    x = net.conv("x", 3, 16)
    s = net.add("Shape", x)
    c = net.add("Gather", s, net.ints(1), axis=0)
    h = net.add("Div", c, net.ints(2))
    a = net.add("Slice", x, net.ints(0), h, net.ints(1))
    b = net.add("Slice", x, h, c, net.ints(-3))
    return net, net.head(net.conv(net.add("Mul", a, net.add("Sigmoid", b)), 8, 8), 8)


@case(16, 12, 8)
def resize_from_shape() -> Built:
    net = Net("b", 3, 8, 8)
    a = net.conv("x", 3, 16)
    y = net.conv(net.add("MaxPool", a, kernel_shape=[2, 2], strides=[2, 2]), 16, 12)
    s = net.add("Shape", a)
    hw = net.add("Slice", s, net.ints(2), net.ints(4), net.ints(0))
    bc = net.add("Slice", net.add("Shape", y), net.ints(0), net.ints(2), net.ints(0))
    x = net.add("Resize", y, "", "", net.add("Concat", bc, hw, axis=0), mode="linear")
    return net, net.head(net.conv(net.add("Concat", x, a, axis=1), 28, 8), 8)


@case()
def merged_batch_slice() -> Built:
    net = Net("b", 3, 8, 8)
    x = net.conv("x", 3, 16)
    y = net.add("Reshape", x, net.ints(-1, 64))
    z = net.add("Slice", y, net.ints(-8), net.ints(2**40), net.ints(0))
    m = net.add("ReduceMean", z, net.ints(0, 1), keepdims=0)
    return net, net.head(net.add("Mul", x, m), 16)


@case(16)
def merged_batch_softmax() -> Built:
    net = Net("b", 3, 8, 8)
    x = net.conv("x", 3, 16)
    y = net.add("Softmax", net.add("Reshape", x, net.ints(-1, 64)), axis=1)
    return net, net.head(net.add("Reshape", y, net.ints(-1, 16, 8, 8)), 16)


@case(16, 8)
def constant_of_shape_channels() -> Built:
    net = Net(1, 3, 8, 8)
    x = net.conv("x", 3, 16)
    z = net.add(
        "ConstantOfShape", net.add("Shape", x), value=helper.make_tensor("v", 1, [1], [0.5])
    )
    return net, net.head(net.conv(net.add("Concat", x, z, axis=1), 32, 8), 8)


@case(16, 8)
def constant_of_shape_open() -> Built:
    net = Net("b", 3, 8, 8)
    x = net.conv("x", 3, 16)
    z = net.add(
        "ConstantOfShape", net.add("Shape", x), value=helper.make_tensor("v", 1, [1], [0.5])
    )
    return net, net.head(net.conv(net.add("Concat", x, z, axis=1), 32, 8), 8)


@case(16, 8)
def range_positions_of_channels() -> Built:
    net = Net(1, 3, 8, 8)
    x = net.conv("x", 3, 16)
    c = net.add("Gather", net.add("Shape", x), net.constant(1, np.int64), axis=0)
    r = net.add(
        "Cast", net.add("Range", net.constant(0, np.int64), c, net.constant(1, np.int64)), to=1
    )
    r = net.add("Reshape", r, net.ints(1, -1, 1, 1))
    return net, net.head(net.conv(net.add("Mul", x, r), 16, 8), 8)
