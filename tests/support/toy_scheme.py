"""A second scheme: a 3x3 convolution may keep the middle of its kernel alone.

Two options without order, at convolutions whose channels are cut too. `register` makes it known as
an installed package would be: by an entry point. Nothing else in the repository knows of it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from rlprune.constraints import BoundConstraints
from rlprune.graph.from_onnx import OnnxTrace
from rlprune.graph.types import FloatArray, IntArray, Operator, PruningGraph
from rlprune.schemes import Site
from rlprune.surgery.removal import Removal

NAME, MIDDLE, WHOLE = "taps", 1, 9


class Taps:
    name = NAME

    def sites(self, graph: PruningGraph, bound: BoundConstraints | None = None) -> list[Site]:
        return [
            Site(op.name, NAME, (MIDDLE, WHOLE), (MIDDLE / WHOLE, 1.0), False, (index,))
            for index, op in enumerate(graph.operators)
            if op.kind == "conv" and op.kernel == (3, 3) and op.pads == (1, 1, 1, 1)
        ]

    def accepts(self, graph: PruningGraph, site: Site, value: int) -> bool:
        return value in (MIDDLE, WHOLE)

    def describe(self, site: Site, value: int) -> str:
        return f"{value} of {WHOLE} kernel taps"

    def form(self, operator: Operator, value: int) -> Operator:
        if value == WHOLE:
            return operator
        return replace(operator, kernel=(1, 1), pads=(0, 0, 0, 0))

    def dropped(self, trace: OnnxTrace, site: Site) -> FloatArray:
        return 1.0 - np.array(site.shares)

    def predicted_loss(self, graph: PruningGraph, site: Site, dropped: FloatArray) -> FloatArray:
        return np.array([0.0 if value == WHOLE else 0.02 for value in site.values])

    def remove(
        self, trace: OnnxTrace, sites: list[Site], values: IntArray, removal: Removal
    ) -> Removal:
        weights = [trace.graph.operators[site.operators[0]].weight for site in sites]
        return removal.without(
            windows={
                weight: ((1, 1), (1, 1))
                for weight, value in zip(weights, values.tolist(), strict=True)
                if value == MIDDLE
            }
        )


TAPS = Taps()


def register(folder: Path) -> None:
    """Writes what an installed package leaves behind into a folder of the import path."""
    about = folder / "toy_scheme-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-scheme\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[rlprune.schemes]\n{NAME} = toy_scheme:TAPS\n")
