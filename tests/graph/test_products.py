"""Einsum, attention in one operator, recurrent layers, deformed and sampled maps: cut right."""

from __future__ import annotations

import pytest
from onnx_oracle import (
    Net,
    assert_every_group_matters,
    assert_pruned_right,
    some_keeps,
)

from rlprune.graph.from_onnx import OnnxTrace, trace_onnx


def checked(net: Net, *outputs: str) -> OnnxTrace:
    """The trace, after the oracle agreed on several plans."""
    trace = trace_onnx(net.model(*outputs))
    for keeps in some_keeps(trace):
        assert_pruned_right(trace, keeps)
    assert_every_group_matters(trace)
    return trace


def einsum(net: Net, equation: str, *inputs: str) -> str:
    return str(net.add("Einsum", *inputs, equation=equation))


def projected(net: Net, x: str, heads: int, width: int = 4, rows: int = 6) -> str:
    """Rows of 16 channels as [1, heads, rows, width]."""
    y = net.add("MatMul", x, net.weight(16, heads * width))
    y = net.add("Reshape", y, net.ints(1, rows, heads, width))
    return str(net.add("Transpose", y, perm=[0, 2, 1, 3]))


def joined(net: Net, y: str, width: int, rows: int = 6) -> str:
    """[1, heads, rows, width of a head] as rows of ten numbers, averaged."""
    y = net.add("Transpose", y, perm=[0, 2, 1, 3])
    y = net.add("Reshape", y, net.ints(1, rows, -1))
    y = net.add("MatMul", y, net.weight(width, 10))
    return str(net.add("ReduceMean", y, net.ints(1), keepdims=0))


def test_linear_layers_written_as_einsum_are_pruned_as_any() -> None:
    net = Net(1, 6, 8)
    x = net.add("Relu", einsum(net, "bnd,de->bne", "x", net.weight(8, 12)))
    x = net.add("Relu", einsum(net, "bnd,ed->bne", x, net.weight(20, 12)))
    y = net.add("ReduceMean", x, net.ints(1), keepdims=0)
    trace = checked(net, net.add("Gemm", y, net.weight(20, 5)))
    assert trace.graph.widths.tolist() == [12, 20]
    assert trace.graph.macs(trace.graph.widths) == 6 * (8 * 12 + 12 * 20) + 20 * 5
    assert [op.kind for op in trace.graph.operators].count("linear") == 3


def test_attention_spelled_in_einsum_loses_whole_heads() -> None:
    net = Net(1, 6, 16)
    q, k, v = (einsum(net, "bnd,hde->bhne", "x", net.weight(3, 16, 4)) for _ in range(3))
    scores = net.add("Softmax", einsum(net, "bhid,bhjd->bhij", q, k), axis=-1)
    y = einsum(net, "bhij,bhjd->bhid", scores, v)
    y = einsum(net, "bhnd,hde->bne", y, net.weight(3, 4, 10))
    trace = checked(net, net.add("ReduceMean", y, net.ints(1), keepdims=0))
    assert trace.graph.widths.tolist() == [3]
    by_hand = 3 * 6 * 16 * 12 + 2 * 3 * 6 * 6 * 4 + 6 * 12 * 10
    assert trace.graph.macs(trace.graph.widths) == by_hand


@pytest.mark.parametrize("equation", ["bnd,bne->bde", "bnd,dd->bn", "bnd,de->be"])
def test_einsum_that_sums_or_mixes_otherwise_holds(equation: str) -> None:
    net = Net(1, 6, 8)
    x = net.add("MatMul", "x", net.weight(8, 8))
    other = x if equation.startswith("bnd,bne") else net.weight(8, 8)
    y = einsum(net, equation, x, other)
    y = net.add("ReduceMean", y, net.ints(1), keepdims=0)
    trace = trace_onnx(net.model(y))
    for keeps in some_keeps(trace):
        assert_pruned_right(trace, keeps)
    assert 8 not in trace.graph.widths or equation == "bnd,de->be"


def test_one_head_of_keys_for_all_lets_heads_of_queries_go() -> None:
    net = Net(1, 6, 16)
    q, k, v = projected(net, "x", 4), projected(net, "x", 1), projected(net, "x", 1)
    scores = net.add("MatMul", q, net.add("Transpose", k, perm=[0, 1, 3, 2]))
    y = net.add("MatMul", net.add("Softmax", scores, axis=-1), v)
    trace = checked(net, joined(net, y, 16))
    assert trace.graph.widths.tolist() == [4]
    assert {held.reason.split()[0] for held in trace.graph.held if held.width == 4} == {"MatMul"}


