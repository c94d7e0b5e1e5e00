"""The demo's table and sentence; its steps are public doors, each tested where it is made."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import demo
from benchmarks.demo import BUDGETS, INT8, METHODS, UNPRUNED, Method, Share, Tuned, file_of
from datasets.digits import cluttered
from datasets.running import stoppable
from rlprune.errors import RlpruneError

TUNED = {
    (method, budget): Tuned(budget, 0.5 + 0.1 * row)
    for row, method in enumerate(METHODS)
    for budget in BUDGETS
}


def ratios() -> dict[str, Share]:
    names = {f"{file_of(*cell)}.onnx": cell[1] for cell in TUNED}
    shares = {UNPRUNED: 1.0, INT8: 0.45} | names
    return {name: Share(share, 0.9 * share) for name, share in shares.items()}


def test_the_table_has_a_row_for_each_method_and_says_what_is_won(
    capsys: pytest.CaptureFixture[str],
) -> None:
    demo.show(TUNED, ratios(), {UNPRUNED: 0.9, INT8: 0.89})
    shown = capsys.readouterr().out
    rows = [line for line in shown.splitlines() if " uniform widths " in line and "%" in line]
    assert len(rows) == 1 and rows[0].count("50.0%") == len(BUDGETS)
    assert "0.45" in shown and "89.0%" in shown
    assert "40.0 by uniform widths" in shown and "10.0 by the same in int8" in shown


def test_a_method_without_a_plan_for_a_budget_says_none(capsys: pytest.CaptureFixture[str]) -> None:
    least = min(BUDGETS)
    some = {cell: one for cell, one in TUNED.items() if cell != (METHODS[0], least)}
    demo.show(some, ratios(), {UNPRUNED: 0.9, INT8: 0.89})
    shown = capsys.readouterr().out
    assert "none" in shown and "by uniform widths" not in shown


def test_files_are_compared_over_several_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = iter((0.5, 0.6))

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        ratio = next(told)
        rows = [
            {"model": "a.onnx", "ratio_to_first": 1.0, "ratio_interval": [1.0, 1.0]},
            {"model": "b.onnx", "ratio_to_first": ratio, "ratio_interval": [ratio - 0.1, 1.0]},
        ]
        return subprocess.CompletedProcess(command, 0, json.dumps({"models": rows}), "")

    monkeypatch.setattr(demo.subprocess, "run", run)
    share = demo.measured(tmp_path, ["a.onnx", "b.onnx"])["b.onnx"]
    assert (share.middle, share.low) == pytest.approx((0.55, 0.45))


def test_files_that_cannot_be_measured_end_it_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(RlpruneError, match=r"measuring ended with \d+: .*missing.onnx"):
        demo.measured(tmp_path, ["missing.onnx"])


def test_plans_are_made_from_images_that_nothing_is_judged_on(tmp_path: Path) -> None:
    splits = cluttered(counts=(8, demo.CALIBRATION + 4, 6))
    demo.write_images(tmp_path, splits)
    counts = {name: len(demo.images(tmp_path, name)) for name in ("calibration", "validation")}
    assert counts == {"calibration": demo.CALIBRATION, "validation": 4}
    assert np.array_equal(demo.images(tmp_path, "report").x, splits.report.x)


def test_names_of_files_have_no_spaces() -> None:
    assert file_of(Method("widths, kernels"), 0.5) == "widths-kernels-0.5"


def test_ctrl_c_ends_it_in_a_line_that_promises_only_what_is_kept(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for goes_on, line in ((False, "stopped\n"), (True, "stopped; the same command goes on ")):
        with pytest.raises(SystemExit) as ended, stoppable(goes_on=goes_on):
            signal.raise_signal(signal.SIGINT)
        assert ended.value.code == 130
        assert capsys.readouterr().err.startswith(line)
