"""Two schemes that change an operator's form, on `synthetic.resnet_like`."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from rlprune.constraints import BoundConstraints
from rlprune.graph.from_onnx import OnnxTrace
from rlprune.graph.types import FloatArray, IntArray, Operator, PruningGraph
from rlprune.schemes import Site
from rlprune.surgery.removal import Removal

PLACES = (1, 2)
"""Both convolutions of the first block."""


@dataclass(frozen=True)
class Toy:
    """One site for every operator of `places`, or one for all of them where `together`."""

    name: str
    values: tuple[int, ...]
    places: tuple[int, ...]
    together: bool = False
    ordered: bool = True

    def sites(self, graph: PruningGraph, bound: BoundConstraints | None = None) -> list[Site]:
        shares = tuple(value / self.values[-1] for value in self.values)
        runs = [self.places] if self.together else [(place,) for place in self.places]
        return [
            Site(graph.operators[own[0]].name, self.name, self.values, shares, self.ordered, own)
            for own in runs
        ]

    def accepts(self, graph: PruningGraph, site: Site, value: int) -> bool:
        return value in self.values

    def describe(self, site: Site, value: int) -> str:
        return f"{self.name} {value}"

    def form(self, operator: Operator, value: int) -> Operator:
        if value == self.values[-1]:
            return operator
        if self.name == "kernel":
            return replace(operator, kernel=(value, value), pads=(value // 2,) * 4)
        return replace(operator, variant=f"{operator.variant}{self.name}{value}")

    def dropped(self, trace: OnnxTrace, site: Site) -> FloatArray:
        return 1.0 - np.array(site.shares)

    def predicted_loss(self, graph: PruningGraph, site: Site, dropped: FloatArray) -> FloatArray:
        return dropped

    def remove(
        self, trace: OnnxTrace, sites: list[Site], values: IntArray, removal: Removal
    ) -> Removal:
        raise NotImplementedError


KERNEL = Toy("kernel", (1, 3), PLACES)
TINT = Toy("tint", (5, 2, 7), (2, 4), together=True, ordered=False)
