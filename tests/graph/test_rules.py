"""What operators do to channels, on nets written straight as ONNX."""

from __future__ import annotations

import numpy as np
import pytest
from onnx_oracle import (
    Net,
    assert_every_group_matters,
    assert_pruned_right,
    inputs_of,
    relative_error,
    run,
    some_keeps,
)

from rlprune.graph.from_onnx import OnnxTrace, trace_onnx
from rlprune.surgery.onnx import prune_onnx


def checked(net: Net, *outputs: str) -> OnnxTrace:
    """The trace, after the oracle agreed on several plans."""
    trace = trace_onnx(net.model(*outputs))
    for keeps in some_keeps(trace):
        assert_pruned_right(trace, keeps)
    assert_every_group_matters(trace)
    return trace


def test_graph_inputs_and_outputs_are_held() -> None:
    net = Net(1, 3, 8, 8)
    trace = checked(net, net.conv("x", 3, 16))
    assert trace.graph.groups == ()
    assert "graph output" in trace.graph.held[0].reason


def test_sum_with_an_input_is_held_and_says_so() -> None:
    net = Net(1, 16, 8, 8)
    inner = net.add("Relu", net.conv("x", 16, 8))
    total = net.add("Add", net.conv(inner, 8, 16), "x")
    trace = checked(net, net.head(total, 16))
    assert trace.graph.widths.tolist() == [8]
    assert "without prunable channels" in trace.graph.held[0].reason


@pytest.mark.parametrize("axis", [1, -3])
def test_softmax_over_channels_holds_them(axis: int) -> None:
    net = Net(1, 3, 8, 8)
    soft = net.add("Softmax", net.conv(net.add("Relu", net.conv("x", 3, 8)), 8, 16), axis=axis)
    trace = checked(net, net.head(soft, 16))
    assert trace.graph.widths.tolist() == [8]
    assert "Softmax" in next(held.reason for held in trace.graph.held if held.width == 16)


def test_softmax_over_positions_lets_channels_go() -> None:
    net = Net(1, 3, 8, 8)
    soft = net.add("Softmax", net.conv("x", 3, 16), axis=-1)
    assert checked(net, net.head(soft, 16)).graph.widths.tolist() == [16]


@pytest.mark.parametrize("op", ["ReduceMean", "ReduceMax"])
def test_reduction_over_channels_holds_them(op: str) -> None:
    net = Net(1, 3, 8, 8)
    x = net.conv("x", 3, 16)
    gate = net.add("Sigmoid", net.add(op, x, net.ints(1), keepdims=1))
    trace = checked(net, net.head(net.add("Mul", x, gate), 16))
    assert trace.graph.groups == ()


def test_spatial_gate_of_one_channel_ties_nothing() -> None:
    net = Net(1, 3, 8, 8)
    x = net.conv("x", 3, 16)
    gate = net.add("Sigmoid", net.conv(x, 16, 1))
    assert checked(net, net.head(net.add("Mul", x, gate), 16)).graph.widths.tolist() == [16]


def test_layer_and_group_norm_hold_what_they_normalise() -> None:
    net = Net(1, 3, 8, 8, opset=21)
    x = net.conv(net.add("Relu", net.conv("x", 3, 8)), 8, 16)
    parts = [net.weight(16, positive=True), net.weight(16)]
    x = net.add("GroupNormalization", x, *parts, num_groups=4)
    x = net.conv(net.add("Relu", net.conv(x, 16, 24)), 24, 16)
    x = net.add("Transpose", x, perm=[0, 2, 3, 1])
    x = net.add("LayerNormalization", x, net.weight(16, positive=True), net.weight(16), axis=-1)
    x = net.add("MatMul", x, net.weight(16, 32))
    x = net.add("MatMul", net.add("Gelu", net.add("Add", x, net.weight(32))), net.weight(32, 16))
    x = net.add("ReduceMean", x, net.ints(1, 2), keepdims=0)
    trace = checked(net, net.add("Gemm", x, net.weight(16, 5)))
    assert trace.graph.widths.tolist() == [8, 24, 32, 16]
    reasons = " ".join(held.reason for held in trace.graph.held)
    assert "GroupNormalization" in reasons
    assert "LayerNormalization" in reasons


