"""Nets that move channels oddly, with extents, bounds and sizes baked into constants.

Each gives a net and the widths of the groups that may be cut of it; what else it makes is held.
"""

from __future__ import annotations

import numpy as np
from onnx_oracle import Built, Net, cases

CASES, case = cases()


@case()
def maxpool_indices() -> Built:
    net = Net(1, 3, 8, 8)
    x = net.conv("x", 3, 16)
    y, i = net.add("MaxPool", x, outputs=2, kernel_shape=[2, 2], strides=[2, 2])
    i = net.add("Mul", net.add("Cast", i, to=1), net.constant(np.float32(1e-2)))
    return net, net.head(net.add("Add", y, i), 16)


@case(8)
def maxunpool() -> Built:
    net = Net(1, 3, 8, 8)
    x = net.conv("x", 3, 16)
    y, i = net.add("MaxPool", x, outputs=2, kernel_shape=[2, 2], strides=[2, 2])
    y = net.add("MaxUnpool", net.add("Relu", y), i, kernel_shape=[2, 2], strides=[2, 2])
    return net, net.head(net.conv(y, 16, 8), 8)


@case(8)
def reshape_zero2() -> Built:
    net = Net(1, 3, 2, 2)
    x = net.conv("x", 3, 16)
    x = net.add("Transpose", x, perm=[1, 0, 2, 3])
    x = net.add("Squeeze", x, net.ints(1))
    y = net.add("Reshape", x, net.ints(8, 0, 4))
    y = net.add("Reshape", net.add("Relu", y), net.ints(1, 16, 2, 2))
    return net, net.head(y, 16)


@case(16, 8)
def reshape_merge_ch_spatial() -> Built:
    net = Net(1, 3, 8, 8)
    x = net.conv("x", 3, 16)
    y = net.add("Reshape", x, net.ints(1, 32, 4, 8))
    return net, net.head(net.conv(net.add("Relu", y), 32, 8), 8)


@case(4, 8)
def reshape_merge_partial() -> Built:
    net = Net(1, 3, 6, 6)
    x = net.conv("x", 3, 8)
    y = net.add("Reshape", x, net.ints(1, 12, 4, 6))
    return net, net.head(net.conv(net.add("Relu", y), 12, 8), 8)


@case(8)
def transpose_reshape() -> Built:
    net = Net(1, 3, 8, 8)
    x = net.conv("x", 3, 16)
    y = net.add("Reshape", net.add("Transpose", x, perm=[0, 2, 3, 1]), net.ints(1, 16, 8, 8))
    return net, net.head(net.conv(net.add("Relu", y), 16, 8), 8)


@case(8)
def gather_scalar_from_joint() -> Built:
    net = Net(1, 3, 8, 8)
    x = net.conv("x", 3, 6)
    y = net.add("Reshape", x, net.ints(1, 3, 2, 8, 8))
    a = net.add("Gather", y, net.constant(0, np.int64), axis=1)
    b = net.add("Gather", y, net.constant(1, np.int64), axis=1)
    c = net.add("Gather", y, net.constant(-1, np.int64), axis=1)
    o = net.add("Add", net.add("Add", net.conv(a, 2, 8), net.conv(b, 2, 8)), net.conv(c, 2, 8))
    return net, net.head(o, 8)


@case(4, 4, 8)
def gather_dup() -> Built:
    net = Net(1, 3, 8, 8)
    x = net.conv("x", 3, 8)
    y = net.add("Gather", x, net.ints(0, 0, 1, 1, 2, 2, 3, 3, 4, 5, 6, 7), axis=1)
    return net, net.head(net.conv(y, 12, 8), 8)


@case(8)
def gather_2d_index() -> Built:
    net = Net(1, 3, 8, 8)
    x = net.conv("x", 3, 8)
    y = net.add("Gather", x, net.constant([[0, 1, 2, 3], [4, 5, 6, 7]], np.int64), axis=1)
    y = net.add("Reshape", y, net.ints(1, 8, 8, 8))
    return net, net.head(net.conv(y, 8, 8), 8)


@case(8, 8)
def gather_spatial_2d() -> Built:
    net = Net(1, 3, 8, 8)
    x = net.conv("x", 3, 8)
    y = net.add("Gather", x, net.constant([[0, 1, 2, 3], [4, 5, 6, 7]], np.int64), axis=2)
    y = net.add("Reshape", y, net.ints(1, 8, 8, 8))
    return net, net.head(net.conv(y, 8, 8), 8)


@case(8, 8)
def gather_batch_axis() -> Built:
    net = Net(1, 3, 8, 8)
    x = net.conv("x", 3, 8)
    y = net.add("Gather", x, net.ints(0, 0), axis=0)
    y = net.add("ReduceMean", y, net.ints(0), keepdims=1)
    return net, net.head(net.conv(y, 8, 8), 8)


