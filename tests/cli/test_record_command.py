"""`rlprune record`, through the command line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import Rlprune, answer, refusal
from small_onnx import small_onnx

from rlprune.training.run import load_models


@pytest.fixture
def images(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    path = folder / "data.npz"
    x = rng.standard_normal((40, 3, 16, 16)).astype(np.float32)
    np.savez(path, x=x, y=rng.integers(0, 10, 40))
    return path


def test_a_recording_is_what_train_reads(
    rlprune: Rlprune, folder: Path, model: Path, images: Path
) -> None:
    command = ("record", model, "--calibration", images, "-o", "tasks", "--evaluations")
    report = answer(rlprune(*command, 6, "--json"))
    assert report["directory"] == "tasks/model" and report["plan_count"] == 6
    assert sum(source["plan_count"] for source in report["sources"]) == 6
    assert report["about"]["profile_images"] == report["about"]["objective_images"] == "20"

    more = rlprune(*command, 9, "--name", "model")
    assert more.exit_code == 0 and "9 plans" in more.stdout
    assert "evaluations: 7 of 9" in more.stderr  # six were there
    other = rlprune(*command, 2, "--name", "other", "--seed", 1)
    assert other.exit_code == 0
    models = load_models([folder / "tasks"])
    assert sorted(models) == ["model", "other"]
    found = models["model"].evaluations
    assert found is not None and len(found.loss) == 9 and set(found.device) <= {"macs", ""}


def test_plans_run_out_before_the_evaluations_do(
    rlprune: Rlprune, folder: Path, images: Path
) -> None:
    (folder / "model.onnx").write_bytes(small_onnx(widths=(16, 16)).SerializeToString())
    asked = ("--evaluations", 50, "--json")
    report = answer(rlprune("record", "model.onnx", "--calibration", images, "-o", "t", *asked))
    assert report["plan_count"] == 3  # each of two groups keeps 8 or 16


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--policy", "nope"), "no policy 'nope'"),
        (("--device", "toaster"), "device 'toaster' is unknown"),
        (("--name", "../up"), "no name for a folder"),
        (("--calibration", "gone.npz"), "gone.npz"),
    ],
)
def test_bad_options_are_refused_before_any_work(
    rlprune: Rlprune, folder: Path, model: Path, images: Path, options: tuple[str, str], why: str
) -> None:
    asked = rlprune("record", model, "--calibration", images, "-o", "tasks", *options)
    assert why in refusal(asked, folder)


def test_too_few_images_to_halve_are_refused(rlprune: Rlprune, folder: Path, model: Path) -> None:
    data = folder / "data.npz"
    np.savez(data, x=np.zeros((31, 3, 16, 16), np.float32), y=np.zeros(31, int))
    asked = rlprune("record", model, "--calibration", data, "-o", "tasks")
    assert "31 samples are too few to halve" in refusal(asked, folder)


def test_another_models_recording_is_not_added_to(
    rlprune: Rlprune, folder: Path, model: Path, images: Path
) -> None:
    command = ("record", model, "--calibration", images, "-o", "tasks", "--evaluations", 1)
    assert rlprune(*command).exit_code == 0
    before = (folder / "tasks/model/evaluations.parquet").read_bytes()
    for content in (small_onnx(seed=1), small_onnx(widths=(16, 16))):
        model.write_bytes(content.SerializeToString())
        assert "another directory" in refusal(rlprune(*command), folder, also=("tasks",))
    assert (folder / "tasks/model/evaluations.parquet").read_bytes() == before


def test_ctrl_c_keeps_what_was_recorded_and_says_how_to_go_on(
    rlprune: Rlprune, folder: Path, images: Path
) -> None:
    (folder / "model.onnx").write_bytes(small_onnx(widths=(96, 96)).SerializeToString())
    # As many images as make an evaluation last a tenth of a second: the signal comes in between.
    x = np.random.default_rng(0).standard_normal((240, 3, 16, 16)).astype(np.float32)
    np.savez(images, x=x, y=np.arange(240) % 10)
    options = ["model.onnx", "--calibration", str(images), "-o", "tasks", "--evaluations"]
    command = [sys.executable, "-c", "from rlprune.cli import main; main()", "record"]
    with subprocess.Popen(
        [*command, *options, "120"], stderr=subprocess.PIPE, text=True, env=os.environ.copy()
    ) as process:
        assert process.stderr is not None
        seen = ""
        while "evaluations: 24 of" not in seen:  # the first batch of 16 is kept by then
            line = process.stderr.readline()
            assert line, seen
            seen += line
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == 130
    assert "tasks/model keeps all but the running batch, the same command goes on" in rest
    assert "Traceback" not in rest
    kept = load_models(["tasks"])["model"].evaluations
    assert kept is not None and 16 <= len(kept.loss) < 120
    on = rlprune("record", *options, len(kept.loss) + 1)
    assert on.exit_code == 0 and f"{len(kept.loss) + 1} plans" in on.stdout
