"""The corrected knapsack: a dozen fitted numbers bend the loss curves before one solve.

The peer a learned policy has to beat (ARCHITECTURE section 5: five numbers took most of what a
400-evaluation search gains). Numbers, not a network: they say by how much losses measured one group
at a time mislead about a whole plan, by depth, width, extent, stride and how deep the cut is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rlprune.errors import PolicyError
from rlprune.files import write_atomic
from rlprune.graph.types import FloatArray, IntArray
from rlprune.sensitivity.energy import loss_curve
from rlprune.sensitivity.predicted import PLACE, group_features
from rlprune.solver.knapsack import least_keeps, solve
from rlprune.solver.task import PruningTask

FORMAT = "rlprune.corrected/1"

TELLING_LOSS = (0.02, 2.0)
"""Nats. Where the knapsack loses less there is nothing to win; where it loses more, plans are next
to guessing, and their losses tell nothing about what fine-tuning could bring back."""
TASKS_AT_ONCE = 16
"""Tasks that a generation of the fit looks at; of more, others every time."""
LEAST_LOSS = 0.05
"""Nats; shares are taken of at least this much, or noise where little is lost would be a gain."""

NUMBERS = (
    "exponent_measured",
    "exponent_data_free",
    *(f"log_weight_{name}" for name in PLACE),
    "extreme_penalty",
    "extreme_below",
)
"""What is fitted, in the order of the parameter vector. All zero leaves the knapsack as it is."""


@dataclass(frozen=True)
class CorrectedKnapsackPolicy:
    """The knapsack over bent curves."""

    numbers: tuple[float, ...]
    """One per entry of `NUMBERS`."""
    trained_on: tuple[str, ...] = ()
    """Names of the models the numbers were fitted on."""

    @property
    def name(self) -> str:
        """`corrected/` and a digest of the numbers."""
        return f"corrected/{hashlib.sha256(np.asarray(self.numbers).tobytes()).hexdigest()[:8]}"

    def plan(self, task: PruningTask, budget_ms: FloatArray) -> IntArray:
        """As `Policy.plan`."""
        return solve(task, np.asarray(budget_ms, dtype=np.float64), loss=self.bent(task))

    def bent(self, task: PruningTask) -> FloatArray:
        """The corrected loss curves [G, L]: 0 at full width, non-increasing in the level."""
        return np.asarray(bend(task, np.asarray(self.numbers)[None])[0])

    def save(self, path: str | Path) -> None:
        """Writes the numbers as JSON."""
        data = {
            "format": FORMAT,
            "numbers": dict(zip(NUMBERS, self.numbers, strict=True)),
            "trained_on": list(self.trained_on),
        }
        write_atomic(Path(path), (json.dumps(data, indent=2) + "\n").encode())

    @staticmethod
    def load(path: str | Path) -> CorrectedKnapsackPolicy:
        """Reads what `save` wrote.

        Raises:
            PolicyError: not such a file, or of another version.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
            if data["format"] != FORMAT or set(data["numbers"]) != set(NUMBERS):
                raise PolicyError(f"{path} is not of format {FORMAT!r}; fit it again")
            numbers = tuple(float(data["numbers"][name]) for name in NUMBERS)
            if not np.isfinite(numbers).all():
                raise PolicyError(f"{path} holds a number that is not finite; fit it again")
            return CorrectedKnapsackPolicy(numbers, tuple(str(n) for n in data["trained_on"]))
        except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise PolicyError(f"cannot read corrected knapsack {path}: {error!r}") from error


def bend(task: PruningTask, numbers: FloatArray) -> FloatArray:
    """The task's loss curves under each row of numbers [P, len(NUMBERS)] -> [P, G, L]."""
    curve = loss_curve(task.profiles, task.graph)
    scale = max(float(curve[:, 0].mean()), 1e-12) if curve.size else 1.0
    named = dict(zip(NUMBERS, numbers.T, strict=True))  # each [P]
    log_exponent = named["exponent_measured" if task.profiles.profiled else "exponent_data_free"]
    weights = numbers[:, 2 : 2 + len(PLACE)]  # [P, F]
    log_weight = np.clip(weights @ group_features(task.graph).T, -4.0, 4.0)  # [P, G]
    relative = np.maximum(curve, 0.0) / scale
    bent = relative[None] ** np.exp(log_exponent)[:, None, None] * np.exp(log_weight)[:, :, None]
    ratio = task.levels / task.levels[:, -1:]
    below = np.clip(0.25 * np.exp(named["extreme_below"]), 0.05, 0.9)[:, None, None]
    # Keeping next to nothing of a group costs more than its own curve, taken alone, tells.
    cut = np.maximum(below - ratio[None], 0.0) / below
    penalty = np.expm1(np.maximum(named["extreme_penalty"], 0.0))[:, None, None]
    return np.asarray(bent + penalty * cut**2)


