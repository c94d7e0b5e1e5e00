"""Small nets written as ONNX directly, for tests that need no torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper


def conv_net(
    widths: Sequence[int] = (16, 32), *, extent: int = 16, class_count: int = 10, seed: int = 0
) -> onnx.ModelProto:
    """Conv-ReLU blocks of these widths, global pooling, a classifier; input `x` [1, 3, e, e]."""
    rng = np.random.default_rng(seed)
    nodes: list[NodeProto] = []
    weights: list[TensorProto] = []

    def weight(name: str, *shape: int) -> str:
        values = rng.normal(0.0, 0.2, shape).astype(np.float32)
        weights.append(numpy_helper.from_array(values, name))
        return name

    last, last_width = "x", 3
    for index, width in enumerate(widths):
        kernel = weight(f"conv{index}.weight", width, last_width, 3, 3)
        nodes += [
            helper.make_node("Conv", [last, kernel], [f"c{index}"], f"conv{index}", pads=[1] * 4),
            helper.make_node("Relu", [f"c{index}"], [f"r{index}"], f"relu{index}"),
        ]
        last, last_width = f"r{index}", width
    nodes += [
        helper.make_node("GlobalAveragePool", [last], ["pooled"], "pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], "flatten"),
        helper.make_node(
            "Gemm", ["flat", weight("fc.weight", class_count, last_width)], ["y"], "fc", transB=1
        ),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, extent, extent])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, class_count])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
