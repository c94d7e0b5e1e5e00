"""The README's commands on a network of one's own: what they print, and what they leave."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from command_line import Rlprune
from small_onnx import small_onnx


@pytest.mark.parametrize("given", [False, True])
def test_two_commands_and_measure_say_what_was_used_expected_and_found(
    rlprune: Rlprune, folder: Path, given: bool
) -> None:
    model, plan, small = folder / "r.onnx", folder / "p.json", folder / "s.onnx"
    model.write_bytes(small_onnx(widths=(16, 32), shape=(1, 3, 16, 16)).SerializeToString())
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 3, 16, 16)).astype(np.float32)
    np.savez(folder / "images.npz", x=x, y=rng.integers(0, 4, 60))
    option = ("--calibration", folder / "images.npz") if given else ()

    asked = ("--device", "macs", "--budget-ratio", 0.5)
    planned = rlprune("plan", model, *asked, *option, "-o", plan)
    assert planned.exit_code == 0, planned.output
    assert "unpruned   " in planned.stdout and "expected   once applied" in planned.stdout
    assert ("made-up inputs" in planned.stdout) is not given
    assert ("60 given inputs" in planned.stdout) is given

    applied = rlprune("apply", plan, model, *option, "-o", small)
    assert applied.exit_code == 0, applied.output
    used = "reconstructed from 60 given inputs" if given else "reconstructed from "
    assert used in applied.stdout
    assert "compared with the original: " in applied.stdout
    assert "expected by the plan: divergence " in applied.stdout
    assert ("accuracy " in applied.stdout and "(original " in applied.stdout) is given
    assert ("no data was given" in applied.stdout) is not given

    measured = rlprune("measure", model, small)
    assert measured.exit_code == 0, measured.output
    assert "ratio to first" in measured.stdout
