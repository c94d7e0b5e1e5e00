"""`rlprune trace` says what may be pruned, what goes with it, and why the rest may not."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from command_line import Rlprune, answer, refusal
from onnx_nets import conv_net
from onnx_oracle import Net, numbers_in_weights

from rlprune.cli.models import load_trace
from rlprune.planning import which_device


@pytest.fixture
def net(folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(conv_net((16, 32, 32)).SerializeToString())
    return path


def test_latency_is_counted_in_macs_where_no_device_is_given(rlprune: Rlprune, net: Path) -> None:
    report = answer(rlprune("trace", net, "--json"))
    assert report["device"] == "macs"
    assert report["latency_ms"] == pytest.approx(report["macs"] / 1e6)
    for group in report["groups"]:
        assert group["latency_ratio"] == pytest.approx(group["macs_ratio"])
        assert len(group["axes"]) == len(group["members"])


def test_latency_of_a_device_comes_from_the_store_and_is_never_measured(
    rlprune: Rlprune, folder: Path, long: bool
) -> None:
    if not long:
        pytest.skip("--long: measures this machine for ten seconds or more")
    net = folder / "model.onnx"
    net.write_bytes(conv_net((8, 16), extent=8).SerializeToString())
    assert "toaster" in refusal(rlprune("trace", net, "--device", "toaster"), folder)
    asked = rlprune("plan", net, "--budget-ratio", 0.99, "--policy", "uniform", "--json")
    assert asked.exit_code in (0, 3)
    (device,) = answer(rlprune("devices", "--json"))
    report = answer(rlprune("trace", net, "--device", device["device"], "--json"))
    assert report["device"] == device["device"] and report["latency_ms"] > 0
    assert all(0 < group["latency_ratio"] < 1 for group in report["groups"])
    assert answer(rlprune("trace", net, "--device", "ort", "--json")) == report
    other = folder / "other.onnx"
    other.write_bytes(conv_net((8, 24), extent=8).SerializeToString())
    line = refusal(
        rlprune("trace", other, "--device", device["device"]), folder, also=("other.onnx",)
    )
    assert "has not measured this model" in line
    (after,) = answer(rlprune("devices", "--json"))
    assert after["measurement_count"] == device["measurement_count"]


def test_a_runtimes_name_stands_for_this_machine(rlprune: Rlprune, folder: Path, net: Path) -> None:
    """As for `plan`; nothing was measured here yet, which is said of the whole key."""
    (own, _) = which_device("ort", load_trace(net, None).graph)
    assert own in refusal(rlprune("trace", net, "--device", "ort"), folder)


def test_the_tree_names_members_readers_holds_and_ends_with_the_prunable_share(
    rlprune: Rlprune, net: Path
) -> None:
    shown = rlprune("trace", net, "--tree")
    assert shown.exit_code == 0
    lines = shown.stdout.splitlines()
    (first,) = [line for line in lines if "conv0: 16 units" in line]
    assert "% of MACs" in first and "% of params" in first and "% of latency" in first
    assert any("conv0.weight[0]" in line for line in lines)
    assert any("read by conv1[1]" in line for line in lines)
    held = lines[lines.index("not prunable") :]
    assert "graph output 'y'" in held[1] and "fc x 10" in held[2]
    assert "100.0% of the MACs are prunable" in lines[-1]


def test_held_axes_say_why_and_who_forced_it(rlprune: Rlprune, net: Path) -> None:
    (held,) = answer(rlprune("trace", net, "--json"))["held"]
    assert (held["tensor"], held["width"], held["forced_by"]) == ("fc.weight", 10, "y")
    assert held["reason"] == "graph output 'y'"


def test_constraints_show_in_the_table_the_tree_and_the_share(rlprune: Rlprune, net: Path) -> None:
    stated = ("--hold", "conv0.weight", "--pin", "conv[12]", "--round-to", 4, "--min-keep", 8)
    report = answer(rlprune("trace", net, *stated, "--json"))
    assert [group["constraint"] for group in report["groups"]] == [
        "held by 'conv0.weight'", "pinned by 'conv[12]'", "pinned by 'conv[12]'",
    ]  # fmt: skip
    assert report["groups"][0]["levels"] == [16]
    assert report["groups"][1]["levels"] == report["groups"][2]["levels"] == list(range(8, 33, 4))
    whole = answer(rlprune("trace", net, "--json"))["prunable_macs_ratio"]
    assert report["prunable_macs_ratio"] < whole
    for form in ((), ("--tree",)):
        text = rlprune("trace", net, *stated, *form).stdout
        assert "held by 'conv0.weight'" in text and "pinned by 'conv[12]'" in text


def write_net(folder: Path, net: Net, *outputs: str) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(net.model(*outputs).SerializeToString())
    return path


def test_what_one_weight_is_held_for_is_one_row_with_a_count(
    rlprune: Rlprune, folder: Path
) -> None:
    net = Net(1, 6, 16)
    x, weight = net.add("MatMul", "x", net.weight(16, 16)), net.weight(16, 16)
    for _ in range(5):
        x = net.add("LayerNormalization", net.add("MatMul", x, weight), net.weight(16))
    shown = rlprune("trace", write_net(folder, net, x)).stdout.splitlines()
    rows = [line.split() for line in shown if "LayerNormalization normalises" in line]
    assert [row[-2:] for row in rows] == [["16", "1"], ["16", "5"]]


def test_rows_of_a_group_fit_80_columns_whatever_the_names(
    rlprune: Rlprune, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlprune.cli.shared.PIPE_WIDTH", 80)
    model = conv_net((16, 32))
    for node in model.graph.node:
        node.name = f"/features/{'very_long_block;' * 12}/{node.name}/Conv"
    for tensor in model.graph.initializer:
        for node in model.graph.node:
            renamed = [f"onnx::{n}" if n == tensor.name else n for n in node.input]
            node.input[:] = renamed
        tensor.name = f"onnx::{tensor.name}"
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    table = rlprune("trace", path).stdout.splitlines()[1:-1]
    assert max(len(line.rstrip()) for line in table) <= 80
    rows = [line for line in table if "%" in line]
    assert len(rows) == 2 and all("onnx::" not in row and "features" in row for row in rows)


def test_quantised_file_says_to_prune_before_quantising(rlprune: Rlprune, folder: Path) -> None:
    net = Net(1, 3, 8, 8)
    scale, zero = net.constant(0.02, "float32"), net.constant(0, "int8")
    weight = net.constant(net.rng.integers(-99, 99, (16, 3, 3, 3)), "int8")
    weight = net.add("DequantizeLinear", weight, scale, zero)
    path = write_net(folder, net, net.head(net.add("Conv", "x", weight), 16))
    assert "prune the float file before quantising" in " ".join(
        rlprune("trace", path).stdout.split()
    )
    planned = rlprune("plan", path, "--device", "macs", "--budget-ratio", 0.5, "--json")
    assert planned.exit_code == 3


def test_plan_says_which_operators_hold_layers(rlprune: Rlprune, folder: Path) -> None:
    net = Net(1, 6, 16)
    x = net.add("LayerNormalization", net.add("MatMul", "x", net.weight(16, 16)), net.weight(16))
    x = net.add(
        "MatMul", net.add("Relu", net.add("MatMul", x, net.weight(16, 32))), net.weight(32, 4)
    )
    path = write_net(folder, net, x)
    plan = answer(rlprune("plan", path, "--device", "macs", "--budget-ratio", 0.7, "--json"))
    assert "1 layer is not prunable (1 by LayerNormalization" in plan["note"]


def test_max_params_holds_for_the_file_that_apply_writes(rlprune: Rlprune, folder: Path) -> None:
    net = Net(7, 1, 20)
    x = net.add("Relu", net.add("MatMul", "x", net.weight(20, 32)))
    x = net.add("GRU", x, net.weight(1, 192, 32), net.weight(1, 192, 64), hidden_size=64)
    x = net.add("Reshape", x, net.ints(7, 1, 64))
    x = net.add(
        "MatMul", net.add("Relu", net.add("MatMul", x, net.weight(64, 32))), net.weight(32, 4)
    )
    path, file = write_net(folder, net, x), net.model(x)
    whole = answer(rlprune("trace", path, "--json"))["params"]
    assert whole == numbers_in_weights(file) == 20 * 32 + 192 * 96 + 64 * 32 + 32 * 4
    planned = ("plan", path, "--device", "macs", "--budget-ratio", 1.0, "--json", "--max-params")
    assert rlprune(*planned, 2000).exit_code == 3
    most = whole - 2500
    plan = answer(rlprune(*planned, most, "-o", folder / "plan.json"))
    assert rlprune("apply", folder / "plan.json", path, "-o", folder / "cut.onnx").exit_code == 0
    assert numbers_in_weights(onnx.load(folder / "cut.onnx")) == plan["params"] <= most
