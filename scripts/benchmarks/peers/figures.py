"""From losses on unseen images to figures: paired differences, and shares of a search's saving.

Two methods are compared image by image, so that what makes an image hard cancels. Seeds share the
report's images: an image's difference is averaged over seeds first, and the standard error over
images is taken of that; the one over seeds stands beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.harness import Row, Sense
from rlprune.graph.types import FloatArray
from rlprune.sensitivity.calibration import CalibrationSet

DRAWS = 4000
LEVEL = 0.9
NORMAL_90 = 1.645


class Place(NamedTuple):
    """A cell without its seed."""

    model: str
    device: str
    share: float


Losses = Mapping[int, FloatArray]
"""By seed: the loss increase on every image of the report [N]."""


@dataclass(frozen=True, slots=True)
class Difference:
    """How much more one method loses than another, nats per image."""

    mean: float
    image_se: float
    seed_se: float
    """0 with one seed."""
    seed_count: int

    @property
    def se(self) -> float:
        """Of both."""
        return float(np.hypot(self.image_se, self.seed_se))

    def row(self, name: str, unit: str, sense: Sense, target: float | None = None) -> Row:
        """With an interval of 90 % over images and seeds."""
        half = NORMAL_90 * self.se
        ends = (self.mean - half, self.mean + half)
        return Row(name, self.mean, unit, target, sense, self.seed_count, ends)


def difference(own: Losses, other: Losses | None = None) -> Difference | None:
    """Over the seeds that both have; without `other` of the loss increase itself; None of none."""
    seeds = sorted(own) if other is None else sorted(own.keys() & other.keys())
    if not seeds:
        return None
    paired = np.array([own[s] if other is None else own[s] - other[s] for s in seeds])  # [S, N]
    of_images, of_seeds = paired.mean(0), paired.mean(1)
    count = len(seeds)
    return Difference(
        float(paired.mean()),
        float(of_images.std(ddof=1) / np.sqrt(len(of_images))),
        float(of_seeds.std(ddof=1) / np.sqrt(count)) if count > 1 else 0.0,
        count,
    )


def right(module: nn.Module, images: CalibrationSet, *, batch_size: int = 250) -> NDArray[np.bool_]:
    """Whether each image's top class is its label [N]."""
    module.eval()
    with torch.no_grad():
        parts = np.array_split(images.x, max(1, len(images) // batch_size))
        top = [module(torch.from_numpy(part)).argmax(1).numpy() for part in parts]
    return np.asarray(np.concatenate(top) == images.y)


@dataclass(frozen=True, slots=True)
class Share:
    """What part of a search's saving over the knapsack a method has."""

    value: float
    interval: tuple[float, float] | None
    """90 %, bootstrapped over models; None with fewer than two."""
    cell_count: int
    """Cells where the search saves more than two standard errors on unseen images."""
    model_count: int
    saved: float
    """Summed over those cells, nats: by the method,"""
    search_saved: float
    """and by the search."""


def share_of_saving(
    own: Mapping[Place, Losses],
    search: Mapping[Place, Losses],
    knapsack: Mapping[Place, Losses],
    rng: np.random.Generator,
) -> Share | None:
    """Sum of what `own` saves over sum of what `search` saves; None where no cell tells.

    Only cells where the search saves more than two standard errors over images count. Models are
    drawn again with all their cells, and both sums over the same draw.
    """
    pairs: dict[str, list[tuple[float, float]]] = {}
    for place in own.keys() & search.keys() & knapsack.keys():
        seeds = own[place].keys() & search[place].keys() & knapsack[place].keys()
        three = [{s: of[place][s] for s in seeds} for of in (own, search, knapsack)]
        best, mine = difference(three[2], three[1]), difference(three[2], three[0])
        if best is not None and mine is not None and best.mean > 2 * best.image_se:
            pairs.setdefault(place.model, []).append((mine.mean, best.mean))
    if not pairs:
        return None
    sums = np.array([np.sum(cells, axis=0) for cells in pairs.values()])  # [M, 2]
    saved, search_saved = sums.sum(0)
    interval = None
    if len(sums) > 1:
        drawn = sums[rng.integers(len(sums), size=(DRAWS, len(sums)))].sum(1)  # [D, 2]
        tail = (1 - LEVEL) / 2
        low, high = np.quantile(drawn[:, 0] / drawn[:, 1], [tail, 1 - tail])
        interval = (float(low), float(high))
    count = sum(len(cells) for cells in pairs.values())
    value = float(saved / search_saved)
    return Share(value, interval, count, len(sums), float(saved), float(search_saved))


def over_cells(own: Mapping[Place, Losses], other: Mapping[Place, Losses]) -> Difference | None:
    """The mean difference over all cells that both have; None of none.

    All cells are judged on the same images, so an image's differences are averaged first.
    """
    places = sorted(own.keys() & other.keys())
    seeds = {seed for place in places for seed in own[place].keys() & other[place].keys()}

    def mean(losses: Mapping[Place, Losses]) -> dict[int, FloatArray]:
        return {
            seed: np.mean(
                [
                    losses[place][seed]
                    for place in places
                    if seed in own[place] and seed in other[place]
                ],
                axis=0,
            )
            for seed in seeds
        }

    return difference(mean(own), mean(other))
