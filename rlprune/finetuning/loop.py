"""A plain training loop, for a pruned module that is trained for a few epochs more.

The same seed, data and thread count give the same weights, also when the run was interrupted and
went on from its checkpoint. Steps see training images only; validation images, where given, choose
which epoch's weights are kept.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rlprune.errors import InputError
from rlprune.finetuning.checkpoint import Accuracy, Checkpoint, EpochRecord, LoopState
from rlprune.sensitivity.calibration import CalibrationSet

Augment = Callable[[Tensor, torch.Generator], Tensor]
"""Images [N, C, H, W] -> images of the same shape."""


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """How long and how fast to train; the defaults suit a pruned module that was trained before.

    Batch, rate and distillation are the best of `scripts/bench recipe` on two networks at half of
    their MACs (docs/results.md). Averaged weights are not offered: they added less than 0.1 points.
    """

    epoch_count: int = 2
    batch_size: int = 128
    learning_rate: float = 0.05
    """At the start; falls to 0 along half a cosine."""
    warmup_ratio: float = 0.1
    """Share (0-1) of the steps over which the rate first rises."""
    momentum: float = 0.9
    """Nesterov's; of SGD only."""
    weight_decay: float = 5e-4
    optimizer: Literal["sgd", "adamw"] = "sgd"
    label_smoothing: float = 0.0
    """Share (0-1) of each label spread over all classes."""
    distill_weight: float = 0.5
    """Share (0-1) of the loss that is the divergence from the teacher's answers; without a teacher
    there is none."""
    distill_temperature: float = 4.0
    """Logits of both are divided by it first; the divergence is multiplied by its square."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low, high in (
            ("epoch_count", 1, math.inf),
            ("batch_size", 2, math.inf),
            ("warmup_ratio", 0, 1),
            ("momentum", 0, 1),
            ("weight_decay", 0, math.inf),
            ("label_smoothing", 0, 1),
            ("distill_weight", 0, 1),
        ):
            if not low <= getattr(self, name) <= high:
                raise InputError(
                    f"{name} is {getattr(self, name)}; give {low} to {high}", field=name
                )
        for name in ("learning_rate", "distill_temperature"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"{name} is {value}; give a positive, finite number", field=name)
        if self.optimizer not in ("sgd", "adamw"):
            raise InputError(
                f"no optimizer {self.optimizer!r}; give sgd or adamw", field="optimizer"
            )


def fit(
    module: nn.Module,
    images: CalibrationSet,
    config: TrainConfig = TrainConfig(),
    *,
    augment: Augment | None = None,
    validation: CalibrationSet | None = None,
    teacher: nn.Module | None = None,
    checkpoint: Checkpoint | None = None,
    on_epoch: Callable[[EpochRecord], None] | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> list[EpochRecord]:
    """Trains `module` where it is, CPU or GPU, and returns what each epoch saw; leaves it in eval
    mode.

    Weight decay spares vectors (biases and BatchNorm). Frozen parameters stay as they are.

    Args:
        validation: the module is left with the weights that score best on them after an epoch, or
            with those it came with where no epoch is better.
        teacher: whose answers are matched, at `config.distill_weight`; run in eval mode, unchanged.
        checkpoint: where the state of the loop is kept; there, an interrupted run goes on.
        on_step: told (steps done, of how many).

    Raises:
        InputError: the module does not answer with logits for all classes, the loss is no longer
            finite, or the checkpoint is another run's.
    """
    device = _device_of(module)
    x, y = (torch.from_numpy(one).to(device) for one in (images.x, images.labels))
    optimizer = _optimizer(module, config)
    # A last batch of one image would leave BatchNorm without a variance.
    step_count = max(1, len(images) // config.batch_size)
    total = step_count * config.epoch_count
    with _own_randomness(config.seed), _answering(teacher):
        state = LoopState(module, optimizer, torch.Generator().manual_seed(config.seed))
        if validation is not None:
            state.keep(score(module, validation))
        if checkpoint is not None:
            checkpoint.restore(state)
        module.train()
        began = saved = time.monotonic()
        while state.step < total:
            if state.step % step_count == 0:
                state.begin_epoch()
            batch = (
                state.order(len(images))[: step_count * config.batch_size]
                .chunk(step_count)[state.step % step_count]
                .to(device)
            )
            inputs = x[batch] if augment is None else augment(x[batch], state.generator)
            logits = module(inputs)
            _check_logits(logits, images.labels)
            loss = loss_of(logits, y[batch], inputs, config, teacher)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * rate_at(state.step, total, config)
            optimizer.step()
            state.count(loss.item(), (logits.argmax(1) == y[batch]).sum().item(), len(batch))
            if not math.isfinite(state.loss_sum):
                raise InputError(
                    f"training diverged: the loss is {loss.item()} at step {state.step} of {total};"
                    " lower the learning rate"
                )
            if on_step is not None:
                on_step(state.step, total)
            now = time.monotonic()
            if ended := state.step % step_count == 0:
                found = None if validation is None else score(module, validation)
                state.end_epoch(found, state.seconds + now - began)
                began = now
                if on_epoch is not None:
                    on_epoch(state.history[-1])
            if checkpoint is not None and (ended or now - saved >= checkpoint.every_sec):
                checkpoint.save(state, state.seconds + now - began)
                saved = now
    state.take_best()
    module.eval()
    return state.history


def rate_at(step: int, total: int, config: TrainConfig) -> float:
    """Share (0-1) of the learning rate at `step` of `total`: a short rise, then half a cosine."""
    warmup = max(1, round(total * config.warmup_ratio))
    return min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * step / total)))


def loss_of(
    logits: Tensor, y: Tensor, inputs: Tensor, config: TrainConfig, teacher: nn.Module | None
) -> Tensor:
    """What is minimised: cross-entropy, and the divergence from the teacher's softened answers.

    Args:
        logits: of the module in training [N, K].
        inputs: what it was asked, and the teacher is; no gradient reaches the teacher.
    """
    hard = nn.functional.cross_entropy(logits, y, label_smoothing=config.label_smoothing)
    if teacher is None or config.distill_weight == 0:
        return hard
    with torch.no_grad():
        wanted = teacher(inputs)
    heat = config.distill_temperature
    soft = nn.functional.kl_div(
        (logits / heat).log_softmax(1),
        (wanted / heat).log_softmax(1),
        reduction="batchmean",
        log_target=True,
    )
    return (1 - config.distill_weight) * hard + config.distill_weight * heat**2 * soft


def _optimizer(module: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    # Not in channels_last: a quarter faster, but there torch 2.13's backward pass crashed on a net
    # pruned to convolutions of 4 channels (AMD EPYC).
    free = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in free if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in free if p.dim() <= 1], "weight_decay": 0.0},
    ]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.learning_rate)
    momentum = config.momentum
    return torch.optim.SGD(
        groups, lr=config.learning_rate, momentum=momentum, nesterov=momentum > 0
    )


def _device_of(module: nn.Module) -> torch.device:
    return next((tensor.device for tensor in module.parameters()), torch.device("cpu"))


def _check_logits(logits: Tensor, y: NDArray[np.int64]) -> None:
    shape = list(logits.shape)
    if len(shape) != 2 or shape[1] <= y.max():
        raise InputError(
            f"the module answers {shape} for classes up to {y.max()}; training needs logits "
            "[N, classes]"
        )


@contextmanager
def _own_randomness(seed: int) -> Iterator[None]:
    """Dropout draws from `seed`; the caller's random numbers go on as if nothing had been drawn."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@contextmanager
