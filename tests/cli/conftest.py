"""The real command line, with a data folder of its own for every test."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import Rlprune
from small_onnx import small_onnx
from typer.testing import CliRunner, Result

from rlprune.cli.app import app


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder a test works in; the user's data folder is elsewhere."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.chdir(work)
    return work


@pytest.fixture
def rlprune(folder: Path) -> Rlprune:
    """Runs `rlprune ARGUMENTS`."""

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return run


@pytest.fixture
def model(folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(small_onnx().SerializeToString())
    return path
