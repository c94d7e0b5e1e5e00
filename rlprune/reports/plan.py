"""A plan beside the network that it is for: what people want to see of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from rlprune.graph.types import PruningGraph
from rlprune.latency.types import MACS_DEVICE
from rlprune.planning.effort import DEFAULT_EFFORT, EFFORTS
from rlprune.plans import Candidate, PlanFigures, PruningPlan
from rlprune.schemes import CHANNEL_ONLY, without_effect

SHOWN = 5
"""Candidates, besides the plan itself."""
SITES = {"channel": "groups of channels", "block": "blocks", "shape": "kernels"}
"""What the sites of a scheme are called."""


@dataclass(frozen=True, slots=True)
class SiteReport:
    """What one site keeps."""

    name: str
    scheme: str
    width: int
    keep: int
    option: str
    """The same in words."""
    constraint: str
    """What was stated about it; empty where nothing was."""
    reference_keep: int | None
    """What the knapsack's plan keeps; None without one."""
    reference_option: str
    """The same in words."""
    gone: bool
    """Whether it lies in a block that the plan leaves out."""

    @property
    def changed(self) -> bool:
        """Whether the plan, or the knapsack's, does not leave it as it is."""
        kept = self.keep if self.reference_keep is None else self.reference_keep
        return not self.gone and (self.keep != self.width or kept != self.width)


@dataclass(frozen=True, slots=True)
class PlanReport:
    """A plan, and what stands beside it."""

    plan: PruningPlan
    unit: str
    """What latencies are counted in: `ms`, or `M MACs`."""
    sites: tuple[SiteReport, ...]
    """All of them, groups of channels first."""
    differs: bool
    """Whether the knapsack's plan is another."""
    finalists: tuple[Candidate, ...]
    """Of the candidates that were evaluated on most images, the best, and the plan itself."""
    others: int
    """Candidates that diverge more, or did on fewer images."""
    unpruned: PlanFigures
    """The network as it is; its interval is its latency, which is not predicted again here."""
    better_sec: float | None
    """CPU time, roughly, that a search (effort `quick`) would take; None where sensitivity was
    measured or plans evaluated, or nothing is known of it."""

    @property
    def counted(self) -> bool:
        """Whether latencies are MACs, exact and without an interval."""
        return self.plan.device == MACS_DEVICE

    @property
    def only_channels(self) -> bool:
        """Whether the plan knows no other scheme."""
        return self.plan.schemes == CHANNEL_ONLY

    @property
    def unchanged(self) -> dict[str, int]:
        """How many sites of each scheme are left as they are, those of blocks left out aside."""
        return dict(Counter(one.scheme for one in self.sites if not one.gone and not one.changed))

    @property
    def gone(self) -> dict[str, int]:
        """How many sites of each scheme go with blocks that are left out."""
        return dict(Counter(one.scheme for one in self.sites if one.gone))


def counted_sites(counts: Mapping[str, int]) -> str:
    """`3 groups of channels, 1 block`."""
    found = []
    for scheme, count in counts.items():
        many = SITES.get(scheme, f"{scheme} sites")
        one = many.replace("groups", "group") if "groups" in many else many.removesuffix("s")
        found.append(f"{count} {one if count == 1 else many}")
    return ", ".join(found)


def plan_report(plan: PruningPlan, graph: PruningGraph) -> PlanReport:
    """The report of a plan of this graph."""
    reference = plan.reference
    kept = (None,) * len(plan.groups) if reference is None else reference.keeps
    most = max((one.image_count for one in plan.candidates), default=0)
    last = [one for one in plan.candidates if one.image_count == most]
    best = sorted(last, key=lambda one: np.inf if one.divergence is None else one.divergence)
    finalists = tuple(one for one in last if one.chosen or one in best[:SHOWN])
    gone = without_effect(graph, plan.keeps, plan.schemes)
    guessed = plan.expected_divergence is not None and not plan.profiled
    base_ms = plan.base_latency_ms
    return PlanReport(
        plan=plan,
        unit="M MACs" if plan.device == MACS_DEVICE else "ms",
        sites=tuple(
            SiteReport(
                name=entry.name,
                scheme=entry.scheme,
                width=entry.width,
                keep=entry.keep,
                option=entry.option,
                constraint=entry.constraint,
                reference_keep=keep,
                reference_option="" if keep is None else replace(entry, keep=keep).option,
                gone=index in gone,
            )
            for index, (entry, keep) in enumerate(zip(plan.groups, kept, strict=True))
        ),
        differs=reference is not None and reference.keeps != tuple(plan.keeps),
        finalists=finalists,
        others=len(plan.candidates) - len(finalists),
        unpruned=PlanFigures(
            keeps=tuple(entry.width for entry in plan.groups),
            predicted_latency_ms=base_ms,
            predicted_interval_ms=(base_ms, base_ms),
            macs=int(graph.macs(graph.widths)),
            params=int(graph.params(graph.widths)),
        ),
        better_sec=EFFORTS[DEFAULT_EFFORT].fitted(graph).cpu_sec(graph) if guessed else None,
    )
