"""Every code block of the README and of the pages in docs/ runs, in order, as it stands there.

`pages.py` says what running a page means and what is replaced to keep it short.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from pages import Setting, blocks, run_page

ROOT = Path(__file__).parent.parent
PAGES = [
    page.relative_to(ROOT).as_posix()
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
]
SETTINGS: dict[str, Setting] = {}


@pytest.mark.parametrize("name", [name for name in PAGES if blocks(ROOT / name)])
def test_the_blocks_of_a_page_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    before = set(sys.modules)
    try:
        run_page(ROOT / name, folder, SETTINGS.get(name, Setting()))
    finally:
        for module in set(sys.modules) - before:
            if (folder / f"{module}.py").exists():  # the next page has another of that name
                del sys.modules[module]
