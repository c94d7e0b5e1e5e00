"""What a fine-tuning run trains and validates on: files of images, or loaders of the user's own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from rlprune.errors import InputError
from rlprune.files import digest
from rlprune.finetuning.augment import AUGMENTS, Augment
from rlprune.finetuning.batches import Batch, LoaderBatches, batches_of, device_of
from rlprune.finetuning.checkpoint import Accuracy
from rlprune.finetuning.objective import Objective
from rlprune.finetuning.scoring import reestimate, reestimate_on, score_batches
from rlprune.graph.from_torch import TorchTrace
from rlprune.precision import SCALED_COUNT
from rlprune.sensitivity.batching import real_inputs
from rlprune.sensitivity.calibration import CalibrationSet
from rlprune.sensitivity.fit import check_images, fit_inputs, read_images

VALIDATION_RATIO = 0.1
"""Share of the training images set aside where no others are given to validate on."""
REESTIMATE_COUNT = 8192
"""Samples that BatchNorm statistics are taken of before training, at most."""
RECONSTRUCT_COUNT = 1024
"""Samples that layers are reconstructed on, at most."""


class TuningData(Protocol):
    """Data of one run, from whatever source."""

    train: Any
    """What `loop.fit` takes."""
    validation: Any
    """The same; None where nothing chooses the epoch."""
    augment: Augment | None
    example: Any
    """What the module is called with, a batch of one, to trace it."""
    digests: list[str]
    """Of all the data where it is known; a checkpoint is of them."""

    def check(self, trace: TorchTrace) -> None:
        """Refuses what the traced module does not take, before anything is run."""

    def samples(self, trace: TorchTrace) -> CalibrationSet:
        """What layers are reconstructed on, drawn from the training data."""

    def reestimate(self, module: nn.Module) -> None:
        """Takes BatchNorm statistics of training data."""

    def scaled(self, device: torch.device) -> Iterator[Batch]:
        """The samples that int8 scales are taken from: the first of `samples`."""

    def judged(self, device: torch.device) -> Iterator[Batch]:
        """All validation data, or where there are none all training data."""

    def score(self, module: nn.Module, objective: Objective) -> Accuracy:
        """On what is judged on."""

    def counts(self, seen: int) -> tuple[int, int]:
        """Samples to train on, if an epoch saw so many, and to validate on."""


class FileData:
    """`.npz` files of images and classes."""

    def __init__(
        self, data: str | Path, validation: str | Path | None, augment: str, seed: int
    ) -> None:
        if augment not in AUGMENTS:
            raise InputError(f"no augment {augment!r}; give {', '.join(AUGMENTS)}", field="augment")
        self.train, self.validation = _images(data, validation, seed)
        if augment != "none" and self.train.x.ndim != 4:
            raise InputError(
                f"augment {augment!r} needs images [N, C, H, W], x is {list(self.train.x.shape)}",
                field="augment",
            )
        self.augment = AUGMENTS[augment]
        self.example = torch.from_numpy(self.train.x[:1])
        arrays = [self.train.x, self.train.labels, self.validation.x, self.validation.labels]
        self.digests = [digest(array.tobytes()) for array in arrays]  # each copied for a moment
        # Drawn, so that images sorted by class are mixed.
        drawn = np.random.default_rng(seed).permutation(len(self.train))[:REESTIMATE_COUNT]
        self._drawn = drawn

    def check(self, trace: TorchTrace) -> None:
        """Shapes and classes of both files."""
        for images, what in ((self.train, "data"), (self.validation, "validation")):
            fit_inputs({"x": images.x}, images.labels, trace.onnx, what=what, least=1)

    def samples(self, trace: TorchTrace) -> CalibrationSet:
        """Drawn by the seed."""
        return self.train.take(self._drawn[:RECONSTRUCT_COUNT])

    def reestimate(self, module: nn.Module) -> None:
        """On images drawn by the seed."""
        reestimate(module, self.train.take(self._drawn))

    def scaled(self, device: torch.device) -> Iterator[Batch]:
        """Drawn by the seed."""
        x = torch.from_numpy(self.train.take(self._drawn[:SCALED_COUNT]).x)
        yield Batch(x.to(device), None, len(x))

    def judged(self, device: torch.device) -> Iterator[Batch]:
        """The validation images."""
        return batches_of(self.validation, device).whole()

    def score(self, module: nn.Module, objective: Objective) -> Accuracy:
        """On all validation images."""
        return score_batches(module, self.judged(device_of(module)), objective)

    def counts(self, seen: int) -> tuple[int, int]:
        """Images in the files; an epoch leaves some out that fill no batch."""
        return len(self.train), len(self.validation)


class LoaderData:
    """Loaders of (inputs, targets); their first batches stand for all of them."""

    def __init__(self, data: Iterable[Any], validation: Iterable[Any] | None, seed: int) -> None:
        self.train, self.validation = data, validation
        self.augment: Augment | None = None
        self._seed = seed
        self._cpu = torch.device("cpu")
        [first] = list(self._first(1))
        self.example = tree_map(
            lambda one: one[:1] if _is_per_sample(one, first.count) else one, first.inputs
        )
        self.digests = [
            f"loader of {LoaderBatches(one, self._cpu, what=what).step_count} batches"
            for one, what in ((data, "data"), (validation, "validation"))
            if one is not None
        ]
        self._scored = 0

    def check(self, trace: TorchTrace) -> None:
        """Each batch is checked as it comes."""

    def samples(self, trace: TorchTrace) -> CalibrationSet:
        """Inputs of the first batches, sample by sample."""
        names = [value.name for value in real_inputs(trace.onnx.model)]
        given: dict[str, list[Any]] = {name: [] for name in names}
        for batch in self._first(RECONSTRUCT_COUNT):
            tensors = [one for one in tree_leaves(batch.inputs) if isinstance(one, Tensor)]
            if len(tensors) != len(names) or not all(
                _is_per_sample(one, batch.count) for one in tensors
            ):
                raise InputError(
                    f"data: the loader gives {len(tensors)} tensors of inputs, and the module was "
                    f"traced with {', '.join(names)}; each needs samples along its first axis",
                    field="data",
                )
            for name, tensor in zip(names, tensors, strict=True):
                given[name] += list(tensor.detach().numpy()[:, None])
        few = {name: arrays[:RECONSTRUCT_COUNT] for name, arrays in given.items()}
        return fit_inputs(few, None, trace.onnx, what="data", least=1)

    def reestimate(self, module: nn.Module) -> None:
        """On the first batches."""
        reestimate_on(module, self._first(REESTIMATE_COUNT, device_of(module)))

    def scaled(self, device: torch.device) -> Iterator[Batch]:
        """The first batches, whole."""
        return self._first(SCALED_COUNT, device)

    def judged(self, device: torch.device) -> Iterator[Batch]:
        """One pass through the loader."""
        one = self.train if self.validation is None else self.validation
        what = "data" if self.validation is None else "validation"
        batches = LoaderBatches(one, device, what=what)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed)
            yield from batches.whole()
        self._scored = batches.sample_count

    def score(self, module: nn.Module, objective: Objective) -> Accuracy:
        """On one pass through the loader."""
        return score_batches(module, self.judged(device_of(module)), objective)

    def counts(self, seen: int) -> tuple[int, int]:
        """None to validate on where there is no loader for it."""
        return seen, 0 if self.validation is None else self._scored

    def _first(self, count: int, device: torch.device | None = None) -> Iterator[Batch]:
        """The first batches, of at least `count` samples where there are so many."""
        seen = 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed)
            for batch in LoaderBatches(self.train, device or self._cpu).whole():
                yield batch
                seen += batch.count
                if seen >= count:
                    return


def tuning_data(
    data: str | Path | Iterable[Any],
    validation: str | Path | Iterable[Any] | None,
    augment: str,
    seed: int,
) -> TuningData:
    """Files or loaders, checked as far as they can be without the module.

    Raises:
        InputError: one is refused, they are not of one kind, or `augment` is given with a loader.
    """
    if isinstance(data, str | Path):
        if validation is not None and not isinstance(validation, str | Path):
            raise InputError("data is a file: give validation as a file", field="validation")
        return FileData(data, validation, augment, seed)
    if isinstance(validation, str | Path):
        raise InputError("data is a loader: give validation as a loader", field="validation")
    if augment != "none":
        raise InputError("a loader augments by itself; leave augment out", field="augment")
    return LoaderData(data, validation, seed)


def _is_per_sample(value: Any, count: int) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and len(value) == count


def _images(
    data: str | Path, validation: str | Path | None, seed: int
) -> tuple[CalibrationSet, CalibrationSet]:
    """What is trained on, and what chooses the epoch."""
    given = check_images(*read_images(data, what="data"), what="data")
    if validation is not None:
        return given, check_images(*read_images(validation, what="validation"), what="validation")
    order = np.random.default_rng(seed).permutation(len(given))
    count = max(1, round(VALIDATION_RATIO * len(given)))
    return given.take(order[count:]), given.take(order[:count])
