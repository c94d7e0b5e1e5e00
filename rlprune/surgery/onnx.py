"""A plan applied to an ONNX model: weights sliced, and every constant that names a width
rewritten.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from rlprune.errors import ModelError, PlanError
from rlprune.graph.folding import ints, slice_index
from rlprune.graph.from_onnx import OnnxTrace
from rlprune.graph.load import is_skeleton, without_weights
from rlprune.graph.rules_layout import pad_counts
from rlprune.graph.types import FloatArray, IntArray, PruningGraph
from rlprune.graph.walk import Node, reading
from rlprune.graph.weights import is_hollow
from rlprune.surgery.importance import unit_scores

BoolArray = NDArray[np.bool_]


def kept_units(scores: Sequence[FloatArray], keeps: IntArray) -> list[IntArray]:
    """The `keeps[g]` units of largest score of every group, ascending; of equal scores the
    first.
    """
    chosen = []
    for score, keep in zip(scores, keeps, strict=True):
        order = np.argsort(-score, kind="stable")
        chosen.append(np.sort(order[: int(keep)]).astype(np.int64))
    return chosen


def kept_mask(group: IntArray, unit: IntArray, kept: Sequence[IntArray]) -> BoolArray:
    """Which positions of an axis stay [C], by the group and unit of each: those that no group owns
    (-1), and the kept units'."""
    mask = group < 0
    for index in np.unique(group[~mask]):
        mask |= (group == index) & np.isin(unit, kept[index])
    return mask


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
    return cut(trace, kept)


def cut(trace: OnnxTrace, kept: Sequence[IntArray]) -> ModelProto:
    """The model with only the units `kept` of every group.

    Raises:
        ModelError: ONNX's checker refuses the result; the extents that the file states for its
            outputs are wrong, or what it means is not what the operators' shapes say.
    """
    surgeon = _Surgeon(trace, kept)
    source = trace.model
    model = ModelProto(ir_version=source.ir_version, producer_name="rlprune")
    model.opset_import.extend(source.opset_import)
    model.metadata_props.extend(source.metadata_props)
    graph = model.graph
    graph.name = source.graph.name
    graph.input.extend(source.graph.input)
    graph.output.extend(source.graph.output)
    made: list[TensorProto] = []
    for proto, node in zip(source.graph.node, trace.normal.nodes, strict=True):
        copy = graph.node.add()
        copy.CopyFrom(proto)
        rewrite = _REWRITES.get(node.op)
        if rewrite is not None:
            with reading(node):
                made += rewrite(surgeon, node, copy)
    read = {name for node in graph.node for name in node.input}
    read.update(value.name for value in graph.output)
    for tensor in source.graph.initializer:
        if tensor.name in read:
            surgeon.slice_weight(tensor, graph.initializer.add())
    graph.initializer.extend(made)
    if not is_skeleton(source):
        try:
            # Without the weights, which the checker would copy twice: 3 x the model at 100 MB.
            onnx.checker.check_model(without_weights(model), full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            why = " ".join(str(error).split())[:300]
            raise ModelError(f"ONNX checker, of the cut model: {why}", field="model") from error
    return model


@dataclass(frozen=True)
class _Surgeon:
    trace: OnnxTrace
    kept: Sequence[IntArray]

    def mask(self, tensor: str, axis: int) -> BoolArray | None:
        """Which positions of an axis stay; None where all do."""
        mask = kept_mask(*self.trace.channels.axis_units(tensor, axis), self.kept)
        return None if mask.all() else mask

    def shape(self, tensor: str) -> list[int]:
        """Extents after the cut."""
        extents = list(self.trace.normal.shapes[tensor])
        for axis in range(len(extents)):
            mask = self.mask(tensor, axis)
            if mask is not None:
                extents[axis] = int(mask.sum())
        return extents

    def shrunk(self, tensor: str) -> dict[int, BoolArray]:
        """Masks of the axes that lose something."""
        masks = {}
        for axis in range(len(self.trace.normal.shapes[tensor])):
            mask = self.mask(tensor, axis)
            if mask is not None:
                masks[axis] = mask
        return masks

    def slice_weight(self, source: TensorProto, target: TensorProto) -> None:
        masks = self.shrunk(source.name)
        if not masks:
            target.CopyFrom(source)
            return
        if is_hollow(source):
            extents = self.shape(source.name)
            target.CopyFrom(TensorProto(name=source.name, data_type=source.data_type, dims=extents))
            return
        array = numpy_helper.to_array(source)
        for axis, mask in masks.items():
            array = np.compress(mask, array, axis=axis)
        target.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), source.name))

    def known(self, node: Node) -> list[NDArray[np.int64] | None]:
        return [self.trace.normal.values.get(name) for name in node.inputs]


