"""`PruningTask`: everything an environment or a policy needs to know, as arrays."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

from rlprune.graph.types import FloatArray, IntArray, PruningGraph
from rlprune.latency.tables import LatencyTables
from rlprune.schemes import Space
from rlprune.sensitivity.energy import loss_curve
from rlprune.sensitivity.types import GroupProfiles


class Objective(Protocol):
    """What a plan loses (nats above the unpruned model) on a model that was evaluated."""

    def loss(self, settings: IntArray) -> FloatArray:
        """Pessimistic expected loss for settings [B, S] -> [B]."""
        ...


@dataclass(frozen=True)
class PruningTask:
    """One model on one device: what can be decided, what that costs, what it is thought to lose.

    Carries no budget: an episode or a request brings its own. Everything is asked by `choice`
    [B, S], an option's index for every site (`schemes.space`).
    """

    space: Space
    tables: LatencyTables
    profiles: GroupProfiles
    objective: Objective | None = None
    """Only where evaluations were recorded, that is, in training."""

    @property
    def graph(self) -> PruningGraph:
        """The network's."""
        return self.space.graph

    @property
    def site_count(self) -> int:
        """Decisions that a plan takes."""
        return len(self.space.sites)

    @property
    def option_count(self) -> IntArray:
        """Options each site has [S]."""
        return self.space.option_count

    @property
    def shares(self) -> FloatArray:
        """How much of its site each option leaves [S, L], 0 to 1, padded by repeating the last."""
        return self.space.shares

    @cached_property
    def curve(self) -> FloatArray:
        """What each option is thought to lose [S, L] (`sensitivity.energy.loss_curve`)."""
        return loss_curve(self.profiles, self.space)

    @property
    def base_ms(self) -> float:
        """Predicted latency of the unpruned model."""
        return self.tables.base_ms

    @property
    def data_free(self) -> PruningTask:
        """The same without measured losses."""
        return replace(self, profiles=replace(self.profiles, measured_loss=None))
