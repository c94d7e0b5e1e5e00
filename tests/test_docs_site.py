"""The documentation site builds without a warning, asks no other host for anything, and its page of
the architecture is about this code."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; every link, anchor and name of the API that leads nowhere is an error."""
    pytest.importorskip("mkdocs", reason='the site needs the extra "docs"')
    pytest.importorskip("mkdocstrings", reason='the site needs the extra "docs"')
    out = tmp_path_factory.mktemp("site")
    command = f"-m mkdocs build --strict -f scripts/mkdocs.yml -d {out}"
    done = subprocess.run(
        [sys.executable, *command.split()],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    return out


def test_site_builds_with_every_page_and_without_a_warning(site: Path) -> None:
    pages = {path.relative_to(DOCS).with_suffix(".html") for path in DOCS.rglob("*.md")}
    assert pages and not [page for page in pages if not (site / page).exists()]
    assert (site / "plan.schema.json").exists()


def test_pages_load_nothing_from_other_hosts(site: Path) -> None:
    for path in site.rglob("*.html"):
        tags = re.findall(r"<(?:script|link|img|iframe|source)\b[^>]*>", path.read_text("utf-8"))
        loaded = [tag for tag in tags if re.search(r"""(?:src|href)=["']?(?:https?:)?//""", tag)]
        assert not loaded, f"{path.relative_to(site)}: {loaded}"
        assert 'class="mermaid"' not in path.read_text("utf-8")  # the theme would fetch it


def test_rooms_of_the_architecture_are_those_that_are_checked() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = settings["tool"]["importlinter"]["contracts"][0]["layers"]
    checked = [{room.strip().removeprefix("rlprune.") for room in one.split("|")} for one in layers]
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| ([^|]*) \|", page, flags=re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(len(layers), 0, -1))
    assert [set(re.findall(r"`([^`]+)`", rooms)) for _, rooms in rows] == checked


def test_files_that_pages_name_exist() -> None:
    for name in ("architecture", "glossary", "environment", "plan_format", "python_api", "index"):
        page = (DOCS / f"{name}.md").read_text(encoding="utf-8")
        for path in re.findall(r"`((?:[a-z_]+/)+[a-z_*]+(?:\.py)?)`", page):
            found = [*ROOT.glob(path), *(ROOT / "rlprune").glob(path)]
            assert found or path.startswith(("learned/",)), f"{name}.md names {path}"


def test_glossary_is_in_order_and_explains_each_word_once() -> None:
    words = re.findall(r"^## (.+)$", (DOCS / "glossary.md").read_text("utf-8"), flags=re.MULTILINE)
    assert len(words) > 50 and words == sorted(set(words), key=str.lower)
