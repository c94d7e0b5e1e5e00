"""What each operator says about channel ids: those that are told extents, which may be computed.

A Slice's bounds, a Pad's counts, the sizes of a Resize: what is told about the channels' own axes
must be the same at every size; what is told about the others may depend on open extents.
"""

from __future__ import annotations

import math

import numpy as np

from rlprune.graph.channels import MAX_IDS, Block
from rlprune.graph.folding import ints, slice_index
from rlprune.graph.normal import NormalModel
from rlprune.graph.rules import pass_on
from rlprune.graph.scope import Scope, carries, hold_all, rule
from rlprune.graph.walk import Node

MAX_SPREAD = 2**16
"""Most positions of an Expand that are followed, heads times rows."""
MAX_SIZED = 2**18
"""Most entries of a weight fitted to an open extent that are followed."""


def nameless(node: Node, scope: Scope, axis: int) -> bool:
    """Holds, and says so, where positions of `axis` mean other channels at another size."""
    merged = any(
        axis in block.axes and scope.shape(name)[axis] > 1 and scope.normal.is_open(name, axis)
        for name, block in scope.blocks(node)
    )
    if merged:
        hold_all(node, scope, "takes apart an axis that holds batch and channels")
    return merged


def _sized_weight(node: Node, scope: Scope) -> bool:
    """Whether the node fits a weight to an open extent, as learned positions are; follows it then.

    The axes that it leaves alone are channels as those of the weight are, and are sliced with it.
    """
    weight, output = node.inputs[0], node.outputs[0]
    if not scope.is_weight(weight) or output not in scope.normal.shape_like:
        return False
    before, after = scope.shape(weight), scope.shape(output)
    if len(before) == len(after) and before:
        axes = tuple(
            axis
            for axis, extent in enumerate(before)
            if 1 < extent == after[axis] and not scope.normal.is_open(output, axis)
        )
        extents = [before[axis] for axis in axes]
        if axes and np.prod(extents, dtype=np.float64) <= MAX_SIZED:
            ids = scope.channels.fresh(*extents)
            scope.channels.claim(weight, axes, ids)
            scope.channels.put(output, axes, ids)
    return True


@rule("Slice")
def _slice(node: Node, scope: Scope) -> None:
    """Carries the channels within its bounds, which are counted anew."""
    if _sized_weight(node, scope):
        return
    block = scope.channels.block(node.inputs[0])
    if block is None:
        return
    shape = scope.shape(node.inputs[0])
    known = [scope.normal.value(name) for name in node.inputs]
    index = slice_index(shape, dict(node.attrs), known)
    if index is None or not _is_told(
        node, scope, block, ints(known[3]) if len(known) > 3 else None
    ):
        return hold_all(node, scope, "has computed bounds")
    ids = block.ids[tuple(index[axis] for axis in block.axes)]
    for axis in block.axes:
        if index[axis] != slice(None) and nameless(node, scope, axis):
            return
        if index[axis].step not in (None, 1):
            scope.channels.hold(block.ids, f"Slice {node.name} strides over these channels")
    if 0 in ids.shape:
        return
    scope.channels.put(node.outputs[0], block.axes, ids)


def _is_told(node: Node, scope: Scope, block: Block, stated: list[int] | None) -> bool:
    """Whether what a Slice or Pad is told about the block's axes is the same at every size.

    `stated` are the axes that its bounds or counts are of, in order; all where None.
    """
    rank = len(scope.shape(node.inputs[0]))
    axes = list(range(rank)) if stated is None else [axis % rank for axis in stated]
    vectors = [name for name in node.inputs[1:] if name in scope.normal.computed]
    if len(node.inputs) > 3 and node.inputs[3] in vectors:
        return False
    for name in vectors:
        count = scope.normal.computed[name].values.size
        own = [k for k in range(count) if axes[k % len(axes)] in block.axes]
        if not scope.normal.is_steady(name, *own):
            return False
    return True


