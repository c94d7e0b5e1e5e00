"""A model's nodes, with unique names and their attributes as Python values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import ModelProto, NodeProto, helper

from rlprune.errors import ModelError, one_line


@dataclass(frozen=True, slots=True)
class Node:
    """A node with its attributes as Python values."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: Mapping[str, Any]
    scope: str = ""
    """Module path that the exporter noted, e.g. `layer1.0.conv1`; empty where it noted none."""


@contextmanager
def reading(node: Node) -> Iterator[None]:
    """Turns what goes wrong while a node is read into a refusal that names it."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ModelError(
            f"node {node.name!r} ({node.op}) is malformed: {one_line(error)}"
        ) from error


def read_nodes(model: ModelProto) -> list[Node]:
    """Nodes with unique, non-empty names."""
    taken: Counter[str] = Counter()
    return [read_node(proto, taken) for proto in model.graph.node]


def read_node(proto: NodeProto, taken: Counter[str]) -> Node:
    """A node under a name that is not among those `taken`; its own is entered."""
    base = proto.name or f"{proto.op_type}_{proto.output[0] if proto.output else ''}"
    taken[base] += 1
    name = base if taken[base] == 1 else f"{base}#{taken[base]}"
    op = proto.op_type if proto.domain in ("", "ai.onnx") else f"{proto.domain}.{proto.op_type}"
    attrs = {a.name: attribute_value(a) for a in proto.attribute}
    return Node(name, op, tuple(proto.input), _outputs(proto, name), attrs, _scope(proto))


def _outputs(proto: NodeProto, name: str) -> tuple[str, ...]:
    """Output names; one left out before one that is wanted gets a name, those after are dropped."""
    names = list(proto.output)
    while names and not names[-1]:
        names.pop()
    return tuple(n or f"{name}/unused{k}" for k, n in enumerate(names))


def named(proto: NodeProto, node: Node) -> NodeProto:
    """The proto with the node's output names; a copy where they differ."""
    if tuple(proto.output) == node.outputs:
        return proto
    copy = deepcopy(proto)
    copy.output[:] = node.outputs
    return copy


def attribute_value(attribute: onnx.AttributeProto) -> Any:
    """As a Python value; bytes as text."""
    value = helper.get_attribute_value(attribute)
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _scope(proto: NodeProto) -> str:
    """Module path from the newer exporter's notes: `['', 'layer1', 'layer1.0', 'relu']`."""
    try:
        for entry in proto.metadata_props:
            if entry.key == "pkg.torch.onnx.name_scopes" and len(entry.value) < 4096:
                scopes = [part.strip(" '\"") for part in entry.value.strip("[]").split(",")]
                return scopes[-2] if len(scopes) > 1 else ""
    except (TypeError, UnicodeDecodeError):
        return ""  # a note that is not UTF-8, of which protobuf hands out the bytes, or nothing
    return ""
