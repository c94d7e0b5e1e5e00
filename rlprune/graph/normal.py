"""The one form in which models are analysed and cut.

Exporters write the same network in many ways. `normalise` answers with an equal model in which
every constant is an initializer with one meaning: Constant nodes and arithmetic on shapes are
folded, weights moved by Transpose or Reshape are moved for good, and a vector that the exporter
shared between layers because it happened to hold equal values is given to each reader as its own.
The extents of all tensors are known at the sizes analysed. What the file leaves open (batch,
height, width, length) stays open: what depends on it is found by looking at other sizes (`sizes`),
and is not folded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper

from rlprune.graph.ends import true_outputs
from rlprune.graph.folding import Array, make_tensor
from rlprune.graph.sizes import (
    GraphInput,
    OtherSizes,
    note_sizes,
    open_input,
    other_sizes,
    read_inputs,
)
from rlprune.graph.walk import (
    Node,
    Shape,
    Walk,
    attribute_value,
    named,
    read_nodes,
    walk,
)
from rlprune.graph.weights import Weight, is_hollow, to_array

MAX_COPIED = 2**23
"""Most elements in copies of shared vectors; what is shared beyond ties its readers."""


@dataclass(frozen=True, slots=True)
class Computed:
    """A small tensor that the model computes from open extents alone."""

    values: Array
    """At the analysed sizes."""
    steady: NDArray[np.bool_]
    """Which entries are so at every other size [as values]."""


@dataclass(frozen=True, slots=True)
class Target:
    """A constant in place of a computed input."""

    place: int
    values: Array
    axes: tuple[int, ...] = ()
    """Which a Resize's sizes are of; all where empty."""


@dataclass(frozen=True)
class NormalModel:
    """A normalised model; `nodes` mirror `model.graph.node` one to one."""

    model: ModelProto
    nodes: tuple[Node, ...]
    shapes: Mapping[str, Shape]
    """Extents at the analysed sizes."""
    values: Mapping[str, Array]
    """Constants whose values are known: those below 64 elements, and all integers."""
    weights: frozenset[str]
    """Names of all initializers."""
    shape_like: frozenset[str]
    """Tensors computed from open extents and constants alone."""
    computed: Mapping[str, Computed]
    """Those of them that are small."""
    elsewhere: tuple[Mapping[str, Shape], ...] = ()
    """Extents at other sizes; empty where nothing is open."""
    closed: tuple[str, ...] = ()
    """What the file leaves open and is closed all the same, a sentence each."""

    @cached_property
    def readers(self) -> Mapping[str, Sequence[Node]]:
        """Who reads each tensor, in order, once per input."""
        found: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in node.inputs:
                found.setdefault(name, []).append(node)
        return found

    def value(self, name: str) -> Array | None:
        """A tensor's values at the analysed sizes; None where they are not known."""
        if name in self.values:
            return self.values[name]
        computed = self.computed.get(name)
        return None if computed is None else computed.values

    def is_steady(self, name: str, *places: int) -> bool:
        """Whether entries of a known vector are the same at every size."""
        computed = self.computed.get(name)
        return computed is None or bool(computed.steady.ravel()[list(places)].all())

    def is_open(self, name: str, axis: int) -> bool:
        """Whether a tensor's extent depends on what the file leaves open."""
        extent = self.shapes[name][axis]
        return any(name in shapes and shapes[name][axis] != extent for shapes in self.elsewhere)

    @cached_property
    def makers(self) -> Mapping[str, Node]:
        """The node that computes each tensor."""
        return {name: node for node in self.nodes for name in node.outputs}

    def opset(self) -> int:
        return next(e.version for e in self.model.opset_import if e.domain in ("", "ai.onnx"))


def normalise(
    model: ModelProto, input_shapes: Mapping[str, Sequence[int]] | None = None
) -> NormalModel:
    """The model in normal form; the argument is not changed.

    Raises:
        ModelError: shapes contradict each other, or an input is open beyond its batch size and
            neither `input_shapes` nor the model itself (`sizes.SIZES_KEY`) says what to analyse.
    """
    nodes = read_nodes(model)
    inputs = read_inputs(model, dict(input_shapes or {}))
    first = walk(model, nodes, {one.name: one.at({}) for one in inputs})
    others = other_sizes(inputs, first, lambda types: walk(model, nodes, types))
    return _build(model, nodes, inputs, first, others)


