"""Nets that mix, broadcast or reduce channels where a careless analysis errs.

Each gives a net and the widths of the groups that may be cut of it; what else it makes is held.
"""

from __future__ import annotations

import numpy as np
from onnx_oracle import Built, Net, cases

CASES, case = cases()


@case(12)
def softmax_over_branches() -> Built:
    net = Net(1, 3, 8, 8)
    x = net.add("Flatten", net.add("GlobalAveragePool", net.conv("x", 3, 24)))
    x = net.add("Softmax", net.add("Reshape", x, net.ints(1, 2, 12)), axis=1)
    return net, net.add("Gemm", net.add("Flatten", x), net.weight(24, 5))


@case(16)
def where_cond_channels() -> Built:
    net = Net(1, 3, 8, 8)
    x = net.conv("x", 3, 16)
    c = net.add("Greater", x, net.constant(np.float32(0)))
    y = net.add("Where", c, x, net.weight(16, 1, 1))
    return net, net.head(y, 16)


@case(16)
def where_const_mask() -> Built:
    net = Net(1, 3, 8, 8)
    x = net.conv("x", 3, 16)
    m = net.constant((np.arange(16) % 3 == 0).reshape(1, 16, 1, 1))
    y = net.add("Where", m, x, net.constant(np.float32(0.3)))
    return net, net.head(y, 16)


@case(16)
def pow_per_channel() -> Built:
    net = Net(1, 3, 8, 8)
    x = net.add("Abs", net.conv("x", 3, 16))
    y = net.add("Pow", x, net.weight(16, 1, 1))
    return net, net.head(y, 16)


@case(16)
def mul_trailing_equal_extent() -> Built:
    net = Net(1, 3, 16, 16)
    x = net.conv("x", 3, 16)
    y = net.add("Mul", x, net.weight(16))
    y = net.add("Mul", y, net.weight(1, 16))
    return net, net.head(y, 16)


@case(16, 16)
def prelu_shared_axis() -> Built:
    net = Net(1, 3, 8, 8)
    x = net.add("PRelu", net.conv("x", 3, 16), net.weight(16, 1, 1))
    x = net.add("PRelu", net.conv(x, 16, 16), net.weight(1))
    return net, net.head(x, 16)


@case()
def argmax_channels() -> Built:
    net = Net(1, 3, 8, 8)
    x = net.conv("x", 3, 16)
    a = net.add("Cast", net.add("ArgMax", x, axis=1, keepdims=1), to=1)
    return net, net.head(net.add("Mul", x, a), 16)


@case(8)
def topk_channels() -> Built:
    net = Net(1, 3, 8, 8)
    x = net.conv("x", 3, 16)
    a, _b = net.add("TopK", x, net.ints(4), outputs=2, axis=1)
    return net, net.head(net.conv(a, 4, 8), 8)


@case(8, 12)
def einsum_mix() -> Built:
    net = Net(1, 3, 8, 8)
    x = net.conv("x", 3, 8)
    z = net.add("Einsum", x, net.weight(8, 12), equation="nchw,cd->ndhw")
    return net, net.head(net.add("Relu", z), 12)


@case()
def reduce_negative_axes() -> Built:
    net = Net(1, 3, 8, 8)
    x = net.conv("x", 3, 16)
    m = net.add("ReduceMean", x, net.ints(-3), keepdims=1)
    return net, net.head(net.add("Sub", x, m), 16)


@case()
def reduce_no_axes() -> Built:
    net = Net(1, 3, 8, 8)
    x = net.conv("x", 3, 16)
    m = net.add("ReduceMax", x, keepdims=0)
    return net, net.head(net.add("Sub", x, m), 16)


@case()
def reduce_keepdims0_bcast() -> Built:
    net = Net(1, 3, 16, 16)
    x = net.conv("x", 3, 16)
    m = net.add("ReduceMean", x, net.ints(2, 3), keepdims=0)
    return net, net.head(net.add("Mul", x, m), 16)


@case(16)
def mean_batch_1_ambig() -> Built:
    net = Net(1, 3, 1, 1)
    x = net.conv("x", 3, 16, 1)
    m = net.add("Transpose", x, perm=[1, 0, 2, 3])
    m = net.add("Reshape", m, net.ints(1, 16, 1, 1))
    return net, net.head(net.add("Mul", x, m), 16)


@case()
def cumsum_ch() -> Built:
    net = Net(1, 3, 8, 8)
    x = net.add("CumSum", net.conv("x", 3, 16), net.constant(1, np.int64))
    return net, net.head(x, 16)


