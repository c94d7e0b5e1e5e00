"""`plan` for several budgets, and what goes with a server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import Rlprune, answer

from rlprune.plans import PruningPlan
from rlprune.service.client import Client
from rlprune.service.server import Server, start

RATIOS = ("--budget-ratio", 0.8, "--budget-ratio", 0.5)
MACS = ("--device", "macs")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    running = start("127.0.0.1:0", str(tmp_path / "served.sqlite"))
    yield running
    running.stop(0.5)


def test_several_budgets_are_files_of_a_folder(rlprune: Rlprune, model: Path, folder: Path) -> None:
    plans = answer(rlprune("plan", model, *MACS, *RATIOS, "-o", "plans", "--json"))
    assert [plan["feasible"] for plan in plans] == [True, True]
    kept = {path.name: PruningPlan.load(path) for path in (folder / "plans").iterdir()}
    assert set(kept) == {"0.8.json", "0.5.json"}
    assert json.loads(kept["0.5.json"].to_json()) == plans[1]
    again = rlprune("plan", model, *MACS, *RATIOS, "-o", "plans")
    assert again.exit_code == 0 and again.stdout.count("budget  ") == 2


def test_a_plan_within_its_budget_is_written_beside_one_that_is_not(
    rlprune: Rlprune, model: Path, folder: Path
) -> None:
    budgets = ("--budget-ratio", 0.8, "--budget-ratio", 0.0001)
    result = rlprune("plan", model, *MACS, *budgets, "-o", "plans")
    assert result.exit_code == 3 and "0.0001.json was not written" in result.stderr
    assert [path.name for path in (folder / "plans").iterdir()] == ["0.8.json"]


def test_several_plans_do_not_go_into_a_file(rlprune: Rlprune, model: Path, folder: Path) -> None:
    (folder / "plan.json").write_text("{}")
    result = rlprune("plan", model, *MACS, *RATIOS, "-o", "plan.json")
    assert result.exit_code == 2 and "is a file" in result.stderr
    twice = rlprune("plan", model, *MACS, *RATIOS, "--budget-ratio", 0.5, "-o", "plans")
    assert twice.exit_code == 2 and "given twice" in twice.stderr


def test_a_second_budget_and_a_name_go_to_the_server(
    rlprune: Rlprune, model: Path, server: Server
) -> None:
    asked = ("plan", model, *MACS, "--budget-ratio", 0.9, "--max-params", 3_000, "--json")
    here = answer(rlprune(*asked))
    assert answer(rlprune(*asked, "--server", server.address)) == here
    with Client(server.address) as client:
        (kept,) = client.plans()
    assert kept.model_name == "model.onnx"
    assert json.loads(kept.request)["max_params"] == 3_000


def test_an_untrained_module_is_planned_by_a_server(
    rlprune: Rlprune, folder: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "onenet.py").write_text(
        "import torch\n"
        "def net():\n"
        "    torch.manual_seed(0)\n"
        "    return torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.ReLU(),\n"
        "        torch.nn.Conv2d(16, 8, 3), torch.nn.Flatten(), torch.nn.Linear(128, 4))\n"
    )
    monkeypatch.syspath_prepend(folder)
    asked = ("plan", "--at-init", "--module", "onenet:net", "--input-shape", "1x3x8x8", *MACS)
    here = answer(rlprune(*asked, "--budget-ratio", 0.5, "--json"))
    there = answer(rlprune(*asked, "--budget-ratio", 0.5, "--json", "--server", server.address))
    assert there == here and "at initialisation" in here["note"]


def test_a_plan_in_int8_is_applied_quantised_and_says_so(
    rlprune: Rlprune, model: Path, folder: Path
) -> None:
    import onnx

    asked = ("plan", model, *MACS, "--budget-ratio", 0.8, "--precision", "int8")
    made = rlprune(*asked, "--keep-float", "conv2", "-o", "plan.json")
    assert made.exit_code == 0 and "in int8" in made.stdout
    plan = PruningPlan.load(folder / "plan.json")
    assert plan.precision == "int8" and plan.constraints.keep_float == ("conv2",)
    told = answer(rlprune("apply", "plan.json", model, "-o", "small.onnx", "--json"))
    assert told["moved_after_quantisation"]["sample_count"] > 0
    names = {tensor.name for tensor in onnx.load(folder / "small.onnx").graph.initializer}
    assert "w2" in names and "w1_quantized" in names
    lines = rlprune("apply", "plan.json", model, "-o", "small.onnx").stdout
    assert "after quantisation to int8" in lines
    as_f32 = rlprune("apply", "plan.json", model, "-o", "f32.onnx", "--precision", "f32")
    assert as_f32.exit_code == 0 and "after quantisation" not in as_f32.stdout


def test_quantize_writes_a_smaller_file(rlprune: Rlprune, model: Path, folder: Path) -> None:
    told = answer(rlprune("quantize", model, "-o", "int8.onnx", "--json"))
    assert told["bytes"] == (folder / "int8.onnx").stat().st_size < model.stat().st_size
    again = rlprune("quantize", "int8.onnx", "-o", "twice.onnx")
    assert again.exit_code == 1 and "quantised already" in again.stderr
    missing = rlprune("quantize", model, "-o", "x.onnx", "--keep-float", "no such")
    assert missing.exit_code == 1 and "near names" in missing.stderr
    unknown = rlprune("plan", model, *MACS, "--budget-ratio", 0.8, "--precision", "int4")
    assert unknown.exit_code == 1 and "give f32, bf16, int8" in unknown.stderr