def _constant(
    surgeon: _Surgeon, copy: NodeProto, place: int, values: object, what: str
) -> list[TensorProto]:
    """Gives the node a constant input of its own."""
    name = f"{copy.output[0]}/{what}"
    while name in surgeon.trace.normal.shapes:
        name += "'"
    while len(copy.input) <= place:
        copy.input.append("")
    copy.input[place] = name
    return [numpy_helper.from_array(np.asarray(values, dtype=np.int64), name)]


def _set(copy: NodeProto, name: str, value: int | Sequence[int]) -> None:
    for index, attribute in enumerate(copy.attribute):
        if attribute.name == name:
            del copy.attribute[index]
            break
    copy.attribute.append(helper.make_attribute(name, value))


def _conv(surgeon: _Surgeon, node: Node, copy: NodeProto) -> list[TensorProto]:
    groups = int(node.attrs.get("group", 1))
    weight = surgeon.trace.normal.shapes[node.inputs[1]]
    per_group = weight[1] if node.op == "Conv" else weight[0] // groups
    if groups > 1 and per_group == 1:
        _set(copy, "group", surgeon.shape(node.inputs[0])[1])
    return []


def _reshape(surgeon: _Surgeon, node: Node, copy: NodeProto) -> list[TensorProto]:
    """New extents where channels shrink; what was left to inference (0, -1) stays so.

    But for a 0, "as in the input", where input and output do not shrink alike.
    """
    after = surgeon.shape(node.outputs[0])
    if after == list(surgeon.trace.normal.shapes[node.outputs[0]]):
        return []
    before = surgeon.shape(node.inputs[0])
    target = ints(surgeon.trace.normal.values[node.inputs[1]]) or []
    new = [
        t if t == -1 or (t == 0 and before[k] == d) else d
        for k, (t, d) in enumerate(zip(target, after, strict=True))
    ]
    return _constant(surgeon, copy, 1, new, "shape")


def _expand(surgeon: _Surgeon, node: Node, copy: NodeProto) -> list[TensorProto]:
    after = surgeon.shape(node.outputs[0])
    before = surgeon.trace.normal.shapes[node.outputs[0]]
    target = ints(surgeon.trace.normal.values.get(node.inputs[1]))
    if after == list(before) or target is None:
        return []
    shift = len(after) - len(target)
    new = [after[k + shift] if t == before[k + shift] else t for k, t in enumerate(target)]
    return _constant(surgeon, copy, 1, new, "shape")


def _split(surgeon: _Surgeon, node: Node, copy: NodeProto) -> list[TensorProto]:
    axis = int(node.attrs.get("axis", 0))
    if surgeon.mask(node.inputs[0], axis) is None:
        return []
    sizes = [surgeon.shape(name)[axis] for name in node.outputs]
    if surgeon.trace.normal.opset() < 13:
        _set(copy, "split", sizes)
        return []
    kept = [a for a in copy.attribute if a.name != "num_outputs"]
    del copy.attribute[:]
    copy.attribute.extend(kept)
    return _constant(surgeon, copy, 1, sizes, "split")


