"""What a protobuf file would become in memory, counted before it is parsed.

Two bytes of a file can become hundreds in memory: an empty node, attribute or extent is a message
of its own, and a number of one byte is stored in eight. `measure` walks the lengths of the file,
level by level and without parsing, and refuses what would not be read anyway.
"""

from __future__ import annotations

from typing import Any

from onnx import ModelProto

from rlprune.errors import ModelError

MAX_NODES = 50_000
MAX_PARTS = 2**19
"""Most messages, repeated strings and numbers listed one by one in a file."""
MAX_FIELDS = 2**21
"""Most fields in all; a sound message holds a few scalars beside its parts, a hostile one the same
scalar millions of times, which take long to count.
"""
MAX_VARINT_BYTES = 2**24
"""Most bytes of lists of numbers in the coding of variable length; weights are stored otherwise."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def measure(data: bytes) -> None:
    """Raises ModelError if parsing `data` as an ONNX model would take absurdly much memory.

    What is damaged passes: the parser says so.
    """
    level: list[tuple[int, int, Any]] = [(0, len(data), ModelProto.DESCRIPTOR)]
    parts = varint_bytes = field_count = 0
    while level:
        inner: list[tuple[int, int, Any]] = []
        node_count = 0
        for start, end, kind in level:
            fields = kind.fields_by_number
            place = start
            while place < end:
                tag = data[place]
                place += 1
                if tag > 0x7F:
                    tag, place = read_varint(data, place - 1, end)
                length, wire = 0, tag & 7
                if wire == _BYTES:
                    length, place = read_varint(data, place, end)
                elif wire == _VARINT:
                    _, place = read_varint(data, place, end)
                elif wire in (_FIXED64, _FIXED32):
                    length = 8 if wire == _FIXED64 else 4
                else:
                    return
                if place + length > end:
                    return
                field = fields.get(tag >> 3)
                if field is not None and field.message_type is not None:
                    parts += 1
                    node_count += field.message_type.name == "NodeProto"
                    if length and field.message_type.name != "StringStringEntryProto":
                        inner.append((place, place + length, field.message_type))
                elif field is not None and field.is_repeated:
                    if wire != _BYTES or field.type in (field.TYPE_STRING, field.TYPE_BYTES):
                        parts += 1
                    elif field.type not in (field.TYPE_FLOAT, field.TYPE_DOUBLE):
                        varint_bytes += length
                field_count += 1
                if field_count > MAX_FIELDS:
                    raise ModelError(f"the model has more than {MAX_FIELDS} fields")
                if node_count > MAX_NODES:
                    raise too_many_nodes(f"more than {MAX_NODES}")
                if parts > MAX_PARTS:
                    raise ModelError(f"the model has more than {MAX_PARTS} parts")
                if varint_bytes > MAX_VARINT_BYTES:
                    raise ModelError(
                        f"the model has more than {MAX_VARINT_BYTES} bytes of listed numbers; "
                        "save its tensors as raw data"
                    )
                place += length
        level = inner


def too_many_nodes(count: str) -> ModelError:
    return ModelError(f"the model has {count} nodes; {MAX_NODES} are read at most")


def read_varint(data: bytes, place: int, end: int) -> tuple[int, int]:
    """A number of variable length, and where the next field starts (past `end` if cut short)."""
    value = shift = 0
    while place < end:
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7
        if shift > 63:
            break
    return 0, end + 1
