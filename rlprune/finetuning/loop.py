"""A plain training loop, for a pruned module that is trained for a few epochs more.

The same seed, data and thread count give the same weights, also when the run was interrupted and
went on from its checkpoint (for a loader of the user's own, see `batches.LoaderBatches`). Steps see
training data only; validation data, where given, choose which epoch's weights are kept.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from rlprune.errors import InputError
from rlprune.finetuning.augment import Augment
from rlprune.finetuning.batches import Batch, Batches, batches_of, device_of
from rlprune.finetuning.checkpoint import Checkpoint, EpochRecord, LoopState
from rlprune.finetuning.objective import (
    DistillLoss,
    Loss,
    Metric,
    Objective,
    check_finite,
)
from rlprune.finetuning.scoring import score_batches
from rlprune.sensitivity.calibration import CalibrationSet

USUAL_RATES, USUAL_STEPS = (0.02, 0.05), (100, 1200)
"""What suits so few steps, and so many (`scripts/bench recipe`). One epoch of 10,000 images at the
greater cost ResNet-20 three points; at half of the lesser, a small network that was cut to a
quarter of its accuracy learned too little."""
ADAMW_SHARE = 0.02
"""AdamW's rate over SGD's; not swept."""


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """How long and how fast to train; the defaults suit a pruned module that was trained before.

    Batch, rates and distillation are the best of `scripts/bench recipe` on two networks at half of
    their MACs (docs/results.md). Averaged weights are not offered: they added less than 0.1 points.
    """

    epoch_count: int = 2
    batch_size: int = 128
    learning_rate: float | None = None
    """At its height; falls to 0 along half a cosine. None: `usual_rate`."""
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
    distill_temperature: float = 16.0
    """Logits of both are divided by it first; the divergence is multiplied by its square. At so
    high a one it is their squared difference."""
    mixed_precision: bool = False
    """Convolutions and products in bfloat16, weights and losses in float32. Faster where the
    processor computes in bfloat16, but for depthwise convolutions on a CPU."""
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
            if value is not None and not (math.isfinite(value) and value > 0):
                raise InputError(f"{name} is {value}; give a positive, finite number", field=name)
        if self.optimizer not in ("sgd", "adamw"):
            raise InputError(
                f"no optimizer {self.optimizer!r}; give sgd or adamw", field="optimizer"
            )


def fit(
    module: nn.Module,
    data: CalibrationSet | Iterable[Any],
    config: TrainConfig = TrainConfig(),
    *,
    augment: Augment | None = None,
    validation: CalibrationSet | Iterable[Any] | None = None,
    teacher: nn.Module | None = None,
    loss: Loss | None = None,
    metric: Metric | None = None,
    distill_loss: DistillLoss | None = None,
    checkpoint: Checkpoint | None = None,
    on_epoch: Callable[[EpochRecord], None] | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> list[EpochRecord]:
    """Trains `module` where it is, CPU or GPU, and returns what each epoch saw; leaves it in eval
    mode.

    Weight decay spares vectors (biases and BatchNorm). Frozen parameters stay as they are.

    Args:
        data: images with their classes; or a loader of (inputs, targets), whose batches are then
            its own, not `config.batch_size`.
        validation: the module is left with the weights that score best on them after an epoch, or
            with those it came with where no epoch is better.
        teacher: whose answers are matched, at `config.distill_weight`; run in eval mode, unchanged.
        loss: of the outputs and targets, in place of cross-entropy.
        metric: by which epochs are chosen, in place of accuracy.
        distill_loss: of the module's outputs and the teacher's; needed beside `loss`.
        checkpoint: where the state of the loop is kept; there, an interrupted run goes on.
        on_step: told (steps done, of how many).

    Raises:
        InputError: outputs or targets do not fit the loss, the loss is no longer finite, the loader
            cannot be used, or the checkpoint is another run's.
    """
    device = device_of(module)
    batches = batches_of(data, device, batch_size=config.batch_size, augment=augment)
    held = None if validation is None else batches_of(validation, device, what="validation")
    objective = objective_of(
        config, loss=loss, metric=metric, distill_loss=distill_loss, taught=teacher is not None
    )
    rate = config.learning_rate
    if rate is None:
        rate = usual_rate(batches.step_count * config.epoch_count, config)
    optimizer = _optimizer(module, config, rate)
    with _own_randomness(config.seed), _answering(teacher):
        step_count = batches.step_count
        total = step_count * config.epoch_count
        mixed = config.mixed_precision
        teaching = _Teaching(teacher if config.distill_weight else None, batches, mixed)
        state = LoopState(module, optimizer, torch.Generator().manual_seed(config.seed))
        if held is not None:
            state.keep(score_batches(module, held.whole(), objective))
        if checkpoint is not None:
            checkpoint.restore(state)
        module.train()
        began = saved = time.monotonic()
        while state.step < total:
            if (done := state.step % step_count) == 0:
                state.begin_epoch()
            for batch in batches.epoch(state, done):
                outputs = batch.answers(module, mixed=mixed)
                minimised = objective.trained(outputs, batch.targets, teaching.wanted(batch))
                optimizer.zero_grad()
                minimised.backward()  # type: ignore[no-untyped-call]
                for group in optimizer.param_groups:
                    group["lr"] = rate * rate_at(state.step, total, config)
                optimizer.step()
                _count(state, batch, outputs, minimised.item(), objective)
                check_finite(state.loss_sum, state.step, total)
                if on_step is not None:
                    on_step(state.step, total)
                now = time.monotonic()
                if ended := state.step % step_count == 0:
                    found = None
                    if held is not None:
                        found = score_batches(module, held.whole(), objective)
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


def objective_of(
    config: TrainConfig,
    *,
    loss: Loss | None = None,
    metric: Metric | None = None,
    distill_loss: DistillLoss | None = None,
    taught: bool,
) -> Objective:
    """What is minimised by these settings.

    Raises:
        InputError: no function where one is needed.
    """
    made = Objective(
        loss,
        metric,
        distill_loss,
        label_smoothing=config.label_smoothing,
        distill_weight=config.distill_weight,
        distill_temperature=config.distill_temperature,
    )
    if taught:
        made.check_teaching()
    if loss is not None and config.label_smoothing:
        raise InputError(
            "label smoothing is of cross-entropy; with a loss of your own leave it out",
            field="label_smoothing",
        )
    return made


class _Teaching:
    """What the teacher answers to each batch.

    Images that are not augmented it is asked once, before the first step, and not once an epoch;
    where its answers to an image take more room than the image, it is asked each time.
    """

    def __init__(self, teacher: nn.Module | None, batches: Batches, mixed: bool) -> None:
        self._teacher = teacher
        self._batches = batches
        self._mixed = mixed
        self._known: Tensor | None = None
        self._kept = True
        """Whether answers are kept, once there are some."""

    def wanted(self, batch: Batch) -> Any:
        """Its outputs, no gradient in them; None where there is no teacher."""
        if self._teacher is None:
            return None
        with torch.no_grad():
            if batch.rows is None or not self._kept:
                return batch.answers(self._teacher, mixed=self._mixed)
            if self._known is None:
                first = batch.answers(self._teacher, mixed=self._mixed)
                self._kept = _fits(first, batch)
                if not self._kept:
                    return first
                whole = self._batches.whole()
                each = [one.answers(self._teacher, mixed=self._mixed) for one in whole]
                self._known = torch.cat(each)
            return self._known[batch.rows]


def _fits(answers: Any, batch: Batch) -> bool:
    """Whether answers are a row for each image, no larger than the image."""
    return (
        isinstance(answers, Tensor)
        and answers.shape[:1] == (batch.count,)
        and answers.numel() <= batch.inputs.numel()
    )


def _count(state: LoopState, batch: Batch, outputs: Any, loss: float, objective: Objective) -> None:
    # A metric may turn them into numpy arrays.
    answers = tree_map(lambda one: one.detach() if isinstance(one, Tensor) else one, outputs)
    good = objective.good(answers, batch.targets, loss, batch.count)
    state.count(loss, good, batch.count)


def rate_at(step: int, total: int, config: TrainConfig) -> float:
    """Share (0-1) of the learning rate at `step` of `total`: a short rise, then half a cosine."""
    warmup = max(1, round(total * config.warmup_ratio))
    return min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * step / total)))


def usual_rate(step_count: int, config: TrainConfig) -> float:
    """The learning rate for so many steps in all, where nobody says: between `USUAL_RATES`."""
    low, high = (math.log(steps) for steps in USUAL_STEPS)
    share = min(max((math.log(max(step_count, 1)) - low) / (high - low), 0.0), 1.0)
    rate = math.exp((1.0 - share) * math.log(USUAL_RATES[0]) + share * math.log(USUAL_RATES[1]))
    return rate * (ADAMW_SHARE if config.optimizer == "adamw" else 1.0)


def _optimizer(module: nn.Module, config: TrainConfig, rate: float) -> torch.optim.Optimizer:
    # Not in channels_last: a quarter faster, but there torch 2.13's backward pass crashed on a net
    # pruned to convolutions of 4 channels (AMD EPYC).
    free = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in free if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in free if p.dim() <= 1], "weight_decay": 0.0},
    ]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=rate)
    momentum = config.momentum
    return torch.optim.SGD(groups, lr=rate, momentum=momentum, nesterov=momentum > 0)


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
