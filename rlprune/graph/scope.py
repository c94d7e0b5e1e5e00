"""What the rules about channels share: what they may look at, their register, and how to hold.

An operator without a rule holds all it touches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import wraps

from rlprune.graph.channels import Block, Channels
from rlprune.graph.kinds import FOREIGN, QUANTISED_REMEDY, QUANTISERS, plain, why_held
from rlprune.graph.normal import NormalModel
from rlprune.graph.walk import Node, reading


@dataclass(frozen=True, slots=True)
class Scope:
    """What a rule may look at beside its node."""

    normal: NormalModel
    channels: Channels
    outputs: frozenset[str] = frozenset()
    """Of the graph."""
    spread: frozenset[str] = frozenset()
    """Expands that repeat a tensor along channels met further on, and so may repeat it less."""
    found: set[str] = field(default_factory=set)
    """Expands that ought to be in `spread`."""

    def shape(self, name: str) -> tuple[int, ...]:
        return self.normal.shapes[name]

    def is_weight(self, name: str) -> bool:
        return name in self.normal.weights

    def is_constant(self, name: str) -> bool:
        """Whether a tensor is computed from initializers alone."""
        todo, seen = [name], set()
        while todo:
            one = todo.pop()
            if one in seen or not one or self.is_weight(one):
                continue
            seen.add(one)
            maker = self.maker(one)
            if maker is None:
                return False
            todo += maker.inputs
        return True

    def look_for_spread(self, name: str) -> None:
        """Notes the Expands that a tensor comes from by operators that keep what is equal so."""
        todo, seen = [name], set()
        while todo:
            maker = self.maker(todo.pop())
            if maker is None or maker.name in seen:
                continue
            seen.add(maker.name)
            if maker.op == "Expand" and self.channels.block(maker.inputs[0]) is None:
                self.found.add(maker.name)
            elif maker.op in _KEEPING:
                todo += maker.inputs

    def maker(self, name: str) -> Node | None:
        """The node that computes a tensor; None of graph inputs and initializers."""
        return self.normal.makers.get(name)

    def blocks(self, node: Node) -> list[tuple[str, Block]]:
        """Activation inputs that have channels."""
        found = []
        for name in node.inputs:
            if name and not self.is_weight(name):
                block = self.channels.block(name)
                if block is not None:
                    found.append((name, block))
        return found


_KEEPING = frozenset(
    (
        *("Reshape", "Unsqueeze", "Squeeze", "Transpose", "Cast", "Identity", "Not", "And", "Or"),
        *("Where", "Add", "Sub", "Mul", "Div", "Neg"),
    )
)
"""Operators through which a mask gets to the scores that it is added to."""

Rule = Callable[[Node, Scope], None]
BlockRule = Callable[[Node, Scope, Block], None]
RULES: dict[str, Rule] = {}


def rule(operators: str) -> Callable[[Rule], Rule]:
    """Registers a rule for operators of the default domain (or `domain.Name`), by their names."""

    def register(function: Rule) -> Rule:
        for op in operators.split():
            RULES[op] = function
        return function

    return register


def carries(operators: str) -> Callable[[BlockRule], BlockRule]:
    """Registers a rule of what moves the channels of its first input; without any it has no say."""

    def register(function: BlockRule) -> BlockRule:
        @wraps(function)  # the documented rules are its words
        def checked(node: Node, scope: Scope) -> None:
            block = scope.channels.block(node.inputs[0])
            if block is not None:
                function(node, scope, block)

        rule(operators)(checked)
        return function

    return register


def apply_rule(node: Node, scope: Scope, shared: frozenset[str]) -> None:
    """Runs a node's rule; weights with other readers are held on the axes it did not claim."""
    channels = scope.channels
    channels.touched.clear()
    with reading(node):
        RULES.get(node.op, _hold_unknown)(node, scope)
    for name in node.inputs:
        if name in shared:
            skip = [axis for tensor, axis in channels.touched if tensor == name]
            channels.whole(name, f"{node.op} {node.name} reads it whole", skip=skip)


def hold_all(node: Node, scope: Scope, why: str = "is not followed through") -> None:
    """Everything that touches the node stays as it is."""
    hold_inputs(node, scope, node.inputs, why)


def hold_inputs(node: Node, scope: Scope, names: Iterable[str], why: str) -> None:
    """Channels of these inputs stay, where they have some."""
    for name in names:
        block = scope.channels.block(name) if name and not scope.is_weight(name) else None
        if block is not None:
            scope.channels.hold(block.ids, f"{node.op} {node.name} {why}")


def _hold_unknown(node: Node, scope: Scope) -> None:
    """Holds what an operator without a rule touches; its layer is listed where it is one."""
    why = why_held(node.op)
    hold_all(node, scope, why)
    if node.op in FOREIGN and scope.is_constant(plain(node).inputs[1]):
        out = scope.shape(node.outputs[0])
        width = out[1] if plain(node).op == "Conv" else out[-1]
        weight = plain(node).inputs[1]
        scope.channels.note(node.name, weight, width, f"{node.op} {node.name} {why}")


def hold_layer(node: Node, scope: Scope, weight: str, axis: int) -> None:
    """Everything that touches a layer stays, since its weight is computed; the report lists it."""
    why = computed_weight(node, scope, weight)
    hold_all(node, scope, why)
    scope.channels.note(
        node.name, weight, scope.shape(weight)[axis], f"{node.op} {node.name} {why}"
    )


def computed_weight(node: Node, scope: Scope, weight: str) -> str:
    """Why a weight that is no initializer is not followed, and what to do."""
    maker = scope.maker(weight)
    if maker is not None and maker.op in QUANTISERS:
        return f"has its weight behind {maker.op}, {QUANTISED_REMEDY}"
    if maker is not None and maker.op == "Transpose" and scope.is_weight(maker.inputs[0]):
        return f"reads {maker.inputs[0]}, which others read too, turned"
    return "has a computed kernel; export or optimise the file so that it is a constant"