def test_group_norm_written_as_instance_norm_holds_its_channels() -> None:
    net = Net(1, 3, 8, 8)
    x = net.conv(net.add("Relu", net.conv("x", 3, 8)), 8, 16)
    y = net.add("Reshape", x, net.ints(0, 4, -1))
    y = net.add("InstanceNormalization", y, net.weight(4, positive=True), net.weight(4))
    y = net.add("Reshape", y, net.ints(1, 16, 8, 8))
    y = net.add("Mul", y, net.weight(16, 1, 1))
    assert checked(net, net.head(y, 16)).graph.widths.tolist() == [8]


def test_instance_norm_of_single_channels_is_cut_with_them() -> None:
    net = Net(1, 3, 8, 8)
    x = net.conv("x", 3, 16)
    x = net.add("InstanceNormalization", x, net.weight(16, positive=True), net.weight(16))
    x = net.add("Relu", x)
    assert checked(net, net.head(net.conv(x, 16, 8), 8)).graph.widths.tolist() == [16, 8]


def test_channel_constants_of_every_shape_are_sliced() -> None:
    net = Net(1, 3, 8, 8)
    x = net.conv("x", 3, 16)
    x = net.add("Mul", x, net.weight(16, 1, 1))
    x = net.add("Add", net.weight(1, 16, 1, 1), x)
    x = net.add("PRelu", x, net.weight(16, 1, 1))
    x = net.add("Div", x, net.constant(np.full((1, 16, 8, 8), 2, np.float32)))
    x = net.add("Sub", x, net.constant(np.float32(0.1)))
    assert checked(net, net.head(x, 16)).graph.widths.tolist() == [16]


def test_constant_shared_between_layers_does_not_tie_them() -> None:
    net = Net(1, 3, 8, 8)
    scale = net.weight(16, 1, 1)
    x = net.add("Mul", net.conv("x", 3, 16), scale)
    x = net.add("Mul", net.conv(x, 16, 16), scale)
    assert checked(net, net.head(x, 16)).graph.widths.tolist() == [16, 16]


def test_kernel_shared_between_layers_ties_them() -> None:
    net = Net(1, 3, 8, 8)
    x = net.add("Relu", net.conv("x", 3, 16))
    kernel = net.weight(16, 16, 3, 3)
    x = net.add("Relu", net.add("Conv", x, kernel, pads=[1] * 4))
    x = net.add("Relu", net.add("Conv", x, kernel, pads=[1] * 4))
    assert checked(net, net.head(x, 16)).graph.widths.tolist() == [16]


def test_kernel_also_read_whole_is_held() -> None:
    net = Net(1, 16, 3, 3)
    kernel = net.weight(16, 16, 3, 3)
    x = net.add("Relu", net.add("Conv", net.add("Relu", net.conv("x", 16, 16)), kernel))
    other = net.add("Add", "x", kernel)
    y = net.add("ReduceMean", other, net.ints(0, 1, 2, 3), keepdims=0)
    trace = checked(net, net.head(net.add("Add", x, y), 16))
    assert trace.graph.groups == ()


@pytest.mark.parametrize("opset", [17, 18])
def test_split_into_uneven_and_equal_parts(opset: int) -> None:
    net = Net(1, 3, 8, 8, opset=opset)
    a, b = net.add("Split", net.conv("x", 3, 24), net.ints(8, 16), outputs=2, axis=1)
    more = {"num_outputs": 2} if opset >= 18 else {}
    c, d = net.add("Split", net.conv(b, 16, 16), outputs=2, axis=1, **more)
    total = net.add("Concat", net.add("Add", c, net.conv(a, 8, 8)), d, axis=1)
    trace = checked(net, net.head(total, 16))
    assert sorted(trace.graph.widths.tolist()) == [8, 8, 8, 16]


def test_slice_gather_and_negative_bounds() -> None:
    net = Net(1, 3, 8, 8)
    x = net.conv("x", 3, 24)
    last = net.add("Slice", x, net.ints(-8), net.ints(2**40), net.ints(1))
    first = net.add("Slice", x, net.ints(0), net.ints(-16), net.ints(-3))
    picked = net.add("Gather", x, net.ints(23, 0, 5, 5, -1), axis=1)
    y = net.add("Add", net.conv(last, 8, 16), net.conv(first, 8, 16))
    y = net.add("Add", y, net.conv(x, 24, 16))
    y = net.add("Add", y, net.conv(picked, 5, 16))
    trace = checked(net, net.head(y, 16))
    assert sum(trace.graph.widths.tolist()) > 24


