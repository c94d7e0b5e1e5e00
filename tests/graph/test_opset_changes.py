"""Operators whose meaning or form changed between opsets, each tried on both sides of the change.

What is cut is compared in ONNX Runtime with the whole network whose dropped channels nobody reads,
and the whole network's normal form with the file.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from onnx import TensorProto
from onnx_oracle import Net, assert_pruned_right, inputs_of, run, some_keeps

import rlprune

Build = Callable[[Net, str], str]
"""Puts the operator behind a tensor [N, 12, 8, 8] of prunable channels; gives [N, C, ...]."""
TABLE: dict[tuple[str, int], tuple[Build, bool]] = {}
"""By what is tried and the opset: how it is built, and whether the channels before it are free."""


def form(name: str, *opsets: int, free: bool = True) -> Callable[[Build], Build]:
    """Enters a form of an operator for the opsets that have it."""

    def enter(build: Build) -> Build:
        TABLE.update({(name, opset): (build, free) for opset in opsets})
        return build

    return enter


def last(net: Net, x: str) -> str:
    return str(net.add("Transpose", x, perm=[0, 2, 3, 1]))


def first(net: Net, x: str) -> str:
    return str(net.add("Transpose", x, perm=[0, 3, 1, 2]))


for _op in ("Softmax", "LogSoftmax", "Hardmax"):

    def _flattening(net: Net, x: str, op: str = _op) -> str:
        return first(net, net.add(op, last(net, x), axis=1))

    def _default(net: Net, x: str, op: str = _op) -> str:
        return str(net.add(op, x))

    # Before 13 everything from `axis` on is one row, and 1 is the default: channels among them.
    form(f"{_op}, axis 1, channels last", 11, 12, free=False)(_flattening)
    form(f"{_op}, axis 1, channels last", 13, 18)(_flattening)
    form(f"{_op}, no axis", 12, free=False)(_default)
    form(f"{_op}, no axis", 13)(_default)


@form("Clip", 9, 10)
def _clip_attributes(net: Net, x: str) -> str:
    return str(net.add("Clip", x, min=0.0, max=0.7))


@form("Clip", 11, 13)
def _clip_inputs(net: Net, x: str) -> str:
    return str(net.add("Clip", x, "", net.constant(0.7, np.float32)))


@form("Pad", 9, 10)
@form("Pad of channels", 10)
def _pad_attributes(net: Net, x: str) -> str:
    return str(net.add("Pad", x, mode="constant", pads=[0, 0, 1, 0, 0, 0, 0, 1]))


@form("Pad", 11, 13, 18)
def _pad_inputs(net: Net, x: str) -> str:
    return str(net.add("Pad", x, net.ints(0, 0, 1, 0, 0, 0, 0, 1), mode="constant"))


@form("Pad with axes", 18, 19, 21)
def _pad_axes(net: Net, x: str) -> str:
    none = net.constant(0.0, np.float32)
    return str(net.add("Pad", x, net.ints(1, 0, 0, 2), none, net.ints(2, -1)))


@form("Split", 11, 12)
def _split_attribute(net: Net, x: str) -> str:
    low, high = net.add("Split", x, outputs=2, axis=1, split=[4, 8])
    return str(net.add("Concat", high, low, axis=1))


@form("Split", 13, 18)
def _split_input(net: Net, x: str) -> str:
    low, high = net.add("Split", x, net.ints(4, 8), outputs=2, axis=1)
    return str(net.add("Concat", high, low, axis=1))


@form("Split into equal parts", 11, 13)
def _split_equal(net: Net, x: str) -> str:
    low, high = net.add("Split", x, outputs=2, axis=1)
    return str(net.add("Add", low, high))


@form("Split into equal parts", 18, 21)
def _split_counted(net: Net, x: str) -> str:
    low, high = net.add("Split", x, outputs=2, axis=1, num_outputs=2)
    return str(net.add("Add", low, high))


@form("Squeeze and Unsqueeze", 11, 12)
def _squeeze_attributes(net: Net, x: str) -> str:
    pooled = net.add("Squeeze", net.add("GlobalAveragePool", x), axes=[2, 3])
    return str(net.add("Unsqueeze", pooled, axes=[2, 3]))


@form("Squeeze and Unsqueeze", 13, 21)
def _squeeze_inputs(net: Net, x: str) -> str:
    pooled = net.add("Squeeze", net.add("GlobalAveragePool", x), net.ints(2, 3))
    return str(net.add("Unsqueeze", pooled, net.ints(2, 3)))


for _op, _change in (("ReduceSum", 13), ("ReduceMean", 18), ("ReduceMax", 18), ("ReduceL2", 18)):

    def _axes_attribute(net: Net, x: str, op: str = _op) -> str:
        return str(net.add(op, x, axes=[2, -1], keepdims=1))

    def _axes_input(net: Net, x: str, op: str = _op) -> str:
        return str(net.add(op, x, net.ints(2, -1), keepdims=1))

    def _noop(net: Net, x: str, op: str = _op) -> str:
        return str(net.add(op, x, noop_with_empty_axes=1))

    form(_op, 11, _change - 1)(_axes_attribute)
    form(_op, _change, 20)(_axes_input)
    form(f"{_op} of no axes", _change)(_noop)


@form("TopK", 9, free=False)
def _topk_attribute(net: Net, x: str) -> str:
    return str(net.add("TopK", x, outputs=2, axis=1, k=6)[0])


@form("TopK", 10, 11, free=False)
def _topk_input(net: Net, x: str) -> str:
    return str(net.add("TopK", x, net.ints(6), outputs=2, axis=1)[0])


@form("Slice", 9)
def _slice_attributes(net: Net, x: str) -> str:
    return str(net.add("Slice", x, axes=[1], starts=[2], ends=[-2]))


@form("Slice", 10, 11, 13)
def _slice_inputs(net: Net, x: str) -> str:
    return str(net.add("Slice", x, net.ints(2), net.ints(-2), net.ints(1)))


@form("Upsample", 9)
def _upsample(net: Net, x: str) -> str:
    return str(net.add("Upsample", x, net.constant([1, 1, 2, 2], np.float32), mode="nearest"))


@form("Resize", 10)
def _resize_10(net: Net, x: str) -> str:
    return str(net.add("Resize", x, net.constant([1, 1, 2, 2], np.float32), mode="nearest"))


@form("Resize", 11, 13, 18)
def _resize_11(net: Net, x: str) -> str:
    none = net.constant(np.zeros(0), np.float32)
    return str(net.add("Resize", x, none, net.constant([1, 1, 1.5, 2], np.float32), mode="linear"))


@form("Resize to sizes", 11, 13)
def _resize_sizes(net: Net, x: str) -> str:
    none = net.constant(np.zeros(0), np.float32)
    return str(net.add("Resize", x, none, none, net.ints(1, 12, 11, 13), mode="nearest"))


@form("Resize to sizes of axes", 18, 19)
def _resize_axes(net: Net, x: str) -> str:
    sizes = net.ints(11, 13)
    return str(net.add("Resize", x, "", "", sizes, mode="nearest", axes=[2, 3]))


@form("BatchNormalization", 9, 13, 14, 15)
def _norm(net: Net, x: str) -> str:
    return net.norm(x, 12)


@form("Dropout", 9, 10)
def _dropout_attribute(net: Net, x: str) -> str:
    return str(net.add("Dropout", x, ratio=0.3))


@form("Dropout", 12, 13, 22)
def _dropout_inputs(net: Net, x: str) -> str:
    return str(net.add("Dropout", x, net.constant(0.3, np.float32)))


@form("Reshape", 11, 13)
@form("Reshape", 14, 21)
def _reshape(net: Net, x: str) -> str:
    return str(net.add("Reshape", net.add("Reshape", x, net.ints(0, 0, -1)), net.ints(0, 0, 4, 16)))


@form("Reshape that allows zero", 14, 19)
def _reshape_zero(net: Net, x: str) -> str:
    return str(net.add("Reshape", x, net.ints(1, 12, 4, -1), allowzero=1))


@form("Cast", 11, 13, 19)
def _cast(net: Net, x: str) -> str:
    return str(net.add("Cast", net.add("Cast", x, to=TensorProto.DOUBLE), to=TensorProto.FLOAT))


@form("GroupNormalization", 21, free=False)
def _group_norm_21(net: Net, x: str) -> str:
    """Scales and shifts of the channels."""
    parts = net.weight(12, positive=True), net.weight(12)
    return str(net.add("GroupNormalization", x, *parts, num_groups=3))


@form("AveragePool", 10, 11, 18)
def _average(net: Net, x: str) -> str:
    return str(net.add("AveragePool", x, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1))


@form("AveragePool with dilations", 19, 22)
def _average_dilated(net: Net, x: str) -> str:
    return str(net.add("AveragePool", x, kernel_shape=[2, 2], dilations=[2, 2]))


@form("DepthToSpace", 10, 11, 13)
def _depth(net: Net, x: str) -> str:
    return str(net.add("DepthToSpace", x, blocksize=2))


@form("DepthToSpace by columns", 11, 13)
def _depth_columns(net: Net, x: str) -> str:
    return str(net.add("DepthToSpace", x, blocksize=2, mode="CRD"))


@form("Flatten from the end", 11, 13, 21)
def _flatten(net: Net, x: str) -> str:
    return str(net.add("Flatten", x, axis=-3))


@form("CumSum", 11, 14, free=False)
def _cumsum(net: Net, x: str) -> str:
    return str(net.add("CumSum", x, net.constant(3, np.int64)))


@form("PRelu and Where", 9, 15, 16)
def _prelu(net: Net, x: str) -> str:
    y = net.add("PRelu", x, net.weight(12, 1, 1))
    return str(net.add("Where", net.add("Greater", y, net.constant(0.0, np.float32)), y, x))


@form("Mean and Max of several", 8, 12, 13)
def _several(net: Net, x: str) -> str:
    return str(net.add("Max", net.add("Mean", x, net.add("Relu", x)), net.weight(12, 1, 1)))


@form("a bound from Constant's attribute", 12, 13)
def _constant_attribute(net: Net, x: str) -> str:
    return str(net.add("Slice", x, *(net.add("Constant", value_ints=[k]) for k in (2, 9, 1))))


@pytest.mark.parametrize(("name", "opset"), TABLE, ids=lambda part: str(part))
def test_an_operator_means_the_same_on_both_sides_of_a_change(name: str, opset: int) -> None:
    build, free = TABLE[name, opset]
    net = Net(1, 3, 8, 8, opset=opset)
    x = net.add("Relu", net.conv("x", 3, 12))
    x = build(net, x)
    pooled = x if name.startswith("Flatten") else net.add("GlobalAveragePool", x)
    flat = net.add("Flatten", pooled)
    width = {"Split into equal parts": 6, "TopK": 6, "Slice": 8, "DepthToSpace": 3}
    width |= {"DepthToSpace by columns": 3, "Flatten from the end": 12 * 64}
    width |= {"a bound from Constant's attribute": 7}
    model = net.model(net.add("Gemm", flat, net.weight(width.get(name, 12), 8), net.weight(8)))
    trace = rlprune.trace(model)
    assert bool(trace.graph.groups) == free
    np.testing.assert_allclose(
        run(trace.model, inputs_of(trace))[0],
        run(model, inputs_of(trace))[0],
        rtol=1e-5,
        atol=1e-6,
    )
    for keeps in some_keeps(trace) if free else ():
        assert_pruned_right(trace, keeps)
