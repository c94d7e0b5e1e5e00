"""The page of supported operators is the one that the rules give."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_page_of_operators_is_current() -> None:
    script = ROOT / "scripts" / "gen_operators"
    done = subprocess.run(
        [sys.executable, str(script), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_page_tells_of_every_operator_with_a_rule() -> None:
    import rlprune.graph.from_onnx  # noqa: F401  (registers the rules)
    from rlprune.graph.scope import RULES

    text = (ROOT / "docs" / "operators.md").read_text(encoding="utf-8")
    assert RULES and all(f"`{op}`" in text for op in RULES)
