"""Tensors whose data lies in another file.

Data is read from plain files within the model's own folder only. Links are followed where they end
within it. Where the model itself is a link (Hugging Face's cache: `snapshots/1/model.onnx` to
`../../blobs/5c8f`), its data lies beside where it ends, or is a link beside it that ends there.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from onnx import TensorProto

from rlprune.errors import ModelError

MAX_BYTES = 2**31 - 1
"""Largest model, external data included; protobuf's own limit."""


def read_plain(path: Path) -> bytes:
    """A file's bytes; links are followed.

    Raises:
        ModelError: it cannot be read, is no plain file, or is larger than `MAX_BYTES`.
    """
    try:
        _check_plain(path, path.stat())
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ModelError(f"{path} has {size} bytes, more than {MAX_BYTES}")
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from error


def _check_plain(path: Path, status: os.stat_result) -> None:
    """Raises ModelError for a pipe, a device or a socket, whose reading may never end."""
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        raise ModelError(f"{path} is a pipe or a device; give a file")


def data_path(location: str, model: Path) -> Path:
    """Where the external data of a model file lies, links resolved.

    Raises:
        ModelError: outside the model's folder, or behind a link that ends there.
    """
    shown = location if isinstance(location, str) else repr(location)
    if not isinstance(location, str) or "\0" in location:
        raise ModelError(f"the external data's name {shown!r} is no path")
    parts = PurePosixPath(location.replace("\\", "/")).parts
    if not parts or location.startswith(("/", "\\")) or ".." in parts or ":" in parts[0]:
        raise ModelError(f"external data {shown!r} lies outside the model's folder; refused")
    try:
        homes = (model.parent.resolve(), model.resolve().parent)
        found = [home.joinpath(*parts).resolve() for home in homes]
        path = next((one for one in found if one.exists()), found[0])
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelError(f"cannot read external data {shown!r}: {error}") from error
    if not any(path.is_relative_to(home) for home in homes):
        raise ModelError(
            f"external data {shown!r} is a link out of the model's folder; put the file itself "
            "beside the model (cp -L)"
        )
    return path


def embed(tensor: TensorProto, model: Path | None, length: int, budget: int) -> None:
    """Reads a tensor's external data into it.

    Args:
        tensor: changed.
        model: file that it belongs to; None where the model has none.
        length: bytes that its shape needs. budget: bytes that it may have.

    Raises:
        ModelError: no such data, not of that length, or not within the model's folder.
    """
    if model is None:
        raise ModelError(
            f"tensor {tensor.name!r} keeps its data in another file; "
            "give the path of the model, or save it with all data inside"
        )
    try:
        entries = {entry.key: entry.value for entry in tensor.external_data}
    except UnicodeDecodeError as error:
        raise ModelError(
            f"the external data of {tensor.name!r} has a name that is not UTF-8"
        ) from error
    location = entries.get("location", "")
    path = data_path(location, model)
    if length > budget:
        raise ModelError(
            f"with {tensor.name!r} the model has more than {MAX_BYTES} bytes, which no ONNX "
            "file in one piece can; split it, or use a smaller precision"
        )
    try:
        offset = int(entries.get("offset", "0"))
        stated = int(entries.get("length", str(length)))
        if offset < 0 or length < 0 or stated != length:
            raise ModelError(f"external data of {tensor.name!r} has the wrong length")
        # O_NOFOLLOW: a link that appeared after the test above is not followed; O_NONBLOCK: nor is
        # a pipe waited for.
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        with os.fdopen(os.open(path, flags), "rb") as file:
            _check_plain(path, os.fstat(file.fileno()))
            file.seek(offset)
            data = file.read(length)
    except (OSError, ValueError, OverflowError) as error:
        raise ModelError(f"cannot read external data {location!r}: {error}") from error
    if len(data) != length:
        raise ModelError(f"external data {location!r} is cut short")
    tensor.raw_data = data
    del tensor.external_data[:]
    tensor.ClearField("data_location")


def data_files(tensors: Iterable[TensorProto], model: Path) -> set[Path]:
    """The files that a model's tensors keep their data in, links resolved; those that would be
    refused are left out."""
    found = set()
    for tensor in tensors:
        if tensor.data_location == TensorProto.EXTERNAL:
            for entry in tensor.external_data:
                try:
                    if entry.key == "location":
                        found.add(data_path(entry.value, model))
                except (ModelError, UnicodeDecodeError):
                    continue
    return found
