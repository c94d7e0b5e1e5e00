"""The operators of a model that cost time, in the one form all exports of it share.

A BatchNorm that the runtime folds into the convolution before it is gone, so are Identity, Dropout
and reshapes that move nothing; a mean over all positions is a global pool whoever wrote it; a bias
added after a product belongs to it. An operator that is not in `LISTED` is an `activation` of its
own variant: it costs time and sums nothing up.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rlprune.graph.channels import ChannelMap
from rlprune.graph.kinds import FOREIGN, plain
from rlprune.graph.listed import LISTED, listed
from rlprune.graph.lister import Lister
from rlprune.graph.normal import NormalModel
from rlprune.graph.patterns import fuse
from rlprune.graph.pools import list_global_pool
from rlprune.graph.rules_extents import pad_counts
from rlprune.graph.rules_products import equation
from rlprune.graph.types import Operator, Width
from rlprune.graph.walk import Node, reading
from rlprune.graph.windows import clip_variant, explicit_pads, is_zero_border

_FREE = frozenset(
    ("Identity", "Dropout", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Shape", "Size")
)
_ACTIVATIONS = {
    op: re.sub("(?<=[a-z])(?=[A-Z])", "_", op).lower()
    for op in (
        *("Relu", "LeakyRelu", "PRelu", "Sigmoid", "Tanh", "HardSwish", "HardSigmoid", "Elu"),
        *("Gelu", "Softplus", "Mish"),
    )
}
_NORMS = {
    "BatchNormalization": "batch",
    "InstanceNormalization": "instance",
    "LayerNormalization": "layer",
    "GroupNormalization": "group",
    "RMSNormalization": "rms",
    "LRN": "local_response",
}
_ABSORBERS = ("conv", "depthwise_conv", "conv_transpose", "linear")


def is_listed(op: str) -> bool:
    """Whether it is known what an operator costs; a rule about channels may know more of them."""
    known = op in LISTED or op in _ACTIVATIONS or op in _FREE or op in FOREIGN
    return known or op.startswith("Reduce")


def _visit(lister: Lister, node: Node) -> None:
    shape_like = lister.normal.shape_like
    if all(not o or o in shape_like for o in node.outputs):
        return
    for name in node.inputs:
        lister.slice_when_read(name)
    fused = lister.fused.get(node.name)
    if fused is not None:
        if fused.variant:
            source = fused.source
            lister.add(node, "activation", fused.variant, source=source, inputs=(source,))
        return
    node = plain(node)
    data = [n for n in node.inputs if n and not lister.constant(n)]
    if node.op in _FREE or not data:
        lister.alias(node)
    elif node.op in _ACTIVATIONS:
        lister.add(node, "activation", _ACTIVATIONS[node.op])
    elif node.op in LISTED:
        LISTED[node.op](lister, node, data)
    elif node.op.startswith("Reduce"):
        list_global_pool(lister, node, data)
    else:
        lister.add(node, "activation", node.op.lower())


@listed("Conv ConvTranspose DeformConv")
def _conv(lister: Lister, node: Node, data: Sequence[str]) -> None:
    weight = lister.normal.shapes[node.inputs[1]]
    rank = len(weight) - 2
    groups = int(node.attrs.get("group", 1))
    per_group = weight[0] // groups if node.op == "ConvTranspose" else weight[1]
    depthwise = groups > 1 and per_group == 1
    kind = "conv_transpose" if node.op == "ConvTranspose" else "conv"
    kernel = weight[2:]
    stride = node.attrs.get("strides", [1] * rank)
    dilation = node.attrs.get("dilations", [1] * rank)
    if depthwise:
        kind, groups = ("depthwise_conv" if kind == "conv" else kind), 0
    source = node.inputs[0]
    before = lister.normal.shapes[source][2:]
    pads = explicit_pads(node, before, kernel, stride, dilation)
    if source in lister.padded:
        pad = lister.padded[source]
        begins, ends = pad_counts(pad, lister.normal, rank + 2) or ([], [])
        pads = [own + more for own, more in zip(pads, begins[2:] + ends[2:], strict=True)]
        source = pad.inputs[0]
    in_width, in_spatial = lister.read_on(source, 1)
    lister.add(
        node,
        kind,
        "",
        source=source,
        in_width=in_width,
        in_spatial=in_spatial,
        kernel=kernel,
        stride=stride,
        pads=pads,
        dilation=dilation,
        groups=groups,
        weight=lister.own_kernel(node),
    )


@listed("Gemm MatMul")
def _product(lister: Lister, node: Node, data: Sequence[str]) -> None:
    if node.op == "MatMul" and not lister.constant(node.inputs[1]):
        lister.add(node, "matmul", "", kernel=lister.normal.shapes[node.inputs[0]][-1:])
        return
    rank = len(lister.normal.shapes[node.inputs[0]])
    axis = 0 if node.attrs.get("transA") else rank - 1
    in_width, in_spatial = lister.read_on(node.inputs[0], axis)
    block = lister.channels.blocks.get(node.outputs[0])
    out_axis = len(lister.normal.shapes[node.outputs[0]]) - 1
    if block and block[0].axes != (out_axis,):
        # Works along the positions; the channels go through beside it.
        lister.add(node, "matmul", "", kernel=lister.normal.shapes[node.inputs[0]][-1:])
    else:
        lister.add(node, "linear", "", in_width=in_width, in_spatial=in_spatial)


@listed("Einsum")
def _einsum(lister: Lister, node: Node, data: Sequence[str]) -> None:
    """What it sums over times what it makes; with a weight it is listed as any linear layer."""
    read = equation(node)
    if read is None or len(read[0]) != 2:
        lister.add(node, "activation", "einsum")
        return
    operands, output = read
    place = next((k for k, name in enumerate(node.inputs) if name in data), 0)
    source, labels = node.inputs[place], operands[place]
    summed = [axis for axis, label in enumerate(labels) if label not in output]
    if len(data) == 2:
        extents = [lister.normal.shapes[source][axis] for axis in summed]
        lister.add(node, "matmul", "", kernel=extents)
    else:
        in_width = lister.width_along(source, summed)
        shape = lister.normal.shapes[source]
        rest = [extent for axis, extent in enumerate(shape) if axis not in summed]
        in_spatial = lister.without_batch(rest)
        lister.add(node, "linear", "", source=source, in_width=in_width, in_spatial=in_spatial)


@listed("Attention")
def _attention(lister: Lister, node: Node, data: Sequence[str]) -> None:
    """Scores of every row of the queries for every row of the keys, and a mean of the values."""
    rows, columns = (lister.normal.shapes[name][-2] for name in node.inputs[:2])
    q_heads, out_heads = (lister.attention_width(n) for n in (node.inputs[0], node.outputs[0]))
    lister.add(
        node,
        "attention",
        "",
        in_width=q_heads,
        in_spatial=(rows,),
        out_spatial=(rows,),
        kernel=(columns,),
    )
    lister.listed[-1] = replace(lister.listed[-1], out_width=out_heads)


@listed("LSTM GRU RNN")
def _recurrent(lister: Lister, node: Node, data: Sequence[str]) -> None:
    """Steps along a sequence: [sequence, batch, channels], or batch first where `layout` says."""
    shape = lister.normal.shapes[node.inputs[0]]
    steps = (shape[1 if node.attrs.get("layout") else 0],)
    in_width, _ = lister.read_on(node.inputs[0], 2)
    directions, _, hidden = lister.normal.shapes[node.inputs[2]]
    hidden = int(node.attrs.get("hidden_size", hidden))
    lister.add(
        node,
        "recurrent",
        node.op.lower(),
        in_width=in_width,
        in_spatial=steps,
        out_spatial=steps,
        groups=directions,
    )
    lister.listed[-1] = replace(lister.listed[-1], out_width=Width(directions * hidden))
    for name in node.outputs:
        lister.made_by[name] = len(lister.listed) - 1


@listed(" ".join(_NORMS))
def _norm(lister: Lister, node: Node, data: Sequence[str]) -> None:
    if node.op != "BatchNormalization" or not _absorbed(lister, node, data[0]):
        lister.add(node, "norm", _NORMS[node.op])


@listed("Clip")
def _clip(lister: Lister, node: Node, data: Sequence[str]) -> None:
    lister.add(node, "activation", clip_variant(node, lister.normal))


@listed("Concat")
def _concat(lister: Lister, node: Node, data: Sequence[str]) -> None:
    if len(data) == len(node.inputs) == 1:
        lister.alias(node)
    else:
        lister.add(node, "concat", "", in_width=lister.width(node.outputs[0]))


@listed("Pad")
def _pad(lister: Lister, node: Node, data: Sequence[str]) -> None:
    readers = lister.normal.readers.get(node.outputs[0], ())
    if is_zero_border(node, readers, lister.normal):
        lister.padded[node.outputs[0]] = node
        lister.alias(node)
    elif _keeps_shape(lister, node):
        lister.alias(node)
    else:
        lister.add(node, "pad", "")


@listed("Slice Split Gather")
def _slice(lister: Lister, node: Node, data: Sequence[str]) -> None:
    if _keeps_shape(lister, node):
        lister.alias(node)
    else:
        lister.slices.update((name, node) for name in node.outputs if name)


@listed("Resize Upsample")
def _resize(lister: Lister, node: Node, data: Sequence[str]) -> None:
    lister.add(node, "resize", str(node.attrs.get("mode", "nearest")))


@listed("Softmax LogSoftmax")
def _softmax(lister: Lister, node: Node, data: Sequence[str]) -> None:
    lister.add(node, "softmax", "" if node.op == "Softmax" else "log")


@listed("DepthToSpace SpaceToDepth Expand Tile")
def _layout(lister: Lister, node: Node, data: Sequence[str]) -> None:
    if _keeps_shape(lister, node):
        lister.alias(node)
    else:
        lister.add(node, "layout", node.op.lower())


def _keeps_shape(lister: Lister, node: Node) -> bool:
    return lister.normal.shapes[node.inputs[0]] == lister.normal.shapes[node.outputs[0]]


def _absorbed(lister: Lister, node: Node, source: str) -> bool:
    """Whether the runtime folds the node into the convolution or product before it."""
    maker = lister.made_by.get(source, -1)
    if maker < 0 or not lister.only_reader(source) or lister.listed[maker].kind not in _ABSORBERS:
        return False
    # Only if nothing but reshapes lies between; the maker's own output has one reader.
    if lister.normal.shapes[source] != lister.normal.shapes[node.outputs[0]]:
        return False
    lister.alias(node)
    return True


@listed("Add Sub Mul Div")
def _arithmetic(lister: Lister, node: Node, data: Sequence[str]) -> None:
    if len(data) == 1:
        if _absorbed(lister, node, data[0]):
            return
        other = next((n for n in node.inputs if n != data[0]), "")
        if int(np.prod(lister.normal.shapes.get(other, ()), dtype=np.int64)) == 1:
            one = lister.normal.value(other)
            inverts = node.op == "Div" and node.inputs[0] == other
            inverts = inverts and one is not None and bool((one == 1).all())
            lister.add(node, "activation", "reciprocal" if inverts else "scale")
            return
    kind = "add" if node.op in ("Add", "Sub") else "mul"
    lister.add(node, kind, "", in_width=lister.width(node.outputs[0]))


@listed("Transpose")
def _transpose(lister: Lister, node: Node, data: Sequence[str]) -> None:
    """Lists a transpose; two in a row are one, as the older exporter writes them."""
    source = node.inputs[0]
    shape = lister.normal.shapes[source]
    perm = node.attrs.get("perm", range(len(shape) - 1, -1, -1))
    long = [axis for axis, extent in enumerate(shape) if extent > 1]
    order = [long.index(p) for p in perm if p in long]
    before = lister.transposed.get(source)
    if before and lister.only_reader(source) and lister.made_by[source] == len(lister.listed) - 1:
        lister.listed.pop()
        source, inner = before
        order = [inner[place] for place in order]
    if order == sorted(order):
        if source in lister.made_by:  # not so of a constant
            lister.made_by[node.outputs[0]] = lister.made_by[source]
    else:
        lister.add(replace(node, inputs=(source,)), "layout", "transpose")
        lister.transposed[node.outputs[0]] = (source, order)


_SUMMING = (_conv, _product, _einsum, _attention, _recurrent)
COUNTED = {*FOREIGN, *(op for op, handler in LISTED.items() if handler in _SUMMING)}
"""Operators whose MACs are counted; the others sum nothing up, or are not known."""


def list_operators(
    normal: NormalModel, channels: ChannelMap, widths: Sequence[int], order: Sequence[int]
) -> tuple[tuple[Operator, ...], dict[str, int]]:
    """Operators in canonical order, of which the first of a chain that a runtime fuses stands for
    it; and the operator, or -1 - i for an input, that every tensor comes from."""
    lister = Lister(normal, channels, widths, fuse(normal))
    lister.outputs = frozenset(value.name for value in normal.model.graph.output)
    for place, value in enumerate(normal.model.graph.input):
        lister.made_by[value.name] = -1 - place
    lister.batch = _batch(normal)
    for index in order:
        with reading(normal.nodes[index]):
            _visit(lister, normal.nodes[index])
    for value in normal.model.graph.output:
        lister.slice_when_read(value.name)
    return tuple(lister.listed), lister.made_by


def _batch(normal: NormalModel) -> int:
    """The batch size: what recurrent layers take for it, else the first extent of the input."""
    for node in normal.nodes:
        if LISTED.get(node.op) is _recurrent:
            with reading(node):
                return normal.shapes[node.inputs[0]][0 if node.attrs.get("layout") else 1]
    shapes = [normal.shapes[value.name] for value in normal.model.graph.input]
    return next(iter(shapes[0]), 1) if shapes else 1
