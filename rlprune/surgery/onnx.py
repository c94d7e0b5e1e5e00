"""A plan applied to an ONNX model: weights sliced, and every constant that names a width
rewritten.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, helper

from rlprune.errors import PlanError
from rlprune.graph.from_onnx import OnnxTrace
from rlprune.graph.load import is_skeleton
from rlprune.graph.types import FloatArray, IntArray, PruningGraph
from rlprune.graph.walk import reading
from rlprune.surgery.importance import unit_scores
from rlprune.surgery.removal import BoolArray, Removal, kept_mask
from rlprune.surgery.rewrites import REWRITES, Surgeon
from rlprune.surgery.written import check_written

__all__ = ["BoolArray", "Removal", "check_keeps", "cut", "kept_mask", "kept_units", "prune_onnx"]


def kept_units(scores: Sequence[FloatArray], keeps: IntArray) -> list[IntArray]:
    """The `keeps[g]` units of largest score of every group, ascending; of equal scores the
    first."""
    chosen = []
    for score, keep in zip(scores, keeps, strict=True):
        order = np.argsort(-score, kind="stable")
        chosen.append(np.sort(order[: int(keep)]).astype(np.int64))
    return chosen


def _drop_unread(graph: GraphProto) -> None:
    """Drops the nodes that nothing reads any more, from the last to the first."""
    read = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if any(name in read for name in node.output):
            kept.append(node)
            read.update(_names_read(node))
    del graph.node[:]
    graph.node.extend(reversed(kept))


def _names_read(node: NodeProto) -> Iterator[str]:
    """What a node reads, in the bodies of loops and branches too."""
    yield from node.input
    for attribute in node.attribute:
        for body in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
            for inner in body.node:
                yield from _names_read(inner)
            yield from (value.name for value in body.output)


def weights_read(trace: OnnxTrace, left_out: Mapping[str, int]) -> set[str]:
    """The constants that are read still when nodes are left out (`Removal.left_out`)."""
    pairs = zip(trace.model.graph.node, trace.normal.nodes, strict=True)
    maker = {name: (proto, node.name) for proto, node in pairs for name in proto.output}
    waiting = [value.name for value in trace.model.graph.output]
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in maker:
            proto, node_name = maker[name]
            place = left_out.get(node_name)
            waiting += _names_read(proto) if place is None else [proto.input[place]]
    return {name for name in seen if name not in maker}


def check_keeps(graph: PruningGraph, keeps: IntArray) -> None:
    """Raises PlanError unless every group has a keep count from 1 to its width."""
    keeps, widths = np.asarray(keeps), graph.widths
    if keeps.shape != widths.shape or (keeps < 1).any() or (keeps > widths).any():
        raise PlanError(f"keeps {keeps.tolist()} do not fit groups of width {widths.tolist()}")


def prune_onnx(
    trace: OnnxTrace, keeps: IntArray, *, scores: list[FloatArray] | None = None
) -> ModelProto:
    """The model with only `keeps[g]` units of every group; the trace is not changed.

    Args:
        trace: of the model to cut.
        keeps: units to keep per group [G], 1 to the group's width.
        scores: importance per group and unit; the energy that passes through by default.

    Raises:
        PlanError: keeps of the wrong shape or out of range.
    """
    check_keeps(trace.graph, keeps)
    kept = kept_units(unit_scores(trace) if scores is None else scores, keeps)
    return cut(trace, Removal(kept))


def cut(trace: OnnxTrace, removal: Removal) -> ModelProto:
    """The model without what is to be removed; the trace is not changed.

    Raises:
        ModelError: ONNX's checker refuses the result; the extents that the file states for its
            outputs are wrong, or what it means is not what the operators' shapes say.
    """
    surgeon = Surgeon(trace, removal)
    source = trace.model
    model = ModelProto(ir_version=source.ir_version, producer_name="rlprune")
    model.opset_import.extend(source.opset_import)
    model.metadata_props.extend(source.metadata_props)
    graph = model.graph
    graph.name = source.graph.name
    graph.input.extend(source.graph.input)
    graph.output.extend(source.graph.output)
    for proto, node in zip(source.graph.node, trace.normal.nodes, strict=True):
        copy = deepcopy(proto)
        rewrite = REWRITES.get(node.op)
        if rewrite is not None:
            with reading(node):
                rewrite(surgeon, node, copy)
        if node.name in removal.left_out:
            # Runtimes drop an Identity; the sum it stands for may be an output of the model.
            place = removal.left_out[node.name]
            op = "Neg" if node.op == "Sub" and place == 1 else "Identity"
            copy = helper.make_node(op, [copy.input[place]], [copy.output[0]], copy.name)
        graph.node.extend([*surgeon.before, copy, *surgeon.after])
        surgeon.before.clear()
        surgeon.after.clear()
    if removal.left_out or removal.windows:
        _drop_unread(graph)  # branches, and borders that narrower kernels have no use for
    read = {name for node in graph.node for name in node.input}
    read.update(value.name for value in graph.output)
    for tensor in source.graph.initializer:
        if tensor.name in read:
            surgeon.slice_weight(tensor, graph.initializer.add())
    graph.initializer.extend(surgeon.made)
    if not is_skeleton(source):
        check_written(model)
    return model
