"""What a cut changes in single nodes: weights sliced, and every constant that counts channels.

What is computed from open extents keeps, in the cut model, the values it has in the whole one: a
Shape still tells of every channel. Where a node is told the extent of an axis that shrinks, that
entry alone is replaced, in the constant or behind what computes the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from rlprune.graph.folding import ints, slice_index
from rlprune.graph.from_onnx import OnnxTrace
from rlprune.graph.rules_extents import pad_counts
from rlprune.graph.walk import Node
from rlprune.graph.weights import is_hollow
from rlprune.graph.windows import zero_border
from rlprune.surgery.removal import BoolArray, Removal, Window, kept_mask


@dataclass(frozen=True)
class Surgeon:
    """One cut: what stays, and what the nodes rewritten so far need beside themselves."""

    trace: OnnxTrace
    removal: Removal
    made: list[TensorProto] = field(default_factory=list)
    """New constants."""
    before: list[NodeProto] = field(default_factory=list)
    """New nodes that feed the one being rewritten."""
    after: list[NodeProto] = field(default_factory=list)
    """New nodes that it feeds."""

    def mask(self, tensor: str, axis: int) -> BoolArray | None:
        """Which positions of an axis stay; None where all do."""
        mask = kept_mask(*self.trace.channels.axis_units(tensor, axis), self.removal.kept)
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
        window = self.removal.windows.get(source.name)
        if not masks and window is None:
            target.CopyFrom(source)
            return
        if is_hollow(source):
            extents = self.shape(source.name)
            extents[2:] = self.removal.extents(source.name, extents[2:])
            target.CopyFrom(TensorProto(name=source.name, data_type=source.data_type, dims=extents))
            return
        array = numpy_helper.to_array(source)
        for axis, mask in masks.items():
            array = np.compress(mask, array, axis=axis)
        for axis, (first, count) in enumerate(window or ()):
            array = array.take(range(first, first + count), axis=2 + axis)
        target.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), source.name))

    def known(self, node: Node) -> list[NDArray[np.int64] | None]:
        """Values of the node's inputs at the analysed sizes."""
        return [self.trace.normal.value(name) for name in node.inputs]

    def constant(self, values: object, dtype: np.dtype[Any], name: str) -> str:
        """A new constant; its name, which is `name` where that is free."""
        while name in self.trace.normal.shapes:
            name += "'"
        self.made.append(numpy_helper.from_array(np.asarray(values, dtype=dtype), name))
        return name

    def tell(self, node: Node, copy: NodeProto, place: int, told: Mapping[int, int]) -> None:
        """Changes entries of the vector that a node reads at `place`, in the type the file has."""
        normal = self.trace.normal
        source = node.inputs[place]
        values = normal.value(source)
        assert values is not None
        if all(int(values.ravel()[k]) == extent for k, extent in told.items()):
            return
        new = values.copy()
        for k, extent in told.items():
            new.ravel()[k] = extent
        label = f"{copy.output[0]}/{_WORDS.get((node.op, place), 'shape')}"
        if source in normal.values:
            copy.input[place] = self.constant(new, values.dtype, label)
            return
        chosen = np.zeros(values.shape, dtype=np.bool_)
        chosen.ravel()[list(told)] = True
        mask = self.constant(chosen, chosen.dtype, f"{label}/chosen")
        extents = self.constant(new, new.dtype, f"{label}/extents")
        copy.input[place] = f"{extents}/where"
        where = helper.make_node("Where", [mask, extents, source], [copy.input[place]])
        where.name = copy.input[place]
        self.before.append(where)


_WORDS = {
    ("Slice", 1): "starts",
    ("Slice", 2): "ends",
    ("Pad", 1): "pads",
    ("Resize", 3): "sizes",
}
"""What new constants are called; `shape` where not said."""


def _set(copy: NodeProto, name: str, value: int | Sequence[int]) -> None:
    for index, attribute in enumerate(copy.attribute):
        if attribute.name == name:
            del copy.attribute[index]
            break
    copy.attribute.append(helper.make_attribute(name, value))


def _conv(surgeon: Surgeon, node: Node, copy: NodeProto) -> None:
    groups = int(node.attrs.get("group", 1))
    weight = surgeon.trace.normal.shapes[node.inputs[1]]
    per_group = weight[1] if node.op == "Conv" else weight[0] // groups
    if groups > 1 and per_group == 1:
        _set(copy, "group", surgeon.shape(node.inputs[0])[1])
    window = surgeon.removal.windows.get(node.inputs[1])
    if window is not None:
        _narrow_kernel(surgeon, node, copy, window)


