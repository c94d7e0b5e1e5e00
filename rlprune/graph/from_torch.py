"""A torch module's pruning graph: exported to ONNX in memory, then read like any other ONNX file.

One analysis serves files, skeletons and modules. The export keeps BatchNorm and folds nothing, so
every initializer bears its `state_dict` name and a cut found on the ONNX side can be made in the
module (surgery.torch). The caller's module is neither run nor changed: a copy is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx

from rlprune.errors import MissingExtraError, ModelError
from rlprune.graph.bodies import has_bodies
from rlprune.graph.folding import LAYOUT, Array
from rlprune.graph.from_onnx import OnnxTrace, trace_onnx
from rlprune.graph.prepare import followed
from rlprune.graph.types import Member, PruningGraph
from rlprune.graph.walk import read_nodes, walk

try:
    from torch import nn

    from rlprune.graph.torch_call import Call, detached_copy, unwrap
    from rlprune.graph.torch_export import (
        Exporter,
        export_onnx,
        newer_exporter_missing,
        refuse_branches,
    )
except ImportError as error:
    raise MissingExtraError("tracing a torch module", "torch") from error


@dataclass(frozen=True, slots=True)
class Place:
    """One tensor of the ONNX twin that holds a weight of the module, or a part of it."""

    tensor: str
    axes: tuple[int, ...]
    """For each axis of the weight the axis it became; -1 for none."""
    starts: tuple[int, ...]
    """For each axis of the weight its first position in the part."""


@dataclass(frozen=True)
class TorchTrace:
    """A module as it was when traced, and its ONNX twin, whose initializers bear its names."""

    graph: PruningGraph
    """Members are the module's own tensors and axes."""
    onnx: OnnxTrace
    module: nn.Module
    """A copy, in the mode the caller's module was in, without its hooks."""
    call: Call
    moved: Mapping[str, tuple[Place, ...]]
    """Where the twin has weights that it holds transposed, in parts, or with other axes."""
    exporter: Exporter
    """The one that wrote the twin."""


def trace_torch(module: nn.Module, example_inputs: Any) -> TorchTrace:
    """The pruning graph of `module` at the shapes of `example_inputs` (batch first).

    Frozen parameters, half precision and train mode are traced as any other; what the caller's
    module holds stays as it is. DataParallel and `torch.compile` wrappers are taken off.

    Args:
        module: traced as it computes in eval mode.
        example_inputs: a tensor, a sequence of positional arguments, or a dict of keyword ones.

    Raises:
        InputError: no tensor among the example inputs.
        ModelError: the module cannot be copied, run on the inputs, or exported, it branches on
            values it computes, or an operator's channels cannot be followed.
    """
    module = unwrap(module)
    call = Call.of(example_inputs)
    snapshot = detached_copy(module)
    refuse_branches(snapshot, call)
    trace, model, exporter = _twin_of(snapshot, call)
    moved = _moved_weights(model, trace.normal.weights)
    return TorchTrace(_own_names(trace.graph, moved), trace, snapshot, call, moved, exporter)


def _twin_of(snapshot: nn.Module, call: Call) -> tuple[OnnxTrace, onnx.ModelProto, Exporter]:
    """Its trace, the export itself and whose it is: the older exporter's, where that will do.

    Raises:
        ModelError: neither will do; one line with both reasons.
    """
    try:
        model = _without_branches(export_onnx(snapshot, call, Exporter.OLDER))
        return trace_onnx(model, computing=False), model, Exporter.OLDER
    except ModelError as error:
        older = error
    try:
        if newer_exporter_missing():
            raise ModelError('it needs onnxscript: pip install "rlprune[torch]"')
        model = _without_branches(export_onnx(snapshot, call, Exporter.NEWER))
        return trace_onnx(model, computing=False), model, Exporter.NEWER
    except ModelError as newer:
        raise ModelError(
            f"module {type(snapshot).__name__} cannot be exported to ONNX: by torch's older "
            f"exporter: {older}; by the newer one: {newer}"
        ) from newer


def _without_branches(model: onnx.ModelProto) -> onnx.ModelProto:
    """The export with the branches taken that its shapes decide, as LocalResponseNorm's.

    Raises:
        UnsupportedOperatorError: of a part of it nothing can be told.
    """
    if not has_bodies(model):
        return model
    head, tail, _ = followed(model)
    if tail is not None:
        raise tail.first
    return head