@pytest.mark.parametrize(("q_heads", "kv_heads", "width"), [(4, 4, 4), (4, 2, 2), (4, 1, 4)])
@pytest.mark.parametrize("rank", [3, 4])
def test_attention_operator_is_as_prunable_as_spelled_out(
    rank: int, q_heads: int, kv_heads: int, width: int
) -> None:
    net = Net(1, 6, 16, opset=23)
    if rank == 4:
        parts = [projected(net, "x", heads) for heads in (q_heads, kv_heads, kv_heads)]
        y = net.add("Attention", *parts)
        output = joined(net, y, 4 * q_heads)
    else:
        heads = (q_heads, kv_heads, kv_heads)
        parts = [net.add("MatMul", "x", net.weight(16, 4 * n)) for n in heads]
        y = net.add("Attention", *parts, q_num_heads=q_heads, kv_num_heads=kv_heads)
        y = net.add("MatMul", y, net.weight(4 * q_heads, 10))
        output = net.add("ReduceMean", y, net.ints(1), keepdims=0)
    trace = checked(net, output)
    assert trace.graph.widths.tolist() == [width]
    graph = trace.graph
    products = 6 * (16 * 4 * (q_heads + 2 * kv_heads) + 4 * q_heads * 10)
    assert graph.macs(graph.widths) == products + 2 * 4 * q_heads * 6 * 6


