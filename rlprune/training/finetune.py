"""A plain training loop: trains the zoo's nets, and a pruned module for a few epochs more.

The same seed, data and thread count give the same weights. The loop sees training images only;
nothing is chosen by looking at others.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Augment = Callable[[Tensor, torch.Generator], Tensor]
"""Images [N, C, H, W] -> images of the same shape."""


@dataclass(frozen=True, slots=True)
class Images:
    """Labelled images."""

    x: NDArray[np.float32]
    """[N, C, H, W], preprocessed."""
    y: NDArray[np.int64]
    """Class indices [N]."""

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """How long and how fast to train; the defaults suit a pruned module that was trained before."""

    epoch_count: int = 2
    batch_size: int = 64
    learning_rate: float = 0.02
    """At the start; falls to 0 along half a cosine."""
    warmup_ratio: float = 0.1
    """Share (0-1) of the steps over which the rate first rises."""
    momentum: float = 0.9
    weight_decay: float = 5e-4
    seed: int = 0


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """What one epoch of training saw; of augmented images, in train mode."""

    epoch: int
    loss: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Score:
    """Of a module in eval mode."""

    loss: float
    """Mean cross-entropy (nats)."""
    accuracy: float
    """Share (0-1) of images whose most likely class is right."""


def fit(
    module: nn.Module,
    images: Images,
    config: TrainConfig = TrainConfig(),
    *,
    augment: Augment | None = None,
    on_epoch: Callable[[EpochRecord], None] | None = None,
) -> list[EpochRecord]:
    """Trains `module` in place with SGD and returns what each epoch saw; leaves it in eval mode.

    Weight decay spares vectors (biases and BatchNorm). Frozen parameters stay as they are.
    """
    generator = torch.Generator().manual_seed(config.seed)
    x, y = torch.from_numpy(images.x), torch.from_numpy(images.y)
    # Not in channels_last: a quarter faster, but there torch 2.13's backward pass crashed on a net
    # pruned to convolutions of 4 channels (AMD EPYC).
    free = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(
        [
            {"params": [p for p in free if p.dim() > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in free if p.dim() <= 1], "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        momentum=config.momentum,
        nesterov=config.momentum > 0,
    )
    # A last batch of one image would leave BatchNorm without a variance.
    step_count = max(1, len(images) // config.batch_size)
    total = step_count * config.epoch_count
    warmup = max(1, round(total * config.warmup_ratio))

    def rate(step: int) -> float:
        return min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * step / total)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    history = []
    module.train()
    for epoch in range(config.epoch_count):
        order = torch.randperm(len(images), generator=generator)
        loss_sum = right = seen = 0.0
        for batch in order[: step_count * config.batch_size].chunk(step_count):
            inputs = x[batch] if augment is None else augment(x[batch], generator)
            logits = module(inputs)
            loss = nn.functional.cross_entropy(logits, y[batch])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            loss_sum += loss.item() * len(batch)
            right += (logits.argmax(1) == y[batch]).sum().item()
            seen += len(batch)
        history.append(EpochRecord(epoch, loss_sum / seen, right / seen))
        if on_epoch is not None:
            on_epoch(history[-1])
    module.eval()
    return history


def reestimate(module: nn.Module, images: Images, *, batch_size: int = 128) -> None:
    """Sets the BatchNorm statistics of `module` to those on `images`, in place; no label is read.

    What a module that was only cut needs before its accuracy means anything.
    """
    norms = [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._NormBase)]
    momenta = [norm.momentum for norm in norms]
    modes = [part.training for part in module.modules()]
    module.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over batches
        norm.train()
    with torch.no_grad():
        for start in range(0, len(images) - batch_size + 1, batch_size):
            module(torch.from_numpy(images.x[start : start + batch_size]))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    for part, training in zip(module.modules(), modes, strict=True):
        part.training = training


def score(module: nn.Module, images: Images, *, batch_size: int = 256) -> Score:
    """Loss and accuracy of `module` on `images`; puts it back into the mode it was in."""
    training = module.training
    module.eval()
    loss = right = 0.0
    with torch.no_grad():
        for start in range(0, len(images), batch_size):
            logits = module(torch.from_numpy(images.x[start : start + batch_size]))
            y = torch.from_numpy(images.y[start : start + batch_size])
            loss += nn.functional.cross_entropy(logits, y, reduction="sum").item()
            right += (logits.argmax(1) == y).sum().item()
    module.train(training)
    return Score(loss / len(images), right / len(images))


def shifted(x: Tensor, generator: torch.Generator, *, pixels: int = 2) -> Tensor:
    """Each image moved by up to `pixels` in both directions, zeros moving in."""
    count, _, height, width = x.shape
    padded = nn.functional.pad(x, (pixels,) * 4)
    offset = torch.randint(0, 2 * pixels + 1, (count, 2), generator=generator)
    rows = offset[:, :1] + torch.arange(height)  # [N, H]
    columns = offset[:, 1:] + torch.arange(width)  # [N, W]
    picked = padded.permute(0, 2, 3, 1)[
        torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]
    ]
    return picked.permute(0, 3, 1, 2).contiguous()


def flipped_and_shifted(x: Tensor, generator: torch.Generator) -> Tensor:
    """Mirrored one time in two, then moved by up to 4 pixels: what CIFAR-10 is trained with."""
    flip = torch.rand(len(x), 1, 1, 1, generator=generator) < 0.5
    return shifted(torch.where(flip, x.flip(3), x), generator, pixels=4)
