"""Where a calibration set comes from: the user's data, or made-up inputs where there are none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rlprune.errors import CalibrationError
from rlprune.profile.calibration import CalibrationSet
from rlprune.profile.divergence import judged_outputs
from rlprune.profile.fit import Given, fit_inputs, load_calibration
from rlprune.runtime.base import Array

if TYPE_CHECKING:
    from rlprune.graph.from_onnx import OnnxTrace

MADE_UP = "made-up"
"""In place of data: inputs that this project draws."""
NONE = "none"
"""In place of data: none, and nothing is corrected."""
MADE_UP_COUNT = 256
MADE_UP_VALUES = 1 << 25
"""Values of all made-up inputs together (128 MiB); of large inputs there are fewer."""
LEAST_MADE_UP = 24


@dataclass(frozen=True)
class CalibrationData:
    """What a model is calibrated with, and which of its outputs count."""

    data: str | Path | Mapping[str, Any] | Array | CalibrationSet
    """A file, arrays by input name, the one array of a model with one input, or `made-up`."""
    y: Array | None = None
    """Class of every sample [N], where `data` are arrays."""
    outputs: tuple[str, ...] = ()
    """Outputs that plans are judged by, `NAME` or `NAME=logits|values|sigmoid`; all if empty."""


CalibrationSource = str | Path | Mapping[str, Any] | Array | CalibrationSet | CalibrationData
"""Whatever may stand for calibration data in a call."""


def open_calibration(source: CalibrationSource | None, trace: OnnxTrace) -> CalibrationSet | None:
    """The calibration set that is meant; None for no data and for `none`.

    Raises:
        CalibrationError: the data is refused, or an output is not there.
    """
    given = source if isinstance(source, CalibrationData) else None
    data = source.data if isinstance(source, CalibrationData) else source
    if data is None or (isinstance(data, str) and data == NONE):
        return None
    if isinstance(data, CalibrationSet):
        found = data
    elif isinstance(data, str) and data == MADE_UP:
        found = next(made_up_sets(trace))
    elif isinstance(data, str | Path):
        found = load_calibration(data, trace)
    else:
        arrays: dict[str, Given] = (
            {str(key): _array(value) for key, value in data.items()}
            if isinstance(data, Mapping)
            else {"": _array(data)}
        )
        y = None if given is None else given.y
        if (
            y is None
            and "y" in arrays
            and all(value.name != "y" for value in trace.model.graph.input)
        ):
            y = np.asarray(arrays.pop("y"))
        found = fit_inputs(arrays, y, trace)
    if given is not None and given.outputs:
        judged_outputs(trace.model, given.outputs)
        found = replace(found, outputs=given.outputs)
    return found


def is_none(source: CalibrationSource | None) -> bool:
    """Whether a plan is only to be cut."""
    data = source.data if isinstance(source, CalibrationData) else source
    return isinstance(data, str) and data == NONE


def made_up_sets(trace: OnnxTrace) -> Iterator[CalibrationSet]:
    """Sets without the user's data, the best first; the last is noise."""
    count = made_up_count(trace)
    try:
        from rlprune.profile.made_up import made_up_inputs  # type: ignore[import-not-found]

        made = made_up_inputs(trace, count, seed=0)
        yield fit_inputs(made.arrays, None, trace, source=made.kind, least=1)
    except (ImportError, CalibrationError):
        pass
    yield noise_set(trace, count)


def made_up_count(trace: OnnxTrace) -> int:
    """How many inputs are made up for a model."""
    each = sum(int(np.prod(shape, dtype=np.int64)) for shape in trace.graph.input_shapes)
    return max(LEAST_MADE_UP, min(MADE_UP_COUNT, MADE_UP_VALUES // max(each, 1)))


def noise_set(trace: OnnxTrace, count: int, *, seed: int = 0) -> CalibrationSet:
    """Gaussian noise for floats, zeros and ones for all else, of the traced sizes."""
    from onnx import helper

    rng = np.random.default_rng(seed)
    arrays: dict[str, Given] = {}
    for value, shape in zip(trace.model.graph.input, trace.graph.input_shapes, strict=True):
        kind = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        if kind.kind == "f" or kind.name == "bfloat16":
            arrays[value.name] = rng.standard_normal((count, *shape)).astype(kind)
        else:
            arrays[value.name] = rng.integers(0, 2, (count, *shape)).astype(kind)
    return fit_inputs(arrays, None, trace, source=f"{count} inputs of noise", least=1)


def _array(value: Any) -> Given:
    """An array, or one for each sample, of numpy's or of what it can read (torch tensors)."""
    if isinstance(value, list | tuple):
        return [np.asarray(one) for one in value]
    return np.asarray(value)
