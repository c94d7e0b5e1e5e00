"""The one form in which models are analysed and cut.

Exporters write the same network in many ways. `normalise` answers with an equal model in which every
constant is an initializer with one meaning: Constant nodes and arithmetic on shapes are folded,
weights moved by Transpose or Reshape are moved for good, and a vector that the exporter shared between
layers because it happened to hold equal values is given to each reader as its own. The extents of all
tensors are known. Where the batch size is left open it stays open: what depends on it is found by
looking at batches of one and of two, and is not folded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from onnx import (
    ModelProto,
    NodeProto,
    TensorProto,
    TypeProto,
    helper,
    numpy_helper,
    shape_inference,
)

from rlprune.errors import ModelError, UnsupportedOperatorError
from rlprune.graph.folding import (
    ARITHMETIC,
    LAYOUT,
    Array,
    constant_value,
    make_tensor,
    readable,
)
from rlprune.graph.load import check_shape

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Node:
    """A node with its attributes as Python values."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: Mapping[str, Any]
    scope: str = ""
    """Module path that the exporter noted, e.g. `layer1.0.conv1`; empty where it noted none."""


@dataclass(frozen=True)
class NormalModel:
    """A normalised model; `nodes` mirror `model.graph.node` one to one."""

    model: ModelProto
    nodes: tuple[Node, ...]
    shapes: Mapping[str, Shape]
    values: Mapping[str, Array]
    """Constants whose values are known: those below 64 elements, and all integers."""
    weights: frozenset[str]
    """Names of all initializers."""
    shape_like: frozenset[str]
    """Tensors computed from the batch size alone."""

    def opset(self) -> int:
        return next(e.version for e in self.model.opset_import if e.domain in ("", "ai.onnx"))


@dataclass
class _Weight:
    """A constant: its proto (or another's, moved), extents, and values where they may be read."""

    dims: Shape
    elem_type: int
    proto: TensorProto | None = None
    array: Array | None = None
    origin: str = ""
    """Name of the tensor it is an untouched copy of."""


@dataclass
class _Pass:
    """One walk through the nodes at one batch size."""

    nodes: Sequence[Node]
    protos: Sequence[NodeProto]
    opsets: Mapping[str, int]
    weights: dict[str, _Weight]
    types: dict[str, tuple[int, Shape]]
    declared: Mapping[str, tuple[int, Shape]]
    values: dict[str, Array] = field(default_factory=dict)

    def run(self) -> None:
        for name, weight in self.weights.items():
            self.types[name] = (weight.elem_type, weight.dims)
            if weight.array is not None:
                self.values[name] = weight.array
        for node, proto in zip(self.nodes, self.protos, strict=True):
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
        known = [self.values.get(name) for name in node.inputs if name]
        if node.op not in ARITHMETIC or any(value is None for value in known) or "" in node.inputs:
            return False
        try:
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
        self.types[name] = (elem, array.shape)
        self.weights[name] = _Weight(array.shape, elem, array=array)
        if readable(array.dtype, array.size):
            self.values[name] = array

    def _move(self, node: Node, weight: _Weight, rest: list[Array]) -> bool:
        """Moves a weight for good; with only its shape known (a skeleton), moves the shape."""
        name = node.outputs[0]
        if node.op == "Identity":
            self.weights[name] = replace(weight)
            self.types[name] = (weight.elem_type, weight.dims)
            return True
        if node.op in ("Expand", "Cast"):
            return False
        hollow = weight.proto is not None and is_hollow(weight.proto)
        try:
            if hollow:
                # A broadcast scalar stands in for the data that is not there.
                data: Array = np.broadcast_to(np.zeros((), np.bool_), weight.dims)
            else:
                data = to_array(weight)
            moved = LAYOUT[node.op](dict(node.attrs), data, *rest)
        except (ValueError, IndexError, TypeError):
            return False
        check_shape(name, moved.shape)
        self.types[name] = (weight.elem_type, moved.shape)
        if hollow:
            proto = TensorProto(name=name, data_type=weight.elem_type, dims=moved.shape)
            self.weights[name] = _Weight(moved.shape, weight.elem_type, proto=proto)
        else:
            self.weights[name] = weight_of(make_tensor(name, moved))
        return True

    def _infer(self, node: Node, proto: NodeProto) -> None:
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
        except (shape_inference.InferenceError, RuntimeError, ValueError) as error:
            why = " ".join(str(error).split())[:200]
            raise ModelError(f"node {node.name!r} ({node.op}): shapes do not fit: {why}") from error
        for name in node.outputs:
            if name:
                shape = _shape(found.get(name))
                if shape is None:
                    self._declare(node)
                    return
                check_shape(name, shape)
                self.types[name] = (found[name].tensor_type.elem_type, shape)

    def _declare(self, node: Node) -> None:
        """Takes the output shapes the file states for an operator that cannot be inferred."""
        for name in node.outputs:
            if name and name in self.declared:
                self.types[name] = self.declared[name]
            elif name:
                raise UnsupportedOperatorError(
                    node.name, node.op, f"the shape of its output {name!r} cannot be told"
                )


