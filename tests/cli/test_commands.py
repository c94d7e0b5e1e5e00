"""What each command prints and writes when all is well."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from command_line import Rlprune, answer, refusal
from small_onnx import small_onnx

from rlprune.plans import PruningPlan

MACS = ("--budget-ratio", 0.5, "--device", "macs", "--policy", "knapsack")


def test_trace_lists_groups_with_their_share(rlprune: Rlprune, model: Path) -> None:
    report = answer(rlprune("trace", model, "--json"))
    assert [group["width"] for group in report["groups"]] == [32, 64]
    assert report["macs"] == 16 * 16 * 9 * (3 * 32 + 32 * 64) + 640
    first, second = report["groups"]
    assert first["macs_ratio"] == pytest.approx(
        1 - 640 / report["macs"]
    )  # both convs read or write
    assert 0 < second["macs_ratio"] < first["macs_ratio"]
    assert {"w1[0]", "w2[1]"} == set(first["members"])

    shown = rlprune("trace", model)
    assert shown.exit_code == 0
    assert report["fingerprint"][:12] in shown.stdout and "conv2[1]" in shown.stdout


def test_plan_for_macs_prints_every_field(rlprune: Rlprune, model: Path) -> None:
    plan = answer(rlprune("plan", model, *MACS, "--json"))
    assert {
        "fingerprint", "policy", "profiled", "device", "budget_ms", "base_latency_ms",
        "least_latency_ms", "predicted_latency_ms", "predicted_interval_ms", "groups", "macs",
        "params", "reference",
    } <= set(plan)  # fmt: skip
    assert set(plan["groups"][0]) == {
        *("name", "scheme", "width", "keep", "option", "members", "constraint")
    }
    assert plan["device"] == "macs" and not plan["profiled"] and plan["feasible"]
    assert plan["budget_ms"] == pytest.approx(0.5 * plan["base_latency_ms"])
    assert plan["predicted_latency_ms"] <= plan["budget_ms"]
    assert plan["macs"] == pytest.approx(plan["predicted_latency_ms"] * 1e6)


def test_a_plan_for_macs_shows_its_macs_once_and_no_interval(rlprune: Rlprune, model: Path) -> None:
    plan = answer(rlprune("plan", model, *MACS, "--json"))
    shown = rlprune("plan", model, *MACS).stdout.splitlines()
    (counted,) = [line for line in shown if line.startswith("counted")]
    assert counted.count(f"{plan['macs'] / 1e6:.4g} M MACs") == 1
    assert not any("90 % within" in line for line in shown)


@pytest.mark.parametrize("policy", ["knapsack", "global", "uniform", "learned"])
def test_every_policy_meets_the_budget(rlprune: Rlprune, model: Path, policy: str) -> None:
    plan = answer(
        rlprune(
            "plan",
            model,
            "--budget-ratio",
            0.4,
            "--device",
            "macs",
            "--policy",
            policy,
            "--no-guard",
            "--json",
        )
    )
    assert plan["policy"].split("/")[0] == policy
    assert plan["predicted_interval_ms"][1] <= plan["budget_ms"]


def test_a_search_says_what_it_costs_and_shows_the_best_plans(
    rlprune: Rlprune, model: Path, folder: Path
) -> None:
    ask = ("plan", model, "--budget-ratio", 0.5, "--device", "macs")
    shown = rlprune(*ask, "-o", "plan.json")
    assert shown.exit_code == 0, shown.output
    plan = PruningPlan.load("plan.json")
    assert plan.candidates and plan.policy in shown.stdout
    assert "effort quick: 45 plans are evaluated, about" in shown.stderr
    assert "evaluating plans" in shown.stderr
    assert sum(line.count("posterior race  ") for line in shown.stdout.splitlines()) <= 6
    line = refusal(rlprune(*ask, "--effort", "some"), folder)
    assert "instant, quick, thorough" in line
    line = refusal(rlprune(*ask, "--effort", "quick", "--policy", "uniform"), folder)
    assert "policy" in line


def test_plan_then_apply_gives_a_smaller_model_that_runs(rlprune: Rlprune, model: Path) -> None:
    shown = rlprune("plan", model, *MACS, "-o", "plan.json")
    assert shown.exit_code == 0 and "knapsack" in shown.stdout
    plan = PruningPlan.load("plan.json")
    figures = answer(rlprune("apply", "plan.json", model, "-o", "pruned.onnx", "--json"))
    assert figures["macs"] == plan.macs and figures["macs_ratio"] <= 0.5
    pruned = onnx.load("pruned.onnx")
    onnx.checker.check_model(pruned, full_check=True)
    shapes = {tensor.name: list(tensor.dims) for tensor in pruned.graph.initializer}
    assert shapes["w1"][0] == plan.groups[0].keep == shapes["w2"][1]


def test_round_to_and_min_keep_bound_the_levels(rlprune: Rlprune, model: Path) -> None:
    ask = ("plan", model, "--budget-ratio", 0.3, "--device", "macs", "--policy", "knapsack")
    plan = answer(rlprune(*ask, "--round-to", 4, "--min-keep", 12, "--json"))
    assert all(group["keep"] % 4 == 0 and group["keep"] >= 12 for group in plan["groups"])


@pytest.mark.parametrize("shape", ["1x3x16x16", "x=1x3x16x16"])
def test_open_extents_are_given_with_or_without_a_name(
    rlprune: Rlprune, folder: Path, model: Path, shape: str
) -> None:
    (folder / "open.onnx").write_bytes(small_onnx(shape=("n", 3, "h", "w")).SerializeToString())
    opened = answer(rlprune("trace", "open.onnx", "--input-shape", shape, "--json"))
    assert opened["macs"] == answer(rlprune("trace", model, "--json"))["macs"]


@pytest.mark.parametrize("runtime", ["ort", "mnn"])
def test_first_plan_measures_this_machine_and_the_next_finds_it(
    rlprune: Rlprune, folder: Path, runtime: str
) -> None:
    model = folder / "tiny.onnx"
    model.write_bytes(small_onnx(widths=(8, 16), shape=(1, 3, 8, 8)).SerializeToString())
    ask = ("plan", model, "--budget-ratio", 0.9, "--round-to", 8, "--policy", "knapsack", "--json")
    named = () if runtime == "ort" else ("--device", runtime)
    first = rlprune(*ask, *named)
    assert first.exit_code in (0, 3)  # so small a model is mostly overhead
    assert "measuring this machine" in first.stderr
    key = json.loads(first.stdout)["device"]
    assert key.startswith(f"{runtime}-")
    second = rlprune(*ask, "--device", key)
    assert "measuring" not in second.stderr
    assert json.loads(second.stdout) == json.loads(first.stdout)
    (device,) = answer(rlprune("devices", "--json"))
    assert device["device"] == key and device["measurement_count"] > 0


@pytest.mark.parametrize("runtime", ["ort", "openvino"])
def test_measure_interleaves_models_in_one_table(
    rlprune: Rlprune, folder: Path, model: Path, runtime: str
) -> None:
    (folder / "half.onnx").write_bytes(small_onnx(widths=(16, 32)).SerializeToString())
    report = answer(rlprune("measure", model, "half.onnx", "--runtime", runtime, "--json"))
    first, half = report["models"]
    assert first["ratio_to_first"] == 1
    assert half["ratio_to_first"] < first["ratio_to_first"]
    assert report["device"].startswith(f"{runtime}-")


def test_devices_of_an_empty_store(rlprune: Rlprune) -> None:
    assert answer(rlprune("devices", "--json")) == []
    assert "no devices yet" in rlprune("devices").stdout


def test_help_needs_no_heavy_package() -> None:
    report = (
        "import sys; from typer.testing import CliRunner; from rlprune.cli.app import app\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0\n"
        "print(*sorted(set(sys.modules) & {'torch', 'ray', 'onnx', 'numpy', 'sqlalchemy', 'grpc'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", report], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == []


def test_version(rlprune: Rlprune) -> None:
    import rlprune as package

    shown = rlprune("--version")
    assert (shown.exit_code, shown.stdout) == (0, f"rlprune {package.__version__}\n")


def test_external_data_beside_the_model_is_read_and_the_output_holds_all_of_its_own(
    rlprune: Rlprune, folder: Path
) -> None:
    onnx.save_model(
        small_onnx(), "model.onnx", save_as_external_data=True, location="weights", size_threshold=0
    )
    assert rlprune("plan", "model.onnx", *MACS, "-o", "plan.json").exit_code == 0
    Path("elsewhere").mkdir()
    answer(rlprune("apply", "plan.json", "model.onnx", "-o", "elsewhere/out.onnx", "--json"))
    assert [path.name for path in Path("elsewhere").iterdir()] == ["out.onnx"]
    pruned = onnx.load("elsewhere/out.onnx", load_external_data=False)
    assert all(tensor.raw_data for tensor in pruned.graph.initializer)
    onnx.checker.check_model(pruned, full_check=True)


def test_a_model_beyond_two_gigabytes_is_refused_before_its_data_is_read(
    rlprune: Rlprune, folder: Path
) -> None:
    huge = small_onnx()
    tensor = huge.graph.initializer[1]
    tensor.ClearField("raw_data")
    tensor.dims[:] = [1 << 15, 1 << 14]  # 2 GiB of floats
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights")
    (folder / "model.onnx").write_bytes(huge.SerializeToString())
    (folder / "weights").write_bytes(b"")
    line = refusal(rlprune("trace", "model.onnx"), folder, also=("weights",))
    assert "w2" in line and "2147483647 bytes" in line
