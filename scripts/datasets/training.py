"""How networks are trained on CIFAR-10 from scratch here: one thread, resumable, a few minutes.

45,000 train images train, the other 5,000 (`train_calib`) validate; early epochs see small images
(progressive resizing), and dense convolutions may compute in bfloat16.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from datasets.catalogue import PREPROCESS, preprocess
from datasets.pack import CifarPack
from datasets.running import Clock
from rlprune.errors import InputError
from rlprune.finetuning.augment import flipped_and_shifted
from rlprune.finetuning.scoring import score
from rlprune.sensitivity.calibration import CalibrationSet

SIZES = (16, 24, 32)
"""Pixels, in the order in which epochs see them."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """SGD with Nesterov momentum, or AdamW; the rate rises and falls linearly once (one cycle)."""

    batch_size: int = 128
    peak_rate: float = 0.15
    warmup_ratio: float = 0.2
    """Share (0-1) of the steps over which the rate rises."""
    momentum: float = 0.9
    weight_decay: float = 3e-4
    """Of convolutions and the classifier; vectors are spared."""
    label_smoothing: float = 0.05
    optimizer: str = "sgd"
    augment: str = "mirrored one time in two, moved by up to 4 pixels"
    seed: int = 0

    @staticmethod
    def of(optimizer: str) -> Recipe:
        """What is used with an optimizer."""
        if optimizer == "adamw":
            return Recipe(peak_rate=3e-3, weight_decay=0.05, optimizer=optimizer)
        return Recipe()

    def rate(self, done: float) -> float:
        """The learning rate after a share (0-1) of the steps."""
        rise, fall = done / self.warmup_ratio, (1 - done) / (1 - self.warmup_ratio)
        return self.peak_rate * max(min(rise, fall), 1e-3)


class Data:
    """CIFAR-10 as uint8 [N, 32, 32, 3], in the parts that the zoo uses."""

    def __init__(self, pack: CifarPack) -> None:
        pixels, labels = pack.pixels("train")
        held = np.zeros(len(labels), bool)
        held[pack.splits["train_calib"]] = True
        self.train = (pixels[~held], labels[~held].astype(np.int64))
        self.validation = as_images(pixels[held], labels[held])
        pixels, labels = pack.pixels("test")
        reward = pack.splits["test_reward"]
        self.reward = as_images(pixels[reward], labels[reward])


def train(
    module: nn.Module,
    data: Data,
    recipe: Recipe,
    checkpoint: Path,
    *,
    epochs: Sequence[int],
    bfloat16: bool,
    clock: Clock | None = None,
) -> list[dict[str, Any]]:
    """Trains `module` in place and leaves it in eval mode; returns what each epoch saw.

    The state is kept in `checkpoint` after every epoch; there, an interrupted run goes on.

    Args:
        epochs: at each of `SIZES`.
        clock: counts `work(epochs)` down; where given, every epoch is told of.

    Raises:
        InputError: the checkpoint is of another recipe.
    """
    # In channels_last an epoch took 23-30 % less CPU (vgg, mobilenetv1; EPYC with AVX2).
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = _optimizer(module, recipe)
    recipe_used = {**asdict(recipe), "epochs": list(epochs), "bfloat16": bfloat16}
    history: list[dict[str, Any]] = []
    if checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True)
        if state["recipe"] != recipe_used:
            raise InputError(f"{checkpoint} is of another recipe; remove it to train again")
        module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        history = state["history"]
    plan = sizes(epochs)
    if clock is not None:
        clock.left -= sum(area(row["size"]) for row in history)
    for epoch in range(len(history), len(plan)):
        started = time.monotonic()
        loss, accuracy = _epoch(module, optimizer, data, recipe, (epoch, plan, bfloat16))
        row = {
            "size": plan[epoch],
            "loss": round(loss, 4),
            "accuracy": round(accuracy, 4),
            "seconds": round(time.monotonic() - started, 1),
        }
        if plan[epoch] == SIZES[-1]:
            row["validation_accuracy"] = round(score(module, data.validation).accuracy, 4)
        history.append(row)
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        partial = checkpoint.with_suffix(".partial")
        states = {"module": module.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save({**states, "history": history, "recipe": recipe_used}, partial)
        partial.replace(checkpoint)
        if clock is not None:
            left = clock.finish(area(plan[epoch]))
            print(
                f"{time.strftime('%H:%M')} {checkpoint.stem} epoch {epoch + 1}/{len(plan)} "
                f"{json.dumps(row)}, all done in about {left:.0f} min",
                flush=True,
            )
    module.eval()
    return history


def _optimizer(module: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    matrices = [p for p in module.parameters() if p.dim() > 1]
    vectors = [p for p in module.parameters() if p.dim() <= 1]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.peak_rate)
    return torch.optim.SGD(groups, lr=recipe.peak_rate, momentum=recipe.momentum, nesterov=True)


def _epoch(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: Data,
    recipe: Recipe,
    place: tuple[int, list[int], bool],
) -> tuple[float, float]:
    """Mean loss and accuracy over the epoch; its order and augmentation follow from its number."""
    epoch, plan, bfloat16 = place
    generator = torch.Generator().manual_seed(1000 * recipe.seed + epoch)
    pixels, labels = data.train
    step_count = len(labels) // recipe.batch_size
    order = torch.randperm(len(labels), generator=generator)[: step_count * recipe.batch_size]
    loss_sum = right = 0.0
    module.train()
    for step, index in enumerate(order.split(recipe.batch_size)):  # type: ignore[no-untyped-call]
        x = torch.from_numpy(preprocess(pixels[index.numpy()], PREPROCESS))
        x = flipped_and_shifted(x, generator)
        if plan[epoch] != x.shape[-1]:
            size = (plan[epoch], plan[epoch])
            x = F.interpolate(x, size=size, mode="bilinear", antialias=True)
        y = torch.from_numpy(labels[index.numpy()])
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate((epoch * step_count + step) / (len(plan) * step_count))
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            logits: Tensor = module(x.contiguous(memory_format=torch.channels_last)).float()
        loss = F.cross_entropy(logits, y, label_smoothing=recipe.label_smoothing)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        loss_sum += loss.item()
        right += (logits.argmax(1) == y).sum().item()
    return loss_sum / step_count, right / len(order)


def as_images(pixels: NDArray[np.uint8], labels: NDArray[np.uint8]) -> CalibrationSet:
    return CalibrationSet.single(preprocess(pixels, PREPROCESS), labels.astype(np.int64))


def sizes(epochs: Sequence[int]) -> list[int]:
    """Pixels of each epoch, of so many at each of `SIZES`."""
    return [size for size, count in zip(SIZES, epochs, strict=True) for _ in range(count)]


def area(size: int) -> float:
    return (size / SIZES[-1]) ** 2


def work(epochs: Sequence[int]) -> float:
    """What a `Clock` counts of such a training: an image's cost is its area."""
    return sum(area(size) for size in sizes(epochs))
