"""`rlprune explain-latency` says where the milliseconds are and which of them a plan saves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import Rlprune, answer, refusal
from onnx import helper, numpy_helper
from onnx_nets import conv_net

from rlprune.plans import PruningPlan


@pytest.fixture
def net(folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(conv_net((16, 32, 32), extent=8).SerializeToString())
    return path


@pytest.fixture
def plan(rlprune: Rlprune, net: Path) -> Path:
    ask = ("--budget-ratio", 0.5, "--device", "macs", "--policy", "knapsack", "-o", "plan.json")
    assert rlprune("plan", net, *ask).exit_code == 0
    return Path("plan.json")


def test_operators_and_the_call_add_up_to_what_was_planned(
    rlprune: Rlprune, net: Path, plan: Path
) -> None:
    made = PruningPlan.load(plan)
    found = answer(rlprune("explain-latency", net, plan, "--json"))
    assert found["device"] == "macs"  # the plan's, where none is named
    for side, total in ((0, made.base_latency_ms), (1, made.predicted_latency_ms)):
        own = sum(op["ms"][side] for op in found["operators"]) + found["overhead_ms"]
        assert own == pytest.approx(total)
    assert found["before"]["predicted_ms"] == made.base_latency_ms
    assert found["after"]["predicted_ms"] == made.predicted_latency_ms
    widths = {op["name"]: op["out_width"] for op in found["operators"]}
    kept = zip(("conv0", "conv1", "conv2"), made.groups, strict=True)
    assert all(widths[name] == [entry.width, entry.keep] for name, entry in kept)
    reads = {op["name"]: op["in_width"] for op in found["operators"]}
    assert reads["conv1"] == widths["conv0"]
    assert not any(op["fusable"] for op in found["operators"]), "counting fuses nothing"


def test_the_next_step_is_one_level_and_saves_what_it_says(
    rlprune: Rlprune, net: Path, plan: Path
) -> None:
    step = answer(rlprune("explain-latency", net, plan, "--json"))["next_step"]
    made = json.loads(plan.read_text())
    (entry,) = (group for group in made["groups"] if group["name"] == step["group"])
    assert step["keep"][0] == entry["keep"] > step["keep"][1]
    entry["keep"] = step["keep"][1]
    plan.write_text(json.dumps(made))
    after = answer(rlprune("explain-latency", net, plan, "--json"))["after"]
    saved = made["predicted_latency_ms"] - after["predicted_ms"]
    assert step["saved_ms"] == pytest.approx(saved) and saved > 0


def test_the_table_has_the_dearest_first_and_sums_the_rest(
    rlprune: Rlprune, net: Path, plan: Path
) -> None:
    found = answer(rlprune("explain-latency", net, plan, "--json"))
    dearest = max(found["operators"], key=lambda op: op["ms"][1])
    lines = rlprune("explain-latency", net, plan, "--top", 1).stdout.splitlines()
    start = next(n for n, line in enumerate(lines) if "──" in line)
    assert lines[start + 1].split()[0] == dearest["name"]
    assert f"{len(found['operators']) - 1} more" in lines[start + 2]
    assert "overhead of the call" in lines[start + 3]
    assert "100.0%" in lines[start + 4]
    (convs,) = (line for line in lines[start + 5 :] if line.split()[:2] == ["conv", "3"])
    own = [op["ms"] for op in found["operators"] if op["kind"] == "conv"]
    assert f"{sum(a for a, _ in own):.4f} -> {sum(b for _, b in own):.4f}" in convs
    assert "saved" not in rlprune("explain-latency", net, "--device", "macs").stdout


def test_what_cannot_be_measured_alone_is_a_row_of_its_own(rlprune: Rlprune, folder: Path) -> None:
    model = conv_net((16, 32), extent=8)
    model.graph.node[-1].output[0] = "classes"
    axis = numpy_helper.from_array(np.array(1, dtype=np.int64), "axis")
    model.graph.initializer.append(axis)
    model.graph.node.append(helper.make_node("CumSum", ["classes", "axis"], ["y"], "running"))
    net = folder / "model.onnx"
    net.write_bytes(model.SerializeToString())
    found = answer(rlprune("explain-latency", net, "--device", "macs", "--json"))
    assert {op["name"]: op["kind"] for op in found["operators"]}["running"] == "other"


def test_this_machine_is_measured_once_and_predicted_stands_beside_measured(
    rlprune: Rlprune, folder: Path, long: bool
) -> None:
    if not long:
        pytest.skip("--long: measures this machine for ten seconds or more")
    net = folder / "model.onnx"
    net.write_bytes(conv_net((8, 16), extent=8).SerializeToString())
    found = answer(rlprune("explain-latency", net, "--json"))
    (device,) = answer(rlprune("devices", "--json"))
    assert found["device"] == device["device"] and found["after"] is None
    before = found["before"]
    low, high = before["predicted_interval_ms"]
    assert 0 < low < before["predicted_ms"] < high
    assert before["measured_ms"] > 0
    assert [op["name"] for op in found["operators"] if op["fusable"]] == ["relu0", "relu1"]
    shown = rlprune("explain-latency", net).stdout
    assert "activation+" in shown and "may be fused" in shown and "; measured" in shown
    (again,) = answer(rlprune("devices", "--json"))
    assert device["stale"] or again["measurement_count"] == device["measurement_count"]
    listed = rlprune("devices").stdout
    assert device["device"] in listed and " s ago" in listed and "parked jobs" in listed


def test_a_certificate_stands_beside_the_prediction_of_its_device(
    rlprune: Rlprune, net: Path, plan: Path
) -> None:
    made = json.loads(plan.read_text())
    made["certificate"] = {
        "within": True,
        "measured_latency_ms": 0.125,
        "measured_interval_ms": [0.12, 0.13],
        "rounds": [],
    }
    plan.write_text(json.dumps(made))
    after = answer(rlprune("explain-latency", net, plan, "--json"))["after"]
    assert after["measured_ms"] == 0.125 and after["measured_interval_ms"] == [0.12, 0.13]


def test_what_cannot_be_explained_is_refused_in_one_line(
    rlprune: Rlprune, folder: Path, net: Path, plan: Path
) -> None:
    ask = ("explain-latency", net, plan)
    assert "toaster" in refusal(rlprune(*ask, "--device", "toaster"), folder)
    assert "nowhere.onnx" in refusal(rlprune("explain-latency", "nowhere.onnx"), folder)
    assert "nowhere.json" in refusal(rlprune("explain-latency", net, "nowhere.json"), folder)
    assert rlprune(*ask, "--top", 0).exit_code == 2
    net.write_bytes(conv_net((16, 24), extent=8).SerializeToString())
    assert "trace and plan the model again" in refusal(rlprune(*ask), folder)
