"""What each operator says about channel ids: products with weights, and of activations.

A product of two activations lets pass what both have along the same label, such as whole heads of
an attention, and what only one of them has; what is summed over is held.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlprune.graph.channels import Block
from rlprune.graph.rules import claim_bias
from rlprune.graph.scope import Scope, hold_all, hold_inputs, hold_layer, rule
from rlprune.graph.types import IntArray
from rlprune.graph.walk import Node

Labels = tuple[str, ...]
"""A name for every axis of a tensor."""


@rule("Gemm")
def _gemm(node: Node, scope: Scope) -> None:
    """Reads and makes channels."""
    data, weight = node.inputs[:2]
    read, write = (1, 0) if node.attrs.get("transB") else (0, 1)
    if not scope.is_weight(weight) or scope.is_weight(data):
        return hold_layer(node, scope, weight, write)
    place = 0 if node.attrs.get("transA") else 1
    channels = scope.channels
    ids = channels.axis(data, place, f"{node.op} {node.name} reads another axis as channels")
    channels.claim(weight, (read,), ids)
    out = channels.made(node.name, weight, write, channels.fresh(scope.shape(weight)[write]))
    claim_bias(node, scope, 2, out)
    channels.put(node.outputs[0], (1,), out)


@rule("MatMul")
def _matmul(node: Node, scope: Scope) -> None:
    """Reads and makes channels with a weight; of two activations it lets whole heads, rows or
    columns through; what it sums over is not prunable."""
    left, right = node.inputs
    channels = scope.channels
    if not scope.is_weight(right):
        if scope.is_weight(left):
            return hold_all(node, scope, "has its weight on the left")
        if scope.is_constant(right):
            return hold_layer(node, scope, right, -1)
        return _matmul_of_activations(node, scope)
    rank = len(scope.shape(left))
    if len(scope.shape(right)) != 2:
        return hold_all(node, scope, "has a weight that is no matrix")
    block = None if scope.is_weight(left) else channels.block(left)
    if block is not None and rank - 1 not in block.axes and not channels.is_held(block.ids):
        # Mixes positions; channels go through, and the positions stay.
        channels.put(node.outputs[0], block.axes, block.ids)
        return
    ids = channels.axis(left, rank - 1, f"{node.op} {node.name} reads another axis as channels")
    channels.claim(right, (0,), ids)
    out = channels.made(node.name, right, 1, channels.fresh(scope.shape(right)[1]))
    channels.put(node.outputs[0], (rank - 1,), out)


def _matmul_of_activations(node: Node, scope: Scope) -> None:
    left, right = (len(scope.shape(name)) for name in node.inputs)
    batch = [f"batch{place}" for place in range(max(left, right))]  # counted from the right
    before: Labels = (*batch[: max(left - 2, 0)][::-1], *(("row",) if left > 1 else ()), "sum")
    after: Labels = (*batch[: max(right - 2, 0)][::-1], "sum", *(("column",) if right > 1 else ()))
    output = (
        *batch[: max(left - 2, right - 2, 0)][::-1],
        *(label for label in ("row", "column") if label in (*before, *after)),
    )
    _product(node, scope, (before, after), output, frozenset(batch))


@rule("Einsum")
def _einsum(node: Node, scope: Scope) -> None:
    """With a weight it reads and makes channels, else as MatMul; only of two operands."""
    read = equation(node)
    if read is None or len(read[0]) != 2 or any(len(set(t)) < len(t) for t in (*read[0], read[1])):
        return hold_all(node, scope)
    operands, output = read
    weights = [place for place, name in enumerate(node.inputs) if scope.is_weight(name)]
    if not weights:
        return _product(node, scope, operands, output, frozenset(output))
    if len(weights) == 2:
        return None
    _weighted(node, scope, operands[1 - weights[0]], operands[weights[0]], output)


def equation(node: Node) -> tuple[list[Labels], Labels] | None:
    """Labels of an Einsum's operands and of its output; None where it has an ellipsis."""
    text = str(node.attrs["equation"]).replace(" ", "")
    if "." in text:
        return None
    left, arrow, right = text.partition("->")
    if not arrow:
        right = "".join(sorted(c for c in set(left) - {","} if left.count(c) == 1))
    return [tuple(term) for term in left.split(",")], tuple(right)