def _build(
    model: ModelProto,
    nodes: Sequence[Node],
    inputs: Sequence[GraphInput],
    first: Walk,
    others: OtherSizes,
) -> NormalModel:
    """The normal model from the walks at the analysed sizes and at others."""
    originals = {tensor.name for tensor in model.graph.initializer}
    fixed = {
        name
        for name, weight in first.weights.items()
        if all(
            name in walk.weights and _same(weight, walk.weights[name], originals)
            for walk in others.walks
        )
    }
    fixed -= _turned_elsewhere(nodes, fixed)
    outputs = [value.name for value in model.graph.output]
    walks = (first, *others.walks)
    kept, targets = _live(nodes, fixed, set(outputs), walks)
    known_as = _originals(nodes, first.weights)

    normal = ModelProto(ir_version=max(model.ir_version, 4), producer_name="rlprune")
    normal.opset_import.extend(model.opset_import)
    normal.metadata_props.extend(model.metadata_props)
    note_sizes(normal, inputs, others.open)
    graph = normal.graph
    graph.name = model.graph.name or "graph"
    known = {value.name: value for value in model.graph.input}
    for one in inputs:
        entry = graph.input.add()
        entry.CopyFrom(known[one.name])
        open_input(entry, one, others.open)
    graph.output.extend(true_outputs(model.graph.output, walks))

    shapes = {name: shape for name, (_, shape) in first.types.items()}
    values: dict[str, Array] = {}
    uses: Counter[str] = Counter()
    calls: dict[tuple[str, ...], tuple[str, ...]] = {}
    copied = 0
    new_nodes: list[Node] = []
    for index in kept:
        node, proto = nodes[index], model.graph.node[index]
        copy = deepcopy(named(proto, node))
        del copy.metadata_props[:]
        copy.ClearField("doc_string")
        copy.name = node.name
        for place, name in enumerate(node.outputs):
            if name in fixed:  # an initializer has that name
                copy.output[place] = _unused(f"{name}/again", shapes)
                shapes[copy.output[place]] = shapes[name]
        if index in targets:
            place, array = _retarget(copy, targets[index])
            name = _unused(f"{node.outputs[0]}/shape", shapes)
            graph.initializer.append(make_tensor(name, array))
            copy.input[place] = name
            shapes[name], values[name] = array.shape, array
            node = replace(node, attrs={a.name: attribute_value(a) for a in copy.attribute})
        for place, name in enumerate(copy.input):
            if name in fixed and known_as.get(name) in fixed:
                copy.input[place] = known_as[name]
        call = (node.op, *(name if name in fixed else "" for name in copy.input))
        # A layer called again, known by its matrix, keeps its vectors as well.
        again = calls.get(call) if any(not is_vector(shapes[n]) for n in call[1:] if n) else None
        for place, name in enumerate(copy.input):
            if name in fixed:
                uses[name] += 1
                own = name if again is None else again[place]
                if (
                    again is None
                    and uses[name] > 1
                    and is_vector(shapes[name])
                    and (copied < MAX_COPIED)
                ):
                    # Exporters merge vectors of equal values; layers that share one are not tied.
                    copied += int(np.prod(shapes[name], dtype=np.int64))
                    own = _unused(f"{name}#{uses[name]}", shapes)
                    shapes[own] = shapes[name]
                if again is None and (uses[name] == 1 or own != name):
                    _add_weight(graph, own, first.weights[name])
                    if name in first.values:
                        values[own] = first.values[name]
                copy.input[place] = own
        calls.setdefault(call, tuple(copy.input))
        graph.node.append(copy)
        new_nodes.append(replace(node, inputs=tuple(copy.input), outputs=tuple(copy.output)))
    for name in outputs:
        if name in fixed and not uses[name]:
            _add_weight(graph, name, first.weights[name])
    elsewhere = [{name: shape for name, (_, shape) in w.types.items()} for w in others.walks]
    return NormalModel(
        normal,
        tuple(new_nodes),
        shapes,
        values,
        frozenset(tensor.name for tensor in graph.initializer),
        frozenset(first.weights) - fixed,
        {name: _computed(name, walks) for name in first.values.keys() - fixed},
        tuple(elsewhere),
        others.closed,
    )


def _computed(name: str, walks: Sequence[Walk]) -> Computed:
    """A tensor's entries at the analysed sizes, and which of them are so at all others."""
    array = walks[0].values[name]
    steady = np.ones(array.shape, dtype=np.bool_)
    for other in walks[1:]:
        there = other.values.get(name)
        alike = there is not None and there.shape == array.shape
        steady &= (array == there) if alike else False
    return Computed(array, steady)


