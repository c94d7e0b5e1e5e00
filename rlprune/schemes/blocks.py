"""Blocks: a residual branch is left out, and its shortcut stands for the sum.

A block left out saves what its operators cost, in every runtime and precision, where narrowing it
by as much often saves less. A network that was trained with shortcuts survives the loss of single
branches (Veit, Wilber and Belongie 2016); pruning them is layer or depth pruning. Offered are
branches whose shortcut is the identity, and never the first of a stage, which makes the stage's
features.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from rlprune.constraints import BoundConstraints
from rlprune.graph.types import ABSENT, FloatArray, IntArray, Operator, PruningGraph
from rlprune.schemes.base import Site
from rlprune.schemes.profits import profits_of

if TYPE_CHECKING:
    from rlprune.graph.from_onnx import OnnxTrace
    from rlprune.graph.walk import Node
    from rlprune.surgery.removal import Removal

LEFT_OUT, KEPT = 0, 1
MAX_SHARE = 0.5
"""Of the network's MACs: what holds more is no block of it."""
IDEMPOTENT = ("relu", "relu6", "abs")
"""Activations that change nothing when they are applied again."""
NATS = 0.25
"""What a network is thought to lose with one of its blocks."""


class Blocks:
    """The scheme `block`; see `schemes.base.Scheme`. A value is 1 where the block stays, else 0."""

    name = "block"

    def sites(self, graph: PruningGraph, bound: BoundConstraints | None = None) -> list[Site]:
        """One for every residual branch that can be left out, by the name of its addition. Where
        the bound device does not profit from that, all stay."""
        profits = None if bound is None else profits_of(bound.device, bound.precision)
        pays = profits is None or self.name in profits.schemes
        return [
            Site(
                name=graph.operators[branch.addition].name,
                scheme=self.name,
                values=(LEFT_OUT, KEPT) if pays else (KEPT,),
                shares=(0.0, 1.0) if pays else (1.0,),
                operators=branch.operators,
            )
            for branch in branches(graph)
        ]

    def accepts(self, graph: PruningGraph, site: Site, value: int) -> bool:
        """0 or 1."""
        return value in (LEFT_OUT, KEPT)

    def describe(self, site: Site, value: int) -> str:
        """`left out` or `kept`."""
        return "left out" if value == LEFT_OUT else "kept"

    def form(self, operator: Operator, value: int) -> Operator:
        """The operator, or one that costs nothing."""
        return operator if value else replace(operator, variant=ABSENT)

    def dropped(self, trace: OnnxTrace, site: Site) -> FloatArray:
        """All or nothing."""
        return np.array([1.0, 0.0])

    def predicted_loss(self, graph: PruningGraph, site: Site, dropped: FloatArray) -> FloatArray:
        """Alike for all blocks."""
        return NATS * np.asarray(dropped)

    def remove(
        self, trace: OnnxTrace, sites: list[Site], values: IntArray, removal: Removal
    ) -> Removal:
        """The sums of branches that go become their shortcuts."""
        nodes = {node.name: node for node in trace.normal.nodes}
        maker = {name: node for node in trace.normal.nodes for name in node.outputs}
        named = {op.name for op in trace.graph.operators}
        left_out: dict[str, int] = {}
        for site, value in zip(sites, values.tolist(), strict=True):
            if value == KEPT:
                continue
            own = {trace.graph.operators[index].name for index in site.operators}
            addition = nodes[site.name]
            inside = own - {site.name}
            [shortcut] = [
                place
                for place, name in enumerate(addition.inputs)
                if not inside.intersection(_made_by(name, maker, named))
            ]
            left_out[site.name] = shortcut
            if addition.op == "Sub" and shortcut == 1:
                continue  # what is behind it reads the shortcut with another sign
            # An activation that does nothing to what went through it before goes as well.
            left_out.update(
                (name, 0) for name in inside if addition.outputs[0] in nodes[name].inputs
            )
        return removal.without(left_out=left_out)


BLOCKS = Blocks()


@dataclass(frozen=True)
class Branch:
    """A residual branch beside an identity."""

    addition: int
    """Index of the operator that adds the two."""
    operators: tuple[int, ...]
    """All that goes with it, the addition included: of the branch, and behind the addition an
    activation that does nothing to what went through it before."""


