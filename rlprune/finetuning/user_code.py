"""Code that a user names as `package.module:name`: a module's factory, a loss, a metric, a loader.

Importing and calling it runs it, found as by `python` started in the current folder. Whatever it
raises becomes one line that says where.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlprune.errors import InputError, MissingExtraError, RlpruneError

if TYPE_CHECKING:
    from torch import nn


def load_module(source: str, weights: str | Path | None = None, *, seed: int = 0) -> nn.Module:
    """The module that `package.module:factory` returns when called, with weights of a file.

    The weights file is safetensors, which runs nothing. Weights that the factory draws from torch's
    generator are those of `seed`, so that an interrupted run finds them again.

    Raises:
        InputError: no such code, it fails, returns no module, or the weights are not its own.
    """
    try:
        import torch
        from safetensors import SafetensorError
        from safetensors.torch import load_model
        from torch import nn
    except ImportError as error:
        raise MissingExtraError("loading a torch module", "torch") from error
    try:
        made_by = _named(source, "module")
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            made = made_by()
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        # Whatever the user's code raises is what is wrong with it.
        raise _failure(source, "module", error) from error
    if not isinstance(made, nn.Module):
        raise InputError(f"module {source!r} returned a {type(made).__name__}, not a torch module")
    if weights is None:
        return made
    try:
        load_model(made, str(weights))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise InputError(
            f"weights {weights} are not a safetensors file of this module's tensors: "
            f"{' '.join(str(error).split())[:300]}; write one with "
            "safetensors.torch.save_model(module, path)",
            field="weights",
        ) from error
    return made


def load_function(source: str, what: str) -> Callable[..., Any]:
    """The function `package.module:name`; what it raises when called becomes an InputError.

    Args:
        what: what it is for, in messages.

    Raises:
        InputError: no such code, or it is no function.
    """
    function = _named(source, what)

    @wraps(function)
    def guarded(*given: Any) -> Any:
        try:
            return function(*given)
        except RlpruneError:
            raise
        except Exception as error:
            raise _failure(source, what, error) from error

    return guarded


def load_loaders(source: str) -> tuple[Any, Any]:
    """What the factory `package.module:name` makes: a loader to train on, and one to validate on or
    None.

    Raises:
        InputError: no such code, or it fails.
    """
    made = load_function(source, "loader")()
    if isinstance(made, tuple):
        if len(made) != 2:
            raise InputError(
                f"loader {source!r} returned {len(made)} things; return a loader, or a pair "
                "(training, validation)",
                field="loader",
            )
        return made
    return made, None


def _named(source: str, what: str) -> Callable[..., Any]:
    name, _, attribute = source.partition(":")
    if not name or not attribute:
        wanted = "factory" if what in ("module", "loader") else "name"
        raise InputError(f"{what} {source!r}: give package.module:{wanted}", field=what)
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(name), attribute)
    except (Exception, SystemExit) as error:
        raise _failure(source, what, error) from error
    if not callable(found):
        raise InputError(
            f"{what} {source!r} is a {type(found).__name__}, not a function", field=what
        )
    made: Callable[..., Any] = found
    return made


def _failure(source: str, what: str, error: BaseException) -> InputError:
    """In one line, with the place in the user's code, where it got that far."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename != __file__ and not frame.filename.startswith("<frozen")
    ]
    place = f" ({Path(frames[-1].filename).name} line {frames[-1].lineno})" if frames else ""
    told = " ".join(str(error).split())[:300]
    return InputError(f"{what} {source!r}: {type(error).__name__}: {told}{place}", field=what)
