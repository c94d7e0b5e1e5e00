"""Reading what a user has as calibration data: files, folders, arrays, loaders.

Nothing is checked against a model here, and nothing is unpickled. The answer is arrays by the name
of the graph input they are for; the name is empty where the source names none.
"""

from __future__ import annotations

import wave
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rlprune.errors import CalibrationError, MissingExtraError
from rlprune.runtime.base import Array

IMAGES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff"))
MOST_FILES = 4096
"""Files read of a folder; more add nothing that calibration would notice."""
MOST_SAMPLES = 4096
"""Samples taken from an iterable, which may have no end."""

Inputs = Mapping[str, Array | Sequence[Array]]
"""By graph input: samples along axis 0, or a list of samples of different sizes."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How files become samples: `(pixel / 255 - mean) / std`, and a sound's rate."""

    mean: tuple[float, ...] = ()
    """Of every channel, pixels as 0..1; empty: 0."""
    std: tuple[float, ...] = ()
    """Of every channel, pixels as 0..1; empty: 1."""
    layout: Literal["nchw", "nhwc"] = "nchw"
    size: tuple[int, int] | None = None
    """Height and width that images are resized to; None leaves each as it is."""
    channels: int = 3
    """1 for grey, 3 for RGB, 4 for RGB with alpha."""
    raw: bool = False
    """Pixels as bytes 0..255, for models that take uint8."""
    rate: int = 0
    """Samples a second that the model hears; 0 takes what the files have."""
    length: int = 0
    """Samples of one sound that the model takes; longer files are cut into pieces of it, 0 leaves
    each file whole."""


def read_inputs(
    path: str | Path, reading: Reading | None = None, *, what: str = "calibration"
) -> tuple[Inputs, Array | None]:
    """The inputs of an `.npz` or `.npy` file or of a folder of images or sounds, and labels if the
    `.npz` has a `y`.

    Raises:
        CalibrationError: nothing there can be read; calls the data `what`.
        MissingExtraError: images without Pillow.
    """
    reading = reading or Reading()
    path = Path(path)
    if path.is_dir():
        return {"": _folder(path, reading, what)}, None
    if path.exists() and not path.is_file():
        raise CalibrationError(f"{what} {path} is no file and no folder", field=what)
    try:
        with open(path, "rb") as file:
            data = np.load(file, allow_pickle=False)
            if isinstance(data, np.ndarray):
                return {"": data}, None
            with data:
                arrays = _plain(data)
    except OSError as error:
        raise CalibrationError(
            f"cannot read {what} {path}: {error.strerror or error}", field=what
        ) from error
    except MemoryError as error:
        raise CalibrationError(f"{what} {path} does not fit into memory", field=what) from error
    except (EOFError, ValueError, TypeError, AttributeError, KeyError, zipfile.BadZipFile) as error:
        raise CalibrationError(
            f"cannot read {what} {path}: give an .npz or .npy of plain arrays (np.savez(path, "
            "x=inputs), with y=classes if there are labels), or a folder of images or .wav files",
            field=what,
        ) from error
    except Exception as error:  # zlib's and lzma's errors share no base class
        raise CalibrationError(f"{what} {path} is damaged: {error}", field=what) from error
    labels = arrays.pop("y", None)
    if not arrays:
        raise CalibrationError(
            f"{what} {path} holds no inputs; save them with np.savez(path, x=inputs)", field=what
        )
    return _anonymous(arrays), labels


def _plain(data: Any) -> dict[str, Array]:
    """The arrays of an `.npz`; one of Python objects, which would have to be unpickled, is passed
    over unless it is the input or the labels.

    Raises:
        ValueError: `x` or `y` is one.
    """
    arrays: dict[str, Array] = {}
    for name in data.files:
        try:
            arrays[name] = data[name]
        except ValueError:
            if name in ("x", "y"):
                raise
    return arrays


def collect_inputs(source: Any, *, what: str = "calibration") -> tuple[Inputs, Array | None]:
    """The same from Python: an array, a mapping of arrays by input name, a pair (inputs, labels),
    or an iterable of batches of those, such as a torch DataLoader.

    Raises:
        CalibrationError: it is none of these, or empty.
    """
    if (array := _array(source)) is not None:
        return {"": array}, None
    if isinstance(source, Mapping):
        return _one_batch(source, what)
    if isinstance(source, tuple) and len(source) == 2:
        return _one_batch(source, what)
    if isinstance(source, str | bytes) or not isinstance(source, Iterable):
        raise CalibrationError(
            f"{what} is a {type(source).__name__}; give a path, an array, a mapping of arrays by "
            "input name, or a loader of batches",
            field=what,
        )
    batches = []
    seen = 0
    for batch in source:
        batches.append(_one_batch(batch, what))
        seen += max((len(array) for array in batches[-1][0].values()), default=0)
        if seen >= MOST_SAMPLES:
            break
    if not batches:
        raise CalibrationError(f"{what} has no batches", field=what)
    names = list(batches[0][0])
    if any(list(arrays) != names for arrays, _ in batches):
        raise CalibrationError(f"{what}: its batches hold different inputs", field=what)
    joined: dict[str, Array | Sequence[Array]] = {}
    for name in names:
        parts = [np.asarray(arrays[name]) for arrays, _ in batches]
        same = len({part.shape[1:] for part in parts}) == 1
        joined[name] = np.concatenate(parts) if same else [one for part in parts for one in part]
    if any(labels is None for _, labels in batches):
        return joined, None
    return joined, np.concatenate([labels for _, labels in batches if labels is not None])


