"""Padding moves into the convolutions that read it, and the answers stay."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from rlprune.runtime import get_runtime
from rlprune.surgery.pads import with_pads_moved

SIDES = [0, 0, 1, 0, 0, 0, 1, 1]


def padded(
    *, pads: list[int] = SIDES, mode: str = "constant", value: float | None = None, relu: bool
) -> ModelProto:
    """Pad, then a convolution of its own padding (1, 0, 0, 1), and perhaps another reader."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((4, 3, 2, 2)).astype(np.float32)
    arrays = {"w": weight, "pads": np.array(pads, dtype=np.int64)}
    inputs = ["x", "pads", ""]
    if value is not None:
        arrays["v"], inputs[2] = np.array(value, dtype=np.float32), "v"
    nodes = [
        helper.make_node("Pad", inputs, ["p"], mode=mode),
        helper.make_node("Conv", ["p", "w"], ["y"], pads=[1, 0, 0, 1]),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, list("abcd"))]
    if relu:
        nodes.append(helper.make_node("Relu", ["p"], ["z"]))
        outputs.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, list("abcd")))
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 6, 6])],
        outputs,
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def answers(model: ModelProto) -> list[np.ndarray]:
    x = np.random.default_rng(1).standard_normal((1, 3, 6, 6)).astype(np.float32)
    session = get_runtime().load(model.SerializeToString())
    found = [np.array(one) for one in session.run({"x": x})]
    session.close()
    return found


@pytest.mark.parametrize("value", [None, 0.0])
def test_zeros_before_a_convolution_become_its_own_padding(value: float | None) -> None:
    model = padded(value=value, relu=False)
    moved = with_pads_moved(model)
    onnx.checker.check_model(moved)
    assert [node.op_type for node in moved.graph.node] == ["Conv"]
    assert [tensor.name for tensor in moved.graph.initializer] == ["w"]
    assert [node.op_type for node in model.graph.node] == ["Pad", "Conv"]  # as it was
    np.testing.assert_allclose(answers(model)[0], answers(moved)[0], atol=1e-5)


@pytest.mark.parametrize(
    "kept",
    [
        {"value": 1.0, "relu": False},
        {"mode": "reflect", "relu": False},
        {"pads": [0, 0, -1, 0, 0, 0, 0, 0], "relu": False},
        {"pads": [0, 0, 1, 0, 1, 0, 0, 0], "relu": False},
        {"relu": True},
    ],
)
def test_other_padding_stays(kept: dict[str, Any]) -> None:
    model = padded(**kept)
    assert with_pads_moved(model) == model
