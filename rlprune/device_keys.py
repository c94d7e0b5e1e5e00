"""How a device's key was written by earlier versions."""

import re


def canonical_key(device: str) -> str:
    """A device's key as it is today; up to 0.7 the arithmetic, always `f32`, was part of it."""
    return re.sub(r"(\.t\d+)\.f32(?=\.b\d+$)", r"\1", device)
