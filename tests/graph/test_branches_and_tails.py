"""If of known condition is followed; what has no known shape ends the analysed part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx_oracle import Net, assert_pruned_right, run, some_keeps

import rlprune
from rlprune.errors import ModelError, UnsupportedOperatorError

Array = NDArray[Any]
RNG = np.random.default_rng(0)


def body(
    name: str, nodes: Sequence[onnx.NodeProto], output: str, **weights: Array
) -> onnx.GraphProto:
    kept = [numpy_helper.from_array(array, key) for key, array in weights.items()]
    ends = [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)]
    return helper.make_graph(nodes, name, [], ends, kept)


def kernel(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


def branches(x: str) -> dict[str, onnx.GraphProto]:
    """Two bodies that use the same names for other things."""
    wide = [
        helper.make_node("Conv", [x, "w"], ["y"], pads=[1] * 4),
        helper.make_node("Relu", ["y"], ["z"]),
    ]
    narrow = [helper.make_node("Conv", [x, "w"], ["y"]), helper.make_node("Relu", ["y"], ["z"])]
    return {
        "then_branch": body("wide", wide, "z", w=kernel(24, 16, 3, 3)),
        "else_branch": body("narrow", narrow, "z", w=kernel(24, 16, 1, 1)),
    }


def by_rate(first: int = 32) -> onnx.ModelProto:
    """A network whose middle depends on the graph input `sr`."""
    net = Net("batch", 3, 12, 12)
    x = net.add("Relu", net.conv("x", 3, first))
    x = net.add("Relu", net.conv(x, first, 16))
    condition = net.add("Equal", "sr", net.constant(np.int64(16000), np.int64))
    x = net.add("If", condition, **branches(x))
    model = net.model(net.head(net.conv(x, 24, 12), 12))
    model.graph.input.append(helper.make_tensor_value_info("sr", TensorProto.INT64, []))
    return model


def image(batch: int = 1) -> Array:
    return np.random.default_rng(3).standard_normal((batch, 3, 12, 12)).astype(np.float32)


@pytest.mark.parametrize("rate", [16000, 8000])
def test_a_branch_that_an_input_value_decides_is_followed(rate: int) -> None:
    model = by_rate()
    trace = rlprune.trace(model, input_values={"sr": rate})
    assert [group.width for group in trace.graph.groups] == [32, 16, 24, 12]
    assert [value.name for value in trace.model.graph.input] == ["x"]
    for keeps in some_keeps(trace):
        assert_pruned_right(trace, keeps)
    (expected,) = run(model, [image(3), np.array(rate)])
    (found,) = run(trace.model, [image(3)])
    np.testing.assert_array_equal(found, expected)


def test_without_a_value_the_branch_stays_and_what_is_before_it_is_cut() -> None:
    model = by_rate()
    trace = rlprune.trace(model)
    assert [group.width for group in trace.graph.groups] == [32]
    assert any("--input-value sr=" in held.reason for held in trace.graph.held)
    plan = rlprune.plan(trace, budget_ratio=0.6, device="macs", round_to=1)
    small = rlprune.apply(plan, model)
    assert [value.name for value in small.graph.input] == ["x", "sr"]
    assert [value.name for value in small.graph.output] == [model.graph.output[0].name]
    whole = rlprune.apply(rlprune.plan(trace, budget_ratio=1.0, device="macs", round_to=1), model)
    for rate in (16000, 8000):
        (expected,) = run(model, [image(2), np.array(rate)])
        np.testing.assert_array_equal(run(whole, [image(2), np.array(rate)])[0], expected)
        assert run(small, [image(2), np.array(rate)])[0].shape == expected.shape


def test_where_nothing_is_before_the_branch_the_refusal_names_the_option() -> None:
    net = Net(1, 16, 12, 12)
    condition = net.add("Equal", "sr", net.constant(np.int64(1), np.int64))
    x = net.add("If", condition, **branches("x"))
    model = net.model(net.head(net.conv(x, 24, 12), 12))
    model.graph.input.append(helper.make_tensor_value_info("sr", TensorProto.INT64, []))
    with pytest.raises(UnsupportedOperatorError, match="--input-value sr=VALUE"):
        rlprune.trace(model)


def test_nested_branches_and_conditions_of_shapes_are_followed() -> None:
    net = Net("batch", 3, 12, 12)
    x = net.add("Relu", net.conv("x", 3, 16))
    rank = net.add("Size", net.add("Shape", x))
    inner = helper.make_node("If", ["yes"], ["z"], name="inner", **branches(x))
    known = body("outer", [inner], "z", yes=np.array(False))
    other = body("other", [helper.make_node("Relu", [x], ["z"])], "z")
    condition = net.add("Equal", rank, net.constant(np.int64(4), np.int64))
    x = net.add("If", condition, then_branch=known, else_branch=other)
    extent = net.add("Gather", net.add("Shape", x), net.constant(np.int64(1), np.int64))
    passed = body("passed", [helper.make_node("Identity", [x], ["z"])], "z")
    doubled = body("doubled", [helper.make_node("Add", [x, x], ["z"])], "z")
    alone = net.add("Equal", extent, net.constant(np.int64(24), np.int64))
    x = net.add("If", alone, then_branch=passed, else_branch=doubled)
    model = net.model(net.head(net.conv(x, 24, 12), 12))
    trace = rlprune.trace(model)
    assert [group.width for group in trace.graph.groups] == [16, 24, 12]
    assert not any(node.op_type == "If" for node in trace.model.graph.node)
    for keeps in some_keeps(trace):
        assert_pruned_right(trace, keeps)
    np.testing.assert_array_equal(run(trace.model, [image(2)])[0], run(model, [image(2)])[0])


def test_a_condition_that_depends_on_the_open_batch_is_not_decided_by_a_batch_of_one() -> None:
    net = Net("batch", 3, 12, 12)
    x = net.add("Relu", net.conv("x", 3, 32))
    x = net.add("Relu", net.conv(x, 32, 16))
    batch = net.add("Gather", net.add("Shape", x), net.constant(np.int64(0), np.int64))
    condition = net.add("Equal", batch, net.constant(np.int64(1), np.int64))
    x = net.add("If", condition, **branches(x))
    model = net.model(net.head(net.conv(x, 24, 12), 12))
    trace = rlprune.trace(model)
    assert trace.tail is not None
    assert [group.width for group in trace.graph.groups] == [32]
    whole = rlprune.apply(rlprune.plan(trace, budget_ratio=1.0, device="macs", round_to=1), model)
    for count in (1, 2):
        np.testing.assert_array_equal(run(whole, [image(count)])[0], run(model, [image(count)])[0])


def test_a_branch_that_depends_on_an_open_length_closes_it_and_says_so() -> None:
    net = Net("batch", 3, "height", 12)
    x = net.add("Relu", net.conv("x", 3, 32))
    height = net.add("Gather", net.add("Shape", x), net.constant(np.int64(2), np.int64))
    condition = net.add("Equal", height, net.constant(np.int64(12), np.int64))
    x = net.add("If", condition, **branches(net.add("Relu", net.conv(x, 32, 16))))
    model = net.model(net.head(net.conv(x, 24, 12), 12))
    trace = rlprune.trace(model, input_shapes={"x": (1, 3, 12, 12)})
    assert trace.tail is None and len(trace.graph.groups) == 4
    assert any("stays 12 long on axis 2" in note for note in trace.notes)
    dims = trace.model.graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_value for dim in dims] == [0, 3, 12, 12]
    np.testing.assert_array_equal(run(trace.model, [image(2)])[0], run(model, [image(2)])[0])
    for keeps in some_keeps(trace):
        assert_pruned_right(trace, keeps)


@pytest.mark.parametrize("value", ["fast", 0.5, 2**70, float("nan"), [1, 2], None])
def test_an_input_value_that_does_not_fit_is_refused(value: object) -> None:
    with pytest.raises(ModelError, match="'sr'"):
        rlprune.trace(by_rate(), input_values={"sr": value})
    with pytest.raises(ModelError, match="no graph input 'rate'"):
        rlprune.trace(by_rate(), input_values={"rate": 1})


def detector() -> onnx.ModelProto:
    """Boxes and scores, then NonMaxSuppression, and boxes scaled by the size of the image."""
    net = Net(1, 3, 16, 16)
    x = net.add("Relu", net.conv("x", 3, 16))
    x = net.add("Relu", net.conv(x, 16, 32))
    boxes = net.add("Reshape", net.conv(x, 32, 4), net.ints(1, 4, -1))
    height = net.add("Cast", net.add("Gather", net.add("Shape", "x"), net.ints(2)), to=1)
    boxes = net.add("Mul", net.add("Transpose", boxes, perm=[0, 2, 1]), height)
    scores = net.add("Reshape", net.add("Sigmoid", net.conv(x, 32, 2)), net.ints(1, 2, -1))
    limits = [net.constant(np.int64(5), np.int64), net.constant(0.5, np.float32)]
    chosen = net.add("NonMaxSuppression", boxes, scores, *limits, limits[1])
    index = net.add("Gather", chosen, net.ints(2), axis=1)
    found = net.add("GatherND", net.add("Squeeze", boxes, net.ints(0)), index)
    model = net.model(found, scores)
    del model.graph.value_info[:]
    return model


def sequence() -> onnx.ModelProto:
    net = Net(1, 3, 16, 16)
    x = net.add("Relu", net.conv("x", 3, 16))
    x = net.add("Relu", net.conv(x, 16, 32))
    parts = net.add("SplitToSequence", net.conv(x, 32, 6), axis=1)
    one = net.add("SequenceAt", parts, net.constant(np.int64(1), np.int64))
    model = net.model(one, net.add("Sigmoid", x))
    del model.graph.value_info[:]
    return model


def of_domain(
    model: onnx.ModelProto, domain: str, place: int, op: str, **attrs: object
) -> onnx.ModelProto:
    """The model with another operator at one place."""
    node = model.graph.node[place]
    node.op_type, node.domain = op, domain
    node.attribute.extend(helper.make_attribute(key, value) for key, value in attrs.items())
    model.opset_import.append(helper.make_opsetid(domain, 1))
    del model.graph.value_info[:]
    return model


def fused() -> onnx.ModelProto:
    """As an optimiser of ONNX Runtime leaves it."""
    net = Net(1, 3, 16, 16)
    x = net.add("Relu", net.conv("x", 3, 16))
    x = net.add("Relu", net.conv(x, 16, 32))
    model = net.model(net.add("GlobalAveragePool", net.conv(x, 32, 8)))
    return of_domain(model, "com.microsoft", 4, "FusedConv", activation="Relu")


def looped() -> onnx.ModelProto:
    net = Net(1, 3, 16, 16)
    x = net.add("Relu", net.conv("x", 3, 16))
    x = net.add("Relu", net.conv(x, 16, 32))
    step = helper.make_graph(
        [
            helper.make_node("Add", ["v", x], ["w"]),
            helper.make_node("Identity", ["go"], ["on"]),
        ],
        "step",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, [1, 32, 16, 16]),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("w", TensorProto.FLOAT, [1, 32, 16, 16]),
        ],
    )
    three = net.constant(np.int64(3), np.int64)
    model = net.model(net.add("Loop", three, net.constant(True, np.bool_), x, body=step))
    del model.graph.value_info[:]
    return model


def labelled() -> onnx.ModelProto:
    """The name of the likeliest class."""
    net = Net(1, 3, 16, 16)
    x = net.add("Relu", net.conv("x", 3, 16))
    best = net.add("ArgMax", net.head(net.conv(x, 16, 8), 8), axis=1, keepdims=0)
    model = net.model(net.add("Gather", "words", best))
    words = [f"class {k}".encode() for k in range(10)]
    model.graph.initializer.append(helper.make_tensor("words", TensorProto.STRING, [10], words))
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.STRING
    del model.graph.value_info[:]
    return model


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (detector, "NonMaxSuppression"),
        (sequence, "SplitToSequence"),
        (fused, "give the file from before optimising"),
        (looped, "loops are not analysed"),
        (labelled, "it reads text ('words')"),
    ],
)
def test_an_unknown_tail_ends_the_analysed_part_and_is_kept(
    make: Callable[[], onnx.ModelProto], reason: str
) -> None:
    model = make()
    trace = rlprune.trace(model)
    assert 16 in [group.width for group in trace.graph.groups]
    assert any(reason in note for note in trace.notes)
    for keeps in some_keeps(trace):
        assert_pruned_right(trace, keeps)
    inputs = [np.random.default_rng(3).standard_normal((1, 3, 16, 16)).astype(np.float32)]
    whole = rlprune.apply(rlprune.plan(trace, budget_ratio=1.0, device="macs", round_to=1), model)
    assert [v.name for v in whole.graph.output] == [v.name for v in model.graph.output]
    for found, expected in zip(run(whole, inputs), run(model, inputs), strict=True):
        np.testing.assert_array_equal(found, expected)
    small = rlprune.apply(rlprune.plan(trace, budget_ratio=0.5, device="macs", round_to=1), model)
    assert len(run(small, inputs)) == len(model.graph.output)


def test_a_tail_reads_shared_weights_whole() -> None:
    net = Net(1, 3, 16, 16)
    shared = net.weight(16, 16, 3, 3)
    x = net.add("Relu", net.conv("x", 3, 16))
    x = net.add("Relu", net.add("Conv", x, shared, pads=[1] * 4))
    x = net.add("Relu", net.conv(x, 16, 16))
    parts = net.add("SplitToSequence", x, axis=1)
    y = net.add("SequenceAt", parts, net.constant(np.int64(1), np.int64))
    y = net.add("Expand", y, net.ints(1, 16, 1, 1))
    model = net.model(net.add("Conv", y, shared, pads=[1] * 4))
    del model.graph.value_info[:]
    trace = rlprune.trace(model)
    inputs = [np.random.default_rng(3).standard_normal((1, 3, 16, 16)).astype(np.float32)]
    whole = rlprune.apply(rlprune.plan(trace, budget_ratio=1.0, device="macs", round_to=1), model)
    np.testing.assert_array_equal(run(whole, inputs)[0], run(model, inputs)[0])
    small = rlprune.apply(rlprune.plan(trace, budget_ratio=0.4, device="macs", round_to=1), model)
    assert run(small, inputs)[0].shape == run(model, inputs)[0].shape


def test_an_optimised_file_without_a_head_is_refused_with_the_remedy() -> None:
    net = Net(1, 3, 16, 16)
    x = net.add("Relu", "x")
    model = net.model(net.head(net.conv(x, 3, 16), 16))
    of_domain(model, "com.microsoft.nchwc", 0, "ReorderInput")
    with pytest.raises(UnsupportedOperatorError, match="give the file from before optimising"):
        rlprune.trace(model)


def lying(kind: str) -> onnx.ModelProto:
    net = Net("N", 3, 16, 16)
    x = net.add("Relu", net.conv("x", 3, 32))
    model = net.model(net.add("Transpose", net.conv(x, 32, 8), perm=[1, 0, 2, 3]))
    shape = model.graph.output[0].type.tensor_type
    shape.ClearField("shape")
    if kind == "false":
        for extent in (1, 8210):
            shape.shape.dim.add().dim_value = extent
    return model


@pytest.mark.parametrize("kind", ["false", "missing"])
def test_output_shapes_that_are_false_or_missing_are_written_truly(
    kind: str, tmp_path: Path
) -> None:
    onnx.save(lying(kind), tmp_path / "model.onnx")
    trace = rlprune.trace(tmp_path / "model.onnx")
    for keeps in some_keeps(trace):
        assert_pruned_right(trace, keeps)
    dims = trace.model.graph.output[0].type.tensor_type.shape.dim
    assert [dim.dim_value for dim in dims] == [8, 0, 16, 16]


def test_negative_extents_are_open_ones(tmp_path: Path) -> None:
    net = Net(-1, 3, -1, 16)
    model = net.model(net.head(net.conv("x", 3, 32), 32))
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = -1
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(ModelError, match="--input-shape x=1x3xNx16"):
        rlprune.trace(tmp_path / "model.onnx")
    for given in (model, tmp_path / "model.onnx"):
        trace = rlprune.trace(given, input_shapes={"x": (1, 3, 16, 16)})
        for keeps in some_keeps(trace):
            assert_pruned_right(trace, keeps)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == -1
