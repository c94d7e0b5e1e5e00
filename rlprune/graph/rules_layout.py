"""What each operator says about channel ids: those that move data."""

from __future__ import annotations

import numpy as np

from rlprune.graph.channels import MAX_IDS, Block, varying_axes
from rlprune.graph.folding import axes_of, ints
from rlprune.graph.rules_extents import nameless
from rlprune.graph.scope import Scope, carries, hold_all, hold_inputs, rule
from rlprune.graph.types import IntArray
from rlprune.graph.walk import Node


@carries("Reshape Flatten")
def _reshape(node: Node, scope: Scope, block: Block) -> None:
    """Carries channels to where the reshape puts them."""
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
        several = len(inferred) + target.count(-1) * bool(inferred) > 1
        # What lies along them is then tied, so that none of them shrinks.
        if several and not scope.channels.only(moved, set(moved.axes) - set(inferred)).axes:
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


@carries("Transpose")
def _transpose(node: Node, scope: Scope, block: Block) -> None:
    """Carries channels to where their axes go."""
    rank = len(scope.shape(node.inputs[0]))
    perm = [int(p) for p in node.attrs.get("perm", range(rank - 1, -1, -1))]
    axes = tuple(k for k in range(rank) if perm[k] in block.axes)
    order = [block.axes.index(perm[axis]) for axis in axes]
    scope.channels.put(node.outputs[0], axes, block.ids.transpose(order))


@carries("Squeeze")
def _squeeze(node: Node, scope: Scope, block: Block) -> None:
    """Carries channels; an axis of channels that it drops is not prunable."""
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


@carries("Unsqueeze")
def _unsqueeze(node: Node, scope: Scope, block: Block) -> None:
    """Carries channels."""
    rank = len(scope.shape(node.outputs[0]))
    known = [scope.normal.values.get(name) for name in node.inputs]
    new = {axis % rank for axis in axes_of(dict(node.attrs), known, 1) or []}
    old = [axis for axis in range(rank) if axis not in new]
    scope.channels.put(node.outputs[0], tuple(old[axis] for axis in block.axes), block.ids)


@rule("Concat")
def _concat(node: Node, scope: Scope) -> None:
    """Channels follow each other; along another axis, all parts lose the same ones."""
    channels = scope.channels
    rank = len(scope.shape(node.outputs[0]))
    along = int(node.attrs["axis"]) % rank
    blocks = scope.blocks(node)
    if not blocks:
        return
    axes = blocks[0][1].axes
    if any(block.axes != axes for _, block in blocks):
        return hold_all(node, scope, "joins different axes")
    if nameless(node, scope, along):
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


@carries("Split")
def _split(node: Node, scope: Scope, block: Block) -> None:
    """Every part carries its own channels; sizes are counted anew."""
    axis = int(node.attrs.get("axis", 0)) % len(scope.shape(node.inputs[0]))
    if nameless(node, scope, axis):
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


@rule("Gather")
def _gather(node: Node, scope: Scope) -> None:
    """Carries the channels at constant indices, which are counted anew."""
    block = scope.channels.block(node.inputs[0])
    if scope.is_weight(node.inputs[0]) or block is None:
        return hold_all(node, scope)
    shape = scope.shape(node.inputs[0])
    axis = int(node.attrs.get("axis", 0)) % len(shape)
    if nameless(node, scope, axis):
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


@rule("GridSample")
def _grid_sample(node: Node, scope: Scope) -> None:
    """Carries channels, all read at the same places; the grid's channels are not prunable."""
    data, grid = node.inputs
    channels = scope.channels
    hold_inputs(node, scope, (grid,), "reads places from these channels")
    block = None if scope.is_weight(data) else channels.block(data)
    if block is None:
        return
    if block.axes == (1,):
        return channels.put(node.outputs[0], (1,), block.ids)
    channels.hold(block.ids, f"{node.op} {node.name} samples over these channels")


@carries("DepthToSpace")
def _depth_to_space(node: Node, scope: Scope, block: Block) -> None:
    """Of every output channel, the blocksize^2 inputs live and die together."""
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


@carries("SpaceToDepth")
def _space_to_depth(node: Node, scope: Scope, block: Block) -> None:
    """Carries channels, repeated for every position of a block."""
    if block.axes != (1,):
        return hold_all(node, scope)
    scope.channels.put(node.outputs[0], (1,), np.tile(block.ids, int(node.attrs["blocksize"]) ** 2))
