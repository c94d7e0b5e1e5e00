"""Activations that exporters spell out in arithmetic, recognised as one.

The older exporter writes Gelu as `x * (erf(x / sqrt 2) + 1) * 0.5`, HardSigmoid and HardSwish
appear as clipped lines. Runtimes fuse these, and the newer exporter writes them as one node, so
that a plan must see one operator either way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rlprune.graph.normal import NormalModel
from rlprune.graph.walk import Node


@dataclass(frozen=True, slots=True)
class Fused:
    """A node's part in a recognised activation."""

    variant: str
    """The activation, on the node that ends it; empty on the nodes before."""
    source: str
    """The tensor the activation is of."""


def fuse(normal: NormalModel) -> Mapping[str, Fused]:
    """Nodes, by name, that are part of an activation spelled out."""
    makers = {name: node for node in normal.nodes for name in node.outputs}
    fused: dict[str, Fused] = {}
    for node in normal.nodes:
        if node.op == "Erf":
            _gelu(normal, node, makers, fused)
    return fused


def _gelu(
    normal: NormalModel,
    erf: Node,
    makers: Mapping[str, Node],
    fused: dict[str, Fused],
) -> None:
    scaled = makers.get(erf.inputs[0])
    if scaled is None or scaled.op not in ("Div", "Mul"):
        return
    source = _variable(normal, scaled)
    chain = [scaled, erf]
    last = erf
    gates = 0
    # erf + 1, then the products with x and with a half, in any order.
    for _ in range(3):
        following = normal.readers.get(last.outputs[0], ())
        if len(following) != 1 or following[0].op not in ("Add", "Mul"):
            break
        last = following[0]
        if source in last.inputs:
            gates += 1
        elif _half(normal, last) and source not in last.inputs:
            other = next((n for n in last.inputs if n not in normal.values), "")
            if other != chain[-1].outputs[0]:
                return
        chain.append(last)
    half_before = len(chain) == 4 and gates == 0
    if half_before:
        # Here a half of x was made on the side: (x * 0.5) * (erf(x / sqrt 2) + 1).
        return
    if len(chain) == 5 and gates == 1 and source:
        for node in chain[:-1]:
            fused[node.name] = Fused("", source)
        fused[chain[-1].name] = Fused("gelu", source)


def _half(normal: NormalModel, node: Node) -> bool:
    return any(name in normal.values for name in node.inputs)


def _variable(normal: NormalModel, node: Node) -> str:
    names = [name for name in node.inputs if name not in normal.values]
    return names[0] if len(names) == 1 else ""