def _live(
    nodes: Sequence[Node], fixed: set[str], outputs: set[str], walks: Sequence[Walk]
) -> tuple[list[int], dict[int, Target]]:
    """Indices of the nodes that stay, and constants for those targets of Reshapes, Expands and
    Resizes that are computed and need not be."""
    wanted = set(outputs)
    kept: list[int] = []
    targets: dict[int, Target] = {}
    for index in range(len(nodes) - 1, -1, -1):
        node = nodes[index]
        if not wanted.intersection(node.outputs) or all(o in fixed for o in node.outputs if o):
            continue
        kept.append(index)
        needs = [name for name in node.inputs if name]
        place = {"Reshape": 1, "Expand": 1, "Resize": 3}.get(node.op, 0)
        if place and len(node.inputs) > place and node.inputs[place] not in fixed:
            target = _constant_target(node, place, walks)
            if target is not None:
                targets[index] = target
                needs.remove(node.inputs[place])
        wanted.update(needs)
    return kept[::-1], targets


def _constant_target(node: Node, place: int, walks: Sequence[Walk]) -> Target | None:
    """A constant that means the same as a computed target at every size; None where there is none.

    A Reshape leaves one open extent to inference (-1) and copies others from its input (0); a one
    in an Expand's target leaves the extent that is there; a Resize of opset 18 is told its
    positions only, so that batch and channels stay what they are.
    """
    before = [w.types[node.inputs[0]][1] for w in walks]
    after = [w.types[node.outputs[0]][1] for w in walks]
    rank = len(after[0])
    differ = [k for k in range(rank) if len({shape[k] for shape in after}) > 1]
    stays = {
        k
        for k in range(min(rank, len(before[0])))
        if all(a[k] == b[k] for a, b in zip(before, after, strict=True))
    }
    if node.op == "Reshape":
        copied: set[int] = set()
        if len(differ) > 1 and not node.attrs.get("allowzero"):
            copied = stays & set(differ)
        told = [0 if k in copied else -1 if k in differ else d for k, d in enumerate(after[0])]
        fits = told.count(-1) <= 1 and all(after[0][k] for k in range(rank) if k not in differ)
        return Target(place, np.array(told, dtype=np.int64)) if fits else None
    if node.op == "Expand":
        plain = len(before[0]) == rank and stays >= set(differ)
        told = [1 if k in differ else d for k, d in enumerate(after[0])]
        return Target(place, np.array(told, dtype=np.int64)) if plain else None
    plain = stays >= {0, 1} and differ == [0] and "axes" not in node.attrs
    if not plain or walks[0].opsets[""] < 18:
        return None
    return Target(place, np.array(after[0][2:], dtype=np.int64), tuple(range(2, rank)))


def _retarget(copy: NodeProto, target: Target) -> tuple[int, Array]:
    """Which input of a node gets a constant, and what."""
    if target.axes:
        copy.attribute.append(helper.make_attribute("axes", target.axes))
    return target.place, target.values


def _originals(nodes: Sequence[Node], weights: Mapping[str, Weight]) -> dict[str, str]:
    """By name of a matrix that the file reads again or turns again, the name that it has already:
    what layers share stays shared, though exporters write an Identity or a Transpose for each."""
    known: dict[str, str] = {}
    turned: dict[tuple[str, str], str] = {}
    for node in nodes:
        if node.op not in ("Identity", "Transpose") or node.outputs[0] not in weights:
            continue
        name, source = node.outputs[0], known.get(node.inputs[0], node.inputs[0])
        if source not in weights or is_vector(weights[name].dims):
            continue
        if node.op == "Identity":
            known[name] = source
        else:
            first = turned.setdefault((source, str(node.attrs.get("perm"))), name)
            if first != name:
                known[name] = first
    return known


def _turned_elsewhere(nodes: Sequence[Node], fixed: set[str]) -> set[str]:
    """Transposes of matrices that other nodes read as they are, e.g. of an embedding that is the
    output layer too: folded, such a matrix would be two in the file that is written."""
    plain = {
        name
        for node in nodes
        if not fixed.issuperset(filter(None, node.outputs))
        for name in node.inputs
    }
    return {
        node.outputs[0]
        for node in nodes
        if node.op == "Transpose" and node.outputs[0] in fixed and node.inputs[0] in plain & fixed
    }


def _unused(name: str, shapes: Mapping[str, Shape]) -> str:
    while name in shapes:
        name += "'"
    return name


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


def _same(left: Weight, right: Weight, originals: set[str]) -> bool:
    """Whether a constant is the same at two sizes; one of `originals` untouched always is."""
    if (left.dims, left.elem_type) != (right.dims, right.elem_type):
        return False
    if left.origin in originals and left.origin == right.origin:
        return True
    if any(one.proto is not None and is_hollow(one.proto) for one in (left, right)):
        return True  # of a skeleton's weights only the extents are known
    return to_array(left).tobytes() == to_array(right).tobytes()