def test_strided_slice_of_channels_is_held() -> None:
    net = Net(1, 3, 8, 8)
    x = net.conv("x", 3, 16)
    every = net.add("Slice", x, net.ints(0), net.ints(16), net.ints(1), net.ints(2))
    trace = checked(net, net.head(net.add("Relu", net.conv(every, 8, 12)), 12))
    assert trace.graph.widths.tolist() == [12]


def test_padded_shortcut_with_named_axes() -> None:
    net = Net(1, 3, 8, 8)
    x = net.add("Relu", net.conv("x", 3, 16))
    wide = net.add("Pad", x, net.ints(4, 12), "", net.ints(1))
    y = net.add("Add", net.conv(x, 16, 32), wide)
    assert checked(net, net.head(net.add("Relu", y), 32)).graph.widths.tolist() == [16, 16]


def test_reflected_channels_are_held() -> None:
    net = Net(1, 3, 8, 8)
    x = net.add("Pad", net.conv("x", 3, 8), net.ints(0, 2, 0, 0, 0, 2, 0, 0), mode="reflect")
    assert checked(net, net.head(net.add("Relu", x), 12)).graph.groups == ()


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_pixel_shuffle_ties_the_channels_of_a_block(mode: str) -> None:
    net = Net(1, 3, 8, 8)
    x = net.add("DepthToSpace", net.conv("x", 3, 32), blocksize=2, mode=mode)
    x = net.add("SpaceToDepth", net.add("Relu", x), blocksize=2)
    trace = checked(net, net.head(net.conv(x, 32, 6), 6))
    assert trace.graph.widths.tolist() == [8, 6]


def test_tile_and_expand() -> None:
    net = Net(1, 3, 8, 8)
    x = net.add("Tile", net.conv("x", 3, 8), net.ints(1, 2, 1, 1))
    gate = net.add("Sigmoid", net.add("GlobalAveragePool", net.conv(x, 16, 12)))
    gate = net.add("Expand", gate, net.ints(1, 12, 8, 8))
    y = net.add("Mul", net.conv("x", 3, 12), gate)
    assert sorted(checked(net, net.head(y, 12)).graph.widths.tolist()) == [8, 12]


@pytest.mark.parametrize("by", ["scales", "sizes"])
def test_resize(by: str) -> None:
    net = Net(1, 3, 8, 8)
    x = net.add("Relu", net.conv("x", 3, 16))
    if by == "scales":
        scales = net.constant(np.array([1, 1, 2, 2], np.float32))
        x = net.add("Resize", x, "", scales, mode="nearest")
    else:
        x = net.add("Resize", x, "", "", net.ints(1, 16, 12, 12), mode="linear")
    assert checked(net, net.head(net.conv(x, 16, 8), 8)).graph.widths.tolist() == [16, 8]


@pytest.mark.parametrize("group", [1, 4, 16])
def test_transposed_convolution(group: int) -> None:
    net = Net(1, 3, 8, 8)
    x = net.add("Relu", net.conv("x", 3, 16))
    weight = net.weight(16, 2, 2, 2) if group > 1 else net.weight(16, 12, 2, 2)
    count = 2 * group if group > 1 else 12
    x = net.add("ConvTranspose", x, weight, net.weight(count), strides=[2, 2], group=group)
    trace = checked(net, net.head(net.add("Relu", x), count))
    assert trace.graph.widths.tolist() == {1: [16, 12], 4: [4, 2], 16: [16]}[group]


def test_unknown_operator_holds_what_it_touches_and_no_more() -> None:
    net = Net(1, 3, 8, 8)
    x = net.conv(net.add("Relu", net.conv("x", 3, 8)), 8, 16)
    x = net.add("LRN", x, size=3)
    x = net.add("Einsum", x, equation="nchw->nchw")
    trace = checked(net, net.head(net.conv(net.add("Relu", x), 16, 12), 12))
    assert trace.graph.widths.tolist() == [8, 12]


