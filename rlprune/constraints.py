"""What a user states beside the budget: rounding, least widths, layers held out or pinned.

`Constraints` is the statement, checked at birth; `bind` finds the groups of one graph that it
means. A pattern is a shell glob (`*`, `?`, `[...]`; case counts) over the names that a user knows:
of groups, nodes, weights (the torch names where the file has them) and layers (module paths).

- `hold`: no tensor of a matched layer changes its shape. So a group is held where a matched layer
  makes, carries or reads its channels.
- `keep_float`: the matched layers are not quantised.
- `pin`: the channels that the matched layers make or carry keep one ratio; those a layer merely
  reads belong to the layer before it. Sets of two patterns that share a group are one set. A held
  group keeps everything, and is in no set.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from rlprune.errors import InputError
from rlprune.graph.types import Group, PruningGraph

MAX_ROUND_TO = 1024
MAX_MIN_KEEP = 2**20
MAX_PATTERNS = 256
"""Of each kind; a graph has rarely as many groups."""
MAX_PATTERN_LENGTH = 256
NEAR_NAMES = 4


@dataclass(frozen=True, slots=True)
class Constraints:
    """What every plan must keep to; `InputError` at birth names the field that is wrong."""

    round_to: int | None = None
    """Kept counts are multiples of this, or the full width; None leaves it to the device."""
    min_keep: int = 1
    """No group keeps fewer units."""
    min_keep_ratio: float = 0.0
    """No group keeps a smaller share (0-1) of its units."""
    hold: tuple[str, ...] = ()
    """Patterns of layers left as they are."""
    pin: tuple[str, ...] = ()
    """Patterns of layers whose channels keep one ratio, a set per pattern."""
    keep_float: tuple[str, ...] = ()
    """Patterns of layers that stay in float where the others become int8."""

    def __post_init__(self) -> None:
        if self.round_to is not None:
            _whole("round_to", self.round_to, MAX_ROUND_TO)
        _whole("min_keep", self.min_keep, MAX_MIN_KEEP)
        # A comparison that NaN fails too.
        if not 0.0 <= self.min_keep_ratio <= 1.0:
            raise InputError(
                f"min_keep_ratio is {self.min_keep_ratio}; give a share, 0 to 1",
                field="min_keep_ratio",
            )
        stated = {"hold": self.hold, "pin": self.pin, "keep_float": self.keep_float}
        for field, patterns in stated.items():
            if len(patterns) > MAX_PATTERNS:
                raise InputError(
                    f"{len(patterns)} patterns to {field}, more than {MAX_PATTERNS}", field=field
                )
            for pattern in patterns:
                if not isinstance(pattern, str) or not 0 < len(pattern) <= MAX_PATTERN_LENGTH:
                    raise InputError(
                        f"{field} {str(pattern)[:40]!r} is no pattern of 1 to "
                        f"{MAX_PATTERN_LENGTH} characters",
                        field=field,
                    )


def patterns(given: str | Iterable[str]) -> tuple[str, ...]:
    """One pattern or several, as `Constraints` takes them."""
    return (given,) if isinstance(given, str) else tuple(given)


@dataclass(frozen=True)
class BoundConstraints:
    """Constraints on the groups of one graph."""

    round_to: int
    requested: Constraints
    held: Mapping[int, str]
    """Group index -> the pattern that holds it."""
    pins: tuple[tuple[int, ...], ...]
    """Sets of groups that keep one ratio, ascending, two or more each."""
    pinned_by: Mapping[int, str]
    """Group index -> the first pattern that pins it; only groups of `pins`."""
    device: str = ""
    """Key of the device whose runtime's strengths decide which options there are; empty where all
    are wanted."""
    precision: str = "f32"

    @property
    def recorded(self) -> Constraints:
        """The statement with the rounding that was taken, as a plan records it."""
        own = self.requested
        return replace(own, round_to=self.round_to)

    @property
    def has_constraints(self) -> bool:
        """Whether anything was stated that plans must keep to, but a rounding."""
        stated = self.requested
        return stated != Constraints(stated.round_to, keep_float=stated.keep_float)

    def why(self, group: int) -> str:
        """What was stated about one group; empty where nothing was."""
        if group in self.held:
            return f"held by {self.held[group]!r}"
        return f"pinned by {self.pinned_by[group]!r}" if group in self.pinned_by else ""


def bind(
    graph: PruningGraph,
    constraints: Constraints,
    *,
    round_to: int,
    device: str = "",
    precision: str = "f32",
) -> BoundConstraints:
    """The groups of `graph` that the constraints mean; `round_to` where they do not state it.

    With a `device`, schemes offer only what its runtime profits from in the precision.

    Raises:
        InputError: a pattern matches nothing (told with near names), or pins only what is held.
    """
    known = {name for group in graph.groups for name in _names(group)}
    fixed = {name for held in graph.held for name in (held.node, held.tensor, held.layer) if name}
    others = {
        name
        for op in graph.operators
        if op.weight or op.kind == "add"
        for name in (op.name, op.weight)
        if name
    }
    for pattern in constraints.keep_float:
        _check_known(pattern, "keep_float", known | fixed)
    held: dict[int, str] = {}
    for pattern in constraints.hold:
        _check_known(pattern, "hold", known | fixed | others)
        for index, group in enumerate(graph.groups):
            if _matches(pattern, _names(group)):
                held.setdefault(index, pattern)
    sets: list[set[int]] = []
    pinned_by: dict[int, str] = {}
    for pattern in constraints.pin:
        _check_known(pattern, "pin", known | fixed)
        found = {
            index
            for index, group in enumerate(graph.groups)
            if index not in held and _matches(pattern, _names(group, reading=False))
        }
        if not found:
            raise InputError(
                f"pin {pattern!r} matches no channels that may be pruned, only what is fixed or "
                "merely read; `rlprune trace --tree` shows which",
                field="pin",
            )
        for index in found:
            pinned_by.setdefault(index, pattern)
        for other in [own for own in sets if own & found]:
            sets.remove(other)
            found |= other
        sets.append(found)
    pins = tuple(sorted(tuple(sorted(own)) for own in sets if len(own) > 1))
    together = {index for own in pins for index in own}
    return BoundConstraints(
        round_to=round_to if constraints.round_to is None else constraints.round_to,
        requested=constraints,
        held=held,
        pins=pins,
        pinned_by={index: by for index, by in pinned_by.items() if index in together},
        device=device,
        precision=precision,
    )


def float_nodes(graph: PruningGraph, patterns: Iterable[str]) -> frozenset[str]:
    """Names of the nodes that read a weight of a layer that some pattern means.

    Raises:
        InputError: a pattern matches nothing; the same network may have come with other names.
    """
    known = {(m.node, m.tensor, m.layer) for group in graph.groups for m in group.members}
    known |= {(held.node, held.tensor, held.layer) for held in graph.held}
    wanted = tuple(patterns)
    for pattern in wanted:
        _check_known(pattern, "keep_float", {name for names in known for name in names if name})
    return frozenset(
        node
        for node, *others in known
        if node and any(_matches(pattern, {node, *others} - {""}) for pattern in wanted)
    )


def _names(group: Group, *, reading: bool = True) -> set[str]:
    """What a user may call a group; without those of layers that only read its channels."""
    names = {group.name}
    for member in group.members:
        if reading or not member.reads:
            names.update((member.node, member.tensor, member.layer))
    return names - {""}


def _matches(pattern: str, names: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in names)


def _check_known(pattern: str, field: str, names: set[str]) -> None:
    if _matches(pattern, names):
        return
    plain = re.sub(r"[*?\[\]]", "", pattern)
    near = difflib.get_close_matches(plain, names, n=NEAR_NAMES, cutoff=0.3)
    near = near or sorted(names)[:NEAR_NAMES]
    raise InputError(
        f"{field} {pattern!r} matches no layer; near names: {', '.join(near) or 'there are none'}",
        field=field,
    )


def _whole(field: str, value: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise InputError(f"{field} is {value}; give a whole number, 1 to {most}", field=field)
