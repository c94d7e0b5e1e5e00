"""What operators cost on the runtimes that are known, as it was measured once and ships.

`scripts/data latency_tables` writes it: operators of networks of many kinds on one x86-64 machine,
by runtime and threads. A device that has measured little or nothing starts from them: how operators
compare with one another is a matter of the runtime's kernels first of all, and how fast the machine
is drops out where a budget is a share of the unpruned latency.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rlprune.device_keys import canonical_key
from rlprune.graph.types import FloatArray, IntArray
from rlprune.latency.costs import CostPoint, Costs, OperatorCosts
from rlprune.latency.device import threads_of
from rlprune.latency.types import F32, FORM_FIELDS, OperatorSpec

FORMAT = "rlprune.operators/1"
DATA = Path(__file__).parent / "data" / "operators.json"
POINT_SD = 0.03
"""Standard error of a shipped operator's latency (natural logarithm)."""


class Donor(NamedTuple):
    """What is known of a device's speed from elsewhere."""

    costs: Costs
    call_ms: float
    """What a call of the runtime costs besides its operators."""


class Kind(NamedTuple):
    """What is shipped together."""

    runtime: str
    threads: int
    precision: str = F32


@dataclass(frozen=True, slots=True)
class _Mean:
    """What several kinds say together: the mean of the logarithms."""

    parts: tuple[OperatorCosts, ...]

    def ms(self, key: OperatorSpec, ins: IntArray, outs: IntArray) -> FloatArray:
        """See `Costs`."""
        return np.asarray(
            np.exp(np.mean([np.log(one.ms(key, ins, outs)) for one in self.parts], 0))
        )


def kind_of(device: str, precision: str) -> Kind:
    """The kind that a device is of, by its key."""
    return Kind(canonical_key(device).partition("-")[0], threads_of(device), precision)


def distance(one: Kind, other: Kind) -> tuple[bool, float, bool]:
    """How little the speed of one kind tells of another's.

    Of the same precision threads count first: what two of them gain differs between operators more
    than runtimes do.
    """
    threads = abs(math.log2(one.threads / other.threads))
    return one.precision != other.precision, threads, one.runtime != other.runtime


def nearest(kind: Kind, *, without: frozenset[Kind] = frozenset()) -> tuple[Kind, ...]:
    """The shipped kinds that tell most of another, equally near; empty where there is none.

    Args:
        without: kinds that are not looked at.
    """
    there = [one for one in shipped() if one not in without]
    least = min((distance(one, kind) for one in there), default=None)
    return tuple(one for one in there if distance(one, kind) == least)


def is_known(device: str, precision: str) -> bool:
    """Whether operators of the device's runtime ship, so that latencies can be told before any is
    measured."""
    own = kind_of(device, precision)
    return any((one.runtime, one.precision) == (own.runtime, precision) for one in shipped())


def shipped() -> tuple[Kind, ...]:
    """All kinds."""
    return tuple(_data())


@cache
def donor(kinds: tuple[Kind, ...]) -> Donor | None:
    """What ships of kinds, their mean where there are several; None of none."""
    if not kinds:
        return None
    parts = tuple(map(_costs, kinds))
    call_ms = float(np.exp(np.mean([np.log(_data()[one]["call_ms"]) for one in kinds])))
    return Donor(parts[0] if len(parts) == 1 else _Mean(parts), call_ms)


@cache
def _costs(kind: Kind) -> OperatorCosts:
    points = [
        CostPoint(
            OperatorSpec(**_EMPTY | _form(form) | {"in_width": ins, "out_width": outs}),
            ms,
            POINT_SD,
        )
        for form in _data()[kind]["forms"]
        for ins, outs, ms in form["points"]
    ]
    return OperatorCosts.fit(points)


_EMPTY: dict[str, Any] = {"variant": "", "in_spatial": (), "out_spatial": (), "groups": 0}
"""Fields of a form that are left out where they are empty; the others have their defaults."""


def _form(data: dict[str, Any]) -> dict[str, Any]:
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in data.items()
        if name in FORM_FIELDS
    }


@cache
def _data() -> dict[Kind, dict[str, Any]]:
    data = json.loads(DATA.read_text(encoding="utf-8"))
    return {Kind(one["runtime"], one["threads"], one["precision"]): one for one in data["kinds"]}
