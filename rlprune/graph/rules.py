"""What each operator says about channel ids: those that compute.

One rule per operator, registered by op type; `rules_layout.py` has those that move data and
`rules_products.py` products. A rule reads the blocks of its inputs, ties, holds, claims axes of
weights, and puts the block of its outputs. Dropping a unit must change nothing but what the dropped
channels themselves contribute through the weights that read them: an operator that mixes channels
without weights (a softmax or mean over them) therefore holds them.
"""

from __future__ import annotations

import numpy as np

from rlprune.errors import ModelError
from rlprune.graph.channels import Block
from rlprune.graph.folding import axes_of
from rlprune.graph.scope import Scope, carries, hold_all, hold_inputs, hold_layer, rule
from rlprune.graph.types import IntArray
from rlprune.graph.walk import Node


def pass_on(node: Node, scope: Scope) -> None:
    """Carries channels, each changed alone."""
    block = scope.channels.block(node.inputs[0])
    if block is not None:
        before = scope.shape(node.inputs[0])
        for output in node.outputs:
            after = scope.shape(output) if output else ()
            if len(after) == len(before) and all(before[a] == after[a] for a in block.axes):
                scope.channels.put(output, block.axes, block.ids)


rule(
    "Relu LeakyRelu Sigmoid Tanh HardSwish HardSigmoid Elu Selu Celu Gelu Erf Softplus "
    "Softsign Mish Exp Log Sqrt Reciprocal Neg Abs Sign Floor Ceil Round Sin Cos Cast "
    "Identity Dropout Clip ThresholdedRelu Shrink Not IsNaN IsInf Swish Acos Acosh Asin Asinh Atan "
    "Atanh Cosh Sinh Tan BitwiseNot"
)(pass_on)


@rule("Shape Size")
def _shape(node: Node, scope: Scope) -> None:
    """Folded; what is left tells open extents, in the cut model those of the whole one."""


