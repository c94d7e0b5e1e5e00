"""The bodies of If, Loop and Scan: what they read from outside, and how a branch is written inline.

A name in a body means the body's own tensor, or else that of the nearest graph around it (ONNX IR,
"Names Within a Graph"). Names are unique within one path of nesting only: two branches may use the
same, so that a branch written inline may have to be renamed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from copy import deepcopy

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper


def bodies_of(node: NodeProto) -> list[GraphProto]:
    """The graphs among a node's attributes."""
    found = []
    for attribute in node.attribute:
        if attribute.HasField("g"):
            found.append(attribute.g)
        found.extend(attribute.graphs)
    return found


def all_nodes(graph: GraphProto) -> Iterator[NodeProto]:
    """Every node of a graph and of the bodies in it."""
    for node in graph.node:
        yield node
        for body in bodies_of(node):
            yield from all_nodes(body)


def all_graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """A graph and all bodies in it."""
    yield graph
    for node in graph.node:
        for body in bodies_of(node):
            yield from all_graphs(body)


def has_bodies(model: ModelProto) -> bool:
    return any(bodies_of(node) for node in model.graph.node)


def reads_of(node: NodeProto) -> list[str]:
    """All tensors that a node reads, those that its bodies take from around it among them."""
    names = [name for name in node.input if name]
    for body in bodies_of(node):
        names.extend(_outer_names(body))
    return list(dict.fromkeys(names))


def _outer_names(body: GraphProto) -> list[str]:
    own = {value.name for value in body.input} | {tensor.name for tensor in body.initializer}
    found: list[str] = []
    for node in body.node:
        found.extend(name for name in reads_of(node) if name not in own)
        own.update(node.output)
    found.extend(value.name for value in body.output if value.name not in own)
    return found


def count_names(graph: GraphProto) -> Counter[str]:
    """How often each name is given, in the graph and in all bodies."""
    names: Counter[str] = Counter()
    for part in all_graphs(graph):
        names.update(value.name for value in part.input)
        names.update(tensor.name for tensor in part.initializer)
        names.update(name for node in part.node for name in node.output if name)
    return names


def inline(
    node: NodeProto, branch: GraphProto, names: Counter[str]
) -> tuple[list[NodeProto], list[TensorProto], list[ValueInfoProto]]:
    """An If's branch as nodes, weights and stated extents of the graph around it.

    Args:
        node: the If; its outputs are made by what is returned.
        branch: one of its bodies.
        names: how often each name is given; the new ones are entered.
    """
    local = [tensor.name for tensor in branch.initializer]
    local += [name for inner in branch.node for name in inner.output if name]
    made = {name for inner in branch.node for name in inner.output}
    renamed: dict[str, str] = {}
    aliases: list[tuple[str, str]] = []
    for target, value in zip(node.output, branch.output, strict=False):
        if not target:
            continue
        # A body further in may give the If's output's name to a tensor of its own.
        if value.name in made and value.name not in renamed and names[target] == 1:
            renamed[value.name] = target
        else:
            aliases.append((value.name, target))
    for name in local:
        if name not in renamed:
            new = name
            if names[name] > 1:
                new = f"{node.output[0]}/{name}"
                while names[new]:
                    new += "'"
            names[new] += 1
            renamed[name] = new
    nodes = [_renamed(inner, renamed) for inner in branch.node]
    nodes += [
        helper.make_node("Identity", [renamed.get(source, source)], [target])
        for source, target in aliases
    ]
    weights = []
    for tensor in branch.initializer:
        copy = deepcopy(tensor)
        copy.name = renamed[tensor.name]
        weights.append(copy)
    stated = []
    for value in branch.value_info:
        info = deepcopy(value)
        info.name = renamed.get(value.name, value.name)
        stated.append(info)
    return nodes, weights, stated


def _renamed(node: NodeProto, names: Mapping[str, str]) -> NodeProto:
    copy = deepcopy(node)
    copy.output[:] = [names.get(name, name) for name in node.output]
    rename_reads(copy, names)
    return copy


def rename_reads(node: NodeProto, names: Mapping[str, str]) -> None:
    """Renames what a node and its bodies read, in place; names that a body gives hide those
    around it."""
    node.input[:] = [names.get(name, name) for name in node.input]
    for body in bodies_of(node):
        own = {value.name for value in body.input} | {tensor.name for tensor in body.initializer}
        own.update(name for inner in body.node for name in inner.output)
        seen = {name: new for name, new in names.items() if name not in own}
        for inner in body.node:
            rename_reads(inner, seen)
        for value in body.output:
            value.name = seen.get(value.name, value.name)
