"""How good a module is on data that it does not learn from; and BatchNorm statistics set anew."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from rlprune.finetuning.batches import Batch, ImageBatches, device_of
from rlprune.finetuning.checkpoint import Accuracy
from rlprune.finetuning.objective import Objective
from rlprune.sensitivity.calibration import CalibrationSet


def score(module: nn.Module, images: CalibrationSet) -> Accuracy:
    """Loss and accuracy of a classifier on images; it is put back into the mode it was in."""
    return score_batches(module, ImageBatches(images, device_of(module)).whole(), Objective())


def score_batches(module: nn.Module, batches: Iterable[Batch], objective: Objective) -> Accuracy:
    """Mean loss, without a teacher, and mean metric over batches of whatever size."""
    training = module.training
    module.eval()
    loss = good = 0.0
    count = 0
    with torch.no_grad():
        for batch in batches:
            outputs = batch.answers(module)
            mean = objective.plain(outputs, batch.targets).item()
            loss += mean * batch.count
            good += objective.good(outputs, batch.targets, mean, batch.count)
            count += batch.count
    module.train(training)
    return Accuracy(loss / count, good / count)


def reestimate(module: nn.Module, images: CalibrationSet, *, batch_size: int = 128) -> None:
    """Sets the BatchNorm statistics of `module` to those on `images`, in place; no label is read.

    What a module that was only cut needs before its accuracy means anything.
    """
    device, size = device_of(module), min(batch_size, len(images))
    reestimate_on(
        module,
        (
            Batch(torch.from_numpy(images.x[start : start + size]).to(device), None, size)
            for start in range(0, len(images) - size + 1, size)
        ),
    )


def reestimate_on(module: nn.Module, batches: Iterable[Batch]) -> None:
    """The same on batches of whatever inputs."""
    norms = [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._NormBase)]
    momenta = [norm.momentum for norm in norms]
    modes = [part.training for part in module.modules()]
    module.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over batches
        norm.train()
    with torch.no_grad():
        for batch in batches:
            batch.answers(module)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    for part, training in zip(module.modules(), modes, strict=True):
        part.training = training