def normalise(
    model: ModelProto, input_shapes: Mapping[str, Sequence[int]] | None = None
) -> NormalModel:
    """The model in normal form; the argument is not changed.

    Raises:
        ModelError: shapes contradict each other, or an input is dynamic beyond its batch size and
            `input_shapes` does not say.
    """
    nodes = read_nodes(model)
    inputs, open_batch = _input_shapes(model, dict(input_shapes or {}))
    first = _walk(model, nodes, inputs, 1)
    second = first
    if open_batch:
        try:
            second = _walk(model, nodes, inputs, 2)
        except ModelError:
            open_batch = False  # the file says any batch, its constants say one
    return _build(model, nodes, inputs, first, second, open_batch)


def read_nodes(model: ModelProto) -> list[Node]:
    """Nodes with unique, non-empty names."""
    taken: Counter[str] = Counter()
    nodes = []
    for proto in model.graph.node:
        base = proto.name or f"{proto.op_type}_{proto.output[0] if proto.output else ''}"
        taken[base] += 1
        name = base if taken[base] == 1 else f"{base}#{taken[base]}"
        op = proto.op_type if proto.domain in ("", "ai.onnx") else f"{proto.domain}.{proto.op_type}"
        attrs = {a.name: _attribute(a) for a in proto.attribute}
        nodes.append(Node(name, op, tuple(proto.input), tuple(proto.output), attrs, _scope(proto)))
    return nodes


def weight_of(proto: TensorProto) -> _Weight:
    """A constant tensor, its values read where they may decide about the graph."""
    dims = tuple(proto.dims)
    weight = _Weight(dims, proto.data_type, proto=proto, origin=proto.name)
    dtype = helper.tensor_dtype_to_np_dtype(proto.data_type)
    if readable(dtype, int(np.prod(dims, dtype=np.int64))) and not is_hollow(proto):
        weight.array = numpy_helper.to_array(proto)
    return weight


def is_hollow(proto: TensorProto) -> bool:
    """Whether a skeleton's tensor: a shape without data."""
    if proto.HasField("raw_data") or 0 in proto.dims:
        return False
    fields = (proto.float_data, proto.int32_data, proto.int64_data, proto.double_data)
    return not any(len(values) for values in (*fields, proto.uint64_data))


def to_array(weight: _Weight) -> Array:
    if weight.array is not None:
        return weight.array
    assert weight.proto is not None
    return numpy_helper.to_array(weight.proto)


def _walk(
    model: ModelProto, nodes: Sequence[Node], inputs: Mapping[str, tuple[int, Shape]], batch: int
) -> _Pass:
    types = {
        name: (elem, tuple(batch if d < 0 else d for d in shape))
        for name, (elem, shape) in inputs.items()
    }
    declared = {}
    for value in (*model.graph.value_info, *model.graph.output):
        shape = _shape(value.type)
        if shape is not None:
            declared[value.name] = (value.type.tensor_type.elem_type, shape)
    walk = _Pass(
        nodes,
        list(model.graph.node),
        {e.domain if e.domain != "ai.onnx" else "": e.version for e in model.opset_import},
        {t.name: weight_of(t) for t in model.graph.initializer},
        types,
        declared,
    )
    walk.run()
    return walk


