"""The Python of docs/calibration.md runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import onnx
import pytest
from small_onnx import small_onnx

PAGE = Path(__file__).resolve().parents[2] / "docs" / "calibration.md"


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = small_onnx()
    [code] = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    output = model.graph.output[0].name
    onnx.save(model, "model.onnx")
    exec(compile(code.replace('"y=logits"', f'"{output}=logits"'), str(PAGE), "exec"), {})
