"""What each operator says about channel ids: those that move data."""

from __future__ import annotations

import numpy as np

from rlprune.graph.channels import MAX_IDS, Block, varying_axes
from rlprune.graph.folding import axes_of, ints, slice_index
from rlprune.graph.normal import NormalModel
from rlprune.graph.rules import Scope, hold_all, pass_on, rule
from rlprune.graph.types import IntArray
from rlprune.graph.walk import Node

MAX_SIZED = 2**18
"""Most entries of a weight fitted to an open extent that are followed."""


@rule("Reshape Flatten")
def _reshape(node: Node, scope: Scope) -> None:
    block = scope.channels.block(node.inputs[0])
    if block is None:
        return
    before, after = node.inputs[0], node.outputs[0]
    moved = reshape_block(block, scope.shape(before), scope.shape(after))
    if moved is None:
        return hold_all(node, scope, "leaves too many channels, or a single one")
    for shapes in scope.normal.elsewhere:
        if not _moved_alike(block, moved, shapes[before], shapes[after]):
            return hold_all(node, scope, "moves these channels otherwise at another size")
    if node.op == "Reshape" and node.inputs[1] in scope.normal.computed:
        # Surgery leaves an open extent that shrinks to inference, of which a target allows one.
        target = ints(scope.normal.value(node.inputs[1])) or []
        inferred = [k for k in moved.axes if not scope.normal.is_steady(node.inputs[1], k)]
        if len(inferred) + target.count(-1) * bool(inferred) > 1:
            return hold_all(node, scope, "has a computed target")
    elif node.op == "Reshape" and node.inputs[1] not in scope.normal.values:
        return hold_all(node, scope, "has a computed target")
    scope.channels.put(after, moved.axes, moved.ids)


def _moved_alike(
    block: Block, moved: Block, before: tuple[int, ...], after: tuple[int, ...]
) -> bool:
    """Whether a reshape at other extents takes a block to the same place.

    Where an open extent is part of the block (batch and channels share an axis) only the axes are
    compared.
    """
    if tuple(before[axis] for axis in block.axes) != block.ids.shape:
        return True
    there = reshape_block(block, before, after)
    if there is None or there.axes != moved.axes:
        return False
    return there.ids.shape != moved.ids.shape or bool((there.ids == moved.ids).all())


def reshape_block(block: Block, before: tuple[int, ...], after: tuple[int, ...]) -> Block | None:
    """A block's ids after a reshape; None where they would be too many, or are all one.

    Both shapes are cut into runs of axes of equal product; runs with channels are reshaped as one.
    """
    if 0 in before:
        return None
    axes_in: list[int] = []
    axes_out: list[int] = []
    for run_in, run_out in _runs(before, after):
        if set(run_in) & set(block.axes):
            axes_in += run_in
            axes_out += run_out
    extent = [before[axis] for axis in axes_in]
    if np.prod(extent, dtype=np.float64) > MAX_IDS:
        return None
    ids = block.ids.reshape([before[a] if a in block.axes else 1 for a in axes_in])
    ids = np.broadcast_to(ids, extent).reshape([after[axis] for axis in axes_out])
    # Axes along which the ids merely repeat are no channel axes.
    keep = varying_axes(ids)
    if not keep:
        return None
    index = tuple(slice(None) if k in keep else 0 for k in range(ids.ndim))
    return Block(tuple(axes_out[k] for k in keep), np.ascontiguousarray(ids[index]))