def _input_shapes(
    model: ModelProto, given: dict[str, Sequence[int]]
) -> tuple[dict[str, tuple[int, Shape]], bool]:
    """Element type and extents of the graph inputs, -1 for an open batch; whether there is one."""
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs: dict[str, tuple[int, Shape]] = {}
    open_batch = False
    real = [value for value in model.graph.input if value.name not in constants]
    unknown = set(given) - {value.name for value in real}
    if unknown:
        names = ", ".join(value.name for value in real)
        raise ModelError(
            f"no graph input {sorted(unknown)[0]!r}; the inputs are: {names}", field="input_shapes"
        )
    for value in real:
        kind = value.type.tensor_type
        dims = [d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim]
        if not kind.HasField("shape"):
            dims = [-1, -1]
        if value.name in given:
            stated = [int(d) for d in given[value.name]]
            if len(stated) != len(dims) and kind.HasField("shape"):
                raise ModelError(
                    f"input {value.name!r} has {len(dims)} axes, --input-shape gives {len(stated)}",
                    field="input_shapes",
                )
            fits = all(d in (-1, s) for d, s in zip(dims, stated, strict=False))
            if any(d < 1 for d in stated) or not fits:
                raise ModelError(
                    f"input {value.name!r} is {_text(dims)}, --input-shape gives {_text(stated)}",
                    field="input_shapes",
                )
            # A stated batch of one says no more than that the file leaves it open.
            keep_open = bool(dims) and dims[0] == -1 and stated[0] == 1
            dims = [-1 if keep_open and k == 0 else d for k, d in enumerate(stated)]
        if any(d == -1 for d in dims[1:]):
            example = "x".join(
                "1" if k == 0 else str(d) if d > 0 else "N" for k, d in enumerate(dims)
            )
            raise ModelError(
                f"input {value.name!r} is {_text(dims)}: its extents must be known; "
                f"say them with --input-shape {value.name}={example}",
                field="input_shapes",
            )
        open_batch |= bool(dims) and dims[0] == -1
        check_shape(value.name, (abs(d) for d in dims))
        if 0 in dims:
            raise ModelError(f"input {value.name!r} is empty ({_text(dims)})", field="model")
        inputs[value.name] = (kind.elem_type, tuple(dims))
    return inputs, open_batch


def _build(
    model: ModelProto,
    nodes: Sequence[Node],
    inputs: Mapping[str, tuple[int, Shape]],
    first: _Pass,
    second: _Pass,
    open_batch: bool,
) -> NormalModel:
    """The normal model from the walks at batch one and two (the same walk where it is fixed)."""
    fixed = {
        name
        for name, weight in first.weights.items()
        if first is second
        or weight.array is None
        or (name in second.weights and _same(weight.array, second.weights[name].array))
    }
    shape_like = frozenset(first.values) - fixed
    outputs = [value.name for value in model.graph.output]
    kept, retarget = _live(nodes, fixed, set(outputs), first, second)

    normal = ModelProto(ir_version=max(model.ir_version, 4), producer_name="rlprune")
    normal.opset_import.extend(model.opset_import)
    normal.metadata_props.extend(model.metadata_props)
    graph = normal.graph
    graph.name = model.graph.name or "graph"
    for value in model.graph.input:
        if value.name in inputs:
            elem, dims = inputs[value.name]
            entry = helper.make_tensor_value_info(value.name, elem, dims)
            for place, extent in enumerate(dims):
                if extent < 0:
                    entry.type.tensor_type.shape.dim[place].ClearField("dim_value")
                    entry.type.tensor_type.shape.dim[place].dim_param = "batch"
                    if not open_batch:
                        entry.type.tensor_type.shape.dim[place].dim_value = 1
            graph.input.append(entry)
    graph.output.extend(model.graph.output)

    shapes = {name: shape for name, (_, shape) in first.types.items()}
    values: dict[str, Array] = {}
    uses: Counter[str] = Counter()
    new_nodes: list[Node] = []
    for index in kept:
        node, proto = nodes[index], model.graph.node[index]
        copy = NodeProto()
        copy.CopyFrom(proto)
        del copy.metadata_props[:]
        copy.ClearField("doc_string")
        copy.name = node.name
        if index in retarget:
            name = f"{node.outputs[0]}/shape"
            target = make_tensor(name, np.array(retarget[index], dtype=np.int64))
            graph.initializer.append(target)
            copy.input[1] = name
            shapes[name] = (len(retarget[index]),)
            values[name] = np.array(retarget[index], dtype=np.int64)
            first.types[name] = (TensorProto.INT64, shapes[name])
        for place, name in enumerate(copy.input):
            if name in fixed:
                uses[name] += 1
                own = name
                if uses[name] > 1 and is_vector(shapes[name]):
                    # Exporters merge vectors of equal values; layers that share one are not tied.
                    own = f"{name}#{uses[name]}"
                    copy.input[place] = own
                    shapes[own] = shapes[name]
                if uses[name] == 1 or own != name:
                    _add_weight(graph, own, first.weights[name])
                    if name in first.values:
                        values[own] = first.values[name]
        graph.node.append(copy)
        new_nodes.append(replace(node, inputs=tuple(copy.input)))
    for name in outputs:
        if name in fixed and not uses[name]:
            _add_weight(graph, name, first.weights[name])
    weights = frozenset(tensor.name for tensor in graph.initializer)
    return NormalModel(normal, tuple(new_nodes), shapes, values, weights, shape_like)