@carries("Pad")
def _pad(node: Node, scope: Scope, block: Block) -> None:
    """Carries channels; zero channels that it adds are channels of their own."""
    rank = len(scope.shape(node.inputs[0]))
    counts = pad_counts(node, scope.normal, rank)
    stated = ints(scope.normal.value(node.inputs[3])) if len(node.inputs) > 3 else None
    if counts is None or not _is_told(node, scope, block, stated):
        return hold_all(node, scope, "pads with computed counts")
    begins, ends = counts
    touched = [axis for axis in block.axes if begins[axis] or ends[axis]]
    mode = node.attrs.get("mode", "constant")
    if touched and (mode != "constant" or len(block.axes) > 1):
        return hold_all(node, scope, "pads these channels")
    if not touched:
        return pass_on(node, scope)
    axis = touched[0]
    if nameless(node, scope, axis):
        return
    if begins[axis] < 0 or ends[axis] < 0:
        return hold_all(node, scope, "crops these channels")
    low, high = scope.channels.fresh(begins[axis]), scope.channels.fresh(ends[axis])
    scope.channels.put(node.outputs[0], block.axes, np.concatenate([low, block.ids, high]))


def pad_counts(node: Node, normal: NormalModel, rank: int) -> tuple[list[int], list[int]] | None:
    """Entries put before and after every axis at the analysed sizes; None where not known."""
    if "pads" in node.attrs:
        pads = [int(p) for p in node.attrs["pads"]]
        return pads[:rank], pads[rank:]
    known = [ints(normal.value(name)) if name else None for name in node.inputs]
    if len(known) < 2 or known[1] is None:
        return None
    pads = known[1]
    axes = list(range(rank))
    if len(node.inputs) > 3 and node.inputs[3]:
        if known[3] is None:
            return None
        axes = [axis % rank for axis in known[3]]
    begins, ends = [0] * rank, [0] * rank
    for place, axis in enumerate(axes):
        begins[axis], ends[axis] = pads[place], pads[place + len(axes)]
    return begins, ends


@rule("Expand Resize Upsample")
def _stretch(node: Node, scope: Scope) -> None:
    """Carries channels where their own axes keep their extent; Expand repeats them as needed."""
    if _sized_weight(node, scope) or _spread(node, scope):
        return
    block = scope.channels.block(node.inputs[0])
    if block is None:
        return
    before, after = scope.shape(node.inputs[0]), scope.shape(node.outputs[0])
    shift = len(after) - len(before)
    told = [name for name in node.inputs[1:4] if name and name not in scope.normal.values]
    known = all(name in scope.normal.computed for name in told)
    merged = told and any(
        after[a + shift] > 1 and scope.normal.is_open(node.outputs[0], a + shift)
        for a in block.axes
    )
    if not known or merged or any(before[a] != after[a + shift] for a in block.axes):
        return hold_all(node, scope, "stretches these channels")
    if (
        node.op == "Resize"
        and node.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize"
    ):
        return hold_all(node, scope, "crops while it stretches")
    scope.channels.put(node.outputs[0], tuple(a + shift for a in block.axes), block.ids)


def _spread(node: Node, scope: Scope) -> bool:
    """Repeats a tensor along channels met further on: as often as there are channels left."""
    if node.name not in scope.spread:
        return False
    before, after = scope.shape(node.inputs[0]), scope.shape(node.outputs[0])
    ones = (1,) * (len(after) - len(before)) + before
    axes = tuple(axis for axis, extent in enumerate(after) if ones[axis] < extent)
    target = scope.normal.value(node.inputs[1])
    if target is None or target.size != len(after):
        return False
    axes = tuple(axis for axis in axes if scope.normal.is_steady(node.inputs[1], axis))
    if not axes or math.prod(after[axis] for axis in axes) > MAX_SPREAD:
        return False
    ids = scope.channels.fresh(*(after[axis] for axis in axes))
    scope.channels.put(node.outputs[0], axes, ids)
    return True


@carries("Tile")
def _tile(node: Node, scope: Scope, block: Block) -> None:
    """Carries channels, repeated."""
    repeats = ints(scope.normal.value(node.inputs[1]))
    if repeats is None or not scope.normal.is_steady(node.inputs[1], *block.axes):
        return hold_all(node, scope, "has computed repeats")
    if any(repeats[axis] > 1 and nameless(node, scope, axis) for axis in block.axes):
        return
    ids = np.tile(block.ids, [repeats[axis] for axis in block.axes])
    if ids.size > MAX_IDS:
        return hold_all(node, scope, "repeats too many channels")
    scope.channels.put(node.outputs[0], block.axes, ids)