@rule("Conv ConvTranspose")
def _conv(node: Node, scope: Scope) -> None:
    """Reads and makes channels; a depthwise one carries them; of a grouped one the same positions
    of every group live and die together."""
    data, weight = node.inputs[:2]
    channels = scope.channels
    transposed = node.op == "ConvTranspose"
    read, write = (0, 1) if transposed else (1, 0)  # axes of the weight
    if not scope.is_weight(weight) or scope.is_weight(data):
        return hold_layer(node, scope, weight, write)
    groups = int(node.attrs.get("group", 1))
    ids = channels.axis(data, 1, f"{node.op} {node.name} reads another axis as channels")
    first, second = scope.shape(weight)[:2]
    if groups == 1:
        channels.claim(weight, (read,), ids)
        out = channels.made(node.name, weight, write, channels.fresh((first, second)[write]))
    elif len(ids) == groups:
        if transposed:
            out = np.repeat(channels.made(node.name, weight, 0, ids), second)
        else:
            out = channels.made(node.name, weight, 0, np.repeat(ids, first // groups))
    else:
        by_group = ids.reshape(groups, -1)
        channels.tie(by_group, by_group[:1])
        channels.claim(weight, (read,), ids if transposed else by_group[0])
        if transposed:
            out = np.tile(channels.made(node.name, weight, 1, channels.fresh(second)), groups)
        else:
            unit = channels.fresh(first // groups)
            out = channels.made(node.name, weight, 0, np.tile(unit, groups))
    claim_bias(node, scope, 2, out)
    channels.put(node.outputs[0], (1,), out)


def claim_bias(node: Node, scope: Scope, place: int, ids: IntArray) -> None:
    """Claims a bias vector, or holds the channels where the bias is computed."""
    name = node.inputs[place] if len(node.inputs) > place else ""
    if not name:
        return
    if not scope.is_weight(name):
        scope.channels.hold(ids, f"{node.op} {node.name} has a computed bias")
        return hold_inputs(node, scope, (name,), "has a computed bias")
    shape = scope.shape(name)
    if shape and shape[-1] == len(ids):
        scope.channels.claim(name, (len(shape) - 1,), ids)


@rule("BatchNormalization")
def _batch_norm(node: Node, scope: Scope) -> None:
    """Carries channels; scale, bias and statistics are cut with them."""
    if not all(scope.is_weight(name) for name in node.inputs[1:]):
        return hold_all(node, scope, "has computed statistics")
    if any(len(scope.shape(name)) != 1 for name in node.inputs[1:]):
        raise ModelError(f"{node.op} {node.name!r} has statistics that are no vectors")
    ids = scope.channels.axis(node.inputs[0], 1, f"{node.op} {node.name} normalises another axis")
    for name in node.inputs[1:]:
        scope.channels.claim(name, (0,), ids)
    scope.channels.put(node.outputs[0], (1,), ids)
    for statistic in node.outputs[1:]:
        scope.channels.put(statistic, (0,), ids)


@carries("InstanceNormalization")
def _instance_norm(node: Node, scope: Scope, block: Block) -> None:
    """Carries channels, each normalised alone; scale and bias are cut with them."""
    if block.axes == (1,) and all(scope.is_weight(name) for name in node.inputs[1:]):
        for name in node.inputs[1:]:
            scope.channels.claim(name, (0,), block.ids)
    else:
        # Exporters write GroupNorm so: [N, groups, everything else].
        scope.channels.hold(block.ids, f"{node.op} {node.name} normalises over these channels")
    scope.channels.put(node.outputs[0], block.axes, block.ids)


def _hold_axes(node: Node, scope: Scope, axes: list[int], why: str) -> None:
    """Holds channels that lie on `axes` of the first input; the output has them all.

    Where they lie on others too, rows along `axes` stay whole and live or die together.
    """
    block = scope.channels.block(node.inputs[0])
    if block is not None:
        rank = len(scope.shape(node.inputs[0]))
        rest = set(block.axes) - {axis % rank for axis in axes}
        if not rest:
            scope.channels.hold(block.ids, f"{node.op} {node.name} {why}")
        elif len(rest) < len(block.axes):
            scope.channels.only(block, rest)
        pass_on(node, scope)


@rule("LayerNormalization RMSNormalization SimplifiedLayerNormalization")
def _layer_norm(node: Node, scope: Scope) -> None:
    """Channels that it normalises over are not prunable: each changes the others."""
    rank = len(scope.shape(node.inputs[0]))
    axes = list(range(int(node.attrs.get("axis", -1)) % rank, rank))
    first = Node(node.name, node.op, node.inputs, node.outputs[:1], node.attrs)
    _hold_axes(first, scope, axes, "normalises over these channels")
    hold_inputs(node, scope, node.inputs[1:], "is scaled by these channels")


@rule("GroupNormalization LRN")
def _group_norm(node: Node, scope: Scope) -> None:
    """Carries channels that each are a group of their own; several to a group are not prunable."""
    block = scope.channels.block(node.inputs[0])
    if node.op == "GroupNormalization" and block is not None and block.axes == (1,):
        single = int(node.attrs["num_groups"]) == len(block.ids)
        if single and all(scope.is_weight(name) for name in node.inputs[1:]):
            for name in node.inputs[1:]:
                scope.channels.claim(name, (0,), block.ids)
            return scope.channels.put(node.outputs[0], (1,), block.ids)
    axes = [1] if node.op == "LRN" else list(range(1, len(scope.shape(node.inputs[0]))))
    _hold_axes(node, scope, axes, "normalises over these channels")


@rule("LpNormalization CumSum")
def _axis_norm(node: Node, scope: Scope) -> None:
    """Carries channels; an axis that it works along is not prunable."""
    rank = len(scope.shape(node.inputs[0]))
    axis = [int(node.attrs.get("axis", -1))] if node.op != "CumSum" else list(range(rank))
    _hold_axes(node, scope, axis, "works over these channels")


@rule("MeanVarianceNormalization")
def _mvn(node: Node, scope: Scope) -> None:
    """Carries channels; an axis that it normalises over is not prunable."""
    _hold_axes(
        node, scope, list(node.attrs.get("axes", [0, 2, 3])), "normalises over these channels"
    )


@rule("Softmax LogSoftmax Hardmax")
def _softmax(node: Node, scope: Scope) -> None:
    """Channels that it sums over are not prunable; until opset 12 all from `axis` (1) on."""
    rank = len(scope.shape(node.inputs[0]))
    if scope.normal.opset() < 13:
        axes = list(range(int(node.attrs.get("axis", 1)) % rank, rank))
    else:
        axes = [int(node.attrs.get("axis", -1))]
    _hold_axes(node, scope, axes, "sums over these channels")


@rule("MaxPool AveragePool LpPool GlobalAveragePool GlobalMaxPool GlobalLpPool")
def _pool(node: Node, scope: Scope) -> None:
    """Carries channels; positions that are pooled over are not prunable."""
    rank = len(scope.shape(node.inputs[0]))
    _hold_axes(node, scope, list(range(2, rank)), "pools over these channels")
    if len(node.outputs) > 1 and node.outputs[1] in scope.normal.readers:
        hold_all(node, scope, "tells positions counted over these channels")


@carries(
    "ReduceMean ReduceSum ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceLogSum "
    "ReduceLogSumExp ReduceSumSquare"
)
def _reduce(node: Node, scope: Scope, block: Block) -> None:
    """Carries channels; an axis that it reduces over is not prunable."""
    rank = len(scope.shape(node.inputs[0]))
    known = [scope.normal.values.get(name) for name in node.inputs]
    if len(node.inputs) > 1 and node.inputs[1] and known[1] is None:
        return hold_all(node, scope, "reduces over computed axes")
    axes = axes_of(dict(node.attrs), known, 1)
    if not axes:
        axes = [] if node.attrs.get("noop_with_empty_axes") else list(range(rank))
    reduced = {axis % rank for axis in axes}
    if reduced >= set(block.axes):
        return hold_all(node, scope, "reduces over these channels")
    block = scope.channels.only(block, set(block.axes) - reduced)
    keep = bool(node.attrs.get("keepdims", 1))
    shift = [0 if keep else sum(r < axis for r in reduced) for axis in block.axes]
    axes_out = tuple(axis - s for axis, s in zip(block.axes, shift, strict=True))
    scope.channels.put(node.outputs[0], axes_out, block.ids)


@rule(
    "Add Sub Mul Div Pow PRelu Where Min Max Sum Mean Mod Equal Less Greater LessOrEqual "
    "GreaterOrEqual And Or Xor BitwiseAnd BitwiseOr"
)
def _elementwise(node: Node, scope: Scope) -> None:
    """Carries channels; operands that have them on the same axis lose the same ones.

    Where one operand has full extent and no channels, the axis cannot shrink; where a constant has
    full extent, it is sliced in step.
    """
    channels = scope.channels
    out = scope.shape(node.outputs[0])
    rank = len(out)
    operands = []
    for name in node.inputs:
        if name:
            shape = scope.shape(name)
            block = None if scope.is_weight(name) else channels.block(name)
            operands.append((name, (1,) * (rank - len(shape)) + shape, rank - len(shape), block))
    joint: set[int] = set()
    for _, shape, shift, block in operands:
        if block is not None:
            if any(shape[axis + shift] != out[axis + shift] for axis in block.axes):
                channels.hold(block.ids, f"{node.op} {node.name} spreads it over other channels")
            else:
                joint.update(axis + shift for axis in block.axes)
    if not joint:
        return
    fixed = {
        axis
        for name, shape, shift, block in operands
        for axis in joint
        if not scope.is_weight(name)
        and shape[axis] > 1
        and (block is None or axis - shift not in block.axes)
    }
    for name, shape, _, block in operands:
        if block is None and not scope.is_weight(name) and any(shape[axis] > 1 for axis in joint):
            scope.look_for_spread(name)
    free = tuple(sorted(joint - fixed))
    if not free:
        return hold_all(node, scope, "meets a tensor without prunable channels here")
    extent = tuple(out[axis] for axis in free)
    first: IntArray | None = None
    for _, shape, shift, block in operands:
        if block is None or any(shape[a + shift] != out[a + shift] for a in block.axes):
            continue
        part = channels.only(block, [axis - shift for axis in free])
        if not part.axes:
            continue
        ids = part.ids.reshape([out[a] if a - shift in part.axes else 1 for a in free])
        full = np.broadcast_to(ids, extent)
        if first is None:
            first = full
        channels.tie(first, full)
    assert first is not None
    for name, shape, shift, _ in operands:
        if scope.is_weight(name):
            axes = [axis for axis in free if shape[axis] > 1]
            if not axes:
                continue
            own = tuple(axis - shift for axis in axes)
            channels.claim_part(name, own, Block(free, np.asarray(first)), axes)
    channels.put(node.outputs[0], free, np.asarray(first))
