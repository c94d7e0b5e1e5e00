"""Padding given back to the convolutions that it was made for.

A kernel cut to 2x3 or 3x2 has to be padded more on one side than on the other. An ONNX convolution
does that by itself; a torch module cannot and calls `F.pad` first, which its export keeps as an
operator that copies the whole tensor: a ResNet planned and cut for 0.36 of its latency took 0.46
(ONNX Runtime 1.31 on EPYC, which moves such padding only where the Pad lists no empty input).
"""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, helper, numpy_helper

from rlprune.graph.folding import Array


def with_pads_moved(model: ModelProto) -> ModelProto:
    """An equal model in which zeros that only convolutions read are part of their own padding."""
    moved = deepcopy(model)
    graph = moved.graph
    values = {tensor.name: tensor for tensor in graph.initializer}
    known = {name: numpy_helper.to_array(one) for name, one in values.items() if _is_small(one)}
    known |= {
        node.output[0]: numpy_helper.to_array(attribute.t)
        for node in graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.name == "value"
    }
    outputs = {value.name for value in graph.output}
    within = {name for node in graph.node for name in _read_within(node)}
    for pad in [node for node in graph.node if node.op_type == "Pad" and not node.domain]:
        [padded] = pad.output
        readers = [node for node in graph.node if padded in node.input]
        sides = _zeros(pad, known)
        if sides is None or padded in outputs or padded in within or not readers:
            continue
        if not all(_can_pad(node, padded, sides) for node in readers):
            continue
        for node in readers:
            own = _attribute(node, "pads") or [0] * len(sides)
            total = [a + b for a, b in zip(own, sides, strict=True)]
            kept = [one for one in node.attribute if one.name != "pads"]
            del node.attribute[:]
            node.attribute.extend([*kept, helper.make_attribute("pads", total)])
            node.input[0] = pad.input[0]
        graph.node.remove(pad)
        used = {name for node in graph.node for name in node.input} | outputs
        for name in pad.input[1:]:
            if name in values and name not in used and name not in within:
                graph.initializer.remove(values.pop(name))
    return moved


def _is_small(tensor: onnx.TensorProto) -> bool:
    return int(np.prod(tensor.dims)) <= 64 and not tensor.external_data


def _read_within(node: NodeProto) -> set[str]:
    """Names that bodies of a node read; they may be of the graph around it."""
    bodies = [one.g for one in node.attribute if one.type == onnx.AttributeProto.GRAPH]
    return {
        name for body in bodies for one in body.node for name in {*one.input, *_read_within(one)}
    } | {value.name for body in bodies for value in body.output}


def _zeros(pad: NodeProto, known: dict[str, Array]) -> list[int] | None:
    """Zeros that are added before and behind each axis of space; None where it does otherwise."""
    mode = next((one.s for one in pad.attribute if one.name == "mode"), b"constant")
    inputs = [*pad.input, "", "", ""]
    if mode != b"constant" or inputs[3] or inputs[1] not in known:
        return None
    if inputs[2] and (inputs[2] not in known or known[inputs[2]].any()):
        return None
    begin, end = np.split(known[inputs[1]].astype(np.int64), 2)
    if begin[:2].any() or end[:2].any() or min(begin.min(), end.min()) < 0:
        return None
    return [int(one) for one in (*begin[2:], *end[2:])]


def _can_pad(node: NodeProto, padded: str, sides: list[int]) -> bool:
    """Whether it is a convolution of that tensor alone whose padding is stated."""
    auto = next((one.s for one in node.attribute if one.name == "auto_pad"), b"NOTSET")
    own = _attribute(node, "pads")
    return (
        node.op_type == "Conv"
        and not node.domain
        and auto == b"NOTSET"
        and (own is None or len(own) == len(sides))
        and padded == node.input[0]
        and padded not in node.input[1:]
    )


def _attribute(node: NodeProto, name: str) -> list[int] | None:
    return next((list(one.ints) for one in node.attribute if one.name == name), None)