def _slice(surgeon: _Surgeon, node: Node, copy: NodeProto) -> list[TensorProto]:
    """Bounds count what is left before them."""
    shape = surgeon.trace.normal.shapes[node.inputs[0]]
    masks = surgeon.shrunk(node.inputs[0])
    known = surgeon.known(node)
    index = slice_index(shape, dict(node.attrs), known)
    if index is None or not masks:
        return []
    attribute = "starts" in node.attrs
    if attribute:
        starts, ends = list(node.attrs["starts"]), list(node.attrs["ends"])
        axes = list(node.attrs.get("axes", range(len(starts))))
    else:
        starts, ends = ints(known[1]) or [], ints(known[2]) or []
        stated = ints(known[3]) if len(known) > 3 else None
        axes = stated or list(range(len(starts)))
    for place, axis in enumerate(axes):
        mask = masks.get(axis % len(shape))
        if mask is not None:
            span = index[axis % len(shape)]
            starts[place] = int(mask[: span.start].sum())
            ends[place] = int(mask[: span.stop].sum())
    if attribute:
        _set(copy, "starts", starts)
        _set(copy, "ends", ends)
        return []
    return _constant(surgeon, copy, 1, starts, "starts") + _constant(surgeon, copy, 2, ends, "ends")


def _gather(surgeon: _Surgeon, node: Node, copy: NodeProto) -> list[TensorProto]:
    axis = int(node.attrs.get("axis", 0))
    if node.inputs[0] in surgeon.trace.normal.shape_like:
        return []
    mask = surgeon.mask(node.inputs[0], axis)
    index = surgeon.trace.normal.values.get(node.inputs[1])
    if mask is None or index is None:
        return []
    place = np.cumsum(mask) - 1
    index = np.where(index < 0, index + len(mask), index)
    kept = place[index[mask[index]]] if index.ndim else place[index]
    return _constant(surgeon, copy, 1, kept, "indices")


def _pad(surgeon: _Surgeon, node: Node, copy: NodeProto) -> list[TensorProto]:
    """Of the channels a shortcut pads with, as many as are left on each side."""
    rank = len(surgeon.trace.normal.shapes[node.inputs[0]])
    counts = pad_counts(node, surgeon.trace.normal, rank)
    masks = surgeon.shrunk(node.outputs[0])
    if counts is None or not masks:
        return []
    begins, ends = list(counts[0]), list(counts[1])
    for axis, mask in masks.items():
        if begins[axis] or ends[axis]:
            extent = len(mask)
            begins[axis] = int(mask[: begins[axis]].sum())
            ends[axis] = int(mask[extent - ends[axis] :].sum())
    if "pads" in node.attrs:
        _set(copy, "pads", begins + ends)
        return []
    axes = surgeon.known(node)[3] if len(node.inputs) > 3 and node.inputs[3] else None
    if axes is not None:
        order = [axis % rank for axis in ints(axes) or []]
        begins, ends = [begins[a] for a in order], [ends[a] for a in order]
    return _constant(surgeon, copy, 1, begins + ends, "pads")


def _squeeze(surgeon: _Surgeon, node: Node, copy: NodeProto) -> list[TensorProto]:
    """Axes that are left to be told by their extent are named: a single unit's is one too."""
    if "axes" in node.attrs or len(node.inputs) > 1 or not surgeon.shrunk(node.inputs[0]):
        return []
    shape = surgeon.trace.normal.shapes[node.inputs[0]]
    axes = [axis for axis, extent in enumerate(shape) if extent == 1]
    if surgeon.trace.normal.opset() < 13:
        _set(copy, "axes", axes)
        return []
    return _constant(surgeon, copy, 1, axes, "axes")


def _resize(surgeon: _Surgeon, node: Node, copy: NodeProto) -> list[TensorProto]:
    sizes = surgeon.known(node)[3] if len(node.inputs) > 3 and node.inputs[3] else None
    masks = surgeon.shrunk(node.outputs[0])
    if sizes is None or not masks:
        return []
    new = ints(sizes) or []
    rank = len(surgeon.trace.normal.shapes[node.inputs[0]])
    axes = [int(a) % rank for a in node.attrs.get("axes", range(rank))]
    for place, axis in enumerate(axes):
        if axis in masks:
            new[place] = int(masks[axis].sum())
    return _constant(surgeon, copy, 3, new, "sizes")


_REWRITES: dict[str, Callable[[_Surgeon, Node, NodeProto], list[TensorProto]]] = {
    "Conv": _conv,
    "ConvTranspose": _conv,
    "Reshape": _reshape,
    "Expand": _expand,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "Pad": _pad,
    "Resize": _resize,
    "Squeeze": _squeeze,
}