def branches(graph: PruningGraph) -> list[Branch]:
    """The branches of a graph that can be left out, in its order."""
    readers = _readers(graph.operators)
    widths = graph.widths
    macs = [
        int(op.macs_at(op.in_width.at(widths), op.out_width.at(widths))) for op in graph.operators
    ]
    found: list[Branch] = []
    sums: set[int] = set()
    ends: set[int] = set()  # of residual branches, offered or not
    for index, op in enumerate(graph.operators):
        if op.kind != "add" or len(op.inputs) != 2 or op.inputs[0] == op.inputs[1]:
            continue
        sums.add(index)
        split = _split(graph.operators, index)
        if split is None:
            continue
        shortcut, inside = split
        if not _same_extents(graph.operators[shortcut], op):
            continue
        ends.add(index)
        if ends & inside:
            continue  # others lie within it
        if any(not set(readers[one]) <= inside | {index} for one in inside):
            continue  # somebody else reads of it
        if inside.intersection(graph.outputs):
            continue  # so does the user
        if not _behind_a_sum(graph.operators, shortcut, sums):
            continue  # the first of its stage
        if sum(macs[one] for one in inside) > MAX_SHARE * sum(macs):
            continue
        behind = _idle_activation(graph.operators, readers, index, shortcut)
        found.append(Branch(index, tuple(sorted({*inside, index, *behind}))))
    return found


def _split(operators: Sequence[Operator], addition: int) -> tuple[int, set[int]] | None:
    """The operator that is added as it is, and those between it and the addition; None where no
    input of the addition is all that the other one is made of."""
    one, two = operators[addition].inputs
    for shortcut, end in ((one, two), (two, one)):
        if shortcut < 0:
            continue
        inside: set[int] = set()
        waiting = [end]
        while waiting:
            index = waiting.pop()
            if index == shortcut or index in inside:
                continue
            if index < shortcut or not operators[index].inputs:
                break  # made of something else
            inside.add(index)
            waiting += operators[index].inputs
        else:
            if inside:
                return shortcut, inside
    return None


def _readers(operators: Sequence[Operator]) -> list[list[int]]:
    readers: list[list[int]] = [[] for _ in operators]
    for index, op in enumerate(operators):
        for source in op.inputs:
            if source >= 0:
                readers[source].append(index)
    return readers


def _same_extents(one: Operator, other: Operator) -> bool:
    return (one.out_width, one.out_spatial) == (other.out_width, other.out_spatial)


def _behind_a_sum(operators: Sequence[Operator], index: int, sums: set[int]) -> bool:
    """Whether an operator's output is an earlier sum of these extents, or an activation of one; or
    ends an inverted residual block, of which a stage's first has no sum."""
    if _projects_depthwise(operators, index):
        return True
    while index not in sums:
        op = operators[index]
        if op.kind not in ("activation", "norm") or len(op.inputs) != 1 or op.inputs[0] < 0:
            return False
        index = op.inputs[0]
    return True


def _projects_depthwise(operators: Sequence[Operator], index: int) -> bool:
    """Whether an operator mixes the channels of a depthwise convolution, gated or not."""
    op = operators[index]
    if op.kind != "conv" or max(op.kernel) > 1:
        return False
    while op.inputs and op.inputs[0] >= 0:
        op = operators[op.inputs[0]]
        if op.kind not in ("activation", "mul"):
            return op.kind == "depthwise_conv"
    return False


def _idle_activation(
    operators: Sequence[Operator], readers: Sequence[Sequence[int]], addition: int, shortcut: int
) -> list[int]:
    """The activation behind an addition, where the shortcut went through the same one."""
    before = operators[shortcut]
    if before.kind != "activation" or before.variant not in IDEMPOTENT:
        return []
    if len(readers[addition]) != 1:
        return []
    [behind] = readers[addition]
    same = (operators[behind].kind, operators[behind].variant) == (before.kind, before.variant)
    return [behind] if same else []


def _made_by(name: str, maker: Mapping[str, Node], named: Collection[str]) -> Iterator[str]:
    """The operators, by name, that a tensor comes from with nothing but free nodes between."""
    waiting, seen = [name], set()
    while waiting:
        node = maker.get(waiting.pop())
        if node is None or node.name in seen:
            continue
        seen.add(node.name)
        if node.name in named:
            yield node.name
        else:
            waiting += node.inputs
