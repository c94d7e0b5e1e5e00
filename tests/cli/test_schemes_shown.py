"""Plans of several schemes as people see them: in words, and only what changes."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from command_line import Rlprune
from residual_net import Residual, stack

EVERY = ("--schemes", "channels,shapes,blocks")
BY_WEIGHTS = ("--policy", "knapsack")
ASKED = ("--device", "macs", "--budget-ratio", "0.22", "--hold", "b1", *EVERY, *BY_WEIGHTS)


@pytest.fixture
def net(folder: Path) -> Path:
    path = folder / "stack.onnx"
    onnx.save(stack(Residual.plain, 4, side=24).model, path)
    return path


@pytest.fixture
def plan(rlprune: Rlprune, net: Path) -> Path:
    """Leaves blocks out, cuts a kernel and prunes channels."""
    path = net.with_name("plan.json")
    assert rlprune("plan", net, *ASKED, "-o", path).exit_code == 0
    return path


def test_a_plan_prints_in_words_what_changes_and_counts_the_rest(
    rlprune: Rlprune, net: Path
) -> None:
    printed = rlprune("plan", net, *ASKED).stdout
    said = {
        (name, " ".join(words))
        for name, *words in (line.split() for line in printed.splitlines() if line.strip())
    }
    assert {("b2", "left out"), ("b3", "left out")} <= said
    assert ("conv7", "2x3 of 3x3") in said and ("conv7", "3 of 8 channels") in said
    assert "conv12" not in printed and "303" not in printed  # it lies within b2
    assert "as it is   1 group of channels, 1 block, 3 kernels" in printed
    assert "left out with their blocks: 2 groups of channels, 4 kernels" in printed


def test_json_of_a_plan_has_the_words(rlprune: Rlprune, net: Path) -> None:
    groups = json.loads(rlprune("plan", net, *ASKED, "--json").stdout)["groups"]
    words = {(one["scheme"], one["name"]): one["option"] for one in groups}
    assert words["block", "b2"] == "left out" and words["shape", "conv7"] == "2x3 of 3x3"
    members = {(one["scheme"], one["name"]): one["members"] for one in groups}
    assert members["shape", "conv7"] == ["w6[2]", "w6[3]"]
    assert {"b2", "conv12", "conv14"} <= set(members["block", "b2"])


def test_trace_names_options_once_for_all_sites_that_have_them(rlprune: Rlprune, net: Path) -> None:
    printed = rlprune("trace", net, *EVERY, "--hold", "conv4").stdout
    assert "b1, b2, b3" in printed and "left out, kept" in printed
    assert printed.count("1x1, 1x2, 2x1, 1x3, 3x1, 2x2, 2x3, 3x2, 3x3 of 3x3") == 1
    assert "3x3 of 3x3: nothing to decide" in printed


def test_apply_tells_the_costs_of_all_schemes(rlprune: Rlprune, net: Path, plan: Path) -> None:
    output = net.with_name("small.onnx")
    told = json.loads(
        rlprune("apply", plan, net, "-o", output, "--calibration", "none", "--json").stdout
    )
    made = json.loads(plan.read_text())
    assert (told["macs"], told["params"]) == (made["macs"], made["params"])
    assert told["macs_ratio"] < 0.22


def test_what_is_left_out_is_a_row_a_block_and_all_rows_add_up(
    rlprune: Rlprune, net: Path, plan: Path
) -> None:
    found = json.loads(rlprune("explain-latency", net, plan, "--json").stdout)
    for place, whole in enumerate((found["before"], found["after"])):
        total = sum(op["ms"][place] for op in found["operators"]) + found["overhead_ms"]
        assert total == pytest.approx(whole["predicted_ms"])
    options = {op["name"]: (op["site"], op["option"]) for op in found["operators"]}
    assert options["conv12"] == ("b2", "left out") and options["conv7"] == ("conv7", "2x3 of 3x3")
    assert options["conv0"] == ("", "")
    printed = rlprune("explain-latency", net, plan).stdout
    assert printed.count("5 operators left out") == 2 and "conv 2x3 of 3x3" in printed
    assert "conv12" not in printed