def _answering(teacher: nn.Module | None) -> Iterator[None]:
    """The teacher in eval mode, and afterwards as it was, part by part."""
    parts = [] if teacher is None else list(teacher.modules())
    modes = [part.training for part in parts]
    for part in parts:
        part.training = False
    try:
        yield
    finally:
        for part, training in zip(parts, modes, strict=True):
            part.training = training


def reestimate(module: nn.Module, images: CalibrationSet, *, batch_size: int = 128) -> None:
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
    batch_size = min(batch_size, len(images))
    with torch.no_grad():
        for start in range(0, len(images) - batch_size + 1, batch_size):
            module(torch.from_numpy(images.x[start : start + batch_size]))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    for part, training in zip(module.modules(), modes, strict=True):
        part.training = training


def score(module: nn.Module, images: CalibrationSet, *, batch_size: int = 256) -> Accuracy:
    """Loss and accuracy of `module` on `images`; puts it back into the mode it was in."""
    training = module.training
    module.eval()
    loss = right = 0.0
    device = _device_of(module)
    x, labels = (torch.from_numpy(one).to(device) for one in (images.x, images.labels))
    with torch.no_grad():
        for start in range(0, len(images), batch_size):
            logits, y = module(x[start : start + batch_size]), labels[start : start + batch_size]
            loss += nn.functional.cross_entropy(logits, y, reduction="sum").item()
            right += (logits.argmax(1) == y).sum().item()
    module.train(training)
    return Accuracy(loss / len(images), right / len(images))


def shifted(x: Tensor, generator: torch.Generator, *, pixels: int = 2) -> Tensor:
    """Each image moved by up to `pixels` in both directions, zeros moving in."""
    count, _, height, width = x.shape
    padded = nn.functional.pad(x, (pixels,) * 4)
    offset = torch.randint(0, 2 * pixels + 1, (count, 2), generator=generator).to(x.device)
    rows = offset[:, :1] + torch.arange(height, device=x.device)  # [N, H]
    columns = offset[:, 1:] + torch.arange(width, device=x.device)  # [N, W]
    each = torch.arange(count, device=x.device)[:, None, None]
    picked = padded.permute(0, 2, 3, 1)[each, rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2).contiguous()


def flipped(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each image mirrored one time in two."""
    flip = torch.rand(len(x), 1, 1, 1, generator=generator) < 0.5
    return torch.where(flip.to(x.device), x.flip(3), x)


def flipped_and_shifted(x: Tensor, generator: torch.Generator) -> Tensor:
    """Mirrored one time in two, then moved by up to 4 pixels: what CIFAR-10 is trained with."""
    return shifted(flipped(x, generator), generator, pixels=4)


AUGMENTS: dict[str, Augment | None] = {
    "none": None,
    "flip": flipped,
    "crop-flip": flipped_and_shifted,
}
"""By the name a user gives."""