def _one_batch(batch: Any, what: str) -> tuple[Inputs, Array | None]:
    """One batch's inputs by name and its labels."""
    if (array := _array(batch)) is not None:
        return {"": array}, None
    if isinstance(batch, Mapping):
        arrays = {str(name): _array(value) for name, value in batch.items()}
        labels = arrays.pop("y", None)
        if arrays and all(array is not None for array in arrays.values()):
            return _anonymous({k: v for k, v in arrays.items() if v is not None}), labels
    if isinstance(batch, tuple | list) and len(batch) in (1, 2):
        inputs, labels = batch[0], _array(batch[1]) if len(batch) == 2 else None
        if isinstance(inputs, Mapping):
            return _one_batch(inputs, what)[0], labels
        if (array := _array(inputs)) is not None and (len(batch) == 1 or labels is not None):
            return {"": array}, labels
    raise CalibrationError(
        f"{what} holds a {type(batch).__name__} that is no array, no mapping of arrays by input "
        "name and no pair of inputs and labels",
        field=what,
    )


def _anonymous(arrays: dict[str, Array]) -> dict[str, Array]:
    """`x` alone says no more than "the input"."""
    return {"": arrays["x"]} if list(arrays) == ["x"] else arrays


def _array(value: Any) -> Array | None:
    """An array or tensor as an array; None for anything else."""
    if hasattr(value, "detach"):  # a torch tensor, told without importing torch
        value = value.detach().cpu().numpy()
    return value if isinstance(value, np.ndarray) and value.dtype != object else None


def _folder(path: Path, reading: Reading, what: str) -> Array | list[Array]:
    """The images or sounds of a folder and those below it, in the order of their names."""
    files = sorted(file for file in path.rglob("*") if file.is_file())
    images = [file for file in files if file.suffix.lower() in IMAGES]
    sounds = [file for file in files if file.suffix.lower() == ".wav"]
    if not images and not sounds:
        raise CalibrationError(
            f"{what} folder {path} holds no images ({', '.join(sorted(IMAGES))}) and no .wav",
            field=what,
        )
    if images and sounds:
        raise CalibrationError(
            f"{what} folder {path} holds both images and sounds; give one kind", field=what
        )
    samples: list[Array] = []
    for file in (images or sounds)[:MOST_FILES]:
        samples += [_image(file, reading, what)] if images else _sound(file, reading, what)
    if len({sample.shape for sample in samples}) == 1:
        return np.stack(samples)
    return samples


def _image(path: Path, reading: Reading, what: str) -> Array:
    """One image as the model takes it, [C, H, W] or [H, W, C]."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ModuleNotFoundError as error:
        raise MissingExtraError("reading images", "images") from error
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[reading.channels]
    try:
        with Image.open(path) as image:
            converted = image.convert(mode)
            if reading.size is not None:
                height, width = reading.size
                converted = converted.resize((width, height), Image.Resampling.BILINEAR)
            pixels = np.asarray(converted)
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError, MemoryError) as error:
        raise CalibrationError(f"{what}: cannot read image {path}: {error}", field=what) from error
    except Image.DecompressionBombError as error:
        raise CalibrationError(f"{what}: image {path} is too large", field=what) from error
    pixels = pixels.reshape(*pixels.shape[:2], reading.channels)
    if not reading.raw:
        mean = np.array(reading.mean or (0.0,), dtype=np.float32)
        std = np.array(reading.std or (1.0,), dtype=np.float32)
        if len(mean) not in (1, reading.channels) or len(std) not in (1, reading.channels):
            raise CalibrationError(
                f"{what}: --mean and --std give {len(mean)} and {len(std)} numbers, the model "
                f"takes {reading.channels} channels",
                field=what,
            )
        pixels = (pixels.astype(np.float32) / np.float32(255) - mean) / std
    return np.ascontiguousarray(np.moveaxis(pixels, -1, 0)) if reading.layout == "nchw" else pixels


def _sound(path: Path, reading: Reading, what: str) -> list[Array]:
    """The pieces of one `.wav`, mono, -1..1, [T] each."""
    try:
        with wave.open(str(path)) as file:
            rate, width, channels = file.getframerate(), file.getsampwidth(), file.getnchannels()
            data = file.readframes(file.getnframes())
    except (OSError, EOFError, wave.Error, ValueError) as error:
        raise CalibrationError(f"{what}: cannot read sound {path}: {error}", field=what) from error
    if width not in (1, 2, 4):
        raise CalibrationError(
            f"{what}: {path} has {8 * width} bits a sample; give 8, 16 or 32", field=what
        )
    data = data[: len(data) // (width * channels) * width * channels]
    values = np.frombuffer(data, dtype={1: "u1", 2: "<i2", 4: "<i4"}[width]).astype(np.float64)
    values = (values - 128) / 128 if width == 1 else values / 2.0 ** (8 * width - 1)
    mono = values.reshape(-1, channels).mean(1)
    if reading.rate and rate != reading.rate and len(mono):
        when = np.arange(0, len(mono) / rate, 1 / reading.rate)
        mono = np.interp(when, np.arange(len(mono)) / rate, mono)
    mono = mono.astype(np.float32)
    if not reading.length:
        return [mono]
    count = len(mono) // reading.length
    if count == 0:  # shorter than the model hears: silence behind it
        return [np.pad(mono, (0, reading.length - len(mono)))]
    return list(mono[: count * reading.length].reshape(count, reading.length))