@case(8)
def gathernd_hold() -> Built:
    net = Net(1, 3, 8, 8)
    x = net.conv("x", 3, 8)
    y = net.add("GatherND", x, net.constant([[0, 1], [0, 2]], np.int64))
    y = net.add("Reshape", y, net.ints(1, 2, 8, 8))
    return net, net.head(net.conv(y, 2, 8), 8)


@case(16)
def concat_spatial() -> Built:
    net = Net(1, 3, 8, 8)
    x = net.conv("x", 3, 16)
    y = net.conv("x", 3, 16)
    z = net.add("Concat", x, y, net.weight(1, 16, 8, 8), axis=-2)
    return net, net.head(z, 16)


@case(16, 8)
def concat_self() -> Built:
    net = Net(1, 3, 8, 8)
    x = net.conv("x", 3, 16)
    z = net.add("Concat", x, x, axis=1)
    return net, net.head(net.conv(z, 32, 8), 8)


@case(16, 8)
def concat_const_channels() -> Built:
    net = Net(1, 3, 8, 8)
    x = net.conv("x", 3, 16)
    z = net.add("Concat", x, net.weight(1, 4, 8, 8), "x", axis=1)
    return net, net.head(net.conv(z, 23, 8), 8)


@case(16, 8)
def concat_first_const_other_axis() -> Built:
    net = Net(1, 3, 8, 8)
    x = net.conv("x", 3, 16)
    z = net.add("Concat", net.weight(1, 16, 8, 8), x, axis=3)
    return net, net.head(net.conv(z, 16, 8), 8)


@case(16, 8)
def concat_const_bcast_ch1() -> Built:
    net = Net(1, 3, 8, 8)
    x = net.conv("x", 3, 16)
    g = net.conv("x", 3, 1)
    z = net.add("Concat", x, g, axis=1)
    return net, net.head(net.conv(z, 17, 8), 8)


@case(3, 5)
def split_neg_axis() -> Built:
    net = Net(1, 3, 8, 8)
    x = net.conv("x", 3, 16)
    a, b, c = net.add("Split", x, net.ints(3, 5, 8), outputs=3, axis=-3)
    y = net.add("Concat", c, a, b, axis=-3)
    return net, net.head(net.add("Add", x, y), 16)


@case(4, 12, 8)
def slice_reverse_spatial() -> Built:
    net = Net(1, 3, 8, 8)
    x = net.conv("x", 3, 16)
    y = net.add(
        "Slice", x, net.ints(-1, 2), net.ints(-(2**62), 14), net.ints(2, 1), net.ints(-1, 1)
    )
    return net, net.add("Add", net.head(x, 16), net.head(net.conv(y, 12, 8), 8))


@case(8)
def slice_pad_mixed() -> Built:
    net = Net(1, 3, 8, 8)
    x = net.conv("x", 3, 16)
    y = net.add("Pad", x, net.ints(0, -2, 0, 0, 0, -2, 0, 0))
    return net, net.head(net.conv(y, 12, 8), 8)


@case(16, 8)
def pad_value_nonzero() -> Built:
    net = Net(1, 3, 8, 8)
    x = net.conv("x", 3, 16)
    y = net.add("Pad", x, net.ints(0, 3, 1, 1, 0, 2, 1, 1), net.constant(np.float32(0.7)))
    return net, net.head(net.conv(y, 21, 8), 8)


@case(16, 8)
def pad_neg_axes() -> Built:
    net = Net(1, 3, 8, 8)
    x = net.conv("x", 3, 16)
    y = net.add("Pad", x, net.ints(1, 2, 3, 4), "", net.ints(-3, -1))
    return net, net.head(net.conv(y, 20, 8), 8)


@case(16, 8)
def resize_axes() -> Built:
    net = Net(1, 3, 8, 8)
    x = net.add(
        "Resize", net.conv("x", 3, 16), "", "", net.ints(12, 4), mode="nearest", axes=[-1, -2]
    )
    return net, net.head(net.conv(x, 16, 8), 8)


@case(8)
def scatter_nd() -> Built:
    net = Net(1, 3, 8, 8)
    x = net.conv("x", 3, 16)
    z = net.conv("x", 3, 16)
    x = net.add("ScatterND", x, net.constant([[0]], np.int64), z)
    return net, net.head(net.conv(x, 16, 8), 8)


@case(8)
def clip_tensor() -> Built:
    net = Net(1, 3, 8, 8)
    x = net.conv("x", 3, 16)
    hi = net.add("ReduceMax", x, keepdims=0)
    x = net.add("Clip", x, "", net.add("Mul", hi, net.constant(np.float32(0.5))))
    return net, net.head(net.conv(x, 16, 8), 8)


