"""How far a model can be analysed.

`follow` leads walks through the nodes, at several sizes of what the file leaves open. An If whose
condition is known takes the place of its branch. What makes a tensor whose extents cannot be told
(NonMaxSuppression, sequences, loops, operators of other domains) ends the analysed part there: it
and all that reads it is the *tail*. The rest, the *head*, is a model of its own, whose outputs
include what the tail reads; `attach` puts the tail back behind it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from rlprune.errors import ModelError, UnsupportedOperatorError
from rlprune.graph.bodies import bodies_of, count_names, inline, reads_of, rename_reads
from rlprune.graph.folding import make_tensor
from rlprune.graph.kinds import why_opaque
from rlprune.graph.load import FLOAT_TYPES, run_checker, without_weights
from rlprune.graph.sizes import Label
from rlprune.graph.walk import Node, Shape, Walk, named, read_node, start_walk
from rlprune.graph.weights import Weight, to_array

LAYERS = frozenset(("Conv", "ConvTranspose", "Gemm", "MatMul"))
"""Operators of the default domain whose weights make channels."""
MAX_COPIED_NODES = 64
"""Most nodes that compute sizes for the tail and are therefore copied into it."""

MAX_EXPLAINED = 32
"""Operators of the tail whose reason is looked for through the nodes before them."""

Inputs = Mapping[str, tuple[int, Shape]]


@dataclass(frozen=True)
class Tail:
    """What is kept as it is behind the analysed part."""

    nodes: tuple[NodeProto, ...]
    weights: tuple[TensorProto, ...]
    """Constants that it reads, whole."""
    outputs: tuple[ValueInfoProto, ...]
    """The outputs of the whole model, in the file's order."""
    reasons: Mapping[str, str]
    """For each tensor of the head that the tail reads, why it may not change."""
    first: UnsupportedOperatorError
    """Of the first operator that could not be analysed."""


def follow(
    model: ModelProto, sizes: Sequence[tuple[Inputs, frozenset[Label]]]
) -> tuple[Tail | None, frozenset[Label]]:
    """Reduces `model`, in place, to the part that can be analysed.

    Args:
        model: changed; to be owned by the caller.
        sizes: element types and extents of the graph inputs, those analysed first, each with the
            open extents, batches apart, that differ from those; what is known must be so at all
            that the model's operators fit.

    Returns:
        the tail behind it, if any, and the open extents that must be closed, since a branch was
        taken that is not taken at others.

    Raises:
        ModelError: shapes contradict each other. UnsupportedOperatorError: nothing of the model can
            be analysed.
    """
    scout = _Scout(model, [(start_walk(model, (), inputs), labels) for inputs, labels in sizes])
    scout.run()
    tail = scout.split(sizes[0][0]) if scout.opaque else None
    del model.graph.node[:]
    model.graph.node.extend(scout.head)
    return tail, frozenset(scout.closed)