def _weighted(node: Node, scope: Scope, data: Labels, own: Labels, output: Labels) -> None:
    """An Einsum with a weight: what is summed over reads channels, what only it has makes them."""
    channels = scope.channels
    x, weight = node.inputs if scope.is_weight(node.inputs[1]) else reversed(node.inputs)
    block = channels.block(x)
    if block is not None:
        labels = [data[axis] for axis in block.axes]
        if all(label in own and label not in output for label in labels):
            axes = tuple(sorted(own.index(label) for label in labels))
            order = [labels.index(own[axis]) for axis in axes]
            channels.claim(weight, axes, block.ids.transpose(order))
        elif all(label in output and label not in own for label in labels):
            # The weight works beside these channels, which go through.
            return channels.put(node.outputs[0], *_ordered(labels, block.ids, output))
        else:
            hold_all(node, scope, "mixes these channels with others")
    made = [label for label in output if label in own and label not in data]
    if not made:
        return
    # Of several axes that it makes (heads and what each holds) the first is the one that shrinks.
    axis = own.index(made[0])
    ids = channels.made(node.name, weight, axis, channels.fresh(scope.shape(weight)[axis]))
    channels.put(node.outputs[0], (output.index(made[0]),), ids)


def _ordered(
    labels: Sequence[str], ids: IntArray, output: Labels
) -> tuple[tuple[int, ...], IntArray]:
    """Axes of the output, ascending, and the ids along them."""
    axes = tuple(sorted(output.index(label) for label in labels))
    return axes, ids.transpose([list(labels).index(output[axis]) for axis in axes])


def _product(
    node: Node,
    scope: Scope,
    operands: Sequence[Labels],
    output: Labels,
    spread: frozenset[str],
) -> None:
    """A product of two activations.

    Args:
        operands: labels of the two operands' axes.
        output: those of its result.
        spread: labels along which an operand that lacks them is the same for all.
    """
    channels = scope.channels
    found: dict[int, Block] = {}
    extents: list[dict[str, int]] = []
    for place, name in enumerate(node.inputs):
        block = None if scope.is_weight(name) else channels.block(name)
        extents.append(dict(zip(operands[place], scope.shape(name), strict=True)))
        if block is not None:
            found[place] = block
    if not found:
        return
    offered = {
        place: {operands[place][axis] for axis in block.axes} & set(output)
        for place, block in found.items()
    }
    # A label that an operand has without channels cannot shrink.
    free = [
        label
        for label in output
        if any(label in labels for labels in offered.values())
        and all(extents[k].get(label, 1) == 1 or label in offered.get(k, ()) for k in (0, 1))
    ]
    both = [label for label in free if all(extents[k].get(label, 1) > 1 for k in (0, 1))]
    if not both and len(found) == 2:
        # Of what one of them has alone, only what is the same for all of the other's.
        first = next((k for k in (0, 1) if any(n in spread for n in free if n in offered[k])), 0)
        free = [label for label in free if label in spread and label in offered[first]]
    elif both:
        free = [label for label in both if label in spread]
    parts: list[tuple[tuple[int, ...], IntArray]] = []
    for place, block in found.items():
        axes = [axis for axis in block.axes if operands[place][axis] in free]
        if not axes:
            channels.hold(block.ids, f"{node.op} {node.name} sums over or between channels")
            continue
        part = channels.only(block, axes)
        parts.append(_ordered([operands[place][axis] for axis in part.axes], part.ids, output))
    for places, ids in parts[1:]:
        if places != parts[0][0]:
            for _, held in parts:
                channels.hold(held, f"{node.op} {node.name} is not an attention over whole heads")
            return
        channels.tie(parts[0][1], ids)
    if parts:
        channels.put(node.outputs[0], *parts[0])


@rule("DeformConv")
def _deform_conv(node: Node, scope: Scope) -> None:
    """Reads and makes channels; not prunable: offsets, masks, several groups or offset groups."""
    data, weight, offset = node.inputs[:3]
    mask = node.inputs[4] if len(node.inputs) > 4 else ""
    channels = scope.channels
    if not scope.is_weight(weight) or scope.is_weight(data):
        return hold_layer(node, scope, weight, 0)
    if int(node.attrs.get("group", 1)) > 1 or int(node.attrs.get("offset_group", 1)) > 1:
        return hold_all(node, scope, "deforms several groups of channels")
    hold_inputs(node, scope, (offset, mask), "moves its taps by these channels")
    ids = channels.axis(data, 1, f"{node.op} {node.name} reads another axis as channels")
    channels.claim(weight, (1,), ids)
    out = channels.made(node.name, weight, 0, channels.fresh(scope.shape(weight)[0]))
    claim_bias(node, scope, 3, out)
    channels.put(node.outputs[0], (1,), out)