def attention(net: Net, x: str, width: int, heads: int, *, batch: int = 1) -> str:
    """Self-attention with one fused projection, as Swin and ViT are exported."""
    qkv = net.add("Add", net.add("MatMul", x, net.weight(width, 3 * width)), net.weight(3 * width))
    qkv = net.add("Reshape", qkv, net.ints(batch, -1, 3, heads, width // heads))
    qkv = net.add("Transpose", qkv, perm=[2, 0, 3, 1, 4])
    q, k, v = (net.add("Gather", qkv, net.constant(i, np.int64), axis=0) for i in range(3))
    q = net.add("Mul", q, net.constant(np.float32((width // heads) ** -0.5)))
    scores = net.add("MatMul", q, net.add("Transpose", k, perm=[0, 1, 3, 2]))
    scores = net.add("Add", scores, net.weight(heads, 1, 1))
    mixed = net.add("MatMul", net.add("Softmax", scores, axis=-1), v)
    mixed = net.add("Transpose", mixed, perm=[0, 2, 1, 3])
    mixed = net.add("Reshape", mixed, net.ints(batch, -1, width))
    made: str = net.add("MatMul", mixed, net.weight(width, width))
    return made


def test_attention_offers_whole_heads() -> None:
    net = Net(1, 6, 12)
    x = net.add("MatMul", "x", net.weight(12, 32))
    x = net.add("LayerNormalization", x, net.weight(32, positive=True), net.weight(32))
    x = net.add("Add", x, attention(net, x, 32, 4))
    x = net.add("ReduceMean", x, net.ints(1), keepdims=0)
    trace = checked(net, net.add("Gemm", x, net.weight(32, 5)))
    assert trace.graph.widths.tolist() == [4]
    assert {member.repeat for member in trace.graph.groups[0].members} == {24, 8, 1}


def test_open_batch_stays_open() -> None:
    net = Net("batch", 3, 8, 8)
    x = net.conv("x", 3, 16)
    shape = net.add("Shape", x)
    batch = net.add("Gather", shape, net.constant(0, np.int64))
    batch = net.add("Unsqueeze", batch, net.ints(0))
    # As the older exporter writes x.view(x.size(0), 2, 8, 8, 8) of a batch left open.
    target = net.add("Concat", batch, net.ints(2), net.ints(8), net.ints(8), net.ints(8), axis=0)
    x = net.add("Transpose", net.add("Reshape", x, target), perm=[0, 2, 1, 3, 4])
    back = net.add("Concat", batch, net.ints(16), net.ints(8), net.ints(8), axis=0)
    x = net.add("Relu", net.add("Reshape", x, back))
    trace = checked(net, net.head(x, 16))
    assert trace.graph.widths.tolist() == [8]
    pruned = prune_onnx(trace, np.array([3]))
    three = np.random.default_rng(0).standard_normal((3, 3, 8, 8)).astype(np.float32)
    together = run(pruned, [three])
    one_by_one = np.concatenate([run(pruned, [row[None]])[0] for row in three])
    assert relative_error(together, [one_by_one]) < 1e-5


def test_batch_fixed_by_constants_is_fixed_in_the_normal_form() -> None:
    net = Net("batch", 3, 8, 8)
    x = net.add("Reshape", net.conv("x", 3, 16), net.ints(1, 16, 64))
    x = net.add("ReduceMean", x, net.ints(2), keepdims=0)
    trace = trace_onnx(net.model(net.add("Gemm", x, net.weight(16, 5))))
    assert trace.graph.widths.tolist() == [16]
    assert run(trace.model, inputs_of(trace))[0].shape == (1, 5)


def test_units_are_in_the_order_of_their_channels() -> None:
    net = Net(1, 3, 8, 8)
    trace = trace_onnx(net.model(net.head(net.add("Relu", net.conv("x", 3, 16)), 16)))
    group, unit = trace.channels.axis_units("w0", 0)
    assert group.tolist() == [0] * 16
    assert unit.tolist() == list(range(16))
    assert trace.channels.axis_units("w0", 2)[0].tolist() == [-1] * 3


def test_groups_are_named_after_layers_and_uniquely() -> None:
    net = Net(1, 3, 8, 8)
    x = net.add("Relu", net.conv("x", 3, 16))
    left = net.add("Slice", x, net.ints(0), net.ints(8), net.ints(1))
    net.conv(left, 8, 4)
    model = net.model(net.head(net.add("Concat", net.conv(left, 8, 8), x, axis=1), 24))
    for tensor in model.graph.initializer:
        if tensor.name == "w0":
            tensor.name = "stem.conv.weight"
    model.graph.node[0].input[1] = "stem.conv.weight"
    names = [group.name for group in trace_onnx(model).graph.groups]
    assert len(set(names)) == len(names)
    assert names[0] == "stem.conv"
