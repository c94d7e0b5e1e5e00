"""Calibration data: images and labels as the model takes them, checked before anything is run."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray

from rlprune.errors import CalibrationError
from rlprune.graph.types import IntArray

if TYPE_CHECKING:
    from rlprune.graph.from_onnx import OnnxTrace

MIN_IMAGES = 16
"""Fewer give no statistics to match, and folds of fewer than four images."""


@dataclass(frozen=True)
class Calibration:
    """Images of which both loss and statistics are taken, already as the model takes them."""

    x: NDArray[np.float32]
    """[N, ...], preprocessed."""
    y: IntArray
    """Class of every image [N]."""

    def __len__(self) -> int:
        return len(self.y)

    def take(self, index: IntArray) -> Calibration:
        """The images at `index` [M]."""
        return Calibration(self.x[index], self.y[index])

    def halves(self, *, seed: int = 0) -> tuple[Calibration, Calibration]:
        """Two disjoint halves, drawn by `seed`: to profile on one and to judge plans on the other.

        Raises:
            CalibrationError: too few images for two.
        """
        if len(self) < 2 * MIN_IMAGES:
            raise CalibrationError(
                f"calibration: {len(self)} images are too few to halve; give at least "
                f"{2 * MIN_IMAGES}",
                field="calibration",
            )
        order = np.random.default_rng(seed).permutation(len(self))
        middle = len(self) // 2
        return self.take(np.sort(order[:middle])), self.take(np.sort(order[middle:]))

    def shuffled(self, *, seed: int = 0) -> Calibration:
        """The same images in an order drawn by `seed`: the first few then stand for all."""
        return self.take(np.random.default_rng(seed).permutation(len(self)))


def load_calibration(path: str | Path, trace: OnnxTrace) -> Calibration:
    """Reads an `.npz` with `x` (float, [N, ...]) and `y` (integer classes, [N]); nothing is
    unpickled.

    Raises:
        CalibrationError: not such a file, or not what the traced model's input and output need.
    """
    return check_calibration(*read_images(path), trace.model)


def read_images(
    path: str | Path, *, what: str = "calibration"
) -> tuple[NDArray[Any], NDArray[Any]]:
    """`x` and `y` of an `.npz`, as they stand there; `what` is what the caller calls it.

    Raises:
        CalibrationError: not such a file.
    """
    try:
        # Opened here, since np.load leaves a file open that is no whole archive.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as data:
            missing = [name for name in ("x", "y") if name not in data]
            if missing:
                raise CalibrationError(
                    f"{what} {path} has no {missing[0]!r} (it has {sorted(data)}); "
                    "save it with np.savez(path, x=images, y=labels)",
                    field=what,
                )
            return data["x"], data["y"]
    except OSError as error:
        raise CalibrationError(
            f"cannot read {what} {path}: {error.strerror or error}", field=what
        ) from error
    except (EOFError, ValueError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        # np.load of something else than an .npz gives an array, which is no context manager, or
        # advises to unpickle.
        raise CalibrationError(
            f"cannot read {what} {path}: no .npz of plain arrays, or cut short; save it with "
            "np.savez(path, x=images, y=labels)",
            field=what,
        ) from error


def check_calibration(x: NDArray[Any], y: NDArray[Any], model: onnx.ModelProto) -> Calibration:
    """`x` and `y` as a `Calibration`, if `model` can be run on them.

    Raises:
        CalibrationError: shape, type, values or labels do not fit the model's input and output.
    """
    images = check_images(x, y)
    check_fit(images, model)
    return images


def check_fit(images: Calibration, model: onnx.ModelProto, *, what: str = "calibration") -> None:
    """Refuses images that `model` does not take, and classes that it does not know.

    Raises:
        CalibrationError: calling the images `what`.
    """
    x, y = images.x, images.y
    wanted = _input_shape(model)
    if len(wanted) != x.ndim or any(
        have != want for have, want in zip(x.shape[1:], wanted[1:], strict=True) if want is not None
    ):
        shown = ["N", *("?" if want is None else want for want in wanted[1:])]
        raise CalibrationError(
            f"{what}: x is {list(x.shape)}, the model takes [{', '.join(map(str, shown))}]",
            field=what,
        )
    class_count = _class_count(model)
    if y.min() < 0 or (class_count is not None and y.max() >= class_count):
        top = "" if class_count is None else f"..{class_count - 1}"
        raise CalibrationError(
            f"{what}: y holds classes {y.min()}..{y.max()}, the model knows 0{top}", field=what
        )


def check_images(x: NDArray[Any], y: NDArray[Any], *, what: str = "calibration") -> Calibration:
    """`x` and `y` as a `Calibration`, if they are images and their classes, of whatever model.

    Raises:
        CalibrationError: other types or lengths, too few, or not finite.
    """

    def refuse(why: str) -> CalibrationError:
        return CalibrationError(f"{what}: {why}", field=what)

    if not np.issubdtype(x.dtype, np.floating):
        raise refuse(f"x is {x.dtype}; give floats, preprocessed as the model takes them")
    if not np.issubdtype(y.dtype, np.integer) or y.ndim != 1:
        raise refuse(f"y is {y.dtype}{list(y.shape)}; give integer classes of shape [N]")
    if x.ndim == 0 or len(x) != len(y):
        raise refuse(f"x is {list(x.shape)} and y {list(y.shape)}; both need the same first length")
    if len(y) < MIN_IMAGES:
        raise refuse(f"{len(y)} images are too few; give at least {MIN_IMAGES}")
    x = np.ascontiguousarray(x, dtype=np.float32)
    if not np.isfinite(x).all():
        raise refuse("x holds NaN or infinite values")
    return Calibration(x, y.astype(np.int64))


def _input_shape(model: onnx.ModelProto) -> list[int | None]:
    constant = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constant]
    if len(inputs) != 1 or inputs[0].type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
        raise CalibrationError(
            "calibration needs a model with one float32 input; this one has "
            f"{', '.join(repr(value.name) for value in inputs)}",
            field="calibration",
        )
    return _dims(inputs[0])


def _class_count(model: onnx.ModelProto) -> int | None:
    """Classes of an output [N, classes]; None where the file leaves the shape open."""
    if len(model.graph.output) != 1:
        raise CalibrationError(
            f"calibration needs a model with one output of logits [N, classes]; this one has "
            f"{len(model.graph.output)}",
            field="calibration",
        )
    output = model.graph.output[0]
    if not output.type.tensor_type.HasField("shape"):
        return None
    dims = _dims(output)
    if len(dims) != 2 or (dims[1] is not None and dims[1] < 2):
        raise CalibrationError(
            f"calibration needs logits [N, classes], at least two; output {output.name!r} is "
            f"{['?' if dim is None else dim for dim in dims]}",
            field="calibration",
        )
    return dims[1]


def _dims(value: onnx.ValueInfoProto) -> list[int | None]:
    return [
        dim.dim_value if dim.HasField("dim_value") else None
        for dim in value.type.tensor_type.shape.dim
    ]