@case(8)
def layernorm_chw() -> Built:
    net = Net(1, 3, 4, 4, opset=18)
    x = net.conv("x", 3, 8)
    x = net.add("LayerNormalization", x, net.constant(np.ones((8, 4, 4), np.float32)), axis=1)
    return net, net.head(net.conv(x, 8, 8), 8)


@case(16, 8)
def layernorm_spatial() -> Built:
    net = Net(1, 3, 4, 8)
    x = net.conv("x", 3, 16)
    x = net.add("LayerNormalization", x, net.weight(8, positive=True), net.weight(8), axis=-1)
    return net, net.head(net.conv(x, 16, 8), 8)


@case(16, 8)
def layernorm_channel_affine() -> Built:
    net = Net(1, 3, 4, 8)
    x = net.conv("x", 3, 16)
    x = net.add("LayerNormalization", x, net.constant(np.ones((4, 8), np.float32)), axis=2)
    return net, net.head(net.conv(x, 16, 8), 8)


@case(8)
def mvn_ch() -> Built:
    net = Net(1, 3, 4, 8)
    x = net.add("MeanVarianceNormalization", net.conv("x", 3, 16), axes=[-3])
    return net, net.head(net.conv(x, 16, 8), 8)


@case(8)
def lpnorm() -> Built:
    net = Net(1, 3, 4, 8)
    x = net.add("LpNormalization", net.conv("x", 3, 16), axis=-3)
    return net, net.head(net.conv(x, 16, 8), 8)


@case(8)
def matmul_right_batch_weight() -> Built:
    net = Net(1, 3, 8, 8)
    x = net.conv("x", 3, 16)
    x = net.add("MatMul", x, net.weight(1, 16, 8, 8))
    return net, net.head(net.conv(x, 16, 8), 8)


@case(8)
def matmul_left_weight() -> Built:
    net = Net(1, 3, 8, 8)
    x = net.add("Reshape", net.conv("x", 3, 16), net.ints(1, 16, 64))
    x = net.add("MatMul", net.weight(12, 16), x)
    x = net.add("Reshape", x, net.ints(1, 12, 8, 8))
    return net, net.head(net.conv(x, 12, 8), 8)


@case(16, 8)
def matmul_along_positions() -> Built:
    net = Net(1, 3, 8, 8)
    x = net.add("MatMul", net.conv("x", 3, 16), net.weight(8, 4))
    return net, net.head(net.conv(x, 16, 8), 8)


@case()
def gram() -> Built:
    net = Net(1, 3, 8, 8)
    x = net.add("Reshape", net.conv("x", 3, 16), net.ints(1, 16, 64))
    g = net.add("MatMul", x, net.add("Transpose", x, perm=[0, 2, 1]))
    return net, net.head(net.add("Unsqueeze", g, net.ints(3)), 16)


@case()
def bilinear_pool() -> Built:
    net = Net(1, 3, 8, 8)
    x = net.add("Reshape", net.conv("x", 3, 16), net.ints(1, 16, 64))
    y = net.add("Reshape", net.conv("x", 3, 8), net.ints(1, 8, 64))
    g = net.add("MatMul", x, net.add("Transpose", y, perm=[0, 2, 1]))
    return net, net.add("Gemm", net.add("Flatten", g), net.weight(128, 5))


@case(16)
def gemm_transA() -> Built:
    net = Net(1, 3, 8, 8)
    x = net.add("Flatten", net.add("GlobalAveragePool", net.conv("x", 3, 16)))
    t = net.add("Transpose", x, perm=[1, 0])
    return net, net.add("Gemm", t, net.weight(16, 5), transA=1)


@case()
def gemm_two_acts() -> Built:
    net = Net(1, 3, 8, 8)
    x = net.add("Flatten", net.add("GlobalAveragePool", net.conv("x", 3, 16)))
    return net, net.add("Gemm", x, x, transB=1)


@case(16, 12)
def gemm_c_mat() -> Built:
    net = Net(1, 3, 8, 8)
    x = net.add("Flatten", net.add("GlobalAveragePool", net.conv("x", 3, 16)))
    y = net.add("Gemm", x, net.weight(16, 12), net.weight(1, 12))
    y2 = net.add("Gemm", net.add("Relu", y), net.weight(12, 1), net.weight(1, 1))
    return net, y2


@case(16, 12)
def gemm_c_m1() -> Built:
    net = Net(4, 3, 8, 8)
    x = net.add("Flatten", net.add("GlobalAveragePool", net.conv("x", 3, 16)))
    y = net.add("Gemm", x, net.weight(16, 12), net.weight(4, 1))
    return net, net.add("Gemm", net.add("Relu", y), net.weight(12, 5))


