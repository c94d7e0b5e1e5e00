"""Plans: what every site of a network keeps. `rlprune.plan(...)` is the function that makes one."""

from rlprune.plans.parts import (
    Candidate,
    Certificate,
    MeasuredRound,
    PlanEntry,
    PlanFigures,
    Unpruned,
)
from rlprune.plans.plan import PruningPlan
from rlprune.plans.reading import FORMAT, FORMATS

__all__ = [
    "FORMAT",
    "FORMATS",
    "Candidate",
    "Certificate",
    "MeasuredRound",
    "PlanEntry",
    "PlanFigures",
    "PruningPlan",
    "Unpruned",
]
