"""Messages a little, or very, wrong: by their fields, and by their bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

TEXTS = (
    "",
    "\0",
    "a\0b",
    "../../etc/passwd",
    "x" * 300,
    "é" * 3000,
    "\U0001f600" * 2000,
    "*",
    "[",
    "%s %n",
    "'; DROP TABLE plans;--",
    "macs",
    "nan",
    "-1",
)
WHOLE = (-1, 0, 1, 2, 3, 7, 16, 64, 1024, 2**20, 2**31 - 1, -(2**31), 2**63 - 1, -(2**63))
REAL = (0.0, -0.0, 1.0, -1.0, 0.5, 5e-324, 1e-9, 1e300, -1e308, float("inf"), float("nan"))

_WHOLE_MAX = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.CPPTYPE_ENUM: (-(2**31), 2**31 - 1),
}


def mutate_bytes(data: bytes, rng: np.random.Generator) -> bytes:
    """`data` with bits turned, a part cut out, doubled or replaced, or cut short."""
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        place = int(rng.integers(0, len(changed) + 1))
        length = int(rng.integers(0, 1 + min(len(changed) - place, 64)))
        way = int(rng.integers(0, 6))
        if way == 0 and place < len(changed):
            changed[place] ^= 1 << int(rng.integers(0, 8))
        elif way == 1:
            del changed[place : place + length]
        elif way == 2:
            changed[place:place] = changed[place : place + length]
        elif way == 3:
            changed[place : place + length] = rng.bytes(length)
        elif way == 4 and place < len(changed):
            changed[place] = int(rng.choice([0, 1, 0x7F, 0x80, 0xFF]))
        elif way == 5 and rng.random() < 0.2:
            del changed[place:]
    return bytes(changed)


def mutate_message(message: Message, rng: np.random.Generator) -> None:
    """Changes one field somewhere in `message`, to what its type allows and nobody means."""
    fields = [field for field, _ in message.ListFields()]
    if not fields or rng.random() < 0.2:
        fields = list(message.DESCRIPTOR.fields)  # type: ignore[arg-type]
    if not fields:
        return
    field = fields[int(rng.integers(len(fields)))]
    if field.is_repeated:
        _mutate_list(message, field, rng)
    elif field.message_type is not None:
        if rng.random() < 0.1:
            message.ClearField(field.name)
        else:
            mutate_message(getattr(message, field.name), rng)
    else:
        setattr(message, field.name, _value(field, rng))


def _mutate_list(message: Message, field: Any, rng: np.random.Generator) -> None:
    values = getattr(message, field.name)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        values[str(rng.choice(TEXTS))] = str(rng.choice(TEXTS))
        return
    way = int(rng.integers(0, 5))
    if way == 0 and len(values):
        del values[int(rng.integers(len(values)))]
    elif way == 1 and len(values):
        values.extend([values[int(rng.integers(len(values)))]] * int(rng.integers(1, 20)))
    elif way == 2 and rng.random() < 0.2:
        message.ClearField(field.name)
    elif field.message_type is not None:
        mutate_message(values[int(rng.integers(len(values)))] if len(values) else values.add(), rng)
    elif len(values):
        values[int(rng.integers(len(values)))] = _value(field, rng)
    else:
        values.append(_value(field, rng))


def _value(field: Any, rng: np.random.Generator) -> Any:
    if field.type == FieldDescriptor.TYPE_STRING:
        return str(rng.choice(TEXTS))
    if field.type == FieldDescriptor.TYPE_BYTES:
        return rng.bytes(int(rng.integers(0, 64)))
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return bool(rng.integers(2))
    if field.cpp_type in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return float(rng.choice(REAL))
    if field.enum_type is not None and field.enum_type.is_closed:
        return int(rng.choice([value.number for value in field.enum_type.values]))
    low, high = _WHOLE_MAX[field.cpp_type]
    return min(max(WHOLE[int(rng.integers(len(WHOLE)))], low), high)
