"""What a run of the command line came to."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from typer.testing import Result

Rlprune = Callable[..., Result]
"""`rlprune(*arguments)`: see the fixture of that name."""


def answer(result: Result) -> Any:
    """The JSON that a command printed; nothing else may stand on stdout."""
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refusal(result: Result, folder: Path, *, also: tuple[str, ...] = ()) -> str:
    """The one line of a refused command, which left no file behind but `also`."""
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    there = {path.name.removesuffix("-wal").removesuffix("-shm") for path in folder.iterdir()}
    assert there <= {"model.onnx", "plan.json", "data.npz", *also}
    return line.removeprefix("error: ")
