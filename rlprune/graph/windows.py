"""Small readings of single nodes: pads made explicit, borders of zeros, bounds of a Clip."""

from __future__ import annotations

from collections.abc import Sequence

from rlprune.graph.normal import NormalModel
from rlprune.graph.rules_extents import pad_counts
from rlprune.graph.walk import Node


def explicit_pads(
    node: Node,
    extents: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
) -> list[int]:
    """Begins and ends as numbers, whatever `auto_pad` says; `extents` of the map read."""
    rank = len(kernel)
    mode = node.attrs.get("auto_pad", "NOTSET")
    if mode == "NOTSET":
        return list(node.attrs.get("pads", [0] * 2 * rank))
    if mode == "VALID" or node.op == "ConvTranspose":
        return [0] * 2 * rank
    begins, ends = [], []
    for extent, k, s, d in zip(extents, kernel, stride, dilation, strict=True):
        total = max((-(-extent // s) - 1) * s + (k - 1) * d + 1 - extent, 0)
        low = total // 2 if mode == "SAME_UPPER" else total - total // 2
        begins.append(low)
        ends.append(total - low)
    return begins + ends


def is_zero_border(pad: Node, readers: Sequence[Node], normal: NormalModel) -> bool:
    """Whether a Pad puts zeros around a map that one convolution alone reads.

    Runtimes and the newer exporter merge the two.
    """
    counts = pad_counts(pad, normal, len(normal.shapes[pad.inputs[0]]))
    if len(readers) != 1 or readers[0].op != "Conv" or counts is None:
        return False
    value = pad.attrs.get("value", 0.0)
    if len(pad.inputs) > 2 and pad.inputs[2]:
        fill = normal.value(pad.inputs[2])
        value = 1.0 if fill is None else float(fill.ravel()[0])
    return (
        value == 0.0
        and pad.attrs.get("mode", "constant") == "constant"
        and readers[0].attrs.get("auto_pad", "NOTSET") == "NOTSET"
        and readers[0].inputs[0] == pad.outputs[0]
        and not any(counts[0][:2] + counts[1][:2])
        and min(counts[0] + counts[1]) >= 0
    )


def before_border(node: Node, normal: NormalModel) -> tuple[str, list[int]]:
    """The map that a convolution reads, before a Pad that only puts zeros around it where there is
    one; and what that adds to the convolution's own border, begins and ends."""
    rank = len(normal.shapes[node.inputs[0]]) - 2
    pad = normal.makers.get(node.inputs[0])
    if pad is None or pad.op != "Pad" or not is_zero_border(pad, [node], normal):
        return node.inputs[0], [0] * 2 * rank
    begins, ends = pad_counts(pad, normal, rank + 2) or ([], [])
    return pad.inputs[0], [*begins[2:], *ends[2:]]


def zero_border(normal: NormalModel, node: Node) -> tuple[str, list[int]]:
    """The map that a convolution reads, and the zeros around it as ONNX has pads, whoever puts them
    there."""
    kernel = normal.shapes[node.inputs[1]][2:]
    rank = len(kernel)
    stride = list(node.attrs.get("strides", [1] * rank))
    dilation = list(node.attrs.get("dilations", [1] * rank))
    pads = explicit_pads(node, normal.shapes[node.inputs[0]][2:], kernel, stride, dilation)
    source, border = before_border(node, normal)
    return source, [own + more for own, more in zip(pads, border, strict=True)]


def clip_variant(node: Node, normal: NormalModel) -> str:
    """`relu6`, `relu` or `clip`, by the bounds."""
    bounds = []
    for place, key in ((1, "min"), (2, "max")):
        value = node.attrs.get(key)
        if len(node.inputs) > place and node.inputs[place]:
            array = normal.value(node.inputs[place])
            value = None if array is None else float(array.ravel()[0])
        bounds.append(value)
    if bounds == [0.0, 6.0]:
        return "relu6"
    return "relu" if bounds == [0.0, None] else "clip"
