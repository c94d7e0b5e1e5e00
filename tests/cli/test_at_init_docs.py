"""docs/at-init.md: its commands and code run in order as they stand, but for the device."""

from __future__ import annotations

import re
import shlex
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from command_line import Rlprune

PAGE = Path(__file__).parents[2] / "docs" / "at-init.md"


def test_the_page_runs(rlprune: Rlprune, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = PAGE.read_text()
    nets, code = re.findall(r"^```python\n(.*?)^```", text, re.S | re.M)
    (commands,) = re.findall(r"^```\n(rlprune .*?)^```", text, re.S | re.M)
    (folder / "mynets.py").write_text(nets)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "mynets", raising=False)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((80, 3, 32, 32)).astype(np.float32)
    np.savez(folder / "train.npz", x=x, y=np.arange(80) % 10)
    for line in commands.splitlines():
        # Measuring this machine takes a minute, and 30 epochs teach nothing on noise.
        line = line.replace("--budget-ratio", "--device macs --budget-ratio")
        line = line.replace("--epochs 30", "--epochs 1")
        result = rlprune(*shlex.split(line)[1:])
        assert result.exit_code == 0, result.output
    assert (folder / "trained" / "model.onnx").is_file()
    names: dict[str, object] = {"__name__": "page"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the older exporter
        code = code.replace("budget_ratio", 'device="macs", budget_ratio')
        exec(compile(code, PAGE.name, "exec"), names)
    plan, trace = names["plan"], names["trace"]
    assert plan.params < 0.6 * trace.graph.params(trace.graph.widths)  # type: ignore[attr-defined]
