"""What is taken out of a network: units of its groups, taps of its kernels, whole branches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from rlprune.graph.types import IntArray

BoolArray = NDArray[np.bool_]

Window = tuple[tuple[int, int], ...]
"""Of every axis of a kernel the first tap that stays, and how many do."""


@dataclass(frozen=True)
class Removal:
    """What stays and what goes, in the names of one traced model."""

    kept: Sequence[IntArray]
    """The units that stay of every group, ascending."""
    windows: Mapping[str, Window] = field(default_factory=dict)
    """By weight of a convolution the taps that stay; of others all do."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Nodes that one of their inputs stands for, by name, and which: the additions that end the
    branches which are left out, whose shortcut does."""

    def without(
        self, windows: Mapping[str, Window] = {}, left_out: Mapping[str, int] = {}
    ) -> Removal:
        """This, and more taken out."""
        return replace(
            self,
            windows={**self.windows, **windows},
            left_out={**self.left_out, **left_out},
        )

    def taps(self, weight: str, kernel: Sequence[int]) -> BoolArray:
        """Which taps of a weight's kernel stay, in the order of its numbers [K]."""
        stay = np.ones(tuple(kernel), dtype=np.bool_)
        for axis, (first, count) in enumerate(self.windows.get(weight, ())):
            outside = np.ones(kernel[axis], dtype=np.bool_)
            outside[first : first + count] = False
            stay[(slice(None),) * axis + (outside,)] = False
        return stay.ravel()

    def extents(self, weight: str, kernel: Sequence[int]) -> tuple[int, ...]:
        """The kernel's extents afterwards."""
        window = self.windows.get(weight)
        return tuple(kernel) if window is None else tuple(count for _, count in window)


def first_places(extent: int, count: int, step: int, border: tuple[int, int]) -> list[int]:
    """Where `count` of the `extent` taps along an axis may begin: what they read must begin and end
    within the map and its border, since a convolution cannot read less than its whole input.

    Args:
        step: the dilation.
        border: zeros before and behind the map.
    """
    return [
        first
        for first in range(extent - count + 1)
        if first * step <= border[0] and (extent - count - first) * step <= border[1]
    ]


def kept_mask(group: IntArray, unit: IntArray, kept: Sequence[IntArray]) -> BoolArray:
    """Which positions of an axis stay [C], by the group and unit of each: those that no group owns
    (-1), and the kept units'."""
    mask = group < 0
    for index in np.unique(group[~mask]):
        mask |= (group == index) & np.isin(unit, kept[index])
    return mask
