"""Why an operator cannot be analysed, and what to do about it: words for messages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from onnx import ModelProto, NodeProto

from rlprune.graph.bodies import bodies_of, reads_of
from rlprune.graph.nodes import Node

QUANTISED_REMEDY = "quantised: prune the float file before quantising it"
OPTIMISED_REMEDY = "written by ONNX Runtime's optimiser: give the file from before optimising"

_QUANTISED = frozenset(
    (
        *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"),
        *("ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul"),
    )
)
_RUNTIME_DOMAINS = ("com.microsoft", "com.microsoft.nchwc", "com.microsoft.experimental")


def is_quantised(op_type: str, domain: str) -> bool:
    """Whether an operator computes with, or makes, integers that stand for real numbers."""
    if domain in ("", "ai.onnx"):
        return op_type in _QUANTISED
    marks = ("QLinear", "Quant", "QGemm", "QAttention", "Integer", "NBits", "Bnb4", "QMoE")
    return domain in _RUNTIME_DOMAINS and any(mark in op_type for mark in marks)


def is_optimised(domain: str) -> bool:
    """Whether operators of a domain are ONNX Runtime's own."""
    return domain in _RUNTIME_DOMAINS


def why_opaque(model: ModelProto, node: NodeProto, before: Sequence[NodeProto]) -> str:
    """Why the extents of what `node` makes are not known; empty where its kind does not say.

    Args:
        model: whose node it is.
        before: the nodes that come before it.
    """
    if node.op_type == "If":
        sources = _inputs_behind(model, node.input[:1], before)
        if sources:
            return (
                f"its condition depends on the graph input {sources[0]!r}; "
                f"give that one value: --input-value {sources[0]}=VALUE"
            )
        return "its condition is computed by the network; export one branch"
    if bodies_of(node):
        return "loops are not analysed; export with static control flow"
    if is_quantised(node.op_type, node.domain):
        return QUANTISED_REMEDY
    if is_optimised(node.domain):
        return OPTIMISED_REMEDY
    return ""


def _inputs_behind(
    model: ModelProto, names: Iterable[str], before: Sequence[NodeProto]
) -> list[str]:
    """The graph inputs that tensors are computed from, in the file's order; empty where one of them
    is computed through a layer, since no input alone decides then."""
    maker = {name: node for node in before for name in node.output}
    seen: set[str] = set()
    todo = list(names)
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in maker:
            if maker[name].op_type in ("Conv", "Gemm", "MatMul", "LSTM", "GRU"):
                return []
            todo.extend(reads_of(maker[name]))
    constants = {tensor.name for tensor in model.graph.initializer}
    return [v.name for v in model.graph.input if v.name in seen and v.name not in constants]


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
