"""Calibration files: read without unpickling, refused in one line naming what does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_onnx import small_onnx

from rlprune.errors import CalibrationError
from rlprune.graph.from_onnx import OnnxTrace, trace_onnx
from rlprune.sensitivity.fit import load_calibration


@pytest.fixture(scope="module")
def trace() -> OnnxTrace:
    return trace_onnx(small_onnx())


X = np.zeros((20, 3, 16, 16), np.float32)
Y = np.arange(20) % 10


def test_images_and_labels_are_read(trace: OnnxTrace, tmp_path: Path) -> None:
    np.savez(tmp_path / "c.npz", x=X.astype(np.float64), y=Y.astype(np.uint8))
    calibration = load_calibration(tmp_path / "c.npz", trace)
    assert calibration.x.dtype == np.float32 and calibration.x.shape == X.shape
    assert calibration.y.dtype == np.int64
    np.testing.assert_array_equal(calibration.y, Y)


def _with(array: np.ndarray, index: int, value: float) -> np.ndarray:
    changed = array.copy()
    changed[index] = value
    return changed


@pytest.mark.parametrize(
    ("arrays", "named"),
    [
        ({"images": X, "y": Y}, "no 'x'"),
        ({"x": (X * 255).astype(np.uint8), "y": Y}, "uint8"),
        ({"x": X, "y": Y.astype(np.float32)}, "float32"),
        ({"x": X, "y": Y[:, None]}, "[20, 1]"),
        ({"x": X[:, 0], "y": Y}, "takes [N, 3, 16, 16]"),
        ({"x": X.transpose(0, 2, 3, 1), "y": Y}, "[20, 16, 16, 3]"),
        ({"x": X[:18], "y": Y}, "same first length"),
        ({"x": X[:4], "y": Y[:4]}, "too few"),
        ({"x": _with(X, 3, np.nan), "y": Y}, "NaN"),
        ({"x": _with(X, 3, np.inf), "y": Y}, "infinite"),
        ({"x": X, "y": _with(Y, 0, 10)}, "0..9"),
        ({"x": X, "y": _with(Y, 0, -1)}, "-1..9"),
        ({"x": np.array(1.0), "y": Y}, "takes [N, 3, 16, 16]"),
    ],
)
def test_what_the_model_cannot_take_is_refused(
    trace: OnnxTrace, tmp_path: Path, arrays: dict[str, Any], named: str
) -> None:
    np.savez(tmp_path / "c.npz", **arrays)
    with pytest.raises(CalibrationError) as refusal:
        load_calibration(tmp_path / "c.npz", trace)
    assert named in str(refusal.value) and "\n" not in str(refusal.value)
    assert refusal.value.field == "calibration"


def test_nothing_is_unpickled(trace: OnnxTrace, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "sprung",))

    np.savez(tmp_path / "c.npz", x=np.array([Trap()], dtype=object), y=Y)
    with pytest.raises(CalibrationError):
        load_calibration(tmp_path / "c.npz", trace)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("content", [b"", b"not an archive", b"PK\x03\x04 cut short"])
def test_other_files_are_refused(trace: OnnxTrace, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "c.npz").write_bytes(content)
    with pytest.raises(CalibrationError, match="cannot read"):
        load_calibration(tmp_path / "c.npz", trace)


def test_a_truncated_archive_is_refused(trace: OnnxTrace, tmp_path: Path) -> None:
    np.savez(tmp_path / "c.npz", x=X, y=Y)
    whole = (tmp_path / "c.npz").read_bytes()
    (tmp_path / "c.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CalibrationError, match="cannot read"):
        load_calibration(tmp_path / "c.npz", trace)


def test_a_single_array_is_read_and_a_missing_file_refused(
    trace: OnnxTrace, tmp_path: Path
) -> None:
    np.save(tmp_path / "c.npy", X)
    read = load_calibration(tmp_path / "c.npy", trace)
    assert len(read) == len(X) and read.y is None
    with pytest.raises(CalibrationError, match="cannot read"):
        load_calibration(tmp_path / "absent.npz", trace)


def test_labels_are_optional_and_ignored_where_nothing_is_classified(tmp_path: Path) -> None:
    np.savez(tmp_path / "plain.npz", x=X)
    assert load_calibration(tmp_path / "plain.npz", trace_onnx(small_onnx())).y is None
    model = small_onnx()
    model.graph.node.pop()  # the classifier
    model.graph.output[0].name = "d"
    for dim in (16, 16):
        model.graph.output[0].type.tensor_type.shape.dim.add().dim_value = dim
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 64
    np.savez(tmp_path / "c.npz", x=X, y=np.zeros((20, 16, 16), np.int64))
    assert load_calibration(tmp_path / "c.npz", trace_onnx(model)).y is None
