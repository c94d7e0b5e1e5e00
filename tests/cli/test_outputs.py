"""What a command must not do to files that are there, and how it ends when it is stopped."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import Rlprune, refusal
from onnx import numpy_helper
from small_onnx import small_onnx

import rlprune.cli
from rlprune.errors import PlanError
from rlprune.files import write_atomic
from rlprune.plans import PruningPlan

MACS = ("--budget-ratio", 0.5, "--device", "macs", "--policy", "knapsack")


def test_no_output_replaces_what_is_read(rlprune: Rlprune, model: Path, folder: Path) -> None:
    before = model.read_bytes()
    assert "is read by this command" in refusal(rlprune("plan", model, *MACS, "-o", model), folder)
    assert rlprune("plan", model, *MACS, "-o", "plan.json").exit_code == 0
    plan = Path("plan.json").read_bytes()
    os.link(model, folder / "same.onnx")
    for output in ("plan.json", "model.onnx", "same.onnx", "../work/model.onnx"):
        assert "is read by" in refusal(
            rlprune("apply", "plan.json", model, "-o", output), folder, also=("same.onnx",)
        )
    assert model.read_bytes() == before and Path("plan.json").read_bytes() == plan


def test_a_link_stays_and_its_target_is_written(folder: Path) -> None:
    (folder / "target").write_bytes(b"old")
    (folder / "link").symlink_to("target")
    write_atomic(folder / "link", b"new")
    assert (folder / "link").is_symlink() and (folder / "target").read_bytes() == b"new"
    assert sorted(path.name for path in folder.iterdir()) == ["link", "target"]


def test_a_pipe_is_written_to_and_not_replaced(folder: Path) -> None:
    pipe = folder / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_atomic(pipe, b"plan")
        assert os.read(reader, 10) == b"plan" and pipe.is_fifo()
    finally:
        os.close(reader)


def test_weights_that_are_not_finite_are_refused_by_name(rlprune: Rlprune, folder: Path) -> None:
    made = small_onnx()
    [tensor] = [one for one in made.graph.initializer if one.name == "w1"]
    values = numpy_helper.to_array(tensor).copy()
    values[3] = np.nan
    tensor.CopyFrom(numpy_helper.from_array(values, "w1"))
    onnx.save(made, "nan.onnx")
    assert "'w1' holds NaN" in refusal(
        rlprune("plan", "nan.onnx", *MACS), folder, also=("nan.onnx",)
    )


def test_a_model_without_costs_is_refused_as_such(rlprune: Rlprune, folder: Path) -> None:
    from onnx import TensorProto, helper

    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4, 8, 8]) for name in ("x", "y")
    )
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), "relu.onnx")
    assert "nothing to prune" in refusal(
        rlprune("plan", "relu.onnx", *MACS), folder, also=("relu.onnx",)
    )


def test_damaged_plans_are_refused_by_name(folder: Path) -> None:
    (folder / "deep.json").write_text("[" * 100_000)
    (folder / "text.json").write_text("hello")
    (folder / "part.json").write_text(json.dumps({"format": "rlprune.plan/1"}))
    for name in ("deep", "text", "part"):
        with pytest.raises(PlanError, match=f"{name}.json"):
            PruningPlan.load(folder / f"{name}.json")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--threads", 1_000_000), "cores"),
        (("--input-shape", "x=1x3x16x16", "--input-shape", "x=2x3x16x16"), "twice"),
    ],
)
def test_measuring_refuses(
    rlprune: Rlprune, model: Path, arguments: tuple[object, ...], reason: str
) -> None:
    result = rlprune("measure", model, *arguments)
    assert result.exit_code == 2 and reason in result.stderr


@pytest.mark.parametrize("arguments", [("--score", "snip"), ("--tls-ca", "ca.pem")])
def test_options_of_another_way_of_planning_are_refused(
    rlprune: Rlprune, model: Path, arguments: tuple[str, ...]
) -> None:
    result = rlprune("plan", model, *MACS, *arguments)
    assert result.exit_code == 2 and "goes with" in result.stderr


def test_files_that_are_no_archives_are_refused_plainly(
    rlprune: Rlprune, model: Path, folder: Path
) -> None:
    (folder / "x.npy").write_text("hello")
    (folder / "text.npz").write_text("hello")
    for name in ("x.npy", "text.npz"):
        reason = refusal(
            rlprune("plan", model, *MACS, "--calibration", name), folder, also=("x.npy", "text.npz")
        )
        assert f"{name}: give an .npz or .npy of plain" in reason and "pickle" not in reason


def test_ctrl_c_while_importing_ends_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted:
        def find_spec(self, name: str, path: object = None, target: object = None) -> None:
            if name == "rlprune.cli.app":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "rlprune.cli.app", raising=False)
    monkeypatch.setattr("signal.signal", lambda number, handler: None)
    monkeypatch.setattr(sys, "meta_path", [Interrupted(), *sys.meta_path])
    with pytest.raises(SystemExit) as ended:
        rlprune.cli.main()
    assert ended.value.code == 130
