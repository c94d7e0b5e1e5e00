"""What a pruned ONNX model must equal, and nets written straight as ONNX to try it on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from rlprune.graph.from_onnx import OnnxTrace, trace_onnx
from rlprune.graph.reach import attach
from rlprune.graph.types import IntArray
from rlprune.surgery.importance import unit_scores
from rlprune.surgery.onnx import kept_units, prune_onnx

Array = NDArray[np.float32]


def run(model: onnx.ModelProto, inputs: Sequence[Array]) -> list[Array]:
    """Outputs in ONNX Runtime."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [value.name for value in session.get_inputs()]
    return list(session.run(None, dict(zip(names, inputs, strict=True))))


def inputs_of(trace: OnnxTrace, seed: int = 0) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(np.float32) for shape in trace.graph.input_shapes]


def relative_error(left: Sequence[Array], right: Sequence[Array]) -> float:
    """Largest difference, as a share of the largest entry on the left."""
    assert [a.shape for a in left] == [b.shape for b in right]
    pairs = zip(left, right, strict=True)
    numbers = [(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in pairs]
    return max(
        (float(np.abs(a - b).max() / (np.abs(a).max() + 1e-12)) for a, b in numbers if a.size),
        default=0.0,
    )


def numbers_in_weights(model: onnx.ModelProto) -> int:
    """Elements of all initializers but integers, of which those of eight bits count."""
    real = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)
    counted = (*real, TensorProto.INT8, TensorProto.UINT8)
    return sum(math.prod(t.dims) for t in model.graph.initializer if t.data_type in counted)


def reading_axis(trace: OnnxTrace, index: int) -> tuple[str, int] | None:
    """The weight through which node `index` reads channels, and the axis; None for the others."""
    node = trace.normal.nodes[index]
    groups = int(node.attrs.get("group", 1))
    if len(node.inputs) < 2 or node.inputs[1] not in trace.normal.weights:
        return None
    shape = trace.normal.shapes[node.inputs[1]]
    if node.op in ("LSTM", "GRU", "RNN"):
        return node.inputs[1], 2
    if node.op == "DeformConv":
        return node.inputs[1], 1
    if node.op == "Conv" and (groups == 1 or shape[1] > 1):
        return node.inputs[1], 1
    if node.op == "ConvTranspose" and (groups == 1 or shape[0] > groups):
        return node.inputs[1], 0
    if node.op == "Gemm":
        return node.inputs[1], 1 if node.attrs.get("transB") else 0
    if node.op == "Einsum":
        terms, output = node.attrs["equation"].replace(" ", "").split("->")
        read, own = terms.split(",")
        return node.inputs[1], next(own.index(c) for c in read if c in own and c not in output)
    if node.op == "MatMul" and len(shape) == 2:
        return node.inputs[1], 0
    return None


def with_dead_readers(trace: OnnxTrace, kept: Sequence[IntArray]) -> onnx.ModelProto:
    """The whole model, every weight that reads a unit outside `kept` set to zero."""
    model = onnx.ModelProto()
    model.CopyFrom(trace.model)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for index in range(len(trace.normal.nodes)):
        found = reading_axis(trace, index)
        if found is None:
            continue
        name, axis = found
        group, unit = trace.channels.axis_units(name, axis)
        dead = np.zeros(len(group), dtype=bool)
        for g, units in enumerate(kept):
            dead |= (group == g) & ~np.isin(unit, units)
        if dead.any():
            array = numpy_helper.to_array(weights[name]).copy()
            np.moveaxis(array, axis, 0)[dead] = 0
            weights[name].CopyFrom(numpy_helper.from_array(array, name))
    return model


