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
from rlprune.sensitivity.evaluate import Evaluation

CHECKPOINTS = (50, 100, 200, 400)
"""Evaluations after which the best so far of a search is recorded."""
CANDIDATES = {"learned8": 8, "learned64": 64}
"""Methods that let plans race that were proposed at once, and how many. What they cost is counted
in images: a thousand that plans saw are one evaluation."""
DATA_FREE = "_free"
"""How the names of methods end that see no measured loss though they could."""
RULES = (
    *("uniform", "uniform-plain", "global", "sensitivity", "knapsack", "learned"),
    *("knapsack_free", "learned_free"),
)
"""Methods that evaluate nothing beyond the profile."""
EPISODIC = ("amc", "random_policy")
SEARCHES = ("evolution", *EPISODIC, "random", "netadapt")
METHODS = (*RULES, *CANDIDATES, *SEARCHES)
UNPROFILED = ("uniform", "uniform-plain", "global", "random", "netadapt", *EPISODIC)
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

    def count(self, method: str) -> int:
        """Evaluations that a search makes in one cell, at most."""
        return self.episode_count if method in EPISODIC else self.search_count


@dataclass(frozen=True, slots=True)
class PlanFound:
    """A method's plan after a number of evaluations."""

    count: int
    keeps: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Finding:
    """What one method planned in one cell."""

    method: str
    model: str
    device: str
    share: float
    """b of `least + b (base - least)`."""
    seed: int
    profile_count: int
    """Single-group evaluations that the method builds on."""
    plans: tuple[PlanFound, ...]
    """By number of evaluations, ascending; the last is the method's answer."""
    widths: tuple[int, ...]
    """Of the unpruned network."""
    report: str = ""
    """Context under which the book holds the plans' losses on the report's images."""

    @staticmethod
    def read(value: dict[str, Any]) -> Finding:
        plans = tuple(PlanFound(p["count"], tuple(p["keeps"])) for p in value["plans"])
        return Finding(**{**value, "plans": plans, "widths": tuple(value["widths"])})


def loss_increase(finding: Finding, plan: PlanFound, book: Book) -> FloatArray:
    """What the plan loses on each of the report's images above the unpruned network [N]."""

    def missing() -> Evaluation:
        raise LookupError(f"{finding.method} on {finding.model} was never judged")

    dense = book.evaluation(finding.report, np.array(finding.widths), missing)
    own = book.evaluation(finding.report, np.array(plan.keeps), missing)
    return np.asarray(own.image_losses - dense.image_losses)