Progress = Callable[[int, int], None]


def fit_corrected(
    tasks: Sequence[PruningTask],
    *,
    names: Sequence[str] = (),
    budget_range: tuple[float, float] = (0.1, 0.9),
    budget_count: int = 5,
    generations: int = 40,
    population: int = 16,
    shrink: float = 0.01,
    seed: int = 0,
    on_progress: Progress | None = None,
) -> CorrectedKnapsackPolicy:
    """The numbers of least mean objective over tasks and budgets, by a small evolution strategy.

    A (mu/mu_w, lambda) strategy with a rank-mu covariance and a falling step size (CMA-ES's core).
    Losses are taken as a share of the plain knapsack's, so that no model or budget outweighs the
    others, at budgets whose losses are `telling`. Every generation draws budgets of its own: which
    plan is best at one exact budget is luck, and luck can be fitted. What comes back is the mean of
    the last generations, or all zero where that is no better than the knapsack at a fixed grid.

    Args:
        budget_range: of b in `least + b (base - least)`.
        budget_count: budgets of each task in each generation.
        shrink: penalty on the squared numbers, which keeps what the data does not ask for at 0.

    Raises:
        ValueError: no tasks, or one without an objective.
    """
    if not tasks or any(task.objective is None for task in tasks):
        raise ValueError("fit_corrected needs tasks with objectives")
    rng = np.random.default_rng(seed)
    size = len(NUMBERS)
    mean, sigma, covariance = np.zeros(size), 0.3, np.eye(size)
    parents = population // 2
    rank = np.log(parents + 0.5) - np.log(np.arange(1, parents + 1))
    rank /= rank.sum()
    low, high = budget_range
    trail = []
    for generation in range(generations):
        some = tasks
        if len(tasks) > TASKS_AT_ONCE:
            some = [tasks[i] for i in rng.permutation(len(tasks))[:TASKS_AT_ONCE]]
        root = np.linalg.cholesky(covariance + 1e-9 * np.eye(size))
        steps = rng.normal(size=(population, size)) @ root.T
        candidates = mean + sigma * steps
        grid = (np.arange(budget_count) + rng.random()) / budget_count
        shares = low + (high - low) * grid
        cost = np.mean([excess(task, candidates, shares) for task in some], axis=0)
        cost += shrink * (candidates**2).sum(1)
        chosen = steps[np.argsort(cost, kind="stable")[:parents]]
        mean = mean + sigma * rank @ chosen
        covariance = 0.8 * covariance + 0.2 * (chosen * rank[:, None]).T @ chosen
        covariance *= size / np.trace(covariance)
        sigma *= 0.97
        trail.append(mean)
        if on_progress is not None:
            on_progress(generation + 1, generations)
    found = np.mean(trail[-max(1, generations // 4) :], axis=0)
    grid = np.linspace(low, high, 2 * budget_count)
    if np.mean([excess(task, found[None], grid)[0] for task in tasks]) >= 0:
        found = np.zeros(size)
    return CorrectedKnapsackPolicy(tuple(float(x) for x in found), tuple(names))


def excess(task: PruningTask, numbers: FloatArray, shares: FloatArray) -> FloatArray:
    """Mean over budgets of the loss above the plain knapsack's, as a share of it: [P, n] -> [P]."""
    assert task.objective is not None
    budget_ms = budgets_at(task, shares)
    reference = task.objective.loss(solve(task, budget_ms))
    useful = telling(reference)
    budget_ms, reference = budget_ms[useful], reference[useful]
    count, budgets = len(numbers), len(budget_ms)
    curves = np.repeat(bend(task, numbers), budgets, axis=0)  # [P * B, G, L]
    keeps = solve(task, np.tile(budget_ms, count), loss=curves)
    loss = task.objective.loss(keeps).reshape(count, budgets)
    return np.asarray(((loss - reference) / np.maximum(reference, LEAST_LOSS)).mean(1))


def telling(reference_loss: FloatArray) -> NDArray[np.bool_]:
    """Which of the knapsack's losses [B] lie within `TELLING_LOSS`; all, where none does."""
    low, high = TELLING_LOSS
    useful = (reference_loss >= low) & (reference_loss <= high)
    return useful if useful.any() else np.ones_like(useful)


def budgets_at(task: PruningTask, shares: FloatArray) -> FloatArray:
    """Budgets `least + b (base - least)` on the upper end of the interval, for shares b [B]."""
    ends = task.tables.upper_ms(np.stack([least_keeps(task), task.graph.widths]))
    return np.asarray(ends[0] + np.asarray(shares) * (ends[1] - ends[0]))