class _Scout:
    """The walks, and what they found out so far."""

    def __init__(self, model: ModelProto, walks: list[tuple[Walk, frozenset[Label]]]) -> None:
        self.model = model
        self.walks = [walk for walk, _ in walks]
        self.changed = {id(walk): labels for walk, labels in walks}
        """What has another size in a walk than in the first, batches apart."""
        self.closed: set[Label] = set()
        self.names = count_names(model.graph)
        self.taken: Counter[str] = Counter()
        self.head: list[NodeProto] = []
        self.opaque: list[NodeProto] = []
        self.unknown: dict[str, str] = {}
        """Tensors of unknown extents, each with the reason."""
        self.reasons: dict[str, str] = {}
        """Tensors of known extents that the tail reads."""
        self.first: UnsupportedOperatorError | None = None

    def run(self) -> None:
        for walk in self.walks:
            walk.begin()
        queue = deque(self.model.graph.node)
        while queue:
            proto = queue.popleft()
            branch = self._branch(proto)
            if branch is not None:
                nodes, weights, stated = inline(proto, branch, self.names)
                queue.extendleft(reversed(nodes))
                self.model.graph.initializer.extend(weights)
                self.model.graph.value_info.extend(stated)
                for walk in self.walks:
                    walk.add_weights(weights)
                continue
            node = read_node(proto, self.taken)
            blind = next((self.unknown[n] for n in reads_of(proto) if n in self.unknown), "")
            if blind:
                self._end(proto, blind)
                continue
            unknown = self._visit(node, proto)
            if unknown is not None:
                why = unknown.why
                if len(self.opaque) < MAX_EXPLAINED:
                    why = why_opaque(self.model, proto, self.head) or why
                self.first = self.first or UnsupportedOperatorError(node.name, node.op, why)
                self._end(proto, f"{node.op} {node.name}: {why}")
            else:
                self.head.append(proto)

    def _branch(self, proto: NodeProto) -> GraphProto | None:
        """The body of an If that is taken at every size; None of any other node."""
        if proto.op_type != "If" or proto.domain not in ("", "ai.onnx"):
            return None
        known = [walk.values.get(proto.input[0]) for walk in self.walks]
        taken = [bool(value.all()) for value in known if value is not None and value.size == 1]
        if len(taken) != len(known) or not self._agree(taken):
            return None
        wanted = "then_branch" if taken[0] else "else_branch"
        return next((a.g for a in proto.attribute if a.name == wanted), None)

    def _agree(self, taken: Sequence[bool]) -> bool:
        """Whether a condition is alike at every batch; extents at which it is not are closed."""
        others = {
            id(walk): self.changed[id(walk)]
            for walk, one in zip(self.walks, taken, strict=True)
            if one != taken[0]
        }
        if not all(others.values()):
            return False
        alone = [labels for labels in others.values() if len(labels) == 1]
        closing = frozenset().union(*(alone or others.values()))
        self.closed |= closing
        self.walks = [
            walk
            for walk in self.walks
            if id(walk) not in others and not closing & self.changed[id(walk)]
        ]
        return True

    def _visit(self, node: Node, proto: NodeProto) -> UnsupportedOperatorError | None:
        """Why the extents of what the node makes cannot be told at every size; None if they can."""
        if bodies_of(proto):
            return UnsupportedOperatorError(node.name, node.op, "it has a body")
        for walk in list(self.walks):
            try:
                walk.visit(node, named(proto, node))
            except UnsupportedOperatorError as error:
                return error
            except ModelError:
                if walk is self.walks[0]:
                    raise
                # A size that the file says is open, its constants say not.
                self.walks = [other for other in self.walks if other is not walk]
        return None

    def _end(self, proto: NodeProto, why: str) -> None:
        """Makes a node part of the tail."""
        self.opaque.append(proto)
        self.unknown.update((name, why) for name in proto.output if name)
        for name in reads_of(proto):
            if name not in self.unknown:
                self.reasons.setdefault(name, why)

    def split(self, inputs: Inputs) -> Tail:
        """Makes what the tail reads outputs of the head.

        Raises:
            UnsupportedOperatorError: the head has no layers.
        """
        assert self.first is not None
        if not any(node.op_type in LAYERS for node in self.head):
            raise self.first
        graph = self.model.graph
        maker = {name: node for node in self.head for name in node.output}
        weights: list[TensorProto] = []
        copied: dict[str, NodeProto] = {}
        ends: list[str] = []
        for name in self.reasons:
            weight = self._constant(name)
            if weight is not None:
                weights.append(_as_tensor(name, weight))
                continue
            if name in inputs:
                continue
            sizes = self._sizes(name, maker, inputs)
            if sizes is None:
                ends.append(name)
            else:
                copied.update((node.output[0], node) for node in sizes)
        read = {name for node in copied.values() for name in reads_of(node)}
        for name in sorted(read - set(self.reasons) - set(copied)):
            weight = self._constant(name)
            if weight is not None:
                weights.append(_as_tensor(name, weight))
        before = [node for node in self.head if node.output[0] in copied]
        outputs = tuple(graph.output)
        known = [value for value in outputs if value.name not in self.unknown]
        shown = {value.name for value in known}
        del graph.output[:]
        graph.output.extend(known)
        for name in ends:
            if name not in shown:
                elem = self.walks[0].types[name][0]
                graph.output.append(helper.make_tensor_value_info(name, elem, None))
        reasons = {name: f"{self.reasons[name]}; it stays as it is" for name in ends}
        return Tail((*before, *self.opaque), tuple(weights), outputs, reasons, self.first)

    def _constant(self, name: str) -> Weight | None:
        """A tensor that is the same at every size."""
        found = self.walks[0].weights.get(name)
        others = [walk.weights.get(name) for walk in self.walks[1:]]
        if found is None or any(other is None for other in others):
            return None
        same = all(
            found.array is None or np.array_equal(found.array, other.array)
            for other in others
            if other is not None and other.array is not None
        )
        return found if same else None

    def _sizes(
        self, name: str, maker: Mapping[str, NodeProto], inputs: Inputs
    ) -> list[NodeProto] | None:
        """The nodes that compute a tensor of integers from the graph inputs alone, such as the size
        of the image; None where there is more to it."""
        found: dict[str, NodeProto] = {}
        todo = [name]
        while todo:
            at = todo.pop()
            if at in inputs or at in found or self._constant(at) is not None:
                continue
            if at not in maker or self.walks[0].types[at][0] in FLOAT_TYPES:
                return None
            node = maker[at]
            found[at] = node
            if len(found) > MAX_COPIED_NODES or len(node.output) != 1:
                return None
            todo.extend(reads_of(node))
        return list(found.values())


def attach(head: ModelProto, tail: Tail | None) -> ModelProto:
    """The head, in place, with the tail behind it; the outputs are those of the whole model.

    Raises:
        ModelError: ONNX's checker refuses the result.
    """
    if tail is None:
        return head
    graph = head.graph
    names = {tensor.name for tensor in graph.initializer} | {value.name for value in graph.input}
    names.update(name for node in graph.node for name in node.output)
    own = [tensor.name for tensor in tail.weights]
    own += [name for node in tail.nodes for name in node.output if name]
    renamed: dict[str, str] = {}
    for name in own:
        new = name
        while new in names:
            new += "'"
        names.add(new)
        if new != name:
            renamed[name] = new
    for tensor in tail.weights:
        copy = graph.initializer.add()
        copy.CopyFrom(tensor)
        copy.name = renamed.get(tensor.name, tensor.name)
    for node in tail.nodes:
        added = graph.node.add()
        added.CopyFrom(node)
        rename_reads(added, renamed)
        added.output[:] = [renamed.get(name, name) for name in node.output]
    stated = {value.name: value for value in graph.output}
    outputs = [stated.get(value.name, value) for value in tail.outputs]
    kept = [deepcopy(value) for value in outputs]
    del graph.output[:]
    graph.output.extend(kept)
    run_checker(without_weights(head), of=", of the cut model")
    return head


def _as_tensor(name: str, weight: Weight) -> TensorProto:
    tensor = TensorProto()
    if weight.proto is None:
        tensor.CopyFrom(make_tensor(name, to_array(weight)))
    else:
        tensor.CopyFrom(weight.proto)
        tensor.name = name
    return tensor