def _runs(before: tuple[int, ...], after: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Shortest runs of axes of equal product, in order."""
    runs: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) and j < len(after):
        run_in, run_out = [i], [j]
        left, right = before[i], after[j]
        i, j = i + 1, j + 1
        while left != right:
            if left < right:
                left *= before[i]
                run_in.append(i)
                i += 1
            else:
                right *= after[j]
                run_out.append(j)
                j += 1
        runs.append((run_in, run_out))
    # What is left over are ones.
    if i < len(before):
        (runs[-1][0] if runs else []).extend(range(i, len(before)))
    if j < len(after):
        (runs[-1][1] if runs else []).extend(range(j, len(after)))
    return runs


@rule("Transpose")
def _transpose(node: Node, scope: Scope) -> None:
    block = scope.channels.block(node.inputs[0])
    if block is None:
        return
    rank = len(scope.shape(node.inputs[0]))
    perm = [int(p) for p in node.attrs.get("perm", range(rank - 1, -1, -1))]
    axes = tuple(k for k in range(rank) if perm[k] in block.axes)
    order = [block.axes.index(perm[axis]) for axis in axes]
    scope.channels.put(node.outputs[0], axes, block.ids.transpose(order))


@rule("Squeeze")
def _squeeze(node: Node, scope: Scope) -> None:
    block = scope.channels.block(node.inputs[0])
    if block is None:
        return
    shape = scope.shape(node.inputs[0])
    known = [scope.normal.values.get(name) for name in node.inputs]
    axes = axes_of(dict(node.attrs), known, 1)
    if axes is None:
        axes = [k for k, extent in enumerate(shape) if extent == 1]
    gone = {axis % len(shape) for axis in axes}
    ids = block.ids
    for axis in [axis for axis in reversed(block.axes) if axis in gone]:
        ids = np.take(ids, 0, axis=block.axes.index(axis))
    kept = [axis for axis in block.axes if axis not in gone]
    if not kept:
        return hold_all(node, scope, "drops the channel axis")
    places = tuple(axis - sum(g < axis for g in gone) for axis in kept)
    scope.channels.put(node.outputs[0], places, ids)


@rule("Unsqueeze")
def _unsqueeze(node: Node, scope: Scope) -> None:
    block = scope.channels.block(node.inputs[0])
    if block is None:
        return
    rank = len(scope.shape(node.outputs[0]))
    known = [scope.normal.values.get(name) for name in node.inputs]
    new = {axis % rank for axis in axes_of(dict(node.attrs), known, 1) or []}
    old = [axis for axis in range(rank) if axis not in new]
    scope.channels.put(node.outputs[0], tuple(old[axis] for axis in block.axes), block.ids)


def _nameless(node: Node, scope: Scope, axis: int) -> bool:
    """Holds, and says so, where positions of `axis` mean other channels at another size."""
    merged = any(
        axis in block.axes and scope.shape(name)[axis] > 1 and scope.normal.is_open(name, axis)
        for name, block in scope.blocks(node)
    )
    if merged:
        hold_all(node, scope, "takes apart an axis that holds batch and channels")
    return merged


@rule("Concat")
def _concat(node: Node, scope: Scope) -> None:
    """Along the channels the ids follow each other; along another axis the parts tie."""
    channels = scope.channels
    rank = len(scope.shape(node.outputs[0]))
    along = int(node.attrs["axis"]) % rank
    blocks = scope.blocks(node)
    if not blocks:
        return
    axes = blocks[0][1].axes
    if any(block.axes != axes for _, block in blocks):
        return hold_all(node, scope, "joins different axes")
    if _nameless(node, scope, along):
        return
    parts: list[IntArray] = []
    for name in node.inputs:
        shape = scope.shape(name)
        extent = tuple(shape[axis] for axis in axes)
        block = None if scope.is_weight(name) else channels.block(name)
        if block is not None:
            parts.append(block.ids)
        elif scope.is_weight(name) and len(axes) == 1:
            ids = parts[0] if parts and along not in axes else channels.fresh(*extent)
            if shape[axes[0]] > 1 or along in axes:
                channels.claim(name, axes, ids)
            parts.append(ids)
        else:
            ids = channels.fresh(*extent)
            channels.hold(ids, f"{node.op} {node.name} joins a tensor without prunable channels")
            parts.append(ids)
    if along in axes:
        channels.put(node.outputs[0], axes, np.concatenate(parts, axis=axes.index(along)))
        return
    for part in parts[1:]:
        channels.tie(parts[0], part)
    channels.put(node.outputs[0], axes, parts[0])


@rule("Split")
def _split(node: Node, scope: Scope) -> None:
    block = scope.channels.block(node.inputs[0])
    if block is None:
        return
    axis = int(node.attrs.get("axis", 0)) % len(scope.shape(node.inputs[0]))
    if _nameless(node, scope, axis):
        return
    start = 0
    for output in node.outputs:
        if axis not in block.axes:
            scope.channels.put(output, block.axes, block.ids)
            continue
        extent = scope.shape(output)[axis] if output else 0
        place = block.axes.index(axis)
        part = np.take(block.ids, np.arange(start, start + extent), axis=place)
        scope.channels.put(output, block.axes, part)
        start += extent


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
        if index[axis] != slice(None) and _nameless(node, scope, axis):
            return
        if index[axis].step not in (None, 1):
            scope.channels.hold(block.ids, f"Slice {node.name} strides over these channels")
    if 0 in ids.shape:
        return
    scope.channels.put(node.outputs[0], block.axes, ids)


@rule("Gather")
def _gather(node: Node, scope: Scope) -> None:
    block = scope.channels.block(node.inputs[0])
    if scope.is_weight(node.inputs[0]) or block is None:
        return hold_all(node, scope)
    shape = scope.shape(node.inputs[0])
    axis = int(node.attrs.get("axis", 0)) % len(shape)
    if _nameless(node, scope, axis):
        return
    index_shape = scope.shape(node.inputs[1])
    grown = len(index_shape) - 1
    ids, axes = block.ids, list(block.axes)
    if axis in axes:
        index = scope.normal.values.get(node.inputs[1])
        if index is None or len(index_shape) > 1:
            return hold_all(node, scope, "has computed indices")
        ids = np.take(ids, index, axis=axes.index(axis))
        if not index_shape:
            axes.remove(axis)
    if not axes:
        return hold_all(node, scope, "takes single channels")
    places = tuple(a + grown if a > axis else a for a in axes)
    scope.channels.put(node.outputs[0], places, ids)


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


@rule("Pad")
def _pad(node: Node, scope: Scope) -> None:
    """Zero channels are channels of their own, as in option-A shortcuts."""
    block = scope.channels.block(node.inputs[0])
    if block is None:
        return
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
    if _nameless(node, scope, axis):
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
    """Channels go through where their own axes keep their extent."""
    if _sized_weight(node, scope):
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


@rule("Tile")
def _tile(node: Node, scope: Scope) -> None:
    block = scope.channels.block(node.inputs[0])
    if block is None:
        return
    repeats = ints(scope.normal.value(node.inputs[1]))
    if repeats is None or not scope.normal.is_steady(node.inputs[1], *block.axes):
        return hold_all(node, scope, "has computed repeats")
    if any(repeats[axis] > 1 and _nameless(node, scope, axis) for axis in block.axes):
        return
    ids = np.tile(block.ids, [repeats[axis] for axis in block.axes])
    if ids.size > MAX_IDS:
        return hold_all(node, scope, "repeats too many channels")
    scope.channels.put(node.outputs[0], block.axes, ids)


@rule("DepthToSpace")
def _depth_to_space(node: Node, scope: Scope) -> None:
    """Every output channel is made of blocksize^2 inputs, which live and die together."""
    block = scope.channels.block(node.inputs[0])
    if block is None:
        return
    if block.axes != (1,):
        return hold_all(node, scope)
    cells = int(node.attrs["blocksize"]) ** 2
    if node.attrs.get("mode", "DCR") == "CRD":
        ids = block.ids.reshape(-1, cells)
        ids = scope.channels.tie_along(ids, 1)
    else:
        ids = block.ids.reshape(cells, -1)
        ids = scope.channels.tie_along(ids, 0)
    scope.channels.put(node.outputs[0], (1,), ids)


@rule("SpaceToDepth")
def _space_to_depth(node: Node, scope: Scope) -> None:
    block = scope.channels.block(node.inputs[0])
    if block is None:
        return
    if block.axes != (1,):
        return hold_all(node, scope)
    scope.channels.put(node.outputs[0], (1,), np.tile(block.ids, int(node.attrs["blocksize"]) ** 2))
