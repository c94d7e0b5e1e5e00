"""A model's file, a tensor at a time.

`ModelProto.SerializeToString` holds two more copies of the model while it runs: 300 MB for one of
100 MB. The bytes are those of one ordinary ONNX file; only the initializers come last in the graph.
"""

from __future__ import annotations

from collections.abc import Iterator

from google.protobuf.message import Message
from onnx import GraphProto, ModelProto


def encode(model: ModelProto) -> Iterator[bytes]:
    """The file's bytes in pieces, none larger than the largest tensor or all that is no weight."""
    graph = _without(model.graph, "initializer")
    prefix = _tag(GraphProto.DESCRIPTOR.fields_by_name["initializer"].number)
    sizes = [tensor.ByteSize() for tensor in model.graph.initializer]
    length = len(graph) + sum(len(prefix) + len(_varint(size)) + size for size in sizes)
    yield _without(model, "graph")
    yield _tag(ModelProto.DESCRIPTOR.fields_by_name["graph"].number) + _varint(length)
    yield graph
    for tensor, size in zip(model.graph.initializer, sizes, strict=True):
        yield prefix + _varint(size)
        yield tensor.SerializeToString()


def _without(message: Message, left_out: str) -> bytes:
    """The bytes of a message, but for one field."""
    rest = type(message)()
    for field, value in message.ListFields():
        if field.name == left_out:
            continue
        target = getattr(rest, field.name)
        if isinstance(value, Message):
            target.CopyFrom(value)
        elif isinstance(value, str | bytes | int | float):
            setattr(rest, field.name, value)
        else:
            target.extend(value)
    return bytes(rest.SerializeToString())


def _tag(field_number: int) -> bytes:
    """What stands before a field whose length follows (wire type 2)."""
    return _varint(field_number << 3 | 2)


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; the top bit says that more follow."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
