"""Calibration inputs are read from what people have, and refused in one line where they cannot."""

from __future__ import annotations

import io
import wave
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rlprune.errors import CalibrationError
from rlprune.sensitivity.inputs import Reading, collect_inputs, read_inputs

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (5, 8, 12, 3), dtype=np.uint8)


def test_an_npz_gives_its_arrays_by_name_and_its_labels(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", audio=np.ones((4, 9)), state=np.zeros((4, 2)), y=np.arange(4))
    arrays, labels = read_inputs(tmp_path / "a.npz")
    assert sorted(arrays) == ["audio", "state"]
    assert labels is not None and labels.tolist() == [0, 1, 2, 3]


def test_what_would_have_to_be_unpickled_is_passed_over(tmp_path: Path) -> None:
    names = np.array([{"a": 1}], dtype=object)
    np.savez(tmp_path / "a.npz", x=np.ones((4, 9)), names=names)
    assert list(read_inputs(tmp_path / "a.npz")[0]) == [""]
    np.savez(tmp_path / "b.npz", x=names)
    with pytest.raises(CalibrationError, match=r"b\.npz"):
        read_inputs(tmp_path / "b.npz")


def test_x_alone_and_an_npy_are_the_input_of_whatever_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.ones((4, 9)))
    np.save(tmp_path / "a.npy", np.ones((4, 9)))
    for path in (tmp_path / "a.npz", tmp_path / "a.npy"):
        arrays, labels = read_inputs(path)
        assert list(arrays) == [""] and labels is None


def test_a_folder_of_images_is_resized_and_scaled(tmp_path: Path) -> None:
    (tmp_path / "deeper").mkdir()
    for index, pixels in enumerate(PIXELS):
        Image.fromarray(pixels).save(tmp_path / "deeper" / f"{index}.png")
    as_read = read_inputs(tmp_path)[0][""]
    expected = np.moveaxis(PIXELS, -1, 1).astype(np.float32) / 255
    np.testing.assert_allclose(as_read, expected, atol=1e-6)
    reading = Reading(mean=(0.5, 0.5, 0.5), std=(0.25,), layout="nhwc")
    np.testing.assert_allclose(
        read_inputs(tmp_path, reading)[0][""], (PIXELS / 255 - 0.5) / 0.25, atol=1e-5
    )
    raw = read_inputs(tmp_path, Reading(raw=True, layout="nhwc"))[0][""]
    np.testing.assert_array_equal(raw, PIXELS)
    grey = np.asarray(read_inputs(tmp_path, Reading(size=(4, 6), channels=1))[0][""])
    assert grey.shape == (5, 1, 4, 6)


def test_images_of_several_sizes_stay_as_they_are(tmp_path: Path) -> None:
    Image.fromarray(PIXELS[0]).save(tmp_path / "a.png")
    Image.fromarray(PIXELS[1][:4]).save(tmp_path / "b.png")
    samples = read_inputs(tmp_path)[0][""]
    assert [sample.shape for sample in samples] == [(3, 8, 12), (3, 4, 12)]


@pytest.mark.parametrize("width", [1, 2, 4])
def test_sounds_are_mixed_down_resampled_and_cut(tmp_path: Path, width: int) -> None:
    tone = np.sin(np.arange(1600) / 1600 * 2 * np.pi * 5)  # 5 Hz in a second of 1,600
    scaled = tone * (2 ** (8 * width - 1) - 1) + (128 if width == 1 else 0)
    samples = np.repeat(np.round(scaled)[:, None], 2, axis=1)
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(width)
        file.setframerate(1600)
        file.writeframes(samples.astype({1: "u1", 2: "<i2", 4: "<i4"}[width]).tobytes())
    [heard] = read_inputs(tmp_path)[0][""]
    np.testing.assert_allclose(heard, tone, atol=0.02)
    pieces = np.asarray(read_inputs(tmp_path, Reading(rate=800, length=300))[0][""])
    assert pieces.shape == (2, 300)
    np.testing.assert_allclose(pieces.ravel(), tone[::2][:600], atol=0.02)


class _Loader:
    """What a torch DataLoader is, without its workers."""

    def __iter__(self) -> Iterator[list[torch.Tensor]]:
        for start in range(0, 6, 2):
            yield [torch.full((2, 3), float(start)), torch.arange(start, start + 2)]


def test_arrays_mappings_pairs_and_loaders_are_taken() -> None:
    assert list(collect_inputs(np.ones((4, 3)))[0]) == [""]
    assert sorted(collect_inputs({"a": np.ones(4), "b": torch.ones(4)})[0]) == ["a", "b"]
    arrays, labels = collect_inputs((np.ones((4, 3)), np.arange(4)))
    assert labels is not None and np.asarray(arrays[""]).shape == (4, 3)
    arrays, labels = collect_inputs(_Loader())
    assert np.asarray(arrays[""]).shape == (6, 3)
    assert labels is not None and labels.tolist() == [0, 1, 2, 3, 4, 5]
    ragged, _ = collect_inputs([np.ones((2, 5)), np.ones((1, 7))])
    assert [one.shape for one in ragged[""]] == [(5,), (5,), (7,)]


def _pickled(path: Path) -> None:
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)


def _damaged(path: Path) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, x=RNG.random((64, 64)))
    data = bytearray(buffer.getvalue())
    data[200:400] = bytes(200)
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    "make",
    [
        lambda path: None,
        lambda path: path.write_bytes(b"no archive"),
        lambda path: path.write_bytes(b""),
        lambda path: np.savez(path, y=np.arange(3)),
        lambda path: path.mkdir(),
        _pickled,
        _damaged,
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line_that_names_it(
    tmp_path: Path, make: Callable[[Path], object]
) -> None:
    path = tmp_path / "given.npz"
    make(path)
    with pytest.raises(CalibrationError, match=r"given\.npz") as refusal:
        read_inputs(path)
    assert "\n" not in str(refusal.value)


def test_damaged_images_and_sounds_are_named(tmp_path: Path) -> None:
    for name in ("a.png", "a.wav"):
        folder = tmp_path / name[2:]
        folder.mkdir()
        (folder / name).write_bytes(b"damaged")
        with pytest.raises(CalibrationError, match=name):
            read_inputs(folder)


@pytest.mark.parametrize("source", [3, "path", [], [3], [{}], [(1, 2, 3)], [np.array([None])]])
def test_other_things_from_python_are_refused(source: object) -> None:
    with pytest.raises(CalibrationError):
        collect_inputs(source)