@case(16)
def gemm_c_act() -> Built:
    net = Net(1, 3, 8, 8)
    x = net.add("Flatten", net.add("GlobalAveragePool", net.conv("x", 3, 16)))
    b = net.add("Flatten", net.add("GlobalAveragePool", net.conv("x", 3, 12)))
    y = net.add("Gemm", x, net.weight(16, 12), b)
    return net, net.add("Gemm", net.add("Relu", y), net.weight(12, 5))


@case(8)
def group_norm_18() -> Built:
    net = Net(1, 3, 8, 16, opset=21)
    x = net.add("Transpose", net.conv("x", 3, 16), perm=[0, 3, 2, 1])
    x = net.add(
        "GroupNormalization", x, net.weight(16, positive=True), net.weight(16), num_groups=4
    )
    x = net.add("Transpose", x, perm=[0, 3, 2, 1])
    return net, net.head(net.conv(x, 16, 8), 8)


@case(16, 8)
def mod_add_int() -> Built:
    net = Net(1, 3, 8, 8)
    x = net.conv("x", 3, 16)
    i = net.add("Cast", x, to=7)
    i = net.add("BitwiseAnd", i, net.constant(np.arange(16).reshape(16, 1, 1), np.int64))
    x = net.add("Cast", i, to=1)
    return net, net.head(net.conv(x, 16, 8), 8)


@case(16, 8)
def layernorm_scaled_by_act_channels() -> Built:
    net = Net(1, 3, 4, 8)
    x = net.conv("x", 3, 16)
    g = net.conv("x", 3, 16)
    g = net.add("ReduceMean", g, net.ints(0, 1, 2), keepdims=0)
    x = net.add("LayerNormalization", x, g, axis=-1)
    return net, net.head(net.conv(x, 16, 8), 8)


@case(8)
def bn_train() -> Built:
    net = Net(1, 3, 8, 8)
    x = net.conv("x", 3, 16)
    ws = [
        net.weight(16, positive=True),
        net.weight(16),
        net.weight(16),
        net.weight(16, positive=True),
    ]
    x, a, _b = net.add("BatchNormalization", x, *ws, outputs=3, training_mode=1)
    return net, net.add("Add", net.head(net.conv(x, 16, 8), 8), net.add("ReduceMax", a, keepdims=0))


@case(8)
def random_like() -> Built:
    net = Net(1, 3, 8, 8)
    x = net.conv("x", 3, 16)
    r = net.add("RandomUniformLike", x, seed=1.0)
    return net, net.head(
        net.conv(net.add("Mul", net.add("Mul", r, net.constant(np.float32(0))), x), 16, 8), 8
    )


@case()
def onehot_argmax_gate() -> Built:
    net = Net(1, 3, 8, 8)
    x = net.conv("x", 3, 16)
    g = net.add("ArgMax", net.add("Flatten", net.add("GlobalAveragePool", x)), axis=1, keepdims=0)
    h = net.add(
        "OneHot", g, net.constant(16, np.int64), net.constant(np.array([0, 1], np.float32)), axis=-1
    )
    h = net.add("Unsqueeze", h, net.ints(2, 3))
    return net, net.head(net.add("Mul", x, h), 16)


@case(16, 8)
def sum_of_three_bcast() -> Built:
    net = Net(1, 3, 8, 8)
    x = net.conv("x", 3, 16)
    y = net.add("GlobalAveragePool", net.conv("x", 3, 16))
    z = net.conv("x", 3, 1)
    s = net.add("Sum", x, y, z)
    s = net.add("Mean", s, x)
    s = net.add("Max", s, y, net.weight(16, 1, 1))
    return net, net.head(net.conv(s, 16, 8), 8)


@case(8, 8)
def reduce_one_axis_of_two() -> Built:
    net = Net(1, 3, 8, 8)
    x = net.add("Reshape", net.conv("x", 3, 24), net.ints(1, 3, 8, 8, 8))
    return net, net.head(net.conv(net.add("ReduceMax", x, net.ints(1), keepdims=0), 8, 8), 8)


@case(4)
def einsum_attention() -> Built:
    net = Net(1, 6, 8)
    q = net.add("Reshape", net.add("MatMul", "x", net.weight(8, 16)), net.ints(1, 6, 4, 4))
    s = net.add("Softmax", net.add("Einsum", q, q, equation="bqhd,bkhd->bhqk"), axis=-1)
    x = net.add("Reshape", net.add("Einsum", s, q, equation="bhqk,bkhd->bqhd"), net.ints(1, 6, 16))
    return net, net.add(
        "ReduceMean", net.add("MatMul", x, net.weight(16, 5)), net.ints(1), keepdims=0
    )
