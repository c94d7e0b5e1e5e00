"""Files that are there whole or not at all, arrays that unpickle nothing, and digests."""

from __future__ import annotations

import hashlib
import io
import os
import secrets
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def write_atomic(path: Path, content: bytes | Iterator[bytes]) -> None:
    """Writes `content`, whole or in pieces, beside `path`, then renames it there, so no reader sees
    half a file. A link stays and its target is written; a device or a pipe is written to as it is.
    """
    path = Path(os.path.realpath(path)) if path.is_symlink() else path
    if path.exists() and not path.is_file():
        with path.open("wb") as file:
            file.writelines((content,) if isinstance(content, bytes) else content)
        return
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    # Not mkstemp, whose files only their owner may read: a plan is to be passed on.
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except OSError as error:
        error.filename = str(path)
        raise
    try:
        with os.fdopen(handle, "wb") as file:
            file.writelines((content,) if isinstance(content, bytes) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def write_npz(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Writes named arrays as compressed npz, whole or not at all."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **dict(arrays))
    write_atomic(path, buffer.getvalue())


def read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """Reads every array of an npz file; nothing is unpickled.

    Raises:
        ValueError: damaged, or holding objects. OSError: not readable.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as data:
            return {name: data[name] for name in data.files}
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, SyntaxError) as error:
        raise ValueError(f"{path.name} is damaged: {error}") from error
    except (ArithmeticError, AttributeError, LookupError, TypeError, MemoryError) as error:
        # An array without a zip around it, a header that names an absurd shape.
        raise ValueError(f"{path.name} is damaged: {error}") from error
    except RuntimeError as error:  # encrypted, or compressed in a way that is not known
        raise ValueError(f"{path.name} is damaged: {error}") from error


def digest(*parts: str | bytes) -> str:
    """sha256 over parts with their lengths, so that ("ab", "c") and ("a", "bc") differ."""
    whole = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        whole.update(len(data).to_bytes(8, "big"))
        whole.update(data)
    return whole.hexdigest()


def fields_of(value: Any) -> dict[str, Any]:
    """The fields of a dataclass as they are; `json.dumps(..., default=fields_of)` writes those
    within, several times faster than `dataclasses.asdict`, which copies everything."""
    return {one.name: getattr(value, one.name) for one in fields(value)}
