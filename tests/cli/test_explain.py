"""`rlprune trace` says what may be pruned, what goes with it, and why the rest may not."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import Rlprune, answer, refusal
from onnx_nets import conv_net


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
    rlprune: Rlprune, folder: Path
) -> None:
    net = folder / "model.onnx"
    net.write_bytes(conv_net((8, 16), extent=8).SerializeToString())
    assert "toaster" in refusal(rlprune("trace", net, "--device", "toaster"), folder)
    asked = rlprune("plan", net, "--budget-ratio", 0.99, "--policy", "uniform", "--json")
    assert asked.exit_code in (0, 3)
    (device,) = answer(rlprune("devices", "--json"))
    report = answer(rlprune("trace", net, "--device", device["device"], "--json"))
    assert report["device"] == device["device"] and report["latency_ms"] > 0
    assert all(0 < group["latency_ratio"] < 1 for group in report["groups"])
    other = folder / "other.onnx"
    other.write_bytes(conv_net((8, 24), extent=8).SerializeToString())
    line = refusal(
        rlprune("trace", other, "--device", device["device"]), folder, also=("other.onnx",)
    )
    assert "has not measured this model" in line
    (after,) = answer(rlprune("devices", "--json"))
    assert after["measurement_count"] == device["measurement_count"]


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
    held = lines[lines.index("held whole") :]
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
