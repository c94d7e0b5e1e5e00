"""Trainings of `figure`: every plan near the optimum trained for one epoch and for five, and kept.

As in `options`: the unpruned network teaches, an epoch is 10,000 images that no plan was made from,
a longer training is in mixed precision where that is faster and goes on where it was interrupted,
accuracies are on `test_reward`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.parts.figure_plans import TEMPERATURE, figures_file, kept, reconstructed
from benchmarks.parts.options_plans import Run, network
from benchmarks.parts.options_training import (
    BATCH,
    DISTILLED,
    MIXED,
    REWARD,
    test_images,
    training_images,
)
from benchmarks.parts.tuned import Lesson, kept_outcome, tuned
from rlprune.finetuning.augment import flipped_and_shifted
from rlprune.finetuning.loop import TrainConfig, fit

SHORT, LONG = 1, 5
"""Epochs."""
RATES = {SHORT: 0.02, LONG: 0.035}
"""By epochs; of five between what `options` takes for one and for 15, on a logarithmic scale."""
TIMED = 1024
"""Images that the time of an epoch is told from."""


@dataclass(frozen=True, slots=True)
class Training:
    """One plan, trained for so many epochs with one seed."""

    net: str
    plan: int
    epochs: int
    seed: int

    @property
    def name(self) -> str:
        """As files have it."""
        return f"{self.net}.{self.plan:02}.e{self.epochs}.s{self.seed}"


def trainings(nets: tuple[str, ...], count: int, seeds: int) -> Iterator[Training]:
    """All, in an order of which every beginning is balanced: network after network for each plan,
    plans in one random order."""
    plans = np.random.default_rng(0).permutation(count)
    for seed in range(seeds):
        for epochs in (SHORT, LONG):
            for plan in plans.tolist():
                for net in nets:
                    yield Training(net, plan, epochs, seed)


def trained(training: Training, run: Run) -> dict[str, Any]:
    """What a training came to, kept or made now; `accuracy` is a share of `test_reward`."""
    net = training.net
    lesson = Lesson(
        name=training.name,
        config=TrainConfig(
            epoch_count=training.epochs,
            batch_size=BATCH,
            learning_rate=RATES[training.epochs],
            distill_weight=DISTILLED,
            distill_temperature=TEMPERATURE,
            mixed_precision=training.epochs == LONG and net in MIXED,
            seed=training.seed,
        ),
        images=training_images(net, run),
        test=test_images(net, run, REWARD),
        teacher=network(net, run.shared)[0].module,
    )
    return tuned(
        lesson,
        lambda: reconstructed(net, training.plan, run),
        kept(net, training.plan, run).proposal.settings,
        trained_file(training, run),
    )


def known_of(training: Training, run: Run) -> dict[str, Any] | None:
    """What a training came to, where it is kept, of the plan that is kept."""
    plan = figures_file(training.net, training.plan, run)
    if not plan.exists():
        return None
    return kept_outcome(trained_file(training, run), json.loads(plan.read_text())["settings"])


def trained_file(training: Training, run: Run) -> Path:
    """Where what a training came to is kept."""
    return run.work / "trained" / f"{training.name}.json"


def epoch_seconds(net: str, run: Run) -> float:
    """CPU time of an epoch of the network's best plan, told from a part of one."""
    module = reconstructed(net, 0, run)
    images = training_images(net, run)
    few = images.take(np.arange(min(TIMED, len(images))))
    began = time.process_time()
    fit(
        module,
        few,
        TrainConfig(epoch_count=1, batch_size=BATCH),
        augment=flipped_and_shifted,
        teacher=network(net, run.shared)[0].module,
    )
    return (time.process_time() - began) * len(images) / len(few)
