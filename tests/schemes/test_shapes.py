"""Kernel shapes: a cut kernel answers as the dense network whose other taps are zero."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from exports import newer_export, older_export
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper
from onnx_oracle import Net, inputs_of, relative_error, run
from scheme_oracle import (
    assert_carried_out,
    assert_costs,
    random_settings,
    settings_of,
    sites_of,
    with_dead_parts,
)
from topologies import TOPOLOGIES

from rlprune.errors import PlanError
from rlprune.graph import skeleton
from rlprune.graph.from_onnx import OnnxTrace, trace_onnx
from rlprune.graph.types import IntArray
from rlprune.schemes import carry_out, removal_of
from rlprune.surgery.onnx import cut

SHAPE = ("channel", "shape")
Attributes = dict[str, int | str | list[int]]


def convolution(
    kernel: tuple[int, ...],
    side: int = 9,
    *,
    depthwise: bool = False,
    **attrs: int | str | list[int],
) -> OnnxTrace:
    """One convolution of eight channels, `c`, between two pointwise ones."""
    axes = len(kernel)
    net = Net(1, 3, *[side + axis for axis in range(axes)])
    ones = [1] * axes
    x = net.add("Relu", net.add("Conv", "x", net.weight(8, 3, *ones), net.weight(8)))
    group = 8 if depthwise else int(attrs.pop("group", 1))  # type: ignore[arg-type]
    weight = net.weight(8, 8 // group, *kernel)
    x = net.add("Conv", x, weight, net.weight(8), group=group, **attrs)
    net.nodes[-1].name = "c"
    x = net.add("Relu", x)
    end = net.add("Conv", x, net.weight(4, 8, *ones), net.weight(4))
    return trace_onnx(net.model(end))


def every_value(trace: OnnxTrace, name: str = "c") -> list[IntArray]:
    """Settings that take one option of one site after the other."""
    site = sites_of(trace, "shape")[name]
    return [settings_of(trace, {name: value}, SHAPE) for value in site.values]


CASES: dict[str, Callable[[], OnnxTrace]] = {
    "plain": lambda: convolution((3, 3), pads=[1] * 4),
    "strided": lambda: convolution((3, 3), pads=[1] * 4, strides=[2, 2]),
    "strided apart": lambda: convolution((3, 3), pads=[1] * 4, strides=[2, 3]),
    "dilated": lambda: convolution((3, 3), pads=[2] * 4, dilations=[2, 2]),
    "dilated and strided": lambda: convolution(
        (3, 3), pads=[2, 3, 2, 3], dilations=[2, 3], strides=[2, 2]
    ),
    "depthwise": lambda: convolution((3, 3), depthwise=True, pads=[1] * 4),
    "depthwise 5x5, strided": lambda: convolution(
        (5, 5), depthwise=True, pads=[2] * 4, strides=[2, 2]
    ),
    "grouped": lambda: convolution((3, 3), group=2, pads=[1] * 4),
    "5x5": lambda: convolution((5, 5), pads=[2] * 4),
    "7x7": lambda: convolution((7, 7), pads=[3] * 4, strides=[2, 2]),
    "1x7": lambda: convolution((1, 7), pads=[0, 3, 0, 3]),
    "even": lambda: convolution((4, 4), pads=[1, 1, 2, 2]),
    "one axis": lambda: convolution((5,), pads=[2, 2], strides=[2]),
    "three axes": lambda: convolution((3, 3, 3), 5, pads=[1] * 6),
    "uneven border": lambda: convolution((3, 3), pads=[0, 2, 2, 0]),
    "border on one axis": lambda: convolution((3, 3), pads=[0, 1, 0, 1]),
    "wide border": lambda: convolution((3, 3), pads=[3] * 4),
    "same upper": lambda: convolution((3, 3), auto_pad="SAME_UPPER"),
    "same upper, strided": lambda: convolution((3, 3), 8, auto_pad="SAME_UPPER", strides=[2, 2]),
    "same lower": lambda: convolution((4, 4), auto_pad="SAME_LOWER"),
    "same lower, strided": lambda: convolution((3, 3), 8, auto_pad="SAME_LOWER", strides=[2, 2]),
}


@pytest.mark.parametrize("name", CASES)
def test_every_extent_answers_as_with_its_other_taps_zeroed(name: str) -> None:
    trace = CASES[name]()
    values = every_value(trace)
    assert len(values) > 1
    rng = np.random.default_rng(0)
    for own in (*values, random_settings(trace, rng, SHAPE), random_settings(trace, rng, SHAPE)):
        assert_carried_out(trace, own, SHAPE)


@pytest.mark.parametrize(
    ("name", "offered"),
    [
        ("plain", ["1x1", "1x2", "2x1", "1x3", "3x1", "2x2", "2x3", "3x2", "3x3"]),
        ("border on one axis", ["3x1", "3x2", "3x3"]),
        ("one axis", ["1", "3", "5"]),
        ("same upper, strided", ["2x1", "3x1", "2x2", "2x3", "3x2", "3x3"]),
    ],
)
def test_what_is_offered_is_what_the_border_has_room_for(name: str, offered: list[str]) -> None:
    site = sites_of(CASES[name](), "shape")["c"]
    told = ["x".join(str(value // 100**k % 100) for k in (1, 0)) for value in site.values]
    if name == "one axis":
        told = [str(value) for value in site.values]
    assert told == offered and not site.ordered


@settings(deadline=None, max_examples=25, derandomize=True, database=None)
@given(data=st.data())
def test_any_convolution_is_cut_right(data: st.DataObject) -> None:
    axes = data.draw(st.integers(1, 3))
    kernel = tuple(data.draw(st.integers(1, 5 if axes < 3 else 3)) for _ in range(axes))
    border = [data.draw(st.integers(0, 4)) for _ in range(2 * axes)]
    attrs: Attributes = {
        "pads": border,
        "strides": [data.draw(st.integers(1, 3)) for _ in range(axes)],
        "dilations": [data.draw(st.integers(1, 2)) for _ in range(axes)],
        "group": data.draw(st.sampled_from([1, 2, 8])),
    }
    trace = convolution(kernel, 11 if axes < 3 else 6, **attrs)
    if "c" in sites_of(trace, "shape"):
        rng = np.random.default_rng(data.draw(st.integers(0, 99)))
        assert_carried_out(trace, random_settings(trace, rng, SHAPE), SHAPE)


def bordered(**attrs: int) -> tuple[Net, str, str]:
    """A Pad node, and a convolution with a border of its own that reads it."""
    net = Net(1, 3, 8, 8)
    x = net.conv("x", 3, 6, 1)
    padded = net.add("Pad", x, net.ints(0, 0, 1, 0, 0, 0, 1, 2))
    x = net.add("Conv", padded, net.weight(6, 6, 3, 3), pads=[0, 1, 0, 1], **attrs)
    net.nodes[-1].name = "c"
    return net, padded, x


def test_a_border_of_its_own_node_before_it_goes_into_the_convolution() -> None:
    net, _, x = bordered()
    trace = trace_onnx(net.model(net.head(x, 6)))
    for own in every_value(trace):
        small = assert_carried_out(trace, own, SHAPE)
        whole = own[-1] == sites_of(trace, "shape")["c"].values[-1]
        assert ("Pad" in [node.op_type for node in small.graph.node]) == whole


def test_a_border_that_another_reads_as_well_stays_and_the_kernel_uses_its_own_room() -> None:
    net, padded, x = bordered()
    other = net.add("Relu", padded)
    trace = trace_onnx(net.model(net.head(x, 6), net.head(other, 6)))
    for own in every_value(trace):
        small = assert_carried_out(trace, own, SHAPE)
        assert "Pad" in [node.op_type for node in small.graph.node]


def test_a_kernel_with_no_room_for_its_border_is_not_offered() -> None:
    trace = convolution((3, 3), pads=[0] * 4)
    assert not sites_of(trace, "shape")
    assert not sites_of(convolution((3, 3), auto_pad="VALID"), "shape")
    assert not sites_of(convolution((1, 1)), "shape")


def test_a_weight_that_two_convolutions_share_is_not_offered() -> None:
    net = Net(1, 3, 8, 8)
    x = net.conv("x", 3, 6, 3)
    weight = net.weight(6, 6, 3, 3)
    for _ in range(2):
        x = net.add("Relu", net.add("Conv", x, weight, pads=[1] * 4))
    assert list(sites_of(trace_onnx(net.model(net.head(x, 6))), "shape")) == ["conv0"]


def test_weights_that_are_computed_are_not_offered() -> None:
    net = Net(1, 3, 8, 8)
    weight = net.weight(6, 3, 3, 3)
    mean = net.add("ReduceMean", weight, net.ints(1, 2, 3))
    x = net.add("Conv", "x", net.add("Sub", weight, mean), pads=[1] * 4)
    made = net.add("Conv", x, net.weight(54, 6, 1, 1))  # of the input itself
    x = net.add(
        "Conv",
        x,
        net.add("Reshape", net.add("ReduceMean", made, net.ints(2, 3)), net.ints(1, 6, 3, 3)),
        pads=[1] * 4,
    )
    trace = trace_onnx(net.model(x))
    offered = sites_of(trace, "shape")
    # What is computed of constants alone is folded, and a constant like any other.
    for name in offered:
        [op] = [op for op in trace.graph.operators if op.name == name]
        assert op.weight in {tensor.name for tensor in trace.model.graph.initializer}
    for own in [
        settings_of(trace, {name: site.values[0]}, SHAPE) for name, site in offered.items()
    ]:
        assert_carried_out(trace, own, SHAPE)


def test_deformable_and_transposed_convolutions_are_not_offered() -> None:
    net = Net(1, 3, 8, 8, opset=19)
    x = net.conv("x", 3, 6, 1)
    offset = net.conv(x, 6, 18, 1)
    bent = net.add("DeformConv", x, net.weight(6, 6, 3, 3), offset, pads=[1] * 4)
    x = net.add("ConvTranspose", bent, net.weight(6, 6, 3, 3), pads=[1] * 4, strides=[2, 2])
    assert not sites_of(trace_onnx(net.model(net.head(x, 6))), "shape")


def halves(model: onnx.ModelProto) -> onnx.ModelProto:
    """In float16 throughout."""
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            value = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    del model.graph.value_info[:]
    return model


def test_float16_weights_stay_float16() -> None:
    trace = trace_onnx(halves(convolution((3, 3), pads=[1] * 4).model))
    removal = removal_of(trace, every_value(trace)[0], SHAPE)
    small = cut(trace, removal)
    onnx.checker.check_model(small, full_check=True)
    assert all(t.data_type == TensorProto.FLOAT16 for t in small.graph.initializer)
    inputs = [one.astype(np.float16) for one in inputs_of(trace)]
    expected = run(with_dead_parts(trace, removal), inputs)  # type: ignore[arg-type]
    assert relative_error(expected, run(small, inputs)) < 1e-2  # type: ignore[arg-type]


def test_a_skeleton_is_cut_to_the_same_shapes_as_the_model() -> None:
    trace = convolution((3, 3), pads=[1] * 4)
    bare = trace_onnx(skeleton.strip(trace.model))
    for own in every_value(trace):
        shapes = [
            {t.name: tuple(t.dims) for t in carry_out(one, own, SHAPE).graph.initializer}
            for one in (trace, bare)
        ]
        assert shapes[0] == shapes[1]
        assert_costs(bare, own, carry_out(bare, own, SHAPE), SHAPE)


def test_an_open_batch_stays_open() -> None:
    net = Net("batch", 3, 8, 8)
    x = net.add("Conv", "x", net.weight(6, 3, 3, 3), auto_pad="SAME_UPPER", strides=[2, 2])
    net.nodes[-1].name = "c"
    trace = trace_onnx(net.model(net.head(x, 6)))
    rows = np.random.default_rng(0).standard_normal((3, 3, 8, 8)).astype(np.float32)
    for own in every_value(trace):
        removal = removal_of(trace, own, SHAPE)
        expected = run(with_dead_parts(trace, removal), [rows])
        assert relative_error(expected, run(cut(trace, removal), [rows])) < 1e-5


@pytest.mark.parametrize("side", [7, 9, 10])
def test_open_extents_stay_open(side: int) -> None:
    """A border that `auto_pad` chooses is another at another size, unless the stride is one."""
    for stride in (1, 2):
        net = Net(1, 3, "height", "width")
        x = net.add(
            "Conv", "x", net.weight(6, 3, 3, 3), auto_pad="SAME_UPPER", strides=[stride] * 2
        )
        x = net.add("Conv", x, net.weight(6, 6, 3, 3), pads=[1] * 4, strides=[2, 2])
        trace = trace_onnx(net.model(net.head(x, 6)), input_shapes={"x": (1, 3, 8, 8)})
        image = np.random.default_rng(0).standard_normal((1, 3, side, side)).astype(np.float32)
        sites = sites_of(trace, "shape")
        assert "conv1" in sites
        smallest = {name: site.values[0] for name, site in sites.items()}
        removal = removal_of(trace, settings_of(trace, smallest, SHAPE), SHAPE)
        expected = run(with_dead_parts(trace, removal), [image])
        assert relative_error(expected, run(cut(trace, removal), [image])) < 1e-5


@pytest.mark.parametrize("name", ["resnet_a", "mobilenet_v2", "keywords_1d", "unet", "c2f"])
def test_exported_networks_are_cut_right_by_channels_and_taps_at_once(name: str) -> None:
    trace = trace_onnx(older_export(TOPOLOGIES[name], 18))
    rng = np.random.default_rng(0)
    for _ in range(2):
        assert_carried_out(trace, random_settings(trace, rng, SHAPE), SHAPE)


def test_both_exporters_offer_the_same() -> None:
    older, newer = (
        sites_of(trace_onnx(one), "shape")
        for one in (
            older_export(TOPOLOGIES["resnet_b"], 18),
            newer_export(TOPOLOGIES["resnet_b"], 18),
        )
    )
    told = [
        [(one.values, one.shares, one.operators) for one in own.values()] for own in (older, newer)
    ]
    assert told[0] == told[1]


def test_extents_that_are_not_offered_are_refused_by_name() -> None:
    trace = convolution((3, 3), pads=[1] * 4)
    with pytest.raises(PlanError, match="site 'c' has no option 404 of scheme 'shape'"):
        carry_out(trace, settings_of(trace, {"c": 404}, SHAPE), SHAPE)
    with pytest.raises(PlanError, match="settings for a model of"):
        carry_out(trace, settings_of(trace, {}, SHAPE)[:-1], SHAPE)
