"""Kept rows of benchmarks: not measured again but for a drawn tenth, which must agree."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import harness
from benchmarks.harness import Bench, Row

CELLS = [f"cell {index}" for index in range(20)]


@pytest.fixture(autouse=True)
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    return tmp_path / "sample.jsonl"


def run(value: float, *words: str) -> list[str]:
    """Runs a benchmark of as many cells; the names of those that were measured."""
    bench, measured = Bench("sample", "A sample."), []
    bench.parse(list(words))

    def rows(cell: str) -> Iterator[Row]:
        measured.append(cell)
        yield Row(f"{cell}/loss", value, "nats", 1.0, "min", 3, (0.4, 0.6))

    with bench.measuring():
        for cell in CELLS:
            bench.cell(cell, lambda cell=cell: rows(cell))  # type: ignore[misc]
    return measured


def test_what_is_kept_is_printed_as_kept_and_a_tenth_is_measured_again(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(0.5) == CELLS
    kept = [json.loads(line) for line in results.read_text().splitlines()]
    assert len(kept) == 20
    assert {"value", "n", "seed", "commit", "command", "date"} <= kept[0].keys()
    capsys.readouterr()
    assert len(run(0.55)) == 2
    said = capsys.readouterr().out
    assert said.count("kept") == 20 and said.count("again; kept is 0.500") == 2
    assert "target <= 1: met" in said
    assert len(results.read_text().splitlines()) == 20


def test_a_row_outside_of_what_was_kept_fails_the_run() -> None:
    run(0.5)
    with pytest.raises(SystemExit, match="outside of what was kept: cell"):
        run(0.7)


def test_fresh_measures_all_and_replaces_what_was_kept() -> None:
    run(0.5)
    assert run(0.7, "--fresh") == CELLS
    assert len(run(0.55, "--seed", "1")) == 20  # of another seed nothing is kept
    with pytest.raises(SystemExit, match="outside"):
        run(0.3)


def test_quick_figures_are_neither_kept_nor_taken_from_what_is(results: Path) -> None:
    assert run(0.5, "--quick") == CELLS
    assert not results.exists()


def test_rows_are_written_as_a_list(tmp_path: Path) -> None:
    run(2.0, "--json", str(tmp_path / "rows.json"))
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert len(rows) == 20 and rows[0]["value"] == 2.0 and rows[0]["sense"] == "min"
    assert not Row(**rows[0]).met