@rule("Attention")
def _attention(node: Node, scope: Scope) -> None:
    """Whole heads live and die together, query heads with the head whose keys they read.

    [batch, heads, rows, width of a head], or [batch, rows, all heads] with their counts noted.
    """
    channels = scope.channels
    q, k, v = node.inputs[:3]
    readers = scope.normal.readers
    used = [name for name in node.outputs[1:] if name in readers or name in scope.outputs]
    if used or any(node.inputs[4:]):
        return hold_all(node, scope, "keeps keys and values of earlier calls, or tells its scores")
    parts = (q, "q_num_heads"), (k, "kv_num_heads"), (v, "kv_num_heads")
    heads = [_heads(node, scope, name, attribute) for name, attribute in parts]
    if heads[0] is None or (heads[1] is None) != (heads[2] is None):
        return hold_all(node, scope, "has queries, keys or values without prunable heads")
    queries = heads[0]
    mask = node.inputs[3] if len(node.inputs) > 3 else ""
    if heads[1] is None or heads[2] is None or len(heads[1]) == 1:
        # One key for all heads: each query's head is free, while keys stay.
        if max(_head_count(node, scope, k, "kv"), _head_count(node, scope, v, "kv")) > 1:
            return hold_all(node, scope, "has queries, keys or values without prunable heads")
        for name in (k, v):
            block = channels.block(name)
            if block is not None:
                channels.hold(block.ids, f"{node.op} {node.name} has one head of keys for all")
    else:
        channels.tie(heads[1], heads[2])
        channels.tie(queries.reshape(len(heads[1]), -1), heads[1][:, None])
    if mask and len(scope.shape(mask)) > 2 and scope.shape(mask)[-3] > 1:
        place = len(scope.shape(mask)) - 3
        if scope.is_weight(mask):
            channels.claim(mask, (place,), queries)
        else:
            ids = channels.axis(mask, place, f"{node.op} {node.name} masks these heads")
            channels.tie(queries, ids)
    rank = len(scope.shape(node.outputs[0]))
    if rank == 4:
        channels.put(node.outputs[0], (1,), queries)
    else:
        each = scope.shape(node.outputs[0])[2] // len(queries)
        channels.put(node.outputs[0], (2,), np.repeat(queries, each))


def _head_count(node: Node, scope: Scope, name: str, part: str) -> int:
    shape = scope.shape(name)
    return shape[1] if len(shape) == 4 else int(node.attrs.get(f"{part}_num_heads", 1))


def _heads(node: Node, scope: Scope, name: str, attribute: str) -> IntArray | None:
    """The ids of an operand's heads [heads]; None where none of its channels can go."""
    block = None if scope.is_weight(name) else scope.channels.block(name)
    axis = 1 if len(scope.shape(name)) == 4 else 2
    if block is None or axis not in block.axes:
        return None
    ids = scope.channels.only(block, (axis,)).ids
    if axis == 1:
        return ids
    return scope.channels.tie_along(ids.reshape(int(node.attrs[attribute]), -1), 1)


@rule("LSTM GRU RNN")
def _recurrent(node: Node, scope: Scope) -> None:
    """Reads channels; the hidden state is not prunable."""
    data, weight = node.inputs[:2]
    weights = [name for name in node.inputs[1:4] if name]
    if not all(scope.is_weight(name) for name in weights) or scope.is_weight(data):
        return hold_all(node, scope, "has computed weights")
    channels = scope.channels
    ids = channels.axis(data, 2, f"{node.op} {node.name} reads another axis as channels")
    channels.claim(weight, (2,), ids)
    hold_inputs(node, scope, node.inputs[4:], "starts from these channels")
    hidden = scope.shape(node.inputs[2])[2]
    channels.note(node.name, weight, hidden, f"{node.op} {node.name} keeps its hidden state whole")
