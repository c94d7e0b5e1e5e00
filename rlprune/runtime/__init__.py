"""Runtimes by name. Importing this package imports none of them."""

from __future__ import annotations

from importlib import import_module

from rlprune.errors import MissingExtraError, NotFoundError
from rlprune.runtime.base import Runtime, Session, check_precision

__all__ = ["RUNTIMES", "Runtime", "Session", "check_precision", "get_runtime"]

RUNTIMES = {
    "ort": ("rlprune.runtime.ort", "OrtRuntime", "device"),
    "openvino": ("rlprune.runtime.openvino", "OpenvinoRuntime", "openvino"),
    "mnn": ("rlprune.runtime.mnn", "MnnRuntime", "mnn"),
}
"""By name: the module, the class in it, and the extra that installs what it needs."""


def get_runtime(name: str = "ort") -> Runtime:
    """The runtime of that name.

    Raises:
        NotFoundError: no runtime of that name.
        MissingExtraError: it is not installed.
    """
    if name not in RUNTIMES:
        raise NotFoundError(
            f"no runtime {name[:40]!r}; there are: {', '.join(RUNTIMES)}", field="runtime"
        )
    module, class_name, extra = RUNTIMES[name]
    try:
        made = getattr(import_module(module), class_name)
    except ModuleNotFoundError as error:
        raise MissingExtraError("measuring", extra) from error
    runtime: Runtime = made()
    return runtime
