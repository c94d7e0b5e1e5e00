"""Pair terms: what two options lose together beyond what each of them loses alone.

Losses of residual blocks left out do not add up: blocks of one stage stand in for each other, so
leaving out two costs more than both alone, and sometimes less. A term says by how much for one
option of one site and one of another. Totals and joint moves of both sites are exact; where a
solver needs losses that add up over sites, `around` gives them with all other sites as in the
current plan, as `costs` does for latency.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rlprune.graph.types import FloatArray, IntArray

Terms = Mapping[tuple[int, int, int, int], float]
"""(site, its option, another site, its option) -> extra loss where both are chosen."""


@dataclass(frozen=True, eq=False)
class PairTerms:
    """The terms of one task, a table for every two sites that have any."""

    edges: IntArray
    """The two sites of each table, ascending [E, 2]."""
    extra: FloatArray
    """Extra loss by the options of both [E, L, L]; in the unit of the curves."""

    @staticmethod
    def of(option_count: IntArray, terms: Terms) -> PairTerms:
        """Sparse terms over sites with so many options each [S]; terms named twice add up.

        Raises:
            ValueError: a term is of one site alone, of a site or option that there is not, or not
                finite.
        """
        longest = int(max(option_count, default=1))
        tables: dict[tuple[int, int], FloatArray] = {}
        for (one, option, two, other), loss in terms.items():
            if one == two or not np.isfinite(loss):
                raise ValueError(f"a pair term of sites {one} and {two} cannot be {loss}")
            first, second = _places(option_count, one, option), _places(option_count, two, other)
            table = tables.setdefault((min(one, two), max(one, two)), np.zeros((longest, longest)))
            # A view: whichever of the two sites comes first.
            (table if one < two else table.T)[first, second] += loss
        edges = sorted(tables)
        return PairTerms(
            np.array(edges, dtype=np.int64).reshape(-1, 2),
            np.array([tables[edge] for edge in edges]).reshape(-1, longest, longest),
        )

    def total(self, choice: IntArray) -> FloatArray:
        """Extra loss of choices [..., S] -> [...], exactly."""
        left, right = choice[..., self.edges[:, 0]], choice[..., self.edges[:, 1]]
        return np.asarray(self.extra[np.arange(len(self.edges)), left, right].sum(-1))

    def around(self, choice: IntArray) -> FloatArray:
        """What each option of each site adds, the other sites as in choices [R, S] -> [R, S, L].

        Differences along a site's options are exactly what moving that site alone changes; the sum
        over sites is not a total, since it has every pair twice.
        """
        rows, sites = choice.shape
        left, right = self.edges.T
        added = np.zeros((sites, rows, self.extra.shape[-1]))
        edge = np.arange(len(self.edges))[:, None]
        np.add.at(added, left, self.extra[edge, :, choice[:, right].T])  # [E, R, L]
        np.add.at(added, right, self.extra[edge, choice[:, left].T])
        return added.swapaxes(0, 1)

    def beyond(self, choice: IntArray) -> FloatArray:
        """What moving both sites of every edge changes beyond the sum of both moves by `around`,
        for choices [R, S] -> [R, E, L, L], exactly."""
        edge = np.arange(len(self.edges))
        here, there = choice[:, self.edges[:, 0]], choice[:, self.edges[:, 1]]  # [R, E]
        first = self.extra[edge, :, there][..., None]  # [R, E, L, 1]
        second = self.extra[edge, here][:, :, None]  # [R, E, 1, L]
        both = self.extra[edge, here, there][..., None, None]
        return np.asarray(self.extra - first - second + both)


def _places(option_count: IntArray, site: int, option: int) -> slice:
    """Where tables have an option: the last one again in the padding, as curves and costs do."""
    if not (0 <= site < len(option_count) and 0 <= option < option_count[site]):
        raise ValueError(f"a pair term names option {option} of site {site}, which is not there")
    return slice(option, None if option == option_count[site] - 1 else option + 1)
