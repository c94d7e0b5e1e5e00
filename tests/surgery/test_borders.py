"""A border of zeros before a convolution becomes the convolution's own."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from rlprune.graph.from_onnx import trace_onnx
from rlprune.runtime import get_runtime
from rlprune.surgery.borders import with_own_borders


def padded(*, read_twice: bool = False, value: float = 0.0) -> onnx.ModelProto:
    """Pad (1 row above, 2 columns on the right), then a convolution that has a border, too."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((4, 3, 3, 2)).astype(np.float32)
    nodes = [
        helper.make_node("Pad", ["x", "counts", "value"], ["wide"]),
        helper.make_node("Conv", ["wide", "weight"], ["y"], pads=[0, 1, 1, 0]),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 8, 10])]
    if read_twice:
        nodes.append(helper.make_node("Relu", ["wide"], ["z"]))
        outputs.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, 3, 9, 10]))
    graph = helper.make_graph(
        nodes,
        "padded",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        outputs,
        [
            numpy_helper.from_array(weight, "weight"),
            numpy_helper.from_array(np.array([0, 0, 1, 0, 0, 0, 0, 2]), "counts"),
            numpy_helper.from_array(np.float32(value), "value"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(
    ("made", "left"),
    [
        (padded(), {"Conv"}),
        (padded(read_twice=True), {"Pad", "Conv", "Relu"}),
        (padded(value=1.0), {"Pad", "Conv"}),
    ],
    ids=["zeros", "read by another", "ones"],
)
def test_a_model_answers_the_same_without_the_pads_that_are_merged(
    made: onnx.ModelProto, left: set[str]
) -> None:
    merged = with_own_borders(trace_onnx(made))

    onnx.checker.check_model(merged, full_check=True)
    assert {node.op_type for node in merged.graph.node} == left
    used = {name for node in merged.graph.node for name in node.input}
    assert {initializer.name for initializer in merged.graph.initializer} <= used
    x = np.random.default_rng(1).standard_normal((1, 3, 8, 8)).astype(np.float32)
    answers = [get_runtime().load(m.SerializeToString()).run({"x": x}) for m in (made, merged)]
    for before, after in zip(*answers, strict=True):
        np.testing.assert_allclose(before, after, rtol=1e-5, atol=1e-5)
