"""What listing a model's operators keeps track of: who made each tensor, and its channels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from rlprune.graph.channels import ChannelMap
from rlprune.graph.normal import NormalModel
from rlprune.graph.patterns import Fused
from rlprune.graph.types import IntArray, Operator, Width
from rlprune.graph.walk import Node


@dataclass
class Lister:
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

    def width_along(self, name: str, axes: Sequence[int]) -> Width:
        """Entries along some axes of a tensor together, other axes left out."""
        shape = self.normal.shapes[name]
        block = (self.channels.blocks.get(name) or (None,))[0]
        if block is None or not set(block.axes) <= set(axes):
            return Width(math.prod(shape[axis] for axis in axes))
        often = math.prod(shape[axis] for axis in axes if axis not in block.axes)
        own = self.width(name)
        return Width(own.const * often, tuple((group, n * often) for group, n in own.terms))

    def attention_width(self, name: str) -> Width:
        """Channels of all heads: of [batch, heads, rows, width] or [batch, rows, all]."""
        return self.width_along(name, (1, 3) if len(self.normal.shapes[name]) == 4 else (2,))

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
        weight: str = "",
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
                weight=weight,
            )
        )
        self.made_by[output] = len(self.listed) - 1

    def own_kernel(self, node: Node) -> str:
        """The constant that a convolution alone reads as its kernel, and whose taps can be told
        apart at every size; empty where there is none."""
        name, normal = node.inputs[1], self.normal
        alone = len(normal.readers.get(name, ())) == 1
        if node.op != "Conv" or not alone or name not in normal.weights:
            return ""
        if str(node.attrs.get("auto_pad", "NOTSET")).startswith("SAME"):
            # With strides above one the border that is chosen follows the extent.
            strided = [2 + k for k, s in enumerate(node.attrs.get("strides", ())) if s > 1]
            if any(normal.is_open(node.inputs[0], axis) for axis in strided):
                return ""
        return name

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
                if source in self.transposed and self.only_reader(source):
                    before, after = (self.normal.shapes[n] for n in (source, name))
                    if [e for e in before if e > 1] == [e for e in after if e > 1]:
                        self.transposed[name] = self.transposed[source]

    def constant(self, name: str) -> bool:
        return name in self.normal.weights or name in self.normal.shape_like

    def only_reader(self, name: str) -> bool:
        return len(self.normal.readers.get(name, ())) == 1 and name not in self.outputs


def width_of(group: IntArray, widths: Sequence[int]) -> Width:
    """Counts the groups' entries of an axis."""
    free = group[group >= 0]
    found, often = np.unique(free, return_counts=True)
    return Width(
        const=len(group) - len(free),
        terms=tuple((int(g), int(n) // widths[g]) for g, n in zip(found, often, strict=True)),
    )
