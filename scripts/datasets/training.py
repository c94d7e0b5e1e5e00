"""How networks are trained on CIFAR-10 from scratch here: one thread, resumable, a few minutes.

45,000 train images train, the other 5,000 (`train_calib`) validate; early epochs see small images
(progressive resizing), and dense convolutions may compute in bfloat16. `make_zoo` and
`bench_atinit` train so.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from datasets import catalogue
from datasets.pack import CifarPack
from numpy.typing import NDArray
from torch import Tensor, nn

from rlprune.errors import InputError
from rlprune.training.finetune import Images, flipped_and_shifted, score

SIZES = (16, 24, 32)
"""Pixels, in the order in which epochs see them."""

OnEpoch = Callable[[int, dict[str, Any], bool], None]
"""(the epoch's number, its row, whether an earlier run trained it)."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """SGD with Nesterov momentum; the rate rises and falls linearly once (one cycle)."""

    batch_size: int = 128
    peak_rate: float = 0.15
    warmup_ratio: float = 0.2
    """Share (0-1) of the steps over which the rate rises."""
    momentum: float = 0.9
    weight_decay: float = 3e-4
    """Of convolutions and the classifier; vectors are spared."""
    label_smoothing: float = 0.05
    augment: str = "mirrored one time in two, moved by up to 4 pixels"
    seed: int = 0


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


class Clock:
    """How long the rest takes, from what was done since the start; an image's cost is its area."""

    def __init__(self, nets: Iterable[Sequence[int]]) -> None:
        """`nets` are the epochs of each at each of `SIZES`."""
        self.left = sum(area(size) for epochs in nets for size in sizes(epochs))
        self.done = 0.0
        self.started = time.monotonic()

    def skip(self, size: int) -> None:
        self.left -= area(size)

    def finish(self, size: int) -> float:
        """Counts an epoch; returns the minutes still to go."""
        self.left -= area(size)
        self.done += area(size)
        return (time.monotonic() - self.started) / self.done * self.left / 60

    def teller(self, name: str, epochs: Sequence[int]) -> OnEpoch:
        """What `train` tells of a net's epochs: counted, and printed unless an earlier run did."""

        def tell(epoch: int, row: dict[str, Any], known: bool) -> None:
            if known:
                self.skip(row["size"])
                return
            left = self.finish(row["size"])
            print(
                f"{time.strftime('%H:%M')} {name} epoch {epoch + 1}/{sum(epochs)} "
                f"{json.dumps(row)}, all done in about {left:.0f} min",
                flush=True,
            )

        return tell


def train(
    module: nn.Module,
    data: Data,
    recipe: Recipe,
    checkpoint: Path,
    *,
    epochs: Sequence[int],
    bfloat16: bool,
    after_step: Callable[[], None] = lambda: None,
    on_epoch: OnEpoch = lambda epoch, row, known: None,
) -> list[dict[str, Any]]:
    """Trains `module` in place and leaves it in eval mode; returns what each epoch saw.

    The state is kept in `checkpoint` after every epoch; there, an interrupted run goes on.

    Args:
        epochs: at each of `SIZES`.
        after_step: called after every step; a mask is put back here.
        on_epoch: told of every epoch.

    Raises:
        InputError: the checkpoint is of another recipe.
    """
    # In channels_last an epoch took 23-30 % less CPU (vgg, mobilenetv1; EPYC with AVX2).
    module.to(memory_format=torch.channels_last)
    parameters = list(module.parameters())
    optimizer = torch.optim.SGD(
        [
            {"params": [p for p in parameters if p.dim() > 1], "weight_decay": recipe.weight_decay},
            {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
        ],
        lr=recipe.peak_rate,
        momentum=recipe.momentum,
        nesterov=True,
    )
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
    for epoch, row in enumerate(history):
        on_epoch(epoch, row, True)
    for epoch in range(len(history), len(plan)):
        started = time.monotonic()
        loss, accuracy = train_epoch(
            module, optimizer, data, recipe, epoch, plan, bfloat16, after_step
        )
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
        torch.save(
            {
                "module": module.state_dict(),
                "optimizer": optimizer.state_dict(),
                "history": history,
                "recipe": recipe_used,
            },
            partial,
        )
        partial.replace(checkpoint)
        on_epoch(epoch, row, False)
    module.eval()
    return history


def train_epoch(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: Data,
    recipe: Recipe,
    epoch: int,
    plan: list[int],
    bfloat16: bool,
    after_step: Callable[[], None] = lambda: None,
) -> tuple[float, float]:
    """Mean loss and accuracy over the epoch; its order and augmentation follow from its number."""
    generator = torch.Generator().manual_seed(1000 * recipe.seed + epoch)
    pixels, labels = data.train
    step_count = len(labels) // recipe.batch_size
    order = torch.randperm(len(labels), generator=generator)[: step_count * recipe.batch_size]
    loss_sum = right = 0.0
    module.train()
    for step, index in enumerate(order.split(recipe.batch_size)):
        x = torch.from_numpy(catalogue.preprocess(pixels[index.numpy()], catalogue.PREPROCESS))
        x = resized(flipped_and_shifted(x, generator), plan[epoch])
        y = torch.from_numpy(labels[index.numpy()])
        for group in optimizer.param_groups:
            group["lr"] = rate(recipe, (epoch * step_count + step) / (len(plan) * step_count))
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            logits = module(x.contiguous(memory_format=torch.channels_last)).float()
        loss = F.cross_entropy(logits, y, label_smoothing=recipe.label_smoothing)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        after_step()
        loss_sum += loss.item()
        right += (logits.argmax(1) == y).sum().item()
    return loss_sum / step_count, right / len(order)


def rate(recipe: Recipe, done: float) -> float:
    """The learning rate after a share (0-1) of the steps."""
    rise, fall = done / recipe.warmup_ratio, (1 - done) / (1 - recipe.warmup_ratio)
    return recipe.peak_rate * max(min(rise, fall), 1e-3)


def as_images(pixels: NDArray[np.uint8], labels: NDArray[np.uint8]) -> Images:
    return Images(catalogue.preprocess(pixels, catalogue.PREPROCESS), labels.astype(np.int64))


def resized(x: Tensor, size: int) -> Tensor:
    if size == x.shape[-1]:
        return x
    return F.interpolate(x, size=(size, size), mode="bilinear", antialias=True)


def sizes(epochs: Sequence[int]) -> list[int]:
    """Pixels of each epoch, of so many at each of `SIZES`."""
    return [size for size, count in zip(SIZES, epochs, strict=True) for _ in range(count)]


def area(size: int) -> float:
    return (size / SIZES[-1]) ** 2
