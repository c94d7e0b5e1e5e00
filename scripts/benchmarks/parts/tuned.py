"""A pruned module trained as benchmarks do it, and what that came to, kept.

The unpruned network teaches; images are flipped and shifted; a training of several epochs goes on
where it was interrupted.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rlprune.files import digest, write_atomic
from rlprune.finetuning.augment import flipped_and_shifted
from rlprune.finetuning.checkpoint import Checkpoint
from rlprune.finetuning.loop import TrainConfig, fit
from rlprune.finetuning.scoring import score
from rlprune.sensitivity.calibration import CalibrationSet


@dataclass(frozen=True)
class Lesson:
    """What a module is trained on, and by which it is judged."""

    name: str
    config: TrainConfig
    images: CalibrationSet
    test: CalibrationSet
    teacher: nn.Module


def tuned(
    lesson: Lesson, make: Callable[[], nn.Module], settings: Sequence[int], file: Path
) -> dict[str, Any]:
    """Accuracies `before` and after, shares of the test images, and CPU seconds.

    Args:
        make: the pruned module, reconstructed.
        settings: of its plan; what was kept of another is trained anew.
    """
    if (known := kept_outcome(file, settings)) is not None:
        return known
    module = make()
    before = score(module, lesson.test).accuracy
    file.parent.mkdir(parents=True, exist_ok=True)
    checkpoint = None
    if lesson.config.epoch_count > 1:
        told = digest(lesson.name, repr(list(settings)), repr(lesson.config))
        checkpoint = Checkpoint(file.with_suffix(".checkpoint"), told)
    torch.set_num_threads(1)
    began = time.process_time()
    fit(
        module,
        lesson.images,
        lesson.config,
        augment=flipped_and_shifted,
        teacher=lesson.teacher,
        checkpoint=checkpoint,
    )
    found = {
        "settings": list(settings),
        "before": before,
        "accuracy": score(module, lesson.test).accuracy,
        "cpu_seconds": time.process_time() - began,
    }
    write_atomic(file, json.dumps(found).encode())
    if checkpoint is not None:
        checkpoint.path.unlink(missing_ok=True)
    print(
        f"{lesson.name}: {before:.2%} -> {found['accuracy']:.2%} "
        f"in {found['cpu_seconds']:.0f} CPU s",
        flush=True,
    )
    return found


def kept_outcome(file: Path, settings: Sequence[int]) -> dict[str, Any] | None:
    """What is kept of these settings."""
    if not file.exists():
        return None
    found: dict[str, Any] = json.loads(file.read_text())
    return found if found["settings"] == list(settings) else None
