"""Calibration sets: inputs as the model takes them, from which losses and statistics are taken.

A sample is what one inference is fed: an array for every input, of whatever type, without its batch
axis. Samples may differ in size (lines of text, recordings); those of one size are kept together,
so that they can be run in batches. Labels are optional: what is judged is how far a pruned network
answers from the unpruned one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from rlprune.errors import CalibrationError
from rlprune.graph.types import IntArray
from rlprune.runtime.base import Array

MIN_SAMPLES = 16
"""Fewer give no statistics to speak of, and folds of fewer than four."""


@dataclass(frozen=True)
class EqualSizes:
    """Samples whose arrays are of the same shapes."""

    index: IntArray
    """Places in the set [n], ascending."""
    arrays: Mapping[str, Array]
    """By input, [n, ...]: the batch axis, where an input has one, is left out of each sample."""

    def take(self, rows: IntArray, index: IntArray) -> EqualSizes:
        """Some of the samples, at other places."""
        return EqualSizes(index, {name: array[rows] for name, array in self.arrays.items()})


@dataclass(frozen=True)
class CalibrationSet:
    """Samples, with or without labels; checked against a model by `fit.fit_inputs`."""

    parts: tuple[EqualSizes, ...]
    y: IntArray | None = None
    """Class of every sample [N]; None where there are no labels."""
    outputs: tuple[str, ...] = ()
    """Outputs that plans are judged by, `NAME` or `NAME=logits|values|sigmoid`; all if empty."""
    source: str = field(default="given inputs", compare=False)
    """What the samples are, for the reader."""
    made_up: bool = field(default=False, compare=False)
    """Whether they stand in for data that nobody gave."""

    @staticmethod
    def single(x: Array, y: IntArray | None = None, *, name: str = "x") -> CalibrationSet:
        """Samples [N, ...] of a model with one input, all of one size; nothing is checked."""
        return CalibrationSet((EqualSizes(np.arange(len(x)), {name: x}),), y)

    def __len__(self) -> int:
        return sum(len(part.index) for part in self.parts)

    @property
    def x(self) -> Array:
        """The samples of a model with one input, all of one size [N, ...].

        Raises:
            CalibrationError: there are several inputs or sizes.
        """
        if len(self.parts) != 1 or len(self.parts[0].arrays) != 1:
            raise CalibrationError("this needs samples of one input and one size")
        [array] = self.parts[0].arrays.values()
        return array

    @property
    def labels(self) -> IntArray:
        """Class of every sample [N].

        Raises:
            CalibrationError: there are none.
        """
        if self.y is None:
            raise CalibrationError(
                "calibration has no 'y'; this needs labels: save the file with "
                "np.savez(path, x=images, y=labels)"
            )
        return self.y

    def take(self, index: IntArray) -> CalibrationSet:
        """The samples at `index` [M], in that order."""
        parts = []
        for part in self.parts:
            own = np.flatnonzero(np.isin(index, part.index))
            if len(own):
                parts.append(part.take(np.searchsorted(part.index, index[own]), own))
        return replace(self, parts=tuple(parts), y=None if self.y is None else self.y[index])

    def halves(self, *, seed: int = 0) -> tuple[CalibrationSet, CalibrationSet]:
        """Two disjoint halves, drawn by `seed`: to profile on one and to judge plans on the other.

        Raises:
            CalibrationError: too few samples for two.
        """
        if len(self) < 2 * MIN_SAMPLES:
            raise CalibrationError(
                f"calibration: {len(self)} samples are too few to halve; give at least "
                f"{2 * MIN_SAMPLES}"
            )
        return self.split(len(self) // 2, seed=seed)

    def split(self, count: int, *, seed: int = 0) -> tuple[CalibrationSet, CalibrationSet]:
        """`count` samples drawn by `seed`, and the others."""
        order = np.random.default_rng(seed).permutation(len(self))
        return self.take(np.sort(order[:count])), self.take(np.sort(order[count:]))

    def shuffled(self, *, seed: int = 0) -> CalibrationSet:
        """The same samples in an order drawn by `seed`: the first few then stand for all."""
        return self.take(np.random.default_rng(seed).permutation(len(self)))

    def batches(self, most_values: int) -> Iterator[EqualSizes]:
        """All samples in batches of at most so many input values each, or of one sample."""
        for part in self.parts:
            each = max(1, sum(int(array[0].size) for array in part.arrays.values()))
            size = max(1, most_values // each)
            for start in range(0, len(part.index), size):
                rows = np.arange(start, min(start + size, len(part.index)))
                yield part.take(rows, part.index[rows])

    def text(self) -> str:
        """What the samples are, for the reader."""
        return f"{len(self)} {self.source}" if self.source == "given inputs" else self.source

    @cached_property
    def digest(self) -> str:
        """Of all that decides what is measured on this set."""
        made = hashlib.sha256(repr(self.outputs).encode())
        for part in self.parts:
            made.update(part.index.tobytes())
            for name, array in sorted(part.arrays.items()):
                made.update(f"{name} {array.dtype.str} {array.shape}".encode())
                made.update(np.ascontiguousarray(array).tobytes())
        if self.y is not None:
            made.update(self.y.tobytes())
        return made.hexdigest()
