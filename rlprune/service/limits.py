"""How large a request may be, and what it may become in memory: both known before it is parsed.

Two bytes of a message can become a hundred in memory: an empty measurement is an object of its own,
and a number of one byte is kept in eight. So the fields of a request are counted on its raw bytes
first; `graph.size_guard` does the same for the models that requests carry. On the same way texts
with a NUL are refused, which no name has, no log should, and PostgreSQL cannot keep.
"""

from __future__ import annotations

import zlib
from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from rlprune.errors import InputError
from rlprune.graph.size_guard import read_varint

SMALL_BYTES = 64 * 2**10
"""A question or a worker's heartbeat; the longest, a device's description, has half as much."""
MODEL_BYTES = 24 * 2**20
"""A skeleton (`models.MAX_SKELETON_BYTES`) with loss curves or variants beside it."""
REPORT_BYTES = 4 * 2**20
MAX_FIELDS = 2**17
"""Most fields of a message and all within it. A report of 1,024 measurements has some 80,000; so
many empty ones take 20 MB and 0.1 s."""
MAX_LISTED_BYTES = 2**20
"""Most bytes of lists of whole numbers, each of which may take one byte here and eight there."""

_MAX_BYTES = {
    "CreatePlan": MODEL_BYTES,
    "RequestMeasurement": MODEL_BYTES,
    "Report": REPORT_BYTES,
    "PutPlan": REPORT_BYTES,
}
_GZIP = b"\x1f\x8b"
"""No message begins like this: of 0x1F the lower three bits are no wire type."""
_OF_GZIP = 16 + zlib.MAX_WBITS
_AS_LONG_AS_SENT = (  # in memory
    FieldDescriptor.CPPTYPE_STRING,  # bytes too
    FieldDescriptor.CPPTYPE_DOUBLE,
    FieldDescriptor.CPPTYPE_FLOAT,
)
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

M = TypeVar("M", bound=Message)


def max_bytes(method: str) -> int:
    """Longest request that a method of this name takes, bytes."""
    return _MAX_BYTES.get(method, SMALL_BYTES)


def parse(data: bytes, kind: type[M], method: str) -> M:
    """The request in `data`, which may be packed by gzip.

    Raises:
        InputError: too long for the method, of too many parts, or not a message of this kind.
    """
    limit = max_bytes(method)
    if data.startswith(_GZIP):
        data = _unpacked(data, limit, method)
    if len(data) > limit:
        raise InputError(f"{method} takes requests of at most {limit} bytes, this is longer")
    _count(data, kind.DESCRIPTOR, method)
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise InputError(
            f"{method}: the request is not a {kind.DESCRIPTOR.full_name}: cut short, damaged, or "
            "with text that is not UTF-8"
        ) from error


def _unpacked(data: bytes, limit: int, method: str) -> bytes:
    """What gzip packed, or the first of it beyond `limit` bytes."""
    unpacking = zlib.decompressobj(_OF_GZIP)
    try:
        plain = unpacking.decompress(data, limit + 1)
    except zlib.error as error:
        raise InputError(f"{method}: the request is damaged: {error}") from error
    if not unpacking.eof and len(plain) <= limit:
        raise InputError(f"{method}: the request is cut short")
    return plain


def _count(data: bytes, kind: Any, method: str) -> None:
    """Raises InputError where parsing would take absurdly much memory, or a text holds a NUL; what
    is damaged passes, the parser says so."""
    level: list[tuple[int, int, Any]] = [(0, len(data), kind)]
    field_count = listed_bytes = 0
    while level:
        place, end, kind = level.pop()
        known = kind.fields_by_number
        while place < end:
            field_count += 1
            if field_count > MAX_FIELDS:
                raise InputError(f"{method}: the request has more than {MAX_FIELDS} fields")
            tag, place = read_varint(data, place, end)
            wire, length = tag & 7, 0
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
            field = known.get(tag >> 3)
            if wire == _BYTES and field is not None:
                if field.type == FieldDescriptor.TYPE_STRING:
                    if data.find(0, place, place + length) >= 0:
                        raise InputError(f"{field.name} holds a NUL character", field=field.name)
                elif field.message_type is not None:
                    level.append((place, place + length, field.message_type))
                elif field.cpp_type not in _AS_LONG_AS_SENT:
                    listed_bytes += length
                    if listed_bytes > MAX_LISTED_BYTES:
                        raise InputError(
                            f"{method}: more than {MAX_LISTED_BYTES} bytes of listed whole numbers",
                            field=field.name,
                        )
            place += length
