"""Models as a runtime wants them, kept so that a fresh session need not convert again.

Measuring loads every model several times. Only the bytes are shared between sessions; weights and
buffers are laid out anew in each, which is what fresh sessions are for.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable

MAX_BYTES = 128 << 20
"""Kept at most; what was used longest ago goes first. A board has little memory."""


class Prepared:
    """Converted models by what they were made from. Used by one thread at a time."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[bytes, bytes] = OrderedDict()
        self._size = 0

    def get(self, model: bytes, make: Callable[[], bytes], *, variant: str = "") -> bytes:
        """What `make` returned for this model and variant, now or before."""
        key = hashlib.sha256(model).digest() + variant.encode()
        found = self._kept.pop(key, None)
        if found is None:
            found = make()
            if len(found) > self._max_bytes:
                return found
            self._size += len(found)
        self._kept[key] = found
        while self._size > self._max_bytes:
            _, dropped = self._kept.popitem(last=False)
            self._size -= len(dropped)
        return found
