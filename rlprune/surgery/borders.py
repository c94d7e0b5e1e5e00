"""Borders of zeros that stand before a convolution go into the convolution.

A torch convolution whose border is uneven, as that of a 3x2 kernel, pads by a call of its own. The
older exporter writes that as a Pad node that ONNX Runtime 1.31 does not merge with the convolution:
the network of the tutorial took 0.72 of its unpruned latency with four such nodes, and 0.53 without
(one thread of an AMD EPYC).
"""

from __future__ import annotations

from onnx import ModelProto, NodeProto, helper

from rlprune.graph.from_onnx import OnnxTrace
from rlprune.graph.windows import before_border


def with_own_borders(trace: OnnxTrace) -> ModelProto:
    """A copy of the traced model that answers the same, in which every convolution puts zeros
    around its map itself, where the file states how many. A Pad that others read, too, stays."""
    model = ModelProto()
    model.CopyFrom(trace.model)
    graph = model.graph
    stated = {initializer.name for initializer in graph.initializer}
    pads = {node.output[0]: node for node in graph.node if node.op_type == "Pad"}
    merged = []
    for conv in graph.node:
        pad = pads.get(conv.input[0]) if conv.op_type == "Conv" else None
        # Counts that are computed may follow the extents of the input.
        if pad is not None and set(pad.input[1:]) - {""} <= stated and _merge(trace, conv, pad):
            merged.append(pad)
    for pad in merged:
        if not _is_read(model, pad.output[0]) and pad in graph.node:
            graph.node.remove(pad)
    unread = {name for pad in merged for name in pad.input[1:] if not _is_read(model, name)}
    kept = [initializer for initializer in graph.initializer if initializer.name not in unread]
    if unread:
        del graph.initializer[:]
        graph.initializer.extend(kept)
    return model


def _merge(trace: OnnxTrace, conv: NodeProto, pad: NodeProto) -> bool:
    """Whether the convolution now reads what the Pad read, and has its zeros."""
    node = trace.normal.makers.get(conv.output[0])
    if node is None or node.op != "Conv" or node.inputs[0] != conv.input[0]:
        return False
    source, border = before_border(node, trace.normal)
    if source != pad.input[0]:
        return False
    own = node.attrs.get("pads", [0] * len(border))
    both = [zeros + more for zeros, more in zip(own, border, strict=True)]
    conv.input[0] = source
    others = [attribute for attribute in conv.attribute if attribute.name != "pads"]
    del conv.attribute[:]
    conv.attribute.extend([*others, helper.make_attribute("pads", both)])
    return True


def _is_read(model: ModelProto, name: str) -> bool:
    graph = model.graph
    return any(name in node.input for node in graph.node) or any(
        name == value.name for value in graph.output
    )