def some_keeps(trace: OnnxTrace, random_count: int = 2) -> list[IntArray]:
    """Half of every group, one unit of every group, and random plans."""
    rng = np.random.default_rng(0)
    widths = trace.graph.widths
    random = [rng.integers(1, widths + 1) for _ in range(random_count)]
    return [np.maximum(1, widths // 2), np.ones_like(widths), *random]


def assert_pruned_right(trace: OnnxTrace, keeps: IntArray, tolerance: float = 1e-4) -> float:
    """The pruned model is sound and equals the whole one with the dropped units' readers zeroed.

    Returns:
        The largest relative difference found.
    """
    inputs = inputs_of(trace)
    kept = kept_units(unit_scores(trace), keeps)
    pruned = prune_onnx(trace, keeps)
    onnx.checker.check_model(pruned, full_check=True)
    expected = run(with_dead_readers(trace, kept), inputs)
    error = relative_error(expected, run(pruned, inputs))
    assert error < tolerance
    after = trace_onnx(pruned).graph
    whole = trace.graph
    assert int(after.macs(after.widths)) == int(whole.macs(keeps))
    assert numbers_in_weights(attach(pruned, trace.tail)) == int(whole.params(keeps))
    return error


def assert_every_group_matters(trace: OnnxTrace, least: float = 1e-3) -> None:
    """Without its readers, each group alone changes some output."""
    inputs = inputs_of(trace)
    whole = run(trace.model, inputs)
    for g, group in enumerate(trace.graph.groups):
        kept = [np.arange(width) for width in trace.graph.widths]
        kept[g] = np.zeros(0, dtype=np.int64)
        change = relative_error(whole, run(with_dead_readers(trace, kept), inputs))
        assert change > least, f"{group.name} changes the output by {change}"


class Net:
    """Builds an ONNX model node by node, with random weights."""

    def __init__(self, *shape: int | str, opset: int = 18, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.opset = opset
        self.shape = shape
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[TensorProto] = []

    def weight(self, *shape: int, positive: bool = False) -> str:
        fan = int(np.prod(shape[1:])) or 1
        values = self.rng.standard_normal(shape) * np.sqrt(2 / fan)
        if len(shape) < 2:
            values = self.rng.uniform(0.5, 1.5, shape) if positive else values * 0.3
        return self.constant(values.astype(np.float32))

    def constant(self, values: Any, dtype: Any = None) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(values, dtype=dtype), name))
        return name

    def ints(self, *values: int) -> str:
        return self.constant(values, np.int64)

    def add(self, op: str, *inputs: str, outputs: int = 1, **attrs: Any) -> Any:
        names = [f"t{len(self.nodes)}_{k}" for k in range(outputs)]
        self.nodes.append(
            helper.make_node(op, inputs, names, name=f"{op.lower()}{len(self.nodes)}", **attrs)
        )
        return names[0] if outputs == 1 else names

    def conv(
        self, x: str, cin: int, cout: int, kernel: int = 3, *, group: int = 1, stride: int = 1
    ) -> str:
        weight = self.weight(cout, cin // group, kernel, kernel)
        pads = [kernel // 2] * 4
        bias = self.weight(cout)
        made: str = self.add(
            "Conv", x, weight, bias, pads=pads, group=group, strides=[stride, stride]
        )
        return made

    def norm(self, x: str, width: int) -> str:
        parts = [self.weight(width, positive=True), self.weight(width), self.weight(width)]
        made: str = self.add(
            "BatchNormalization", x, *parts, self.weight(width, positive=True), epsilon=1e-3
        )
        return made

    def head(self, x: str, width: int, count: int = 10) -> str:
        pooled = self.add("GlobalAveragePool", x)
        flat = self.add("Flatten", pooled)
        made: str = self.add("Gemm", flat, self.weight(width, count), self.weight(count))
        return made

    def model(self, *outputs: str) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shape)],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
            self.weights,
        )
        opset = [helper.make_opsetid("", self.opset)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=10)
        inferred = onnx.shape_inference.infer_shapes(model)
        for value in inferred.graph.output:
            if not value.type.tensor_type.HasField("shape"):
                value.type.tensor_type.shape.SetInParent()
                value.type.tensor_type.shape.dim.add()
                value.type.tensor_type.shape.dim.add()
        return inferred


Built = tuple[Net, str | tuple[str, ...]]
"""A net and its outputs."""
Cases = dict[str, tuple[Callable[[], Built], list[int]]]


def cases() -> tuple[Cases, Callable[..., Callable[[Callable[[], Built]], Callable[[], Built]]]]:
    """A table of nets by name, each with the widths of its groups, and what puts a net into it."""
    table: Cases = {}

    def case(*widths: int) -> Callable[[Callable[[], Built]], Callable[[], Built]]:
        def enter(build: Callable[[], Built]) -> Callable[[], Built]:
            table[build.__name__] = build, list(widths)
            return build

        return enter

    return table, case