@case(4, 2, 2, 8)
def groups_slices_uneven() -> Built:
    net = Net(1, 3, 8, 8)
    x = net.conv("x", 3, 16)
    y = net.conv(x, 16, 16, group=4)
    a = net.add("Slice", y, net.ints(0), net.ints(6), net.ints(1))
    return net, net.head(net.add("Concat", net.conv(a, 6, 8), y, axis=1), 24)


@case(8)
def stack_heads_rect() -> Built:
    net = Net(1, 3, 8, 8)
    x = net.conv("x", 3, 24)
    a = net.add("Reshape", x, net.ints(1, 2, 3, 4, 64))
    a = net.add("Transpose", a, perm=[0, 3, 1, 2, 4])
    a = net.add("Reshape", a, net.ints(1, 24, 8, 8))
    b = net.add("Reshape", x, net.ints(1, 4, 6, 64))
    b = net.add("Transpose", b, perm=[0, 2, 1, 3])
    b = net.add("Reshape", b, net.ints(1, 24, 8, 8))
    return net, net.head(net.conv(net.add("Add", a, b), 24, 8), 8)


@case(16)
def squeeze_all() -> Built:
    net = Net(1, 3, 8, 8)
    x = net.add("GlobalAveragePool", net.conv("x", 3, 16))
    x = net.add("Squeeze", x)
    x = net.add("MatMul", x, net.weight(16, 5))
    return net, net.add("Unsqueeze", x, net.ints(0))


@case(16)
def squeeze_channel_1() -> Built:
    net = Net(1, 3, 8, 8)
    x = net.conv(net.add("Relu", net.conv("x", 3, 16)), 16, 1)
    x = net.add("Squeeze", x, net.ints(1))
    x = net.add("MatMul", x, net.weight(8, 5))
    return net, net.add("ReduceMean", x, net.ints(1), keepdims=0)


@case(3)
def reshape_zero_shrinks_elsewhere() -> Built:
    net = Net(1, 3, 3, 4)
    x = net.conv("x", 3, 6)
    x = net.add("Squeeze", x, net.ints(0))
    y = net.add("Reshape", x, net.ints(2, 0, 12))
    y = net.add("Reshape", net.add("Relu", y), net.ints(1, 6, 3, 4))
    return net, net.head(y, 6)


@case(8)
def reverse_sequence() -> Built:
    net = Net(1, 3, 8, 8)
    x = net.add("Reshape", net.conv("x", 3, 16), net.ints(16, 8, 8))
    x = net.add(
        "ReverseSequence",
        net.add("Transpose", x, perm=[1, 0, 2]),
        net.constant([3] * 16, np.int64),
        time_axis=0,
        batch_axis=1,
    )
    x = net.add("Reshape", net.add("Transpose", x, perm=[1, 0, 2]), net.ints(1, 16, 8, 8))
    return net, net.head(net.conv(x, 16, 8), 8)


@case(2, 4)
def dw_after_shuffle_concat() -> Built:
    net = Net(1, 3, 8, 8)
    a = net.conv("x", 3, 8)
    b = net.conv("x", 3, 4)
    c = net.add("Concat", a, b, a, axis=1)
    c = net.conv(c, 20, 40, 3, group=20)
    return net, net.head(net.conv(net.add("Relu", c), 40, 8, group=2), 8)


@case(8, 8, 8)
def group_conv_over_concat() -> Built:
    net = Net(1, 3, 8, 8)
    a = net.conv("x", 3, 8)
    b = net.conv("x", 3, 8)
    c = net.conv(net.add("Concat", a, b, axis=1), 16, 16, group=2)
    return net, net.head(net.conv(c, 16, 8), 8)


@case(4, 4, 8, 8)
def group_conv_over_uneven_concat() -> Built:
    net = Net(1, 3, 8, 8)
    a = net.conv("x", 3, 12)
    b = net.conv("x", 3, 4)
    c = net.conv(net.add("Concat", a, b, axis=1), 16, 16, group=2)
    return net, net.head(net.conv(c, 16, 8), 8)


@case(2)
def rotated_heads() -> Built:
    net = Net(1, 6, 8)
    x = net.add("MatMul", "x", net.weight(8, 16))
    x = net.add("Reshape", x, net.ints(1, 6, 4, 4))
    x = net.add("Mul", x, net.weight(6, 1, 4))
    a = net.add("Slice", x, net.ints(2), net.ints(4), net.ints(3))
    b = net.add("Slice", x, net.ints(0), net.ints(2), net.ints(3))
    x = net.add("Add", x, net.add("Concat", net.add("Neg", a), b, axis=-1))
    x = net.add("Reshape", x, net.ints(1, 6, 16))
    return net, net.add(
        "ReduceMean", net.add("MatMul", x, net.weight(16, 5)), net.ints(1), keepdims=0
    )
