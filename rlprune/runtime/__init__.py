"""Runtimes by name. Importing this package imports none of them."""

from __future__ import annotations

from rlprune.errors import MissingExtraError, NotFoundError
from rlprune.runtime.base import Runtime, Session

__all__ = ["Runtime", "Session", "get_runtime"]


def get_runtime(name: str = "ort") -> Runtime:
    """The runtime of that name.

    Raises:
        NotFoundError: no runtime of that name.
        MissingExtraError: it is not installed.
    """
    if name != "ort":
        raise NotFoundError(f"no runtime {name!r}; there is: ort", field="runtime")
    try:
        from rlprune.runtime.ort import OrtRuntime
    except ModuleNotFoundError as error:
        raise MissingExtraError("measuring", "device") from error
    return OrtRuntime()
