"""What a user gives as calibration data, checked against the model before anything is run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from onnx import helper

from rlprune.errors import CalibrationError
from rlprune.graph.types import IntArray
from rlprune.runtime.base import Array
from rlprune.sensitivity.batching import batch_axes, declared_dims, real_inputs
from rlprune.sensitivity.calibration import MIN_SAMPLES, CalibrationSet, EqualSizes
from rlprune.sensitivity.divergence import class_counts
from rlprune.sensitivity.inputs import Reading, read_inputs

if TYPE_CHECKING:
    from rlprune.graph.from_onnx import OnnxTrace

Given = Array | Sequence[Array]
"""One array for all samples, or one for each, of whatever sizes."""


@dataclass(frozen=True)
class _Input:
    """An input of the model, as samples have to fit it."""

    name: str
    dtype: np.dtype[Any]
    dims: tuple[int | None, ...]
    """None where any extent will do."""
    axis: int | None
    """Batch axis."""

    @property
    def sample(self) -> tuple[int | None, ...]:
        """Extents of one sample, the batch axis left out."""
        if self.axis is None:
            return self.dims
        return self.dims[: self.axis] + self.dims[self.axis + 1 :]

    def shown(self) -> str:
        words = ["?" if dim is None else str(dim) for dim in self.dims]
        if self.axis is not None:
            words[self.axis] = "N"
        return f"[{', '.join(words)}]"


def fit_inputs(
    arrays: Mapping[str, Given],
    y: NDArray[Any] | None,
    trace: OnnxTrace,
    *,
    what: str = "calibration",
    source: str = "given inputs",
    least: int = MIN_SAMPLES,
) -> CalibrationSet:
    """The calibration set of `arrays` by input name, if the model can be fed with them.

    An array of an input's own rank holds the samples along the input's batch axis; one of a rank
    more holds whole inputs along its first. What has no batch axis, or a batch of one, is the same
    for all samples. A model with one input takes it by its name or as `x`. Floats are cast to the
    input's own float type, integers to its integer type where they fit.

    Args:
        y: class of every sample [N]; looked at only where the model answers with classes.
        what: what the caller calls the data, in messages.
        least: samples below which the data is refused.

    Raises:
        CalibrationError: an array is missing, or of the wrong type, shape, length or values.
    """
    refuse = _refusal(what)
    inputs = _inputs(trace)
    given = _by_name(arrays, [one.name for one in inputs], refuse)
    found = {one.name: _samples(one, given[one.name], given, refuse) for one in inputs}
    counts = {name: len(samples) for name, samples in found.items()}
    count = max(counts.values(), default=0)
    for name, own in counts.items():
        if own not in (1, count):
            other = next(key for key, value in counts.items() if value == count)
            raise refuse(
                f"{name} has {own} samples and {other} {count}; all inputs need the same number"
            )
    labels = _labels(y, count, trace, refuse)
    if count < least:
        raise refuse(f"{count} samples are too few; give at least {least}")
    return CalibrationSet(_grouped(found, count), labels, source=source)


def load_calibration(
    path: str | Path, trace: OnnxTrace, reading: Reading | None = None
) -> CalibrationSet:
    """Reads a file or folder (`inputs.read_inputs`): an array for every input of the model by name,
    or one for its only input; and labels `y` where there are some. Nothing is unpickled.

    Raises:
        CalibrationError: not such a file, or not what the traced model needs.
    """
    return fit_read(*read_inputs(path, reading), trace)


def fit_read(arrays: Mapping[str, Given], y: Array | None, trace: OnnxTrace) -> CalibrationSet:
    """`fit_inputs` of what was read: labels may be the input that a model calls `y`."""
    if y is not None and any(one.name == "y" for one in _inputs(trace)):
        return fit_inputs({**arrays, "y": y}, None, trace)
    return fit_inputs(arrays, y, trace)


def read_images(path: str | Path, *, what: str = "calibration") -> tuple[Array, Array]:
    """`x` and `y` of an `.npz`, as they stand there, for what cannot do without labels.

    Raises:
        CalibrationError: not such a file.
    """
    arrays, y = read_inputs(path, what=what)
    x = arrays.get("", arrays.get("x"))
    if y is None or not isinstance(x, np.ndarray):
        raise CalibrationError(
            f"{what} {path} has no {'x' if y is not None else 'y'!r} (it has "
            f"{sorted(name or 'x' for name in arrays)}); "
            "save it with np.savez(path, x=images, y=labels)",
            field=what,
        )
    return x, y


def check_images(x: NDArray[Any], y: NDArray[Any], *, what: str = "calibration") -> CalibrationSet:
    """`x` and `y` as a set, if they are images and their classes, of whatever model.

    Raises:
        CalibrationError: other types or lengths, too few, or not finite.
    """
    refuse = _refusal(what)
    if not np.issubdtype(x.dtype, np.floating):
        raise refuse(f"x is {x.dtype}; give floats, preprocessed as the model takes them")
    classes = _classes(y, refuse)
    if x.ndim == 0 or len(x) != len(classes):
        raise refuse(f"x is {list(x.shape)} and y {list(y.shape)}; both need the same first length")
    if len(classes) < MIN_SAMPLES:
        raise refuse(f"{len(classes)} images are too few; give at least {MIN_SAMPLES}")
    with np.errstate(over="ignore"):
        x = np.ascontiguousarray(x, dtype=np.float32)
    if not np.isfinite(x).all():
        raise refuse("x holds NaN or infinite values")
    return CalibrationSet.single(x, classes)


def check_calibration(x: NDArray[Any], y: NDArray[Any], trace: OnnxTrace) -> CalibrationSet:
    """Images and their classes as a set, if the traced classifier can be run on them.

    Raises:
        CalibrationError: shape, type, values or labels do not fit the model's input and output.
    """
    images = fit_inputs({"x": x}, y, trace)
    images.labels  # noqa: B018  (raises where the model answers with no classes)
    return images


def _refusal(what: str) -> Any:
    def refuse(why: str) -> CalibrationError:
        return CalibrationError(f"{what}: {why}", field=what)

    return refuse


def _inputs(trace: OnnxTrace) -> list[_Input]:
    axes = batch_axes(trace)
    return [
        _Input(
            value.name,
            np.dtype(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)),
            tuple(declared_dims(value)),
            axes[value.name],
        )
        for value in real_inputs(trace.model)
    ]


def _by_name(arrays: Mapping[str, Given], names: Sequence[str], refuse: Any) -> dict[str, Given]:
    """The arrays of the inputs; what else there is, is not looked at."""
    if len(names) == 1 and names[0] not in arrays:
        for key in ("x", ""):  # an array without a name is the only input's
            if key in arrays:
                return {names[0]: arrays[key]}
    missing = [name for name in names if name not in arrays]
    if missing:
        wanted = "'x'" if len(names) == 1 else repr(missing[0])
        also = f" (or {names[0]!r})" if len(names) == 1 and names[0] != "x" else ""
        raise refuse(
            f"has no {wanted}{also} (it has {sorted(arrays)}); the model's inputs are "
            f"{', '.join(names)}: save the file with np.savez(path, {missing[0]}=...)"
        )
    return {name: arrays[name] for name in names}


def _samples(one: _Input, given: Given, arrays: Mapping[str, Given], refuse: Any) -> list[Array]:
    """What each sample feeds an input; a single one where it is the same for all."""
    called = "x" if len(arrays) == 1 else one.name
    if isinstance(given, np.ndarray):
        whole = _typed(given, one, called, refuse)
        for found in _readings(whole, one):
            if all(_fits(array, one) for array in found):
                return found
        _check_fixed_batch(one, whole.shape, refuse)
        raise refuse(f"{called} is {list(whole.shape)}, the model takes {one.shown()}")
    if not len(given):
        raise refuse(f"{called} holds no samples")
    found = [_without_batch(_typed(np.asarray(array), one, called, refuse), one) for array in given]
    for place, array in enumerate(found):
        if not _fits(array, one):
            raise refuse(f"{called}[{place}] is {list(array.shape)}, the model takes {one.shown()}")
    return found


def _readings(whole: Array, one: _Input) -> Iterator[list[Array]]:
    """What an array for all samples may mean, the likeliest first."""
    rank = len(one.dims)
    if one.axis is not None and whole.ndim == rank:
        yield list(np.moveaxis(whole, one.axis, 0))
    if whole.ndim == len(one.sample):
        yield [whole]
    if whole.ndim == rank + 1:
        yield [_without_batch(array, one) for array in whole]
    if one.axis and whole.ndim == rank:  # samples in front, and the batch of one further behind
        yield [_without_batch(array[None], one) for array in whole]


def _fits(sample: Array, one: _Input) -> bool:
    return (
        sample.ndim == len(one.sample)
        and 0 not in sample.shape
        and all(want in (None, have) for want, have in zip(one.sample, sample.shape, strict=True))
    )


def _check_fixed_batch(one: _Input, shape: Sequence[int], refuse: Any) -> None:
    """Names the fixed batch that keeps samples from fitting one by one."""
    fixed = one.dims[0] if one.axis is None and one.dims else None
    if fixed and len(shape) == len(one.dims) and list(shape[1:]) == list(one.dims[1:]):
        raise refuse(
            f"the model's batch is fixed to {fixed}; export it with a batch of 1 or a dynamic one"
        )


def _without_batch(array: Array, one: _Input) -> Array:
    """A sample given as the input is fed, its batch of one left out."""
    if one.axis is not None and array.ndim == len(one.dims) and array.shape[one.axis] == 1:
        return np.squeeze(array, one.axis)
    return array


def _typed(array: Array, one: _Input, called: str, refuse: Any) -> Array:
    """The array in the input's own type.

    Raises:
        CalibrationError: values would be lost, or mean something else.
    """
    floats = array.dtype.kind == "f" or array.dtype.name == "bfloat16"
    if one.dtype.kind == "f" or one.dtype.name == "bfloat16":
        if not floats:
            raise refuse(
                f"{called} is {array.dtype}; give floats, preprocessed as the model takes them"
            )
        with np.errstate(over="ignore"):
            cast = np.asarray(array, dtype=one.dtype)
        if not np.isfinite(np.asarray(cast, dtype=np.float64)).all():
            raise refuse(f"{called} holds NaN or infinite values (as {one.dtype})")
        return cast
    if one.dtype.kind in "iu" and array.dtype.kind in "iub":
        bounds = np.iinfo(one.dtype)
        if array.size and (array.min() < bounds.min or array.max() > bounds.max):
            raise refuse(f"{called} holds values that {one.dtype} does not")
        return array.astype(one.dtype)
    if one.dtype.kind == "b" and array.dtype.kind in "iub":
        return array.astype(np.bool_)
    raise refuse(f"{called} is {array.dtype}, the model takes {one.dtype}")


def _grouped(found: Mapping[str, list[Array]], count: int) -> tuple[EqualSizes, ...]:
    """Samples of one size together, in the order in which sizes come up."""
    rows: dict[tuple[tuple[int, ...], ...], list[int]] = {}
    for index in range(count):
        shapes = tuple(
            samples[index if len(samples) > 1 else 0].shape for samples in found.values()
        )
        rows.setdefault(shapes, []).append(index)
    parts = []
    for own in rows.values():
        arrays = {
            name: np.stack([samples[index] for index in own])
            if len(samples) > 1
            else np.broadcast_to(samples[0], (len(own), *samples[0].shape))
            for name, samples in found.items()
        }
        parts.append(EqualSizes(np.array(own), arrays))
    return tuple(parts)


def _labels(y: NDArray[Any] | None, count: int, trace: OnnxTrace, refuse: Any) -> IntArray | None:
    """Labels of a classifier, checked; None where there are none, or nothing they could label."""
    if y is None:
        return None
    classes = class_counts(trace)
    if not classes:
        return None
    labels = _classes(y, refuse)
    if len(labels) != count:
        raise refuse(
            f"there are {count} samples and y is {list(y.shape)}; both need the same first length"
        )
    if count and (labels.min() < 0 or labels.max() >= classes):
        raise refuse(
            f"y holds classes {labels.min()}..{labels.max()}, the model knows 0..{classes - 1}"
        )
    return labels


def _classes(y: NDArray[Any], refuse: Any) -> IntArray:
    if not np.issubdtype(y.dtype, np.integer) or y.ndim != 1:
        raise refuse(f"y is {y.dtype}{list(y.shape)}; give integer classes of shape [N]")
    return y.astype(np.int64)
