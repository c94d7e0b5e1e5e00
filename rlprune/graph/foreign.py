"""Layers that a quantiser or ONNX Runtime's optimiser wrote: what they cost, and why they are held.

Their weights are packed or scaled in ways that are not followed, so nothing of them is pruned; yet
they are counted and listed, with what to do.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from rlprune.graph.kinds import OPTIMISED_REMEDY, QUANTISED_REMEDY, is_optimised, is_quantised
from rlprune.graph.walk import Node

QUANTISERS = frozenset(("DequantizeLinear", "QuantizeLinear", "DynamicQuantizeLinear"))


@dataclass(frozen=True, slots=True)
class Foreign:
    """A layer under another name."""

    op: str
    """What it computes, as an operator of ONNX."""
    places: tuple[int, ...] = (0, 1)
    """Which inputs are that operator's, in its order."""


FOREIGN = {
    "ConvInteger": Foreign("Conv"),
    "MatMulInteger": Foreign("MatMul"),
    "QLinearConv": Foreign("Conv", (0, 3)),
    "QLinearMatMul": Foreign("MatMul", (0, 3)),
    "com.microsoft.QGemm": Foreign("Gemm", (0, 3)),
    "com.microsoft.MatMulIntegerToFloat": Foreign("MatMul"),
    "com.microsoft.DynamicQuantizeMatMul": Foreign("MatMul"),
    "com.microsoft.MatMulNBits": Foreign("MatMul"),
    "com.microsoft.DynamicQuantizeLSTM": Foreign("LSTM", (0, 1, 2)),
    "com.microsoft.FusedConv": Foreign("Conv"),
    "com.microsoft.nchwc.Conv": Foreign("Conv"),
    "com.microsoft.FusedMatMul": Foreign("MatMul"),
    "com.microsoft.FusedGemm": Foreign("Gemm"),
}


def plain(node: Node) -> Node:
    """The node as the operator of ONNX that it computes; itself where it is none of these."""
    known = FOREIGN.get(node.op)
    if known is None:
        return node
    return replace(node, op=known.op, inputs=tuple(node.inputs[place] for place in known.places))


def why_held(op: str) -> str:
    """Why an operator without a rule is held, and what to do; `op` with its domain."""
    domain, _, op_type = op.rpartition(".")
    if is_quantised(op_type, domain):
        return f"is {QUANTISED_REMEDY}"
    if is_optimised(domain):
        return f"is {OPTIMISED_REMEDY}"
    return "is not followed through"