def test_mask_per_head_is_cut_with_its_head() -> None:
    net = Net(1, 6, 16, opset=23)
    parts = [projected(net, "x", 4) for _ in range(3)]
    y = net.add("Attention", *parts, net.weight(1, 4, 6, 6))
    assert checked(net, joined(net, y, 16)).graph.widths.tolist() == [4]


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize(("op", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_layer_before_a_recurrent_one_is_pruned(op: str, gates: int, directions: int) -> None:
    net = Net(7, 1, 3)
    x = net.add("Relu", net.add("MatMul", "x", net.weight(3, 12)))
    weights = [net.weight(directions, gates * 5, width) for width in (12, 5)]
    way = "bidirectional" if directions == 2 else "forward"
    y = net.add(op, x, *weights, hidden_size=5, direction=way)
    y = net.add("Reshape", net.add("Transpose", y, perm=[0, 2, 1, 3]), net.ints(7, 1, -1))
    trace = checked(net, net.add("MatMul", y, net.weight(5 * directions, 4)))
    assert trace.graph.widths.tolist() == [12]
    assert any("hidden state" in held.reason for held in trace.graph.held)


def test_channels_go_through_sampling_at_computed_places() -> None:
    net = Net(1, 3, 8, 8, opset=20)
    x = net.add("Relu", net.conv("x", 3, 16))
    grid = net.add("Transpose", net.add("Tanh", net.conv("x", 3, 2)), perm=[0, 2, 3, 1])
    trace = checked(net, net.head(net.add("GridSample", x, grid), 16))
    assert trace.graph.widths.tolist() == [16]


def test_deformed_convolution_is_pruned_and_its_offsets_stay() -> None:
    net = Net(1, 3, 8, 8, opset=19)
    x = net.add("Relu", net.conv("x", 3, 16))
    offset = net.conv("x", 3, 18)
    weight, bias = net.weight(12, 16, 3, 3), net.weight(12)
    y = net.add("DeformConv", x, weight, offset, bias, pads=[1, 1, 1, 1], kernel_shape=[3, 3])
    trace = checked(net, net.head(net.add("Relu", y), 12))
    assert trace.graph.widths.tolist() == [16, 12]
    assert any("moves its taps" in held.reason for held in trace.graph.held)
    by_hand = 64 * (3 * 9 * 16 + 3 * 9 * 18 + 16 * 9 * 12) + 12 * 10
    assert trace.graph.macs(trace.graph.widths) == by_hand


@pytest.mark.parametrize(("groups", "widths"), [(16, [16]), (4, [])])
def test_group_norm_of_single_channels_is_followed(groups: int, widths: list[int]) -> None:
    net = Net(1, 3, 8, 8, opset=21)
    parts = [net.weight(16, positive=True), net.weight(16)]
    x = net.add("GroupNormalization", net.conv("x", 3, 16), *parts, num_groups=groups)
    assert checked(net, net.head(x, 16)).graph.widths.tolist() == widths


@pytest.mark.parametrize(
    ("layout", "opset", "axis", "free"),
    [
        ("NHWC", 12, 1, False),
        ("NHWC", 12, None, False),
        ("NCHW", 12, None, False),
        ("NCHW", 12, 2, True),
        ("NHWC", 13, 1, True),
        ("NHWC", 13, None, False),
        ("NCHW", 13, None, True),
        ("NCHW", 13, 1, False),
    ],
)
@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Hardmax"])
def test_softmax_and_hardmax_work_over_what_their_opset_says(
    op: str, layout: str, opset: int, axis: int | None, free: bool
) -> None:
    net = Net(1, 3, 4, 4, opset=opset)
    attributes = {} if axis is None else {"axis": axis}
    y = net.add("Relu", net.conv("x", 3, 16))
    if layout == "NHWC":
        t = net.add("Transpose", y, perm=[0, 2, 3, 1])
        y = net.add("Transpose", net.add("Add", t, net.add(op, t, **attributes)), perm=[0, 3, 1, 2])
    else:
        y = net.add("Add", y, net.add(op, y, **attributes))
    trace = trace_onnx(net.model(net.head(net.conv(y, 16, 8), 8)))
    for keeps in some_keeps(trace):
        assert_pruned_right(trace, keeps)
    assert trace.graph.widths.tolist() == ([16, 8] if free else [8])


@pytest.mark.parametrize("merged", [False, True])
def test_padding_mask_spread_over_heads_lets_heads_go(merged: bool) -> None:
    """As torch's attention does: the mask is a value of the input, repeated for every head."""
    net = Net(1, 6, 16)
    q, k, v = (projected(net, "x", 3) for _ in range(3))
    row = net.add("ReduceMean", "x", net.ints(2), keepdims=1)
    mask = net.add(
        "Reshape", net.add("Mul", row, net.constant([9.0], "float32")), net.ints(1, 1, 1, 6)
    )
    mask = net.add("Expand", mask, net.ints(1, 3, 1 if merged else 6, 6))
    if merged:
        mask = net.add("Reshape", mask, net.ints(3, 1, 6))
        mask = net.add("Reshape", mask, net.ints(1, 3, 1, 6))
    scores = net.add("MatMul", q, net.add("Transpose", k, perm=[0, 1, 3, 2]))
    scores = net.add("Softmax", net.add("Add", scores, mask), axis=-1)
    trace = checked(net, joined(net, net.add("MatMul", scores, v), 12))
    assert trace.graph.widths.tolist() == [3]


def test_quantised_layers_are_counted_listed_and_told_what_to_do() -> None:
    net = Net(1, 3, 8, 8)
    scale, zero = net.constant(0.02, "float32"), net.constant(0, "int8")
    x = "x"
    for read, made in ((3, 16), (16, 8)):
        weight = net.constant(net.rng.integers(-99, 99, (made, read, 3, 3)), "int8")
        weight = net.add("DequantizeLinear", weight, scale, zero)
        q = net.add("QuantizeLinear", x, scale, zero)
        x = net.add("DequantizeLinear", q, scale, zero)
        x = net.add("Relu", net.add("Conv", x, weight, pads=[1, 1, 1, 1]))
    graph = trace_onnx(net.model(net.head(x, 8))).graph
    told = [held for held in graph.held if "DequantizeLinear" in held.reason]
    assert [
        (held.width, "prune the float file before quantising" in held.reason) for held in told
    ] == [
        (16, True),
        (8, True),
    ]
    assert graph.macs(graph.widths) == 64 * 9 * (3 * 16 + 16 * 8) + 80
    assert graph.params(graph.widths) >= 9 * (3 * 16 + 16 * 8)
    assert graph.prunable_macs_ratio() == 0


def test_layers_fused_by_a_runtime_are_counted_and_told_what_to_do() -> None:
    net = Net(1, 3, 8, 8)
    model = net.model(net.head(net.conv("x", 3, 16), 16))
    model.graph.node[0].op_type, model.graph.node[0].domain = "FusedConv", "com.microsoft"
    model.opset_import.add(domain="com.microsoft", version=1)
    graph = trace_onnx(model).graph
    assert graph.macs(graph.widths) == 64 * 27 * 16 + 160
    [held] = [held for held in graph.held if held.width == 16]
    assert "from before optimising" in held.reason and "FusedConv" in held.reason
    assert graph.uncounted == ()


def test_computed_kernel_is_listed_with_what_to_do() -> None:
    net = Net(1, 3, 8, 8)
    scale = net.add("Reshape", net.add("ReduceMean", "x"), net.ints(1, 1, 1, 1))
    kernel = net.add("Mul", net.weight(16, 3, 3, 3), scale)
    graph = trace_onnx(net.model(net.head(net.add("Conv", "x", kernel), 16))).graph
    [held] = [held for held in graph.held if held.width == 16]
    assert "computed kernel" in held.reason and "constant" in held.reason
