"""The schemes there are, by name. A new one is a file of this room and a line here."""

from __future__ import annotations

from collections.abc import Sequence

from rlprune.errors import InputError
from rlprune.schemes.base import Scheme
from rlprune.schemes.channels import CHANNELS

SCHEMES: dict[str, Scheme] = {CHANNELS.name: CHANNELS}


def scheme_named(name: str) -> Scheme:
    """A scheme by its name.

    Raises:
        InputError: there is none; names those there are.
    """
    if name not in SCHEMES:
        raise InputError(
            f"no scheme {name[:40]!r} in this version; it knows {', '.join(SCHEMES)}",
            field="schemes",
        )
    return SCHEMES[name]


def check_schemes(names: Sequence[str]) -> tuple[str, ...]:
    """The schemes that are meant, `channel` first, each once, in the registry's order.

    Raises:
        InputError: one is not known.
    """
    for name in names:
        scheme_named(name)
    return tuple(name for name in SCHEMES if name == CHANNELS.name or name in names)
