"""Layers that a quantiser or ONNX Runtime's optimiser wrote: what they cost, and why they are held.

Their weights are packed or scaled in ways that are not followed, so nothing of them is pruned; yet
they are counted and listed, with what to do.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from rlprune.graph.walk import Node

BEFORE_QUANTISING = "prune the float model, then quantise"
BEFORE_FUSING = "prune the file as it was before ONNX Runtime optimised it"
QUANTISERS = frozenset(("DequantizeLinear", "QuantizeLinear", "DynamicQuantizeLinear"))


@dataclass(frozen=True, slots=True)
class Foreign:
    """A layer under another name."""

    op: str
    """What it computes, as an operator of ONNX."""
    places: tuple[int, ...] = (0, 1)
    """Which inputs are that operator's, in its order."""
    quantised: bool = True


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
    "com.microsoft.FusedConv": Foreign("Conv", quantised=False),
    "com.microsoft.nchwc.Conv": Foreign("Conv", quantised=False),
    "com.microsoft.FusedMatMul": Foreign("MatMul", quantised=False),
    "com.microsoft.FusedGemm": Foreign("Gemm", quantised=False),
}


def plain(node: Node) -> Node:
    """The node as the operator of ONNX that it computes; itself where it is none of these."""
    known = FOREIGN.get(node.op)
    if known is None:
        return node
    return replace(node, op=known.op, inputs=tuple(node.inputs[place] for place in known.places))


def why_held(op: str) -> str:
    """Why an operator without a rule is held, and what to do."""
    known = FOREIGN.get(op)
    if (known is not None and known.quantised) or op.split(".")[-1].startswith("QLinear"):
        return f"is quantised; {BEFORE_QUANTISING}"
    if op in QUANTISERS:
        return f"works on quantised numbers; {BEFORE_QUANTISING}"
    if op.startswith("com.microsoft."):
        return f"is no operator of ONNX; {BEFORE_FUSING}"
    return "is not followed through"