def _narrow_kernel(surgeon: Surgeon, node: Node, copy: NodeProto, window: Window) -> None:
    """A kernel of fewer taps reads what those read before: the border shrinks by the others."""
    kernel = surgeon.trace.normal.shapes[node.inputs[1]][2:]
    rank = len(kernel)
    dilation = list(node.attrs.get("dilations", [1] * rank))
    # The border of a node of its own goes into the convolution's.
    copy.input[0], pads = zero_border(surgeon.trace.normal, node)
    for axis, (first, count) in enumerate(window):
        pads[axis] -= first * dilation[axis]
        pads[rank + axis] -= (kernel[axis] - first - count) * dilation[axis]
    assert min(pads) >= 0, (node.name, window)  # `schemes.shapes` offers no others
    kept = [a for a in copy.attribute if a.name not in ("auto_pad", "pads", "kernel_shape")]
    del copy.attribute[:]
    copy.attribute.extend(kept)
    _set(copy, "kernel_shape", [count for _, count in window])
    _set(copy, "pads", pads)


def _reshape(surgeon: Surgeon, node: Node, copy: NodeProto) -> None:
    """New extents where channels shrink; what was left to inference (0, -1) stays so.

    But for a 0, "as in the input", where input and output do not shrink alike.
    """
    after = surgeon.shape(node.outputs[0])
    if after == list(surgeon.trace.normal.shapes[node.outputs[0]]):
        return
    before = surgeon.shape(node.inputs[0])
    normal = surgeon.trace.normal
    whole = normal.shapes[node.outputs[0]]
    target = ints(normal.value(node.inputs[1])) or []
    told = {}
    for k, (t, d) in enumerate(zip(target, after, strict=True)):
        if t == -1 or d == whole[k] or (t == 0 and before[k] == d):
            continue
        told[k] = d if normal.is_steady(node.inputs[1], k) else -1
    surgeon.tell(node, copy, 1, told)


def _expand(surgeon: Surgeon, node: Node, copy: NodeProto) -> None:
    after = surgeon.shape(node.outputs[0])
    before = surgeon.trace.normal.shapes[node.outputs[0]]
    target = ints(surgeon.trace.normal.value(node.inputs[1]))
    if after == list(before) or target is None:
        return
    shift = len(after) - len(target)
    told = {
        k: after[k + shift]
        for k, t in enumerate(target)
        if after[k + shift] != before[k + shift] and t == before[k + shift]
    }
    surgeon.tell(node, copy, 1, told)


def _split(surgeon: Surgeon, node: Node, copy: NodeProto) -> None:
    axis = int(node.attrs.get("axis", 0))
    if surgeon.mask(node.inputs[0], axis) is None:
        return
    sizes = [surgeon.shape(name)[axis] for name in node.outputs]
    if surgeon.trace.normal.opset() < 13:
        _set(copy, "split", sizes)
        return
    kept = [a for a in copy.attribute if a.name != "num_outputs"]
    del copy.attribute[:]
    copy.attribute.extend(kept)
    name = surgeon.constant(sizes, np.dtype(np.int64), f"{copy.output[0]}/split")
    copy.input[:] = [copy.input[0], name]


def _slice(surgeon: Surgeon, node: Node, copy: NodeProto) -> None:
    """Bounds count what is left before them."""
    shape = surgeon.trace.normal.shapes[node.inputs[0]]
    masks = surgeon.shrunk(node.inputs[0])
    known = surgeon.known(node)
    index = slice_index(shape, dict(node.attrs), known)
    if index is None or not masks:
        return
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
        return
    own = [place for place, axis in enumerate(axes) if axis % len(shape) in masks]
    surgeon.tell(node, copy, 1, {place: starts[place] for place in own})
    surgeon.tell(node, copy, 2, {place: ends[place] for place in own})


def _gather(surgeon: Surgeon, node: Node, copy: NodeProto) -> None:
    axis = int(node.attrs.get("axis", 0))
    mask = surgeon.mask(node.inputs[0], axis)
    index = surgeon.trace.normal.values.get(node.inputs[1])
    if mask is None or index is None:
        return
    place = np.cumsum(mask) - 1
    index = np.where(index < 0, index + len(mask), index)
    kept = place[index[mask[index]]] if index.ndim else place[index]
    copy.input[1] = surgeon.constant(kept, index.dtype, f"{copy.output[0]}/indices")


def _pad(surgeon: Surgeon, node: Node, copy: NodeProto) -> None:
    """Of the channels a shortcut pads with, as many as are left on each side."""
    rank = len(surgeon.trace.normal.shapes[node.inputs[0]])
    counts = pad_counts(node, surgeon.trace.normal, rank)
    masks = surgeon.shrunk(node.outputs[0])
    if counts is None or not masks:
        return
    begins, ends = list(counts[0]), list(counts[1])
    for axis, mask in masks.items():
        if begins[axis] or ends[axis]:
            extent = len(mask)
            begins[axis] = int(mask[: begins[axis]].sum())
            ends[axis] = int(mask[extent - ends[axis] :].sum())
    if "pads" in node.attrs:
        _set(copy, "pads", begins + ends)
        return
    axes = surgeon.known(node)[3] if len(node.inputs) > 3 and node.inputs[3] else None
    order = list(range(rank)) if axes is None else [axis % rank for axis in ints(axes) or []]
    told = {}
    for place, axis in enumerate(order):
        if axis in masks:
            told.update({place: begins[axis], place + len(order): ends[axis]})
    surgeon.tell(node, copy, 1, told)


