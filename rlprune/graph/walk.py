"""One walk through a model's nodes, at one size of its inputs: extents, types, constants folded.

ONNX's own inference tells extents, node by node, so that the values folded so far (Reshape targets
computed in the graph) can be used for the next node.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
from onnx import (
    ModelProto,
    NodeProto,
    TensorProto,
    TypeProto,
    helper,
    shape_inference,
)

from rlprune.errors import ModelError, UnsupportedOperatorError, one_line
from rlprune.graph.folding import (
    ARITHMETIC,
    LAYOUT,
    MAX_ALL_FOLDED,
    MAX_FOLDED,
    Array,
    constant_value,
    counts_fit,
    make_tensor,
    readable,
    result_size,
)
from rlprune.graph.load import check_shape
from rlprune.graph.nodes import Node as Node
from rlprune.graph.nodes import attribute_value as attribute_value
from rlprune.graph.nodes import named as named
from rlprune.graph.nodes import read_node as read_node
from rlprune.graph.nodes import read_nodes as read_nodes
from rlprune.graph.nodes import reading as reading
from rlprune.graph.weights import Weight, is_hollow, to_array, weight_of

Shape = tuple[int, ...]

_KEEP_SHAPE = frozenset(
    (
        *("Relu", "LeakyRelu", "Sigmoid", "Tanh", "HardSwish", "HardSigmoid", "Elu", "Gelu", "Erf"),
        *("Clip", "Identity", "Softmax", "BatchNormalization", "InstanceNormalization"),
        *("LayerNormalization", "GroupNormalization", "MeanVarianceNormalization"),
        *("Celu", "ThresholdedRelu", "Shrink", "Selu", "Mish", "Softsign", "Swish"),
    )
)
"""Operators whose one output is shaped as their first input: no need, or (where a function defines
them) no way, to infer."""


@dataclass
class Walk:
    """One walk through the nodes at one size of the inputs."""

    nodes: Sequence[Node]
    protos: Sequence[NodeProto]
    opsets: Mapping[str, int]
    weights: dict[str, Weight]
    types: dict[str, tuple[int, Shape]]
    declared: Mapping[str, tuple[int, Shape]]
    values: dict[str, Array] = field(default_factory=dict)
    joined: frozenset[str] = frozenset()
    """Concats that only put weights together for a recurrent layer."""
    folded: int = 0
    """Elements folded so far."""

    def run(self) -> None:
        self.begin()
        for node, proto in zip(self.nodes, self.protos, strict=True):
            self.visit(node, proto)

    def begin(self) -> None:
        """Knows the constants that the file holds."""
        self._enter(self.weights)

    def add_weights(self, tensors: Iterable[TensorProto]) -> None:
        """Knows more constants, those of a branch that is taken."""
        more = {tensor.name: weight_of(tensor) for tensor in tensors}
        self.weights.update(more)
        self._enter(more)

    def _enter(self, weights: Mapping[str, Weight]) -> None:
        for name, weight in weights.items():
            self.types[name] = (weight.elem_type, weight.dims)
            if weight.array is not None:
                self.values[name] = weight.array

    def visit(self, node: Node, proto: NodeProto) -> None:
        """Knows what the next node makes.

        Raises:
            ModelError: its inputs do not fit it. UnsupportedOperatorError: the extents of an output
                cannot be told.
        """
        with reading(node):
            texts = [n for n in node.inputs if n and self.types[n][0] == TensorProto.STRING]
            if texts:
                raise UnsupportedOperatorError(node.name, node.op, f"it reads text ({texts[0]!r})")
            if not self._fold(node, proto):
                self._infer(node, proto)

    def _fold(self, node: Node, proto: NodeProto) -> bool:
        """Evaluates a node of constants; False where it has to stay."""
        if node.op == "Constant":
            return self._constant(node)
        if node.op in ("Shape", "Size"):
            shape = self.types[node.inputs[0]][1]
            if node.op == "Shape":
                part = shape[node.attrs.get("start", 0) : node.attrs.get("end", len(shape))]
                self._know(node.outputs[0], np.array(part, dtype=np.int64))
            else:
                self._know(node.outputs[0], np.array(np.prod(shape, dtype=np.int64)))
            return True
        if node.op in ("Dropout",) or not node.inputs or not proto.output[0]:
            return False
        first = self.weights.get(node.inputs[0])
        rest = [self.values.get(name) for name in node.inputs[1:] if name]
        if first is not None and first.array is None and node.op in LAYOUT:
            if any(value is None for value in rest):
                return False
            return self._move(node, first, [value for value in rest if value is not None])
        if node.outputs[0] in self.joined and all(n in self.weights for n in node.inputs):
            return self._join(node)
        if first is not None and node.op == "Split":
            return self._split(node, first)
        known = [v for name in node.inputs if (v := self.values.get(name)) is not None]
        if node.op not in ARITHMETIC or len(known) < len(node.inputs):
            return False
        try:
            if result_size(node.op, dict(node.attrs), known) > MAX_FOLDED:
                return False
            with np.errstate(all="ignore"):
                result = np.asarray(ARITHMETIC[node.op](dict(node.attrs), *known))
        except (ValueError, IndexError, TypeError, KeyError, OverflowError):
            return False
        if not readable(result.dtype, result.size) and node.op not in LAYOUT:
            return False
        self._know(node.outputs[0], result)
        return True

    def _constant(self, node: Node) -> bool:
        name = node.outputs[0]
        value = constant_value(node.attrs)
        if value is not None:
            self._know(name, value)
            return True
        proto = node.attrs.get("value")
        if not isinstance(proto, TensorProto):
            raise UnsupportedOperatorError(node.name, "Constant", "holds no tensor of numbers")
        self.weights[name] = weight_of(proto)
        self.types[name] = (proto.data_type, tuple(proto.dims))
        array = self.weights[name].array
        if array is not None:
            self.values[name] = array
        return True

    def _know(self, name: str, array: Array) -> None:
        elem = helper.np_dtype_to_tensor_dtype(array.dtype)
        check_shape(name, array.shape)
        self.folded += array.size
        if self.folded > MAX_ALL_FOLDED:
            raise ModelError(f"the model computes more than {MAX_ALL_FOLDED} constant numbers")
        self.types[name] = (elem, array.shape)
        self.weights[name] = Weight(array.shape, elem, array=array)
        if readable(array.dtype, array.size):
            self.values[name] = array

    def _move(self, node: Node, weight: Weight, rest: list[Array]) -> bool:
        """Moves a weight for good; with only its shape known (a skeleton), moves the shape."""
        name = node.outputs[0]
        if node.op == "Identity":
            self.weights[name] = replace(weight)
            self.types[name] = (weight.elem_type, weight.dims)
            return True
        if node.op == "Cast":
            return False
        try:
            (data,), hollow = _data_of(weight)
            # Swin's tables of relative positions grow (169 rows to 49 x 49): exporters fold them.
            most = max(data.size, MAX_FOLDED)
            if (
                node.op == "Gather"
                and result_size("Gather", dict(node.attrs), [data, *rest]) > most
            ):
                return False
            moved = LAYOUT[node.op](dict(node.attrs), data, *rest)
            if moved.size > data.size and node.op != "Gather":
                return False
        except (ValueError, IndexError, TypeError):
            return False
        self._put(name, weight, moved, hollow)
        return True

    def _join(self, node: Node) -> bool:
        """Joins weights for good, as exporters reorder the gates of recurrent layers."""
        parts = [self.weights[name] for name in node.inputs]
        data, hollow = _data_of(*parts)
        self._put(node.outputs[0], parts[0], ARITHMETIC["Concat"](dict(node.attrs), *data), hollow)
        return True

    def _put(self, name: str, weight: Weight, moved: Array, hollow: bool) -> None:
        """Makes `name` a weight that holds what was moved of another."""
        check_shape(name, moved.shape)
        self.types[name] = (weight.elem_type, moved.shape)
        if hollow:
            proto = TensorProto(name=name, data_type=weight.elem_type, dims=moved.shape)
            self.weights[name] = Weight(moved.shape, weight.elem_type, proto=proto)
            return
        self.weights[name] = weight_of(make_tensor(name, moved))

    def _split(self, node: Node, weight: Weight) -> bool:
        """Takes a weight apart for good, as the newer exporter leaves packed projections."""
        if any(not name for name in node.outputs) or not weight.dims:
            return False
        axis = int(node.attrs.get("axis", 0))
        if not -len(weight.dims) <= axis < len(weight.dims):
            return False
        extent = weight.dims[axis]
        given = self.values.get(node.inputs[1]) if len(node.inputs) > 1 else None
        if len(node.inputs) > 1 and node.inputs[1] and given is None:
            return False
        each = -(-extent // len(node.outputs))
        sizes = (
            [int(size) for size in given]
            if given is not None
            else list(node.attrs.get("split", ()))
            or [min(each, extent - each * k) for k in range(len(node.outputs))]
        )
        if len(sizes) != len(node.outputs) or sum(sizes) != extent or min(sizes) < 1:
            return False
        (data,), hollow = _data_of(weight)
        parts = np.split(data, np.cumsum(sizes)[:-1], axis=axis)
        for name, part in zip(node.outputs, parts, strict=True):
            self._put(name, weight, np.asarray(part), hollow)
            if node.inputs[0] in self.values:
                self.values[name] = np.asarray(part)
        return True

    def _infer(self, node: Node, proto: NodeProto) -> None:
        if node.op in _KEEP_SHAPE and len(node.outputs) == 1 and node.inputs[0] in self.types:
            self.types[node.outputs[0]] = self.types[node.inputs[0]]
            return
        inputs = {name: _type_proto(*self.types[name]) for name in node.inputs if name}
        # Floats too: the scales of a Resize decide about its extents.
        data = {
            name: make_tensor(name, self.values[name]) for name in inputs if name in self.values
        }
        version = self.opsets.get(proto.domain)
        try:
            schema = onnx.defs.get_schema(node.op, version or 1, proto.domain)
        except onnx.defs.SchemaError:
            self._declare(node)
            return
        try:
            found = shape_inference.infer_node_outputs(
                schema,
                proto,
                inputs,
                data,
                opset_imports=[helper.make_opsetid(d, v) for d, v in self.opsets.items()],
            )
        except (
            shape_inference.InferenceError,
            onnx.checker.ValidationError,
            RuntimeError,
            ValueError,
        ) as error:
            raise ModelError(
                f"node {node.name!r} ({node.op}): shapes do not fit: {one_line(error)}"
            ) from error
        for name in node.outputs:
            if name:
                shape = _shape(found.get(name))
                if shape is None:
                    self._declare(node)
                    return
                if found[name].tensor_type.elem_type == TensorProto.STRING:
                    raise UnsupportedOperatorError(node.name, node.op, f"it makes text ({name!r})")
                check_shape(name, shape)
                self.types[name] = (found[name].tensor_type.elem_type, shape)
        shapes = [self.types[name][1] for name in (*node.inputs[:2], node.outputs[0]) if name]
        if not counts_fit(node.op, dict(node.attrs), shapes):
            told = " ".join("x".join(map(str, shape)) for shape in shapes)
            raise ModelError(f"node {node.name!r} ({node.op}): counts do not fit: {told}")

    def _declare(self, node: Node) -> None:
        """Takes the output shapes the file states for an operator that cannot be inferred."""
        for name in node.outputs:
            if name and name in self.declared:
                self.types[name] = self.declared[name]
            elif name:
                raise UnsupportedOperatorError(
                    node.name, node.op, f"the shape of its output {name!r} cannot be told"
                )


def walk(model: ModelProto, nodes: Sequence[Node], inputs: Mapping[str, tuple[int, Shape]]) -> Walk:
    """Walks through a model with inputs of these types and extents.

    Raises:
        ModelError: shapes contradict each other, or cannot be told.
    """
    result = start_walk(model, nodes, inputs)
    result.run()
    return result


def start_walk(
    model: ModelProto, nodes: Sequence[Node], inputs: Mapping[str, tuple[int, Shape]]
) -> Walk:
    """A walk that has not begun; without `nodes` it is led with `begin` and `visit`."""
    declared = {}
    for value in (*model.graph.value_info, *model.graph.output):
        shape = _shape(value.type)
        if shape is not None:
            declared[value.name] = (value.type.tensor_type.elem_type, shape)
    protos = model.graph.node if nodes else ()
    return Walk(
        nodes,
        [named(proto, node) for proto, node in zip(protos, nodes, strict=True)],
        {e.domain if e.domain != "ai.onnx" else "": e.version for e in model.opset_import},
        {t.name: weight_of(t) for t in model.graph.initializer},
        dict(inputs),
        declared,
        joined=_joined(model.graph.node),
    )


def _data_of(*weights: Weight) -> tuple[list[Array], bool]:
    """The values of constants, and whether they are not there (a skeleton's): broadcast scalars
    then stand in for them."""
    hollow = any(w.array is None and w.proto is not None and is_hollow(w.proto) for w in weights)
    nothing = np.zeros((), np.bool_)
    return [np.broadcast_to(nothing, w.dims) if hollow else to_array(w) for w in weights], hollow


def _joined(nodes: Sequence[NodeProto]) -> frozenset[str]:
    """What Concats make that weights of recurrent layers come from, by moves alone."""
    makers = {name: node for node in nodes for name in node.output}
    todo = [n for node in nodes if node.op_type in ("LSTM", "GRU", "RNN") for n in node.input[1:4]]
    found: set[str] = set()
    seen: set[str] = set()
    while todo:
        name = todo.pop()
        if name in seen or name not in makers:
            continue
        seen.add(name)
        maker = makers[name]
        if maker.op_type == "Concat":
            found.add(name)
            todo += maker.input
        elif maker.op_type in LAYOUT:
            todo += maker.input[:1]
    return frozenset(found)


def _shape(kind: TypeProto | None) -> Shape | None:
    if kind is None or not kind.HasField("tensor_type") or not kind.tensor_type.HasField("shape"):
        return None
    dims = kind.tensor_type.shape.dim
    if any(not d.HasField("dim_value") or d.dim_value < 0 for d in dims):
        return None
    return tuple(d.dim_value for d in dims)


def _type_proto(elem: int, shape: Shape) -> TypeProto:
    return helper.make_tensor_type_proto(elem, shape)
