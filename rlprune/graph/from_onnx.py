"""ONNX in, `PruningGraph` out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnx import ModelProto

from rlprune.graph import rules, rules_layout, rules_products  # noqa: F401  (register rules)
from rlprune.graph.channels import ChannelMap, Channels
from rlprune.graph.counts import count_unknown, count_weights
from rlprune.graph.fingerprint import fingerprint
from rlprune.graph.grouping import group_units
from rlprune.graph.kinds import QUANTISED_REMEDY, is_quantised
from rlprune.graph.load import check, load_onnx
from rlprune.graph.normal import NormalModel
from rlprune.graph.operators import list_operators
from rlprune.graph.prepare import prepare
from rlprune.graph.reach import Tail
from rlprune.graph.scope import Scope, apply_rule
from rlprune.graph.types import PruningGraph


@dataclass(frozen=True)
class OnnxTrace:
    """A model together with what may be pruned of it."""

    graph: PruningGraph
    model: ModelProto
    """In normal form (`normal.normalise`): equal to the file traced, every constant an
    initializer."""
    channels: ChannelMap
    normal: NormalModel
    """Nodes, extents and known values of `model`."""
    tail: Tail | None = None
    """What follows the analysed part in the file and is kept as it is: `reach.attach` puts it
    behind a cut model."""

    closed: tuple[str, ...] = ()
    """What the file leaves open and a branch closes, a sentence each."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know of the model beside its groups, a sentence each."""
        found = list(self.normal.closed)
        kept = () if self.tail is None else self.tail.nodes
        count = sum(is_quantised(n.op_type, n.domain) for n in (*self.model.graph.node, *kept))
        if count:
            found.append(f"{count} operators are {QUANTISED_REMEDY}")
        if self.tail is not None:
            found.append(
                f"analysed up to {self.tail.first}; {len(kept)} operators are kept as they are "
                "behind it, and not counted"
            )
        found += (*self.closed, *self.normal.closed)
        return tuple(found)


def trace_onnx(
    model: ModelProto | str | Path | bytes,
    *,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    input_values: Mapping[str, Any] | None = None,
    computing: bool = True,
) -> OnnxTrace:
    """Finds what may be pruned of an ONNX model; a skeleton will do. The argument is not changed.

    Args:
        model: a path, a file's bytes, or a loaded model.
        input_shapes: extents of graph inputs that the file leaves open, by input name. An open
            batch size is taken as 1 and stays open.
        input_values: values of graph inputs that become constants of the model, by name; of what
            is written, too.
        computing: whether weights that are computed from constants become constants; False where
            they must stay those of a torch module.

    Raises:
        ModelError: see `load.load_onnx`; extents that are not known; shapes that contradict each
            other.
        UnsupportedOperatorError: an operator whose output shape cannot be told, before which
            nothing can be pruned.
    """
    if isinstance(model, ModelProto):
        check(model)
    else:
        model = load_onnx(model)
    prepared = prepare(model, input_shapes, input_values, computing=computing)
    normal = prepared.normal
    behind = {} if prepared.tail is None else prepared.tail.reasons
    channels, spread = _follow(normal, frozenset(), behind)
    if spread:
        channels, _ = _follow(normal, spread, behind)
    order = canonical_order(normal)
    groups, held, known = group_units(normal, channels, order)
    if prepared.tail is not None and not groups:
        raise prepared.tail.first
    widths = [group.width for group in groups]
    operators, made_by = list_operators(normal, known, widths, order)
    shapes = tuple(normal.shapes[value.name] for value in normal.model.graph.input)
    graph = PruningGraph(
        fingerprint=fingerprint(widths, operators, shapes),
        groups=groups,
        operators=operators,
        input_shapes=shapes,
        held=held,
        weights=count_weights(normal, known, widths, prepared.tail, made_by),
        uncounted=count_unknown(normal, prepared.tail),
        outputs=tuple(
            made_by[value.name] for value in normal.model.graph.output if value.name in made_by
        ),
    )
    return OnnxTrace(graph, normal.model, known, normal, prepared.tail, prepared.closed)


def _follow(
    normal: NormalModel, spread: frozenset[str], behind: Mapping[str, str]
) -> tuple[Channels, frozenset[str]]:
    """What the rules say, and which Expands would let more go if they were in `spread`.

    `behind` says of tensors that something behind the model reads why they stay.
    """
    channels = Channels(normal.shapes, normal.weights, normal.shape_like)
    shared = frozenset(name for name in normal.weights if len(normal.readers.get(name, ())) > 1)
    outputs = frozenset(value.name for value in normal.model.graph.output)
    scope = Scope(normal, channels, outputs, spread)
    for node in normal.nodes:
        channels.node = node.name
        apply_rule(node, scope, shared)
    for value in normal.model.graph.output:
        channels.node = value.name
        for block in channels.blocks.get(value.name, ()):
            reason = behind.get(value.name, f"graph output {value.name!r}")
            channels.hold(block.ids, reason)
    return channels, frozenset(scope.found)


def canonical_order(normal: NormalModel) -> list[int]:
    """Node indices in the order a depth-first walk from the outputs finishes them.

    A topological order that does not depend on how the file happens to list parallel branches. What
    computes with extents alone is left out: where an extent is fixed, it is not there.
    """
    maker = {
        name: k
        for k, node in enumerate(normal.nodes)
        for name in node.outputs
        if name and name not in normal.shape_like
    }
    order: list[int] = []
    state: dict[int, int] = {}
    for value in normal.model.graph.output:
        stack = [maker[value.name]] if value.name in maker else []
        while stack:
            index = stack[-1]
            if state.get(index, 0) == 0:
                state[index] = 1
                for name in reversed(normal.nodes[index].inputs):
                    if name in maker and state.get(maker[name], 0) == 0:
                        stack.append(maker[name])
            else:
                stack.pop()
                if state[index] == 1:
                    state[index] = 2
                    order.append(index)
    return order
