"""The operators of a model that cost time, in the one form all exports of it share.

A BatchNorm that the runtime folds into the convolution before it is gone, so are Identity, Dropout
and reshapes that move nothing; a mean over all positions is a global pool whoever wrote it; a bias
added after a product belongs to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from rlprune.graph.channels import ChannelMap
from rlprune.graph.folding import axes_of
from rlprune.graph.normal import NormalModel
from rlprune.graph.patterns import Fused, fuse
from rlprune.graph.rules_layout import pad_counts
from rlprune.graph.types import IntArray, Operator, Width
from rlprune.graph.walk import Node, reading
from rlprune.graph.windows import clip_variant, explicit_pads, is_zero_border

_FREE = frozenset(
    ("Identity", "Dropout", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Shape", "Size")
)
_ACTIVATIONS = {
    "Relu": "relu",
    "LeakyRelu": "leaky_relu",
    "PRelu": "prelu",
    "Sigmoid": "sigmoid",
    "Tanh": "tanh",
    "HardSwish": "hard_swish",
    "HardSigmoid": "hard_sigmoid",
    "Elu": "elu",
    "Gelu": "gelu",
    "Softplus": "softplus",
    "Mish": "mish",
}
_NORMS = {
    "BatchNormalization": "batch",
    "InstanceNormalization": "instance",
    "LayerNormalization": "layer",
    "GroupNormalization": "group",
    "RMSNormalization": "rms",
    "LRN": "local_response",
}
_POOLS = {"MaxPool": "max", "AveragePool": "average", "LpPool": "lp"}
_GLOBAL = {
    "GlobalMaxPool": "max",
    "GlobalAveragePool": "average",
    "ReduceMean": "average",
    "ReduceMax": "max",
    "ReduceSum": "sum",
}
_ABSORBERS = ("conv", "depthwise_conv", "conv_transpose", "linear")


@dataclass
class _Lister:
    normal: NormalModel
    channels: ChannelMap
    widths: Sequence[int]
    """Of the groups."""
    fused: Mapping[str, Fused]
    outputs: frozenset[str] = frozenset()
    counted: dict[int, Width] = field(default_factory=dict)
    batch: int = 1
    made_by: dict[str, int] = field(default_factory=dict)
    """Operator (or graph input) that every tensor comes from."""
    listed: list[Operator] = field(default_factory=list)
    padded: dict[str, Node] = field(default_factory=dict)
    """Outputs of zero pads that the convolution after them takes over."""
    transposed: dict[str, tuple[str, list[int]]] = field(default_factory=dict)
    """For outputs of transposes: of what, and the order of its axes longer than one."""
    slices: dict[str, Node] = field(default_factory=dict)
    """Outputs of slicing nodes that nobody has read so far."""

    def width(self, name: str) -> Width:
        """Channels of an activation as a function of the keeps."""
        blocks = self.channels.blocks.get(name)
        if not blocks:
            shape = self.normal.shapes[name]
            return Width(shape[self.channel_axes(name)[0]] if shape else 1)
        ids = blocks[0].ids
        # Most tensors pass on the id array they were given; the key is safe while the map lives.
        if id(ids) not in self.counted:
            self.counted[id(ids)] = width_of(self.channels.group_of[ids].ravel(), self.widths)
        return self.counted[id(ids)]

    def read_on(self, name: str, axis: int) -> tuple[Width, tuple[int, ...]]:
        """Channels and other extents of an input that a weight reads on a given axis."""
        if self.channels.blocks.get(name) and self.channel_axes(name) == (axis,):
            return self.width(name), self.spatial(name)
        shape = self.normal.shapes[name]
        width = Width(shape[axis])
        if name not in self.normal.weights:
            width = width_of(self.channels.axis_units(name, axis)[0], self.widths)
        return width, self.without_batch([*shape[:axis], *shape[axis + 1 :]])

    def channel_axes(self, name: str) -> tuple[int, ...]:
        blocks = self.channels.blocks.get(name)
        if blocks:
            return blocks[0].axes
        rank = len(self.normal.shapes[name])
        return (1,) if rank > 1 else (0,)

    def spatial(self, name: str) -> tuple[int, ...]:
        """Extents of the axes that are neither channels nor batch."""
        axes = self.channel_axes(name)
        shape = self.normal.shapes[name]
        return self.without_batch([e for axis, e in enumerate(shape) if axis not in axes])

    def without_batch(self, rest: list[int]) -> tuple[int, ...]:
        if self.batch in rest:
            rest.remove(self.batch)
        return tuple(rest)

    def add(
        self,
        node: Node,
        kind: str,
        variant: str,
        *,
        in_width: Width | None = None,
        source: str = "",
        in_spatial: tuple[int, ...] | None = None,
        out_spatial: tuple[int, ...] | None = None,
        kernel: Sequence[int] = (),
        stride: Sequence[int] = (),
        pads: Sequence[int] = (),
        dilation: Sequence[int] = (),
        groups: int = 1,
        inputs: Sequence[str] = (),
    ) -> None:
        source = source or next(
            (n for n in node.inputs if n and n in self.made_by),
            node.inputs[0] if node.inputs else "",
        )
        output = node.outputs[0]
        out_width = self.width(output)
        names = inputs or node.inputs
        self.listed.append(
            Operator(
                name=node.name,
                kind=kind,
                variant=variant,
                inputs=tuple(self.made_by[n] for n in names if n in self.made_by),
                in_width=in_width or self.width(source),
                out_width=out_width,
                in_spatial=self.spatial(source) if in_spatial is None else in_spatial,
                out_spatial=self.spatial(output) if out_spatial is None else out_spatial,
                kernel=tuple(int(k) for k in kernel),
                stride=tuple(int(s) for s in stride),
                pads=tuple(int(p) for p in pads),
                dilation=tuple(int(d) for d in dilation),
                groups=groups,
            )
        )
        self.made_by[output] = len(self.listed) - 1

    def slice_when_read(self, name: str) -> None:
        """Lists the slice that makes a tensor, at its first reader.

        One Split is so the same as several Slices, wherever the file puts them.
        """
        node = self.slices.pop(name, None)
        if node is not None:
            self.add(replace(node, outputs=(name,)), "slice", "")

    def alias(self, node: Node) -> None:
        """The node costs nothing: its outputs come from where its input does."""
        source = next((n for n in node.inputs if n in self.made_by), None)
        for name in node.outputs:
            if name and source is not None:
                self.made_by[name] = self.made_by[source]
                if source in self.transposed and self._only_reader(source):
                    before, after = (self.normal.shapes[n] for n in (source, name))
                    if [e for e in before if e > 1] == [e for e in after if e > 1]:
                        self.transposed[name] = self.transposed[source]

    def constant(self, name: str) -> bool:
        return name in self.normal.weights or name in self.normal.shape_like

    def visit(self, node: Node) -> None:
        if all(not o or o in self.normal.shape_like for o in node.outputs):
            return
        for name in node.inputs:
            self.slice_when_read(name)
        fused = self.fused.get(node.name)
        if fused is not None:
            if fused.variant:
                self.add(
                    node, "activation", fused.variant, source=fused.source, inputs=(fused.source,)
                )
            return
        op = node.op
        data = [n for n in node.inputs if n and not self.constant(n)]
        if op in _FREE or not data:
            self.alias(node)
        elif op in ("Conv", "ConvTranspose"):
            self._conv(node)
        elif op == "Gemm" or (op == "MatMul" and self.constant(node.inputs[1])):
            self._linear(node)
        elif op == "MatMul":
            self.add(node, "matmul", "", kernel=self.normal.shapes[node.inputs[0]][-1:])
        elif op in _NORMS:
            if op != "BatchNormalization" or not self._absorbed(node, data[0]):
                self.add(node, "norm", _NORMS[op])
        elif op in _ACTIVATIONS:
            self.add(node, "activation", _ACTIVATIONS[op])
        elif op == "Clip":
            self.add(node, "activation", clip_variant(node, self.normal))
        elif op in _POOLS:
            self._pool(node)
        elif op in _GLOBAL or op.startswith("Reduce"):
            self._global_pool(node)
        elif op in ("Add", "Sub", "Mul", "Div"):
            self._arithmetic(node, data)
        elif op == "Concat" and len(data) == len(node.inputs) == 1:
            self.alias(node)
        elif op == "Concat":
            self.add(node, "concat", "", in_width=self.width(node.outputs[0]))
        elif op == "Pad":
            if is_zero_border(node, self.normal.readers.get(node.outputs[0], ()), self.normal):
                self.padded[node.outputs[0]] = node
                self.alias(node)
            elif self.normal.shapes[node.inputs[0]] == self.normal.shapes[node.outputs[0]]:
                self.alias(node)
            else:
                self.add(node, "pad", "")
        elif op in ("Slice", "Split", "Gather"):
            if self.normal.shapes[node.inputs[0]] == self.normal.shapes[node.outputs[0]]:
                self.alias(node)
            else:
                self.slices.update((name, node) for name in node.outputs if name)
        elif op in ("Resize", "Upsample"):
            self.add(node, "resize", str(node.attrs.get("mode", "nearest")))
        elif op in ("Softmax", "LogSoftmax"):
            self.add(node, "softmax", "" if op == "Softmax" else "log")
        elif op == "Transpose":
            self._transpose(node)
        elif op in ("DepthToSpace", "SpaceToDepth", "Expand", "Tile"):
            if self.normal.shapes[node.inputs[0]] == self.normal.shapes[node.outputs[0]]:
                self.alias(node)
            else:
                self.add(node, "layout", op.lower())
        else:
            self.add(node, "activation", op.lower())

    def _conv(self, node: Node) -> None:
        weight = self.normal.shapes[node.inputs[1]]
        rank = len(weight) - 2
        groups = int(node.attrs.get("group", 1))
        per_group = weight[1] if node.op == "Conv" else weight[0] // groups
        depthwise = groups > 1 and per_group == 1
        kind = "conv" if node.op == "Conv" else "conv_transpose"
        kernel = weight[2:]
        stride = node.attrs.get("strides", [1] * rank)
        dilation = node.attrs.get("dilations", [1] * rank)
        if depthwise:
            kind, groups = ("depthwise_conv" if kind == "conv" else kind), 0
        source = node.inputs[0]
        before = self.normal.shapes[source][2:]
        pads = explicit_pads(node, before, kernel, stride, dilation)
        if source in self.padded:
            pad = self.padded[source]
            begins, ends = pad_counts(pad, self.normal, rank + 2) or ([], [])
            pads = [own + more for own, more in zip(pads, begins[2:] + ends[2:], strict=True)]
            source = pad.inputs[0]
        in_width, in_spatial = self.read_on(source, 1)
        self.add(
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
        )

    def _linear(self, node: Node) -> None:
        rank = len(self.normal.shapes[node.inputs[0]])
        axis = 0 if node.attrs.get("transA") else rank - 1
        in_width, in_spatial = self.read_on(node.inputs[0], axis)
        block = self.channels.blocks.get(node.outputs[0])
        out_axis = len(self.normal.shapes[node.outputs[0]]) - 1
        if block and block[0].axes != (out_axis,):
            # Works along the positions; the channels go through beside it.
            self.add(node, "matmul", "", kernel=self.normal.shapes[node.inputs[0]][-1:])
        else:
            self.add(node, "linear", "", in_width=in_width, in_spatial=in_spatial)

    def _absorbed(self, node: Node, source: str) -> bool:
        """Whether the runtime folds the node into the convolution or product before it."""
        maker = self.made_by.get(source, -1)
        if maker < 0 or not self._only_reader(source) or self.listed[maker].kind not in _ABSORBERS:
            return False
        # Only if nothing but reshapes lies between; the maker's own output has one reader.
        if self.normal.shapes[source] != self.normal.shapes[node.outputs[0]]:
            return False
        self.alias(node)
        return True

    def _arithmetic(self, node: Node, data: Sequence[str]) -> None:
        if len(data) == 1:
            if self._absorbed(node, data[0]):
                return
            other = next((n for n in node.inputs if n != data[0]), "")
            if int(np.prod(self.normal.shapes.get(other, ()), dtype=np.int64)) == 1:
                one = self.normal.values.get(other)
                inverts = node.op == "Div" and node.inputs[0] == other
                inverts = inverts and one is not None and bool((one == 1).all())
                self.add(node, "activation", "reciprocal" if inverts else "scale")
                return
        kind = "add" if node.op in ("Add", "Sub") else "mul"
        self.add(node, kind, "", in_width=self.width(node.outputs[0]))

    def _pool(self, node: Node) -> None:
        before, after = (self.normal.shapes[n][2:] for n in (node.inputs[0], node.outputs[0]))
        kernel = node.attrs["kernel_shape"]
        rank = len(kernel)
        stride = node.attrs.get("strides", [1] * rank)
        dilation = node.attrs.get("dilations", [1] * rank)
        pads = explicit_pads(node, before, kernel, stride, dilation)
        if tuple(kernel) == before and not any(pads) and set(after) == {1}:
            self._whole(node, _POOLS[node.op])
        elif set(kernel) == {1} and before == after:
            self.alias(node)
        else:
            self.add(node, "pool", _POOLS[node.op], kernel=kernel, stride=stride, pads=pads)

    def _global_pool(self, node: Node) -> None:
        variant = _GLOBAL.get(node.op, node.op.lower())
        shape = self.normal.shapes[node.inputs[0]]
        if not node.op.startswith("Global"):
            known = [self.normal.values.get(n) for n in node.inputs]
            axes = {
                a % len(shape) for a in axes_of(dict(node.attrs), known, 1) or range(len(shape))
            }
            rest = set(range(len(shape))) - axes - set(self.channel_axes(node.inputs[0]))
            if any(shape[axis] != self.batch for axis in rest) or len(rest) > 1:
                self.add(node, "pool", variant)
                return
        self._whole(node, variant)

    def _whole(self, node: Node, variant: str) -> None:
        # A row that was widened to a map for the pooling is a row.
        extents = list(self.spatial(node.inputs[0]))
        while len(extents) > 1 and extents[0] == 1:
            del extents[0]
        self.add(node, "global_pool", variant, in_spatial=tuple(extents), out_spatial=())

    def _transpose(self, node: Node) -> None:
        """Lists a transpose; two in a row are one, as the older exporter writes them."""
        source = node.inputs[0]
        shape = self.normal.shapes[source]
        perm = node.attrs.get("perm", range(len(shape) - 1, -1, -1))
        long = [axis for axis, extent in enumerate(shape) if extent > 1]
        order = [long.index(p) for p in perm if p in long]
        before = self.transposed.get(source)
        if before and self._only_reader(source) and self.made_by[source] == len(self.listed) - 1:
            self.listed.pop()
            source, inner = before
            order = [inner[place] for place in order]
        if order == sorted(order):
            self.made_by[node.outputs[0]] = self.made_by[source]
        else:
            self.add(replace(node, inputs=(source,)), "layout", "transpose")
            self.transposed[node.outputs[0]] = (source, order)

    def _only_reader(self, name: str) -> bool:
        return len(self.normal.readers.get(name, ())) == 1 and name not in self.outputs


def width_of(group: IntArray, widths: Sequence[int]) -> Width:
    """Counts the groups' entries of an axis."""
    free = group[group >= 0]
    found, often = np.unique(free, return_counts=True)
    return Width(
        const=len(group) - len(free),
        terms=tuple((int(g), int(n) // widths[g]) for g, n in zip(found, often, strict=True)),
    )


def list_operators(
    normal: NormalModel, channels: ChannelMap, widths: Sequence[int], order: Sequence[int]
) -> tuple[Operator, ...]:
    """Operators in canonical order; the first of a chain that a runtime fuses stands for it."""
    lister = _Lister(normal, channels, widths, fuse(normal))
    lister.outputs = frozenset(value.name for value in normal.model.graph.output)
    for place, value in enumerate(normal.model.graph.input):
        lister.made_by[value.name] = -1 - place
    if normal.model.graph.input:
        lister.batch = next(iter(normal.shapes[normal.model.graph.input[0].name]), 1)
    for index in order:
        with reading(normal.nodes[index]):
            lister.visit(normal.nodes[index])
    for value in normal.model.graph.output:
        lister.slice_when_read(value.name)
    return tuple(lister.listed)
