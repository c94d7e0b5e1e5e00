"""Plans of `experience` trained for five epochs of 10,000 images, three seeds, and compared.

The search at eight evaluations beside the knapsack by a measured profile, evolution at 400, and one
ratio for all widths, on four networks; accuracies are of `test_reward`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.harness import Row
from benchmarks.parts import figure_training
from benchmarks.parts.experience_plans import BUDGETS, Cell, calibration, network
from benchmarks.parts.options_plans import Run, pack_of
from benchmarks.parts.options_training import (
    BATCH,
    DISTILLED,
    REWARD,
    TEMPERATURE,
    training_index,
)
from benchmarks.parts.tuned import Lesson, kept_outcome, tuned
from rlprune.finetuning.loop import TrainConfig
from rlprune.graph.from_torch import trace_torch
from rlprune.plans import PruningPlan
from rlprune.runtime import get_runtime
from rlprune.schemes import removal_of
from rlprune.sensitivity.calibration import CalibrationSet
from rlprune.sensitivity.torch_reconstruct import reconstruct_module
from rlprune.surgery.torch import cut_torch

NETS = ("cifar10_resnet20", "seresnet", "densenet", "vovnet")
METHODS = ("quick", "profile", "uniform", "evolution")
EPOCHS, SEEDS = figure_training.LONG, 3
RATE = figure_training.RATES[EPOCHS]
LEAST_OVER_PROFILE = 0.3
"""Points at the smaller budget, of `quick` over `profile`."""
MOST_BELOW = 2.0
"""Standard errors by which no method may be better, over all cells."""


@dataclass(frozen=True, slots=True)
class Training:
    """One plan, trained with one seed."""

    cell: Cell
    seed: int

    @property
    def name(self) -> str:
        """As files and rows have it."""
        return f"{self.cell.name}.e{EPOCHS}.s{self.seed}"


def trainings() -> Iterator[Training]:
    """All, seed after seed."""
    for seed in range(SEEDS):
        for net in NETS:
            for budget in BUDGETS:
                for method in METHODS:
                    yield Training(Cell(net, budget, method), seed)


def trained(training: Training, run: Run) -> float:
    """Accuracy in % on `test_reward`, kept or made now; the plan is made already."""
    cell, plan = training.cell, _plan(training, run)
    loaded, _ = network(cell.net, run.shared)
    found = tuned(
        Lesson(
            name=training.name,
            config=TrainConfig(
                epoch_count=EPOCHS,
                batch_size=BATCH,
                learning_rate=RATE,
                distill_weight=DISTILLED,
                distill_temperature=TEMPERATURE,
                seed=training.seed,
            ),
            images=_images(cell.net, run, "train"),
            test=_images(cell.net, run, "test"),
            teacher=loaded.module,
        ),
        lambda: _reconstructed(cell, plan, run),
        plan.keeps.tolist(),
        _file(training, run),
    )
    return 100 * float(found["accuracy"])


def known(run: Run) -> dict[Training, float]:
    """Accuracies in % that are kept."""
    found: dict[Training, float] = {}
    for one in trainings():
        outcome: dict[str, Any] | None = None
        if _plan_file(one, run).exists():
            outcome = kept_outcome(_file(one, run), _plan(one, run).keeps.tolist())
        if outcome is not None:
            found[one] = 100 * float(outcome["accuracy"])
    return found


def rows(found: Mapping[Training, float]) -> Iterator[Row]:
    """By how many points `quick` is above each other method: means over cells, and their standard
    errors over trainings."""
    for other in (method for method in METHODS if method != "quick"):
        for budgets, label in ((BUDGETS, ""), (BUDGETS[1:], f".b{BUDGETS[1]:g}")):
            apart = np.array(
                [
                    value - found[Training(Cell(one.cell.net, one.cell.budget, other), one.seed)]
                    for one, value in found.items()
                    if one.cell.method == "quick"
                    and one.cell.budget in budgets
                    and Training(Cell(one.cell.net, one.cell.budget, other), one.seed) in found
                ]
            )
            if len(apart) < 2:
                continue
            error = float(apart.std(ddof=1) / np.sqrt(len(apart)))
            mean = float(apart.mean())
            ends = (mean - 1.645 * error, mean + 1.645 * error)
            target = LEAST_OVER_PROFILE if other == "profile" and label else -MOST_BELOW * error
            name = f"experience.e{EPOCHS}.quick_over_{other}{label}"
            yield Row(name, mean, "points", target, "max", len(apart), ends)


def _reconstructed(cell: Cell, plan: PruningPlan, run: Run) -> nn.Module:
    loaded, _ = network(cell.net, run.shared)
    trace = trace_torch(loaded.module, torch.zeros(1, 3, 32, 32))
    small = cut_torch(trace, removal_of(trace.onnx, plan.keeps, plan.schemes))
    images = calibration(cell.net, run)
    reconstruct_module(small, trace, plan.keeps, images, get_runtime(), plan.schemes)
    return small


@lru_cache(maxsize=2)
def _images(net: str, run: Run, split: str) -> CalibrationSet:
    """Training images that no plan was made from, or `test_reward`."""
    pack = pack_of(run.shared)
    pixels, labels = pack.pixels(split)
    index = training_index(run) if split == "train" else pack.splits[REWARD]
    loaded, _ = network(net, run.shared)
    return CalibrationSet.single(loaded.preprocess(pixels[index]), labels[index].astype(np.int64))


def _plan(training: Training, run: Run) -> PruningPlan:
    return PruningPlan.load(_plan_file(training, run))


def _plan_file(training: Training, run: Run) -> Path:
    return run.work / "plans" / f"{training.cell.name}.plan.json"


def _file(training: Training, run: Run) -> Path:
    return run.work / "trained" / f"{training.name}.json"