def _moved_weights(model: onnx.ModelProto, weights: frozenset[str]) -> dict[str, tuple[Place, ...]]:
    """Follows weights through Transpose, Slice and the like to their places in normal form.

    Each axis is followed by moving, in place of the weight, an array of the coordinates along it.
    """
    shapes = {t.name: tuple(t.dims) for t in model.graph.initializer if t.name not in weights}
    constants = _constants(model)
    parts: dict[str, dict[str, list[Array]]] = {}  # of each tensor: by weight, where it is from
    moved: dict[str, tuple[Place, ...]] = {}
    for node in read_nodes(model):
        inputs = [
            {name: list(_coordinates(shapes[name]))} if name in shapes else parts.get(name, {})
            for name in node.inputs
        ]
        others = [constants.get(name) for name in node.inputs[1:]]
        if node.op == "Concat" and all(inputs):
            parts[node.outputs[0]] = _joined(inputs, int(node.attrs["axis"]))
        elif node.op in LAYOUT and inputs and not any(value is None for value in others):
            parts[node.outputs[0]] = {
                name: [
                    array
                    if node.op == "Cast"
                    else LAYOUT[node.op](dict(node.attrs), array, *others)
                    for array in along
                ]
                for name, along in inputs[0].items()
            }
        else:
            continue
        target = node.outputs[0]
        for name, along in parts[target].items() if target in weights else ():
            found = [_axis_of(array) for array in along]
            place = Place(target, tuple(a for a, _ in found), tuple(s for _, s in found))
            moved[name] = (*moved.get(name, ()), place)
    return moved


def _joined(inputs: Sequence[Mapping[str, list[Array]]], axis: int) -> dict[str, list[Array]]:
    """Coordinates after a Concat; of every weight, those of its own parts alone."""
    found: dict[str, list[list[Array]]] = {}
    for part in inputs:
        for name, along in part.items():
            found.setdefault(name, []).append(along)
    return {
        name: [np.concatenate(arrays, axis) for arrays in zip(*several, strict=True)]
        for name, several in found.items()
    }


def _own_names(graph: PruningGraph, moved: Mapping[str, tuple[Place, ...]]) -> PruningGraph:
    """The graph with members named as the module names them."""
    names = {
        (place.tensor, there): (name, axis)
        for name, places in moved.items()
        for place in places
        for axis, there in enumerate(place.axes)
    }
    groups = []
    for group in graph.groups:
        members: dict[tuple[str, int], Member] = {}
        for member in group.members:
            tensor, axis = names.get((member.tensor, member.axis), (member.tensor, member.axis))
            before = members.get((tensor, axis))
            repeat = member.repeat + (before.repeat if before else 0)
            node = before.node if before else member.node
            members[tensor, axis] = Member(node, tensor, axis, repeat)
        groups.append(replace(group, members=tuple(members.values())))
    return replace(graph, groups=tuple(groups))


def _constants(model: onnx.ModelProto) -> Mapping[str, Array]:
    """The values that are known, computed ones (bounds of slices) among them."""
    inputs = {
        value.name: (
            value.type.tensor_type.elem_type,
            tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim),
        )
        for value in model.graph.input
    }
    return walk(model, read_nodes(model), inputs).values


def _coordinates(shape: tuple[int, ...]) -> Iterator[Array]:
    for axis, size in enumerate(shape):
        line = np.arange(size).reshape([-1 if k == axis else 1 for k in range(len(shape))])
        yield np.broadcast_to(line, shape)


def _axis_of(coordinate: Array) -> tuple[int, int]:
    """The axis along which the array counts s, s+1, s+2, ... and s; (-1, 0) where there is none."""
    for axis, size in enumerate(coordinate.shape):
        # What was merely broadcast or transposed has one axis along which memory moves.
        moving = [k for k, stride in enumerate(coordinate.strides) if stride]
        index = tuple(
            slice(None) if k in (axis, *moving) else slice(1) for k in range(coordinate.ndim)
        )
        part = coordinate[index]
        line = np.arange(size).reshape([-1 if k == axis else 1 for k in range(coordinate.ndim)])
        start = int(part.flat[0]) if part.size else 0
        if size > 1 and (part == start + line).all():
            return axis, start
    return -1, 0
