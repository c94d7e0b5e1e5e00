"""A plan beside the network that it is for: what people want to see of it."""

from __future__ import annotations

from dataclasses import dataclass

from rlprune.graph.types import PruningGraph
from rlprune.latency.types import MACS_DEVICE
from rlprune.planning.profiles import made_up_profile_sec
from rlprune.plans import Candidate, PlanFigures, PruningPlan


@dataclass(frozen=True, slots=True)
class GroupReport:
    """What one group keeps."""

    name: str
    width: int
    keep: int
    constraint: str
    """What was stated about it; empty where nothing was."""
    reference_keep: int | None
    """What the knapsack's plan keeps; None without one."""


@dataclass(frozen=True, slots=True)
class PlanReport:
    """A plan, and what stands beside it."""

    plan: PruningPlan
    unit: str
    """What latencies are counted in: `ms`, or `M MACs`."""
    groups: tuple[GroupReport, ...]
    differs: bool
    """Whether the knapsack's plan is another."""
    finalists: tuple[Candidate, ...]
    """Of the candidates, those that were evaluated on all images."""
    others: int
    """Candidates that were worse on fewer."""
    unpruned: PlanFigures
    """The network as it is; its interval is its latency, which is not predicted again here."""
    better_sec: float | None
    """CPU time, roughly, that measuring sensitivity on made-up inputs would take; None where it was
    measured, or nothing is known of it."""

    @property
    def counted(self) -> bool:
        """Whether latencies are MACs, exact and without an interval."""
        return self.plan.device == MACS_DEVICE

    @property
    def constrained(self) -> bool:
        """Whether anything was stated about a group."""
        return any(group.constraint for group in self.groups)


def plan_report(plan: PruningPlan, graph: PruningGraph) -> PlanReport:
    """The report of a plan of this graph."""
    reference = plan.reference
    kept = (None,) * len(plan.groups) if reference is None else reference.keeps
    most = max((one.image_count for one in plan.candidates), default=0)
    finalists = tuple(one for one in plan.candidates if one.image_count == most)
    guessed = plan.expected_divergence is not None and not plan.profiled
    base_ms = plan.base_latency_ms
    return PlanReport(
        plan=plan,
        unit="M MACs" if plan.device == MACS_DEVICE else "ms",
        groups=tuple(
            GroupReport(entry.name, entry.width, entry.keep, entry.constraint, keep)
            for entry, keep in zip(plan.groups, kept, strict=True)
        ),
        differs=reference is not None and reference.keeps != tuple(plan.keeps),
        finalists=finalists,
        others=len(plan.candidates) - len(finalists),
        unpruned=PlanFigures(
            keeps=tuple(int(width) for width in graph.widths),
            predicted_latency_ms=base_ms,
            predicted_interval_ms=(base_ms, base_ms),
            macs=int(graph.macs(graph.widths)),
            params=int(graph.params(graph.widths)),
        ),
        better_sec=made_up_profile_sec(graph) if guessed else None,
    )
