"""Numbers read from JSON that others wrote; what is none raises ValueError or TypeError."""

from __future__ import annotations

import math
from typing import Any


def known(value: Any) -> float | None:
    """A finite number, or None."""
    return None if value is None else finite(value)


def finite(value: Any) -> float:
    """A finite number."""
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{str(value)[:40]} is not a finite number")
    return number


def count(value: Any) -> int:
    """A whole number that fits 64 bits."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise ValueError(f"{str(value)[:40]} is not a count")
    return value


def pair(value: Any) -> tuple[float, float]:
    """Two finite numbers."""
    low, high = value
    return finite(low), finite(high)
