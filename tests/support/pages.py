"""Runs the code blocks of a page of documentation in order, in one folder.

A page is run as its reader would run it:

- A `python` block is executed; all blocks of a page share one namespace. One that begins with the
  comment `# name.py` is written to that file instead.
- A `sh` block is a list of commands. In a `console` block commands begin with `$ `, and what
  follows is their output. `rlprune` and `python FILE.py` run in this process; of commands that
  serve or train (`CHECKED`) only the options are checked; what sets a machine up (`NOT_RUN`) is
  left out; any other command is an error.
- Output is compared loosely: the first word of every shown line must begin a printed line, where
  all numbers are alike and `...` stands for anything.
- Blocks in other languages are not run.

A page's `Setting` says what it finds in its folder and what is replaced, so that nothing is
measured and nobody trains for long: plans are made by counting MACs, for one epoch.
"""

from __future__ import annotations

import re
import runpy
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import typer.main
from typer.testing import CliRunner

from rlprune.cli.app import app
from rlprune.service.server import start
from rlprune.store import open_store

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.M | re.S)
FILE = re.compile(r"# (\w+\.py)\n")
CHOICE = re.compile(r" (\d+ of \d+ channels|\d+(x\d+)+ of \d+(x\d+)+|left out)$")
"""The end of a row that says what stays of a site."""
CHECKED = ("serve", "work", "train")
NOT_RUN = ("git", "python3", ".", "pip", "cd", "openssl", "export", "mv", "scripts/", "docker")
REPLACED = (
    (r"--epochs \d+", "--epochs 1"),
    (r"EPOCHS = \d+", "EPOCHS = 1"),
    (r"epoch_count=\d+", "epoch_count=1"),
    (r" --certify\b", ""),
    # Measuring takes minutes.
    (r"(rlprune plan(?!.* --device macs)(?:(?! --device).)*)( --device \S+)?", r"\1 --device macs"),
    (r"(rlprune\.plan\((?!.*device=).*?)budget_", r'\1device="macs", budget_'),
)


@dataclass(frozen=True, slots=True)
class Setting:
    """What a page needs to run."""

    prepare: Callable[[Path], None] = lambda folder: None
    """Makes the files that the page's reader has."""
    replaced: tuple[tuple[str, str], ...] = ()
    """Patterns and what stands in their place, after `REPLACED`."""
    check: Callable[[dict[str, Any]], None] = lambda names: None
    """Looks at what the page's Python defined, once it ran."""
    server: str = ""
    """Address at which the page finds a server; one is started on a free port in its place."""


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of every block of a page that is run."""
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [(language, text) for language, text in found if language in ("python", "sh", "console")]


def run_page(page: Path, folder: Path, setting: Setting) -> None:
    """Runs a page in `folder`, which is the current one and on `sys.path`."""
    setting.prepare(folder)
    if not setting.server:
        setting.check(_run_blocks(page, folder, setting.replaced))
        return
    store = open_store(f"sqlite:///{folder / 'server.sqlite'}")
    server = start("127.0.0.1:0", store)
    try:
        replaced = (*setting.replaced, (re.escape(setting.server), server.address))
        setting.check(_run_blocks(page, folder, replaced))
    finally:
        server.stop(0.5)
        store.close()


def _run_blocks(page: Path, folder: Path, replaced: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "page"}
    for language, text in blocks(page):
        for pattern, with_what in (*REPLACED, *replaced):
            text = re.sub(pattern, with_what, text)
        file = FILE.match(text)
        if language == "python" and file:
            (folder / file[1]).write_text(text, encoding="utf-8")
        elif language == "python":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the older exporter is deprecated
                exec(compile(text, page.name, "exec"), names)
        else:
            for command, shown in commands(text, language):
                printed = run(command)
                assert printed is None or not (missing := absent(shown, printed)), (
                    f"{page.name}: {command} no longer prints {missing}, but\n{printed}"
                )
    return names


def commands(text: str, language: str) -> Iterator[tuple[str, list[str]]]:
    """Every command of a block with the output that is shown below it."""
    lines = text.replace("\\\n", " ").splitlines()
    if language == "sh":
        yield from ((line, []) for line in lines if line.strip())
        return
    command, shown = "", list[str]()
    for line in lines:
        if line.startswith("$ "):
            if command:
                yield command, shown
            command, shown = line[2:], []
        else:
            shown.append(line)
    yield command, shown


def run(command: str) -> str | None:
    """What a command printed, which must succeed; None where it is not run."""
    words = shlex.split(command, comments=True)
    if not words or words[0].startswith(NOT_RUN):
        return None
    if words[0] == "python":
        return _run_file(words[1:])
    assert words[0] == "rlprune", f"a page may not run {command!r}"
    if words[1] in CHECKED:
        check_options(words[1:])
        return None
    result = CliRunner().invoke(app, words[1:])
    assert result.exit_code == 0, f"{command}\n{result.output}"
    return result.stdout


def check_options(words: list[str]) -> None:
    """Raises where a command or one of its options does not exist."""
    group: Any = typer.main.get_command(app)
    known = {name for option in group.commands[words[0]].params for name in option.opts}
    assert {word for word in words if word.startswith("-")} <= known, words


def absent(shown: list[str], printed: str) -> list[str]:
    """The shown lines whose first word begins no printed line."""
    begun = {_first(line) for line in printed.splitlines()}
    if "counted" in begun:  # MACs are counted where latency would be predicted and measured
        begun |= {"predicted", "measured"}
        # Other sites change in such a plan.
        shown = [line for line in shown if not CHOICE.search(line)]
    return [line for line in shown if line.strip() not in ("", "...") and _first(line) not in begun]


def _first(line: str) -> str:
    words = line.split()
    return re.sub(r"\d+(\.\d+)?|─+", "#", words[0]) if words else ""


def _run_file(words: list[str]) -> str:
    printed, before = StringIO(), sys.argv
    sys.argv = words
    try:
        with redirect_stdout(printed), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            runpy.run_path(words[0], run_name="__main__")
    finally:
        sys.argv = before
    return printed.getvalue()
