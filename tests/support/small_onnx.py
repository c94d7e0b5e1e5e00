"""A small network written straight as ONNX, for tests that need a model file but no torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def small_onnx(
    *,
    shape: Sequence[int | str] = (1, 3, 16, 16),
    widths: tuple[int, int] = (32, 64),
    seed: int = 0,
) -> onnx.ModelProto:
    """Two 3x3 convolutions with ReLU, global pooling and a classifier of ten: two groups."""
    rng = np.random.default_rng(seed)
    first, second = widths
    shapes = {"w1": (first, 3, 3, 3), "w2": (second, first, 3, 3), "w3": (second, 10)}
    weights = [
        numpy_helper.from_array(
            (rng.standard_normal(extents) / np.sqrt(extents[1] * 9)).astype(np.float32), name
        )
        for name, extents in shapes.items()
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], name="conv1", pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"], name="relu1"),
        helper.make_node("Conv", ["b", "w2"], ["c"], name="conv2", pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["d"], name="relu2"),
        helper.make_node("GlobalAveragePool", ["d"], ["e"], name="pool"),
        helper.make_node("Flatten", ["e"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "w3"], ["y"], name="head"),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (shape[0], 10))],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
