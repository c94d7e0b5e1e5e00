"""Arithmetic in 8 bits: a float model quantised, with scales from data or made-up ones."""

from rlprune.precision.quantise import (
    SCALED_COUNT,
    is_quantised,
    quantised,
    with_made_up_scales,
)

__all__ = ["SCALED_COUNT", "is_quantised", "quantised", "with_made_up_scales"]
