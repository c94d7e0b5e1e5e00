"""What a training loop is fed: batches of images in memory, or of the user's own loader.

Both give the same batches again when a run goes on from its checkpoint: images always, a loader as
far as it draws from torch's own generator (`LoaderBatches`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from rlprune.errors import InputError
from rlprune.finetuning.augment import Augment
from rlprune.finetuning.checkpoint import LoopState
from rlprune.sensitivity.calibration import CalibrationSet

SCORE_BATCH = 256
"""Images that are scored at once."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What one step is made on."""

    inputs: Any
    """A tensor, a sequence of positional arguments, or a mapping of keyword arguments."""
    targets: Any
    count: int
    """Samples in it."""
    rows: Tensor | None = None
    """Which images these are, where they are as they were given: answers to them may be kept."""

    def answers(self, module: nn.Module, *, mixed: bool = False) -> Any:
        """What the module returns for the inputs; `mixed`: computed in bfloat16 where torch holds
        that safe (`torch.autocast`), returned in float32."""
        if mixed:
            with torch.autocast(device_of(module).type, torch.bfloat16):
                found = self.answers(module)
            return tree_map(_float32, found)
        if isinstance(self.inputs, Mapping):
            return module(**self.inputs)
        if isinstance(self.inputs, tuple | list):
            return module(*self.inputs)
        return module(self.inputs)


def device_of(module: nn.Module) -> torch.device:
    """Where a module computes."""
    return next((tensor.device for tensor in module.parameters()), torch.device("cpu"))


def _float32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.bfloat16 else value


class Batches(Protocol):
    """A source of batches."""

    @property
    def step_count(self) -> int:
        """Batches of an epoch."""

    def epoch(self, state: LoopState, skip: int) -> Iterator[Batch]:
        """The batches of the epoch that `state` is in, the first `skip` left out."""

    def whole(self) -> Iterator[Batch]:
        """All samples as they are, to score on."""


class ImageBatches:
    """Images in memory, in an order drawn for each epoch, each batch varied by `augment`."""

    def __init__(
        self,
        images: CalibrationSet,
        device: torch.device,
        *,
        batch_size: int = SCORE_BATCH,
        augment: Augment | None = None,
    ) -> None:
        self._x, self._y = (torch.from_numpy(one).to(device) for one in (images.x, images.labels))
        self._size = batch_size
        self._augment = augment

    @property
    def step_count(self) -> int:
        """A last batch of one image would leave BatchNorm without a variance: it is left out."""
        return max(1, len(self._x) // self._size)

    def epoch(self, state: LoopState, skip: int) -> Iterator[Batch]:
        """Draws the order first, then what varies each batch, from the state's generator."""
        order = state.order(len(self._x))[: self.step_count * self._size]
        for rows in order.chunk(self.step_count)[skip:]:
            rows = rows.to(self._x.device)
            x, y = self._x[rows], self._y[rows]
            if self._augment is None:
                yield Batch(x, y, len(rows), rows)
            else:
                yield Batch(self._augment(x, state.generator), y, len(rows))

    def whole(self) -> Iterator[Batch]:
        """In the order in which they were given."""
        for start in range(0, len(self._x), SCORE_BATCH):
            x, y = (one[start : start + SCORE_BATCH] for one in (self._x, self._y))
            yield Batch(x, y, len(x))


class LoaderBatches:
    """A loader of (inputs, targets), which decides order, batches and augmentation.

    The order that a loader draws from torch's own generator is drawn again when a run goes on (a
    DataLoader with `shuffle=True` and no generator given). What it draws elsewhere (numpy, Python's
    `random`, a generator of its own) is not, and the run goes on with other batches.
    """

    def __init__(self, loader: Iterable[Any], device: torch.device, *, what: str = "data") -> None:
        self._what = what
        if not isinstance(loader, Iterable) or isinstance(loader, Iterator):
            raise self._refusal(
                f"a {type(loader).__name__} cannot be gone through epoch by epoch; give a "
                "DataLoader or another iterable of (inputs, targets)"
            )
        self._loader = loader
        self._device = device
        self._count: int | None = None
        self.sample_count = 0
        """Of the last whole pass."""

    @property
    def step_count(self) -> int:
        """By its length, or gone through once where it has none."""
        if self._count is None:
            try:
                self._count = len(self._loader)  # type: ignore[arg-type]
            except TypeError:
                self._count = sum(1 for _ in self._drawn())
            if not self._count:
                raise self._refusal("the loader gives no batches")
        return self._count

    def epoch(self, state: LoopState, skip: int) -> Iterator[Batch]:
        """Batches already used are drawn again and left out."""
        now = torch.get_rng_state()
        torch.set_rng_state(state.epoch_randomness)
        drawn = self._drawn()
        for _ in range(skip):
            next(drawn, None)
        if skip:
            torch.set_rng_state(now)
        for number in range(skip, self.step_count):
            batch = next(drawn, None)
            if batch is None:
                raise self._refusal(f"the loader gave {number} batches, not {self.step_count}")
            yield batch

    def whole(self) -> Iterator[Batch]:
        """As the loader gives them."""
        count = 0
        for batch in self._drawn():
            count += batch.count
            yield batch
        self.sample_count = count
        if not count:
            raise self._refusal("the loader gives no batches")

    def _drawn(self) -> Iterator[Batch]:
        try:
            for given in self._loader:
                yield self._batch(given)
        except InputError:
            raise
        except Exception as error:  # whatever the user's code raises
            raise self._refusal(f"the loader failed: {type(error).__name__}: {error}") from error

    def _batch(self, given: Any) -> Batch:
        if not isinstance(given, tuple | list) or len(given) != 2:
            shown = type(given).__name__ + (f" of {len(given)}" if isinstance(given, Sized) else "")
            raise self._refusal(f"the loader gave a {shown}, not a pair (inputs, targets)")
        inputs, targets = tree_map(self._moved, tuple(given))
        tensors = [one for one in tree_leaves(inputs) if isinstance(one, Tensor) and one.dim()]
        if not tensors or not len(tensors[0]):
            raise self._refusal("the loader gave inputs without a tensor [N, ...] of samples")
        return Batch(inputs, targets, len(tensors[0]))

    def _moved(self, value: Any) -> Any:
        if isinstance(value, np.ndarray):
            value = torch.from_numpy(value)
        return value.to(self._device) if isinstance(value, Tensor) else value

    def _refusal(self, why: str) -> InputError:
        return InputError(f"{self._what}: {why}", field=self._what)


def batches_of(
    data: CalibrationSet | Iterable[Any],
    device: torch.device,
    *,
    batch_size: int = SCORE_BATCH,
    augment: Augment | None = None,
    what: str = "data",
) -> Batches:
    """Batches of images, or of a loader.

    Raises:
        InputError: a loader of which only one epoch could be had, or `augment` beside a loader.
    """
    if isinstance(data, CalibrationSet):
        return ImageBatches(data, device, batch_size=batch_size, augment=augment)
    if augment is not None:
        raise InputError("a loader augments by itself; leave augment out", field="augment")
    return LoaderBatches(data, device, what=what)
