"""The code blocks of docs/torch.md run, in order."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "torch.md"


def test_the_pages_blocks_run_and_what_is_reloaded_is_what_was_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.S | re.M)
    assert len(blocks) == 5
    names: dict[str, object] = {"__name__": "page"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the older exporter
        for block in blocks:
            exec(compile(block, PAGE.name, "exec"), names)
    trace, plan = names["trace"], names["plan"]
    again, measured = names["again"], names["measured"]
    assert again.state_dict().keys() == names["small"].state_dict().keys()  # type: ignore[attr-defined]
    keeps = plan.keeps  # type: ignore[attr-defined]
    assert (keeps < trace.graph.widths).any()  # type: ignore[attr-defined]
    assert measured.graph.macs(measured.graph.widths) == trace.graph.macs(keeps)  # type: ignore[attr-defined]