def _live(
    nodes: Sequence[Node], fixed: set[str], outputs: set[str], first: _Pass, second: _Pass
) -> tuple[list[int], dict[int, list[int]]]:
    """Indices of the nodes that stay, and new targets of Reshapes whose own depends on the batch."""
    wanted = set(outputs)
    kept: list[int] = []
    retarget: dict[int, list[int]] = {}
    for index in range(len(nodes) - 1, -1, -1):
        node = nodes[index]
        if not wanted.intersection(node.outputs) or all(o in fixed for o in node.outputs if o):
            continue
        kept.append(index)
        needs = [name for name in node.inputs if name]
        if node.op == "Reshape" and node.inputs[1] not in fixed:
            one, two = first.types[node.outputs[0]][1], second.types[node.outputs[0]][1]
            differ = [k for k, (a, b) in enumerate(zip(one, two, strict=True)) if a != b]
            if len(differ) == 1:
                retarget[index] = [-1 if k in differ else d for k, d in enumerate(one)]
                needs = needs[:1]
        wanted.update(needs)
    return kept[::-1], retarget


def is_vector(shape: Shape) -> bool:
    """At most one axis longer than one."""
    return sum(extent > 1 for extent in shape) <= 1


def _add_weight(graph: onnx.GraphProto, name: str, weight: _Weight) -> None:
    tensor = graph.initializer.add()
    if weight.proto is not None:
        tensor.CopyFrom(weight.proto)
    else:
        tensor.CopyFrom(make_tensor(name, to_array(weight)))
    tensor.name = name
    tensor.ClearField("doc_string")


def _same(left: Array | None, right: Array | None) -> bool:
    if left is None or right is None:
        return left is right
    return left.shape == right.shape and bool((left == right).all())


def _shape(kind: TypeProto | None) -> Shape | None:
    if kind is None or not kind.HasField("tensor_type") or not kind.tensor_type.HasField("shape"):
        return None
    dims = kind.tensor_type.shape.dim
    if any(not d.HasField("dim_value") for d in dims):
        return None
    return tuple(d.dim_value for d in dims)


def _type_proto(elem: int, shape: Shape) -> TypeProto:
    return helper.make_tensor_type_proto(elem, shape)


def _attribute(attribute: onnx.AttributeProto) -> Any:
    value = helper.get_attribute_value(attribute)
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _scope(proto: NodeProto) -> str:
    """Module path from the newer exporter's notes: `['', 'layer1', 'layer1.0', 'relu']`."""
    for entry in proto.metadata_props:
        if entry.key == "pkg.torch.onnx.name_scopes" and len(entry.value) < 4096:
            scopes = [part.strip(" '\"") for part in entry.value.strip("[]").split(",")]
            return scopes[-2] if len(scopes) > 1 else ""
    return ""


def _text(dims: Sequence[int]) -> str:
    return "x".join("?" if d < 0 else str(d) for d in dims)
