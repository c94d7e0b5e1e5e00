"""Bad input: one clear line that says what was wrong and what to do, and nothing written."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import Rlprune, refusal
from onnx import TensorProto, helper
from small_onnx import small_onnx

MACS = ("--budget-ratio", 0.5, "--device", "macs", "--policy", "knapsack")


def write(path: Path, model: onnx.ModelProto) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def plan(rlprune: Rlprune, model: Path) -> Path:
    """A plan of `model.onnx`."""
    assert rlprune("plan", model, *MACS, "-o", "plan.json").exit_code == 0
    return Path("plan.json")


@pytest.mark.parametrize("command", ["trace", "plan", "measure"])
@pytest.mark.parametrize("content", [b"not a model", b"", b"\x80\x04pickle"])
def test_file_that_is_no_onnx(rlprune: Rlprune, folder: Path, command: str, content: bytes) -> None:
    Path("model.onnx").write_bytes(content)
    options = MACS if command == "plan" else ()
    assert "model.onnx" in refusal(rlprune(command, "model.onnx", *options), folder)


def test_file_that_is_not_there(rlprune: Rlprune, folder: Path) -> None:
    assert "nowhere.onnx" in refusal(rlprune("trace", "nowhere.onnx"), folder)


def test_model_that_the_checker_refuses(rlprune: Rlprune, folder: Path) -> None:
    broken = small_onnx()
    broken.graph.node[2].input[0] = "never_made"
    write(folder / "model.onnx", broken)
    assert "never_made" in refusal(rlprune("trace", "model.onnx"), folder)


@pytest.mark.parametrize("location", ["/etc/passwd", "../weights.bin"])
def test_external_data_outside_the_model_folder(
    rlprune: Rlprune, folder: Path, location: str
) -> None:
    unsafe = small_onnx()
    tensor = unsafe.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    write(folder / "model.onnx", unsafe)
    assert location in refusal(rlprune("plan", "model.onnx", *MACS), folder)


def test_unknown_operator_is_named(rlprune: Rlprune, folder: Path) -> None:
    strange = small_onnx()
    strange.graph.node[1].CopyFrom(
        helper.make_node("Shrug", ["a"], ["b"], name="odd_one", domain="custom")
    )
    strange.opset_import.append(helper.make_opsetid("custom", 1))
    write(folder / "model.onnx", strange)
    line = refusal(rlprune("trace", "model.onnx"), folder)
    assert "Shrug" in line and "odd_one" in line


@pytest.mark.parametrize("command", ["trace", "measure"])
def test_open_extents_without_input_shape(rlprune: Rlprune, folder: Path, command: str) -> None:
    write(folder / "model.onnx", small_onnx(shape=("n", 3, "h", "w")))
    assert "--input-shape" in refusal(rlprune(command, "model.onnx"), folder)


@pytest.mark.parametrize("shape", ["1x3xhx16", "1x3x0x16", "y=1x3x16x16", "", "1,3,16,16"])
def test_input_shape_that_is_none(rlprune: Rlprune, model: Path, shape: str) -> None:
    wrong = rlprune("trace", model, "--input-shape", shape)
    assert wrong.exit_code == 2 and wrong.stdout == ""


@pytest.mark.parametrize("option", ["--budget-ms", "--budget-ratio"])
@pytest.mark.parametrize("value", ["nan", "inf", "-1", "0"])
def test_budget_that_is_none(
    rlprune: Rlprune, folder: Path, model: Path, option: str, value: str
) -> None:
    line = refusal(rlprune("plan", model, f"{option}={value}", "-o", "new.json"), folder)
    assert option.strip("-").replace("-", "_") in line and "positive, finite" in line


def test_ratio_above_one(rlprune: Rlprune, folder: Path, model: Path) -> None:
    assert "at most 1" in refusal(rlprune("plan", model, "--budget-ratio", 60), folder)


@pytest.mark.parametrize("budgets", [(), ("--budget-ms", 1, "--budget-ratio", 0.5)])
def test_not_exactly_one_budget_is_wrong_usage(
    rlprune: Rlprune, model: Path, budgets: tuple[object, ...]
) -> None:
    assert rlprune("plan", model, *budgets).exit_code == 2


def test_infeasible_budget_exits_3_answers_and_writes_nothing(
    rlprune: Rlprune, folder: Path, model: Path
) -> None:
    ask = ("plan", model, "--budget-ms", 0.001, *MACS[2:], "-o", "new.json")
    result = rlprune(*ask, "--json")
    assert result.exit_code == 3
    plan = json.loads(result.stdout)
    assert not plan["feasible"] and plan["least_latency_ms"] > plan["budget_ms"]
    (line,) = result.stderr.splitlines()
    assert line.startswith("infeasible: ") and "new.json was not written" in line
    assert not Path("new.json").exists()


def test_plan_for_another_graph(rlprune: Rlprune, folder: Path, plan: Path) -> None:
    write(folder / "model.onnx", small_onnx(widths=(24, 64)))
    line = refusal(rlprune("apply", plan, "model.onnx", "-o", "new.onnx"), folder)
    assert "plan is for graph" in line


@pytest.mark.parametrize("damage", ["truncated", "empty", "other", "negative", "missing"])
def test_damaged_plan(rlprune: Rlprune, folder: Path, plan: Path, damage: str) -> None:
    text = plan.read_text()
    data = json.loads(text)
    data["groups"][0]["keep"] = -1
    plan.write_text(
        {
            "truncated": text[: len(text) // 2],
            "empty": "",
            "other": '{"format": "something/9"}',
            "negative": json.dumps(data),
            "missing": '{"format": "rlprune.plan/1"}',
        }[damage]
    )
    assert "plan" in refusal(rlprune("apply", plan, "model.onnx", "-o", "new.onnx"), folder)


def test_unknown_device_is_told_the_known_ones(rlprune: Rlprune, folder: Path, model: Path) -> None:
    ask = ("plan", model, "--budget-ms", 5, "--policy", "uniform", "-o", "new.json")
    line = refusal(rlprune(*ask, "--device", "toaster"), folder)
    assert "toaster" in line and "macs" in line


@pytest.mark.parametrize("command", ["trace", "plan"])
def test_pattern_that_matches_nothing_is_told_near_names(
    rlprune: Rlprune, folder: Path, model: Path, command: str
) -> None:
    options = (*MACS, "-o", "new.json") if command == "plan" else ()
    for option in ("--hold", "--pin"):
        line = refusal(rlprune(command, model, *options, option, "conv3*"), folder)
        assert "'conv3*'" in line and "conv1" in line and "conv2" in line


@pytest.mark.parametrize(
    "options", [("--round-to", 0), ("--min-keep", 0), ("--min-keep-ratio", 1.5)]
)
def test_constraint_out_of_range_is_wrong_usage(
    rlprune: Rlprune, model: Path, options: tuple[object, ...]
) -> None:
    for command in (("trace", model), ("plan", model, *MACS)):
        assert rlprune(*command, *options).exit_code == 2


def test_pins_that_share_no_ratio_are_named(rlprune: Rlprune, folder: Path, model: Path) -> None:
    asked = ("plan", model, *MACS, "--pin", "conv*", "--round-to", 32, "-o", "new.json")
    line = refusal(rlprune(*asked), folder)
    assert "conv1" in line and "conv2" in line and "no keep ratio" in line


def test_unknown_policy(rlprune: Rlprune, folder: Path, model: Path) -> None:
    line = refusal(rlprune("plan", model, "--budget-ms", 5, "--policy", "wizard"), folder)
    assert "wizard" in line and "knapsack" in line


@pytest.mark.parametrize("what", ["text", "wrong shape", "objects", "missing"])
def test_calibration_file_that_is_none(
    rlprune: Rlprune, folder: Path, model: Path, what: str
) -> None:
    images = np.zeros((32, 3, 16, 16), dtype=np.float32)
    labels = np.zeros(32, dtype=np.int64)
    data = Path("data.npz")
    if what == "text":
        data.write_text("not an archive")
    elif what == "wrong shape":
        np.savez(data, x=images[:, :1], y=labels)
    elif what == "objects":
        np.savez(data, x=np.array([{}] * 32), y=labels)
    line = refusal(rlprune("plan", model, *MACS, "--calibration", data), folder)
    assert "calibration" in line or "data.npz" in line


def test_missing_extra_is_named(
    rlprune: Rlprune, folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.delitem(sys.modules, "rlprune.runtime.ort", raising=False)
    for command in (("measure", model), ("plan", model, "--budget-ms", 5, "--policy", "uniform")):
        assert 'pip install "rlprune[device]"' in refusal(rlprune(*command), folder)


def test_output_in_a_folder_that_is_not_there(rlprune: Rlprune, folder: Path, plan: Path) -> None:
    for command in (("apply", plan, "model.onnx"), ("plan", "model.onnx", *MACS)):
        assert "no folder gone" in refusal(rlprune(*command, "-o", "gone/new"), folder)
        assert "is a folder" in refusal(rlprune(*command, "-o", folder), folder)


def test_training_without_recorded_models(rlprune: Rlprune, folder: Path) -> None:
    assert "no recorded models" in refusal(rlprune("train", "-o", "policy"), folder)


def test_server_that_does_not_answer(rlprune: Rlprune, folder: Path, model: Path) -> None:
    asked = rlprune("plan", model, "--budget-ms", 5, "--device", "d", "--server", "127.0.0.1:1")
    assert "127.0.0.1:1" in refusal(asked, folder)