def _squeeze(surgeon: Surgeon, node: Node, copy: NodeProto) -> None:
    """Axes that are left to be told by their extent are named: a single unit's is one too."""
    if "axes" in node.attrs or len(node.inputs) > 1 or not surgeon.shrunk(node.inputs[0]):
        return
    shape = surgeon.trace.normal.shapes[node.inputs[0]]
    axes = [axis for axis, extent in enumerate(shape) if extent == 1]
    if surgeon.trace.normal.opset() < 13:
        _set(copy, "axes", axes)
        return
    name = surgeon.constant(axes, np.dtype(np.int64), f"{copy.output[0]}/axes")
    copy.input[:] = [copy.input[0], name]


def _resize(surgeon: Surgeon, node: Node, copy: NodeProto) -> None:
    sizes = surgeon.known(node)[3] if len(node.inputs) > 3 and node.inputs[3] else None
    masks = surgeon.shrunk(node.outputs[0])
    if sizes is None or not masks:
        return
    rank = len(surgeon.trace.normal.shapes[node.inputs[0]])
    axes = [int(a) % rank for a in node.attrs.get("axes", range(rank))]
    told = {place: int(masks[axis].sum()) for place, axis in enumerate(axes) if axis in masks}
    surgeon.tell(node, copy, 3, told)


def _shape(surgeon: Surgeon, node: Node, copy: NodeProto) -> None:
    """The extents of the whole model, for those who read the channels' among them."""
    normal = surgeon.trace.normal
    whole, after = normal.shapes[node.inputs[0]], surgeon.shape(node.inputs[0])
    part = slice(node.attrs.get("start", 0), node.attrs.get("end", len(whole)))
    lost = np.array([a != b for a, b in zip(whole, after, strict=True)])
    name = node.outputs[0]
    readers = normal.readers.get(name, ())
    seen = any(_reads(reader, surgeon.known(reader), lost[part]) for reader in readers)
    if seen or (lost[part].any() and name in {value.name for value in normal.model.graph.output}):
        _as_whole(surgeon, copy, np.where(lost, whole, 1)[part], np.where(lost, after, 1)[part])


def _size(surgeon: Surgeon, node: Node, copy: NodeProto) -> None:
    """The number of entries in the whole model."""
    whole = surgeon.trace.normal.shapes[node.inputs[0]]
    after = surgeon.shape(node.inputs[0])
    if after != list(whole):
        _as_whole(surgeon, copy, np.prod(whole), np.prod(after))


def _as_whole(surgeon: Surgeon, copy: NodeProto, whole: object, after: object) -> None:
    """Counts that a node tells of the cut model, turned into those of the whole one.

    Exact where channels share an axis with an open extent, too: both count it alike.
    """
    name = copy.output[0]
    steps = [f"{name}/{step}" for step in ("cut", "product")]
    while any(step in surgeon.trace.normal.shapes for step in steps):
        steps = [f"{step}'" for step in steps]
    copy.output[0] = steps[0]
    count = np.dtype(np.int64)
    for op, factor, into in (("Mul", whole, steps[1]), ("Div", after, name)):
        constant = surgeon.constant(factor, count, f"{name}/{op.lower()}")
        source = steps[0] if op == "Mul" else steps[1]
        surgeon.after.append(helper.make_node(op, [source, constant], [into], name=into))


def _reads(reader: Node, known: Sequence[NDArray[Any] | None], chosen: BoolArray) -> bool:
    """Whether a node that reads a vector looks at one of the entries `chosen`."""
    try:
        if reader.op == "Gather" and known[1] is not None:
            return bool(chosen[known[1]].any())
        index = (
            slice_index(chosen.shape, dict(reader.attrs), known) if reader.op == "Slice" else None
        )
    except (IndexError, ValueError):
        return True
    return bool((chosen if index is None else chosen[index]).any())


def _attention(surgeon: Surgeon, node: Node, copy: NodeProto) -> None:
    """How many heads are left, where that is noted beside rows of all heads together."""
    for place, name in enumerate(("q_num_heads", "kv_num_heads")):
        if name in node.attrs:
            tensor = node.inputs[place]
            before = surgeon.trace.normal.shapes[tensor][-1]
            _set(copy, name, int(node.attrs[name]) * surgeon.shape(tensor)[-1] // before)


def _group_norm(surgeon: Surgeon, node: Node, copy: NodeProto) -> None:
    """Channels of which each is a group of its own."""
    if surgeon.mask(node.inputs[0], 1) is not None:
        _set(copy, "num_groups", surgeon.shape(node.inputs[0])[1])


REWRITES: dict[str, Callable[[Surgeon, Node, NodeProto], None]] = {
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
    "Shape": _shape,
    "Size": _size,
    "Attention": _attention,
    "GroupNormalization": _group_norm,
}
"""By operator, what changes in a node's copy."""
