"""`PruningTask`: everything an environment or a policy needs to know, as arrays."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from rlprune.graph.types import FloatArray, IntArray, PruningGraph
from rlprune.latency.tables import LatencyTables
from rlprune.sensitivity.types import GroupProfiles


class Objective(Protocol):
    """What a plan loses (nats above the unpruned model) on a model that was evaluated."""

    def loss(self, keeps: IntArray) -> FloatArray:
        """Pessimistic expected loss for keeps [B, G] -> [B]."""
        ...


@dataclass(frozen=True)
class PruningTask:
    """One model on one device: what may be kept, what that costs, what it is thought to lose.

    Carries no budget: an episode or a request brings its own.
    """

    graph: PruningGraph
    tables: LatencyTables
    profiles: GroupProfiles
    objective: Objective | None = None
    """Only where evaluations were recorded, that is, in training."""

    @property
    def group_count(self) -> int:
        return len(self.graph.groups)

    @property
    def levels(self) -> IntArray:
        """Keep counts [G, L], ascending, padded by repeating the full width."""
        return self.tables.levels

    @property
    def level_count(self) -> IntArray:
        """Levels each group really has [G]."""
        return self.tables.level_count

    @property
    def base_ms(self) -> float:
        """Predicted latency of the unpruned model."""
        return float(self.tables.latency_ms(self.graph.widths[None])[0])

    @property
    def data_free(self) -> PruningTask:
        """The same without measured losses."""
        return replace(self, profiles=replace(self.profiles, measured_loss=None))

    def keeps_at(self, choice: IntArray) -> IntArray:
        """Level indices [B, G] -> keep counts [B, G]."""
        return np.asarray(self.levels[np.arange(self.group_count), choice])

    def choice_of(self, keeps: IntArray) -> IntArray:
        """Keep counts [B, G], each a level of its group, -> level indices [B, G]."""
        return np.asarray((self.levels < keeps[..., None]).sum(-1), dtype=np.int64)
