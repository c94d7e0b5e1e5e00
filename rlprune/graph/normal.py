"""The one form in which models are analysed and cut.

Exporters write the same network in many ways. `normalise` answers with an equal model in which
every constant is an initializer with one meaning: Constant nodes and arithmetic on shapes are
folded, weights moved by Transpose or Reshape are moved for good, and a vector that the exporter
shared between layers because it happened to hold equal values is given to each reader as its own.
The extents of all tensors are known. Where the batch size is left open it stays open: what depends
on it is found by looking at batches of one and of two, and is not folded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, helper

from rlprune.errors import ModelError
from rlprune.graph.folding import Array, make_tensor
from rlprune.graph.load import check_shape
from rlprune.graph.walk import (
    Node,
    Shape,
    Walk,
    attribute_value,
    named,
    read_nodes,
    walk,
)
from rlprune.graph.weights import Weight, to_array

MAX_COPIED = 2**23
"""Most elements in copies of shared vectors; what is shared beyond ties its readers."""


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
    merged: frozenset[tuple[str, int]] = frozenset()
    """(tensor, axis) where an open batch and more share one axis: its positions cannot be named."""

    @cached_property
    def readers(self) -> Mapping[str, Sequence[Node]]:
        """Who reads each tensor, in order, once per input."""
        found: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in node.inputs:
                found.setdefault(name, []).append(node)
        return found

    def opset(self) -> int:
        return next(e.version for e in self.model.opset_import if e.domain in ("", "ai.onnx"))


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
    first = walk(model, nodes, inputs, 1)
    second = first
    if open_batch:
        try:
            second = walk(model, nodes, inputs, 2)
        except ModelError:
            open_batch = False  # the file says any batch, its constants say one
    return _build(model, nodes, inputs, first, second, open_batch)


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
    first: Walk,
    second: Walk,
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
    copied = 0
    new_nodes: list[Node] = []
    for index in kept:
        node, proto = nodes[index], model.graph.node[index]
        copy = NodeProto()
        copy.CopyFrom(named(proto, node))
        del copy.metadata_props[:]
        copy.ClearField("doc_string")
        copy.name = node.name
        if index in retarget:
            place, array = _retarget(copy, first, retarget[index])
            name = f"{node.outputs[0]}/shape"
            while name in shapes:
                name += "'"
            graph.initializer.append(make_tensor(name, array))
            copy.input[place] = name
            shapes[name], values[name] = array.shape, array
            node = replace(node, attrs={a.name: attribute_value(a) for a in copy.attribute})
        for place, name in enumerate(copy.input):
            if name in fixed:
                uses[name] += 1
                own = name
                if uses[name] > 1 and is_vector(shapes[name]) and copied < MAX_COPIED:
                    # Exporters merge vectors of equal values; layers that share one are not tied.
                    copied += int(np.prod(shapes[name], dtype=np.int64))
                    own = f"{name}#{uses[name]}"
                    while own in shapes:
                        own += "'"
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
    merged = frozenset(
        (name, axis)
        for name, (_, shape) in first.types.items()
        if first is not second and name in second.types
        for axis, extent in enumerate(shape)
        if 1 < extent != second.types[name][1][axis]
    )
    return NormalModel(normal, tuple(new_nodes), shapes, values, weights, shape_like, merged)


def _live(
    nodes: Sequence[Node], fixed: set[str], outputs: set[str], first: Walk, second: Walk
) -> tuple[list[int], dict[int, list[int]]]:
    """Indices of the nodes that stay; output extents, -1 for the batch, of Reshapes, Resizes and
    Expands whose targets are computed from it.
    """
    wanted = set(outputs)
    kept: list[int] = []
    retarget: dict[int, list[int]] = {}
    for index in range(len(nodes) - 1, -1, -1):
        node = nodes[index]
        if not wanted.intersection(node.outputs) or all(o in fixed for o in node.outputs if o):
            continue
        kept.append(index)
        needs = [name for name in node.inputs if name]
        place = {"Reshape": 1, "Expand": 1, "Resize": 3}.get(node.op, 0)
        if place and len(node.inputs) > place and node.inputs[place] not in fixed:
            one, two = first.types[node.outputs[0]][1], second.types[node.outputs[0]][1]
            differ = [k for k, (a, b) in enumerate(zip(one, two, strict=True)) if a != b]
            before = first.types[node.inputs[0]][1]
            if node.op == "Expand":
                # A one in the target leaves the batch that is there as it is.
                grown = second.types[node.inputs[0]][1]
                plain = len(before) == len(one) and all(grown[k] == two[k] for k in differ)
            else:
                plain = before[:2] == one[:2] and "axes" not in node.attrs
            if len(differ) == 1 and (node.op == "Reshape" or plain):
                retarget[index] = [-1 if k in differ else d for k, d in enumerate(one)]
                needs.remove(node.inputs[place])
        wanted.update(needs)
    return kept[::-1], retarget


def _retarget(copy: NodeProto, walk: Walk, target: list[int]) -> tuple[int, Array]:
    """Which input of a Reshape, Expand or Resize gets a constant for a computed target, and what.

    A Resize is told its positions only, so that batch and channels stay what they are.
    """
    if copy.op_type == "Reshape":
        return 1, np.array(target, dtype=np.int64)
    if copy.op_type == "Expand":
        return 1, np.array([max(d, 1) for d in target], dtype=np.int64)
    if walk.opsets[""] >= 18:
        copy.attribute.append(helper.make_attribute("axes", list(range(2, len(target)))))
        return 3, np.array(target[2:], dtype=np.int64)
    copy.input[3] = ""
    before = np.array(walk.types[copy.input[0]][1][2:], dtype=np.float32)
    scales = np.array(target[2:], dtype=np.float32) / before
    # Extents are rounded down: where the quotient fell short of it, take the next float.
    short = np.floor(before * scales) < target[2:]
    scales[short] = np.nextafter(scales[short], np.float32(np.inf))
    return 2, np.concatenate([np.ones(2, dtype=np.float32), scales])


def is_vector(shape: Shape) -> bool:
    """At most one axis longer than one."""
    return sum(extent > 1 for extent in shape) <= 1


def _add_weight(graph: onnx.GraphProto, name: str, weight: Weight) -> None:
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


def _text(dims: Sequence[int]) -> str:
    return "x".join("?" if d < 0 else str(d) for d in dims)
