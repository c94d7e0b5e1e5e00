"""The schemes there are, by name.

A new one is a file of this room and a line here; or a package that names it as an entry point of
the group `rlprune.schemes`, which is looked up when a plan or a request names it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from importlib.metadata import entry_points

from rlprune.errors import InputError
from rlprune.schemes.base import Scheme
from rlprune.schemes.blocks import BLOCKS
from rlprune.schemes.channels import CHANNELS
from rlprune.schemes.shapes import SHAPES

GROUP = "rlprune.schemes"
_OWN: tuple[Scheme, ...] = (CHANNELS, BLOCKS, SHAPES)


@cache
def scheme_named(name: str) -> Scheme:
    """A scheme by its name.

    Raises:
        InputError: there is none; names those there are.
    """
    for scheme in _OWN:
        if scheme.name == name:
            return scheme
    for entry in entry_points(group=GROUP, name=name):
        found: Scheme = entry.load()
        return found
    known = [*(scheme.name for scheme in _OWN), *entry_points(group=GROUP).names]
    raise InputError(
        f"no scheme {name[:40]!r} is installed; there is {', '.join(known)}", field="schemes"
    )


def asked_schemes(words: str | Iterable[str]) -> tuple[str, ...]:
    """The schemes that somebody asks for, `channel` first and the others by name: several words, or
    one with commas, in the singular or the plural. Without `channel` no channels are pruned.

    Raises:
        InputError: one is not known.
    """
    given = [words] if isinstance(words, str) else words
    names = {_singular(name.strip()) for word in given for name in word.split(",") if name.strip()}
    return tuple(sorted(names, key=lambda name: (name != CHANNELS.name, name)))


def _singular(name: str) -> str:
    """A scheme's own name."""
    if name.endswith("s") and any(name[:-1] == scheme.name for scheme in _OWN):
        return name[:-1]
    return scheme_named(name).name


def check_schemes(names: Sequence[str]) -> tuple[str, ...]:
    """The schemes whose sites settings tell of, each once: `channel`, always, then the others by
    name.

    Raises:
        InputError: one is not known.
    """
    for name in names:
        scheme_named(name)
    return (CHANNELS.name, *sorted(set(names) - {CHANNELS.name}))
