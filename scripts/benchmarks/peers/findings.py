"""The grid's methods by name, what its cells are computed with, and what was found in them.

A *finding* is what one method planned in one cell of a case, kept in the book with all evaluations,
so that asking again costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.book import Book
from rlprune.graph.types import FloatArray
from rlprune.profile.evaluate import Evaluation

CHECKPOINTS = (50, 100, 200, 400)
"""Evaluations after which the best so far of a search is recorded."""
CANDIDATES = {"learned8": 8, "learned64": 64, "lean64": 64}
"""Methods that let plans race that were proposed at once, and how many. What they cost is counted
in images: a thousand that plans saw are one evaluation."""
LEAN = "lean64"
"""The method whose race costs nothing: its profile sees so many images fewer."""
RACE = 8
"""Evaluations that a race of 64 plans costs, rounded up."""
DATA_FREE = "_free"
"""How the names of methods end that see no measured loss though they could."""

RULES = (
    "uniform",
    "uniform-plain",
    "magnitude",
    "taylor",
    "sensitivity",
    "knapsack",
    "corrected",
    "learned",
    "knapsack_free",
    "corrected_free",
    "learned_free",
)
"""Methods that evaluate nothing beyond the profile."""
EPISODIC = ("amc", "random_policy")
STAGES = ((*RULES, *CANDIDATES), ("evolution",), (*EPISODIC, "random"), ("netadapt",))
"""All methods, in the order in which a whole grid is gone through: an interrupted one has what
matters most in every cell."""
METHODS = tuple(method for stage in STAGES for method in stage)
UNPROFILED = (*("uniform", "uniform-plain"), "magnitude", "taylor", "random", "netadapt", *EPISODIC)
"""Methods that never look at single-group losses."""


@dataclass(frozen=True, slots=True)
class GridSettings:
    """What every cell is computed with."""

    final: bool = False
    """Whether to report on `test_report`; the plans are the same."""
    profile_count: int = 1000
    objective_count: int = 1000
    report_count: int | None = None
    """All by default: 2,500, or 5,000 of the final ones."""
    search_count: int = 400
    """Evaluations of each search."""
    episode_count: int = 200
    """Evaluations of AMC and of the random policy."""
    round_to: int = 8
    policy: str = "learned"
    """As `get_policy` takes it; what the learned methods plan with."""
    work: Path = Path()
    seed: int = 0
    """Of the first of the seeds."""


@dataclass(frozen=True, slots=True)
class PlanFound:
    """A method's plan after a number of evaluations."""

    count: int
    keeps: tuple[int, ...]
    objective: float | None
    """Divergence on the objective's images, where the method evaluated it."""
    latency_ms: float


@dataclass(frozen=True, slots=True)
class Finding:
    """What one method planned in one cell."""

    method: str
    model: str
    family: str
    device: str
    share: float
    """b of `least + b (base - least)`."""
    seed: int
    budget_ms: float
    base_ms: float
    profile_count: int
    """Single-group evaluations that the method builds on."""
    evaluation_count: int
    plans: tuple[PlanFound, ...]
    """By number of evaluations, ascending; the last is the method's answer."""
    widths: tuple[int, ...]
    """Of the unpruned network."""
    seconds: float
    """That planning took."""
    report: str = ""
    """Context under which the book holds the plans' losses on the report's images."""

    @staticmethod
    def read(value: dict[str, Any]) -> Finding:
        plans = tuple(PlanFound(**{**p, "keeps": tuple(p["keeps"])}) for p in value["plans"])
        return Finding(**{**value, "plans": plans, "widths": tuple(value["widths"])})


def search_count(method: str, settings: GridSettings) -> int:
    """Evaluations that a method makes in one cell, at most."""
    if method in RULES:
        return 0
    if method in CANDIDATES:
        return CANDIDATES[method]
    return settings.episode_count if method in EPISODIC else settings.search_count


def loss_increase(finding: Finding, plan: PlanFound, book: Book) -> FloatArray:
    """What the plan loses on each of the report's images above the unpruned network [N]."""

    def missing() -> Evaluation:
        raise LookupError(f"{finding.method} on {finding.model} was never judged")

    dense = book.evaluation(finding.report, np.array(finding.widths), missing)
    own = book.evaluation(finding.report, np.array(plan.keeps), missing)
    return np.asarray(own.image_losses - dense.image_losses)
