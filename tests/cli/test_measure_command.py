"""`rlprune measure`: inputs of every type, and ratios that say how much they are worth."""

from __future__ import annotations

import json
import os
from pathlib import Path

import onnx
import pytest
from command_line import Rlprune, answer
from onnx import TensorProto, helper
from small_onnx import small_onnx


def with_input(elem_type: int) -> onnx.ModelProto:
    """The small network behind a Cast, its input of another type."""
    model = small_onnx()
    model.graph.input[0].type.tensor_type.elem_type = elem_type
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            if name == "x":
                node.input[place] = "as_float"
    model.graph.node.insert(0, helper.make_node("Cast", ["x"], ["as_float"], to=TensorProto.FLOAT))
    return model


@pytest.mark.parametrize("runtime", ["ort", "openvino", "mnn"])
@pytest.mark.parametrize(
    "name", ["FLOAT16", "DOUBLE", "UINT8", "INT8", "INT16", "INT32", "INT64", "UINT64", "BOOL"]
)
def test_inputs_of_every_numeric_type_are_measured(
    rlprune: Rlprune, folder: Path, runtime: str, name: str
) -> None:
    if runtime == "mnn" and name in ("FLOAT16", "DOUBLE", "UINT64", "INT16"):
        pytest.skip("MNN has no inputs of that type")
    path = folder / "net.onnx"
    path.write_bytes(with_input(TensorProto.DataType.Value(name)).SerializeToString())
    report = answer(rlprune("measure", path, "--runtime", runtime, "--json"))
    (found,) = report["models"]
    assert found["status"] in ("ok", "unstable") and found["latency_ms"] > 0


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")
def test_a_plan_for_two_threads_is_measured_on_two_and_found_by_its_key(
    rlprune: Rlprune, folder: Path, long: bool
) -> None:
    if not long:
        pytest.skip("--long: measures this machine for ten seconds or more")
    path = folder / "tiny.onnx"
    path.write_bytes(small_onnx(widths=(8, 16), shape=(1, 3, 8, 8)).SerializeToString())
    ask = ("plan", path, "--budget-ratio", 0.95, "--policy", "knapsack", "--json")
    first = rlprune(*ask, "--threads", 2)
    key = json.loads(first.stdout)["device"]
    assert ".t2." in key and "measuring this machine" in first.stderr
    again = rlprune(*ask, "--device", key)
    assert "measuring" not in again.stderr
    assert json.loads(again.stdout) == json.loads(first.stdout)
    of_one = key.replace(".t2.", ".t1.")
    same = rlprune(*ask, "--device", of_one, "--threads", 2)
    assert json.loads(same.stdout) == json.loads(first.stdout)
    refused = rlprune(*ask, "--threads", 2, "--device", "macs")
    assert refused.exit_code == 1 and "names no threads" in refused.stderr


def test_the_first_models_ratio_is_one_and_every_other_has_its_interval(
    rlprune: Rlprune, folder: Path, model: Path
) -> None:
    (folder / "half.onnx").write_bytes(small_onnx(widths=(16, 32)).SerializeToString())
    first, half = answer(rlprune("measure", model, "half.onnx", "--json"))["models"]
    assert first["ratio_to_first"] == 1 and first["ratio_interval"] == [1, 1]
    low, high = half["ratio_interval"]
    assert low < half["ratio_to_first"] < high < 2 * low
    shown = rlprune("measure", model, "half.onnx").stdout
    assert "90 % within" in shown and "1.000 .. 1.000" in shown


def test_what_plans_need_is_measured_beforehand_and_kept(rlprune: Rlprune, folder: Path) -> None:
    path = folder / "tiny.onnx"
    path.write_bytes(small_onnx(widths=(8, 16), shape=(1, 3, 8, 8)).SerializeToString())
    report = answer(rlprune("measure", path, "--for-plans", "--json"))
    (found,) = report["models"]
    assert found["measurement_count"] > 10
    ask = ("plan", path, "--budget-ratio", 0.95, "--effort", "instant", "--json")
    planned = rlprune(*ask)
    assert json.loads(planned.stdout)["device"] == found["device"]
    assert "measuring this machine" not in planned.stderr
    assert "for-plans" not in json.loads(planned.stdout)["note"]
    again = answer(rlprune("measure", path, "--for-plans", "--json"))
    assert again["models"][0]["measurement_count"] == found["measurement_count"]
