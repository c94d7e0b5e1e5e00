"""`plan --at-init`: an untrained module becomes a plan, or one line says why not."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import Rlprune, answer, refusal

import rlprune as library
from rlprune.errors import InputError
from rlprune.plans import PruningPlan

SHAPE = ("--input-shape", "1x3x8x8")
MACS = ("--budget-ratio", 0.3, "--device", "macs")
CODE = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 48, 3, padding=1), nn.BatchNorm2d(48), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 4),
    )

def mobile():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU6(),
        *block(16, 32), *block(32, 64), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 4),
    )

def block(cin, cout):
    return (
        nn.Conv2d(cin, cin, 3, padding=1, groups=cin, bias=False), nn.BatchNorm2d(cin), nn.ReLU6(),
        nn.Conv2d(cin, cout, 1, bias=False), nn.BatchNorm2d(cout), nn.ReLU6(),
    )
"""


@pytest.fixture(autouse=True)
def mynets(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`mynets.py` and `images.npz` in the folder that the user is in."""
    (folder / "mynets.py").write_text(CODE)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "mynets", raising=False)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((32, 3, 8, 8)).astype(np.float32)
    np.savez(folder / "images.npz", x=x, y=np.arange(32) % 4)


MINE = ("plan", "--at-init", "--module", "mynets:net")
ALSO = ("mynets.py", "images.npz", "__pycache__")


@pytest.mark.parametrize(
    "score", [(), ("--score", "snip"), ("--score", "grasp")], ids=["synflow", "snip", "grasp"]
)
def test_the_plan_is_the_one_that_python_gives_and_is_applied_before_training(
    rlprune: Rlprune, folder: Path, score: tuple[str, ...]
) -> None:
    images = ("--calibration", "images.npz") if score else ()
    found = answer(rlprune(*MINE, *SHAPE, *MACS, *score, *images, "-o", "plan.json", "--json"))
    name = score[1] if score else "synflow"
    assert f"by {name} at initialisation" in found["note"]
    plan = PruningPlan.load(folder / "plan.json")
    assert plan.feasible and plan.predicted_latency_ms <= 0.3 * plan.base_latency_ms

    import mynets  # type: ignore[import-not-found]

    module, x = mynets.net(), torch.zeros(1, 3, 8, 8)
    trace = library.trace(module, x)
    calibration = "images.npz" if score else None
    assert plan == library.plan(
        trace, budget_ratio=0.3, device="macs", at_init=name, calibration=calibration
    )
    small = library.apply(plan, trace)
    assert small(x).shape == (1, 4)
    widths = [part.out_channels for part in small if isinstance(part, torch.nn.Conv2d)]
    assert widths == plan.keeps.tolist()


def test_images_tell_the_shape(rlprune: Rlprune) -> None:
    asked = (*MINE, *MACS, "--score", "snip", "--calibration", "images.npz", "--json")
    assert answer(rlprune(*asked))["feasible"]


def test_least_ratio_holds_at_initialisation(rlprune: Rlprune) -> None:
    found = answer(rlprune(*MINE, *SHAPE, *MACS, "--min-keep-ratio", 0.5, "--json"))
    assert all(2 * group["keep"] >= group["width"] for group in found["groups"])


def test_parameters_are_a_second_budget(rlprune: Rlprune) -> None:
    free = answer(rlprune(*MINE, *SHAPE, *MACS, "--json"))
    most = free["params"] // 2
    small = answer(rlprune(*MINE, *SHAPE, *MACS, "--max-params", most, "--json"))
    assert small["params"] <= most


def test_too_few_parameters_are_infeasible(rlprune: Rlprune) -> None:
    result = rlprune(*MINE, *SHAPE, *MACS, "--max-params", 3, "-o", "none.json")
    assert result.exit_code == 3
    assert "no plan of at most 3 parameters was found" in " ".join(result.stderr.split())
    assert not Path("none.json").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("plan", *MACS), "give MODEL.onnx, or --at-init"),
        (("plan", "model.onnx", "--module", "mynets:net", *MACS), "goes with --at-init"),
        (("plan", "--at-init", *SHAPE, *MACS), "give --module, and no MODEL.onnx"),
        ((*MINE, "model.onnx", *SHAPE, *MACS), "give --module, and no MODEL.onnx"),
        ((*MINE, *MACS), "what does the module take?"),
        ((*MINE, *SHAPE, *SHAPE, *MACS), "traced with one input"),
        ((*MINE, "--input-shape", "3xa", *MACS), "is no shape"),
    ],
)
def test_wrong_usage_says_what_is_right(
    rlprune: Rlprune, arguments: tuple[object, ...], said: str
) -> None:
    result = rlprune(*arguments)
    assert result.exit_code == 2 and result.stdout == ""
    assert said in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--score", "taylor"), "no score 'taylor'; give synflow, snip, grasp"),
        (("--score", "snip"), "snip is taken of images: give calibration"),
        (("--calibration", "images.npz"), "synflow looks at no images"),
        (("--effort", "quick"), "effort does not go with at_init"),
        (("--max-params", 0), "max_params is 0; give how many parameters"),
        (("--module", "mynets:nothing"), "has no attribute 'nothing'"),
        (("--input-shape", "1x1x8x8"), "does not run on the example inputs"),
    ],
)
def test_refusals_are_one_line(
    rlprune: Rlprune, folder: Path, options: tuple[object, ...], said: str
) -> None:
    assert said in refusal(
        rlprune(*MINE, *SHAPE[: 2 * ("--input-shape" not in options)], *MACS, *options),
        folder,
        also=ALSO,
    )


def test_an_onnx_file_is_no_untrained_network(model: Path) -> None:
    with pytest.raises(InputError, match="at_init needs a torch module"):
        library.plan(model, budget_ratio=0.5, device="macs", at_init="synflow")


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.75])
def test_separable_convolutions_are_planned_by_shares_which_uniform_widths_do_not_beat(
    rlprune: Rlprune, folder: Path, ratio: float
) -> None:
    ask = ("plan", "--at-init", "--module", "mynets:mobile", *SHAPE, "--device", "macs")
    plans = {}
    for policy in ("knapsack", "uniform", "uniform-plain"):
        to = (*ask, "--budget-ratio", ratio, "--policy", policy, "--round-to", 1, "--json")
        found = answer(rlprune(*to, "-o", f"{policy}.json"))
        assert "by the shares that groups keep" in found["note"]
        plan = PruningPlan.load(folder / f"{policy}.json")
        widths = np.array([group.width for group in plan.groups])
        plans[policy] = float(-np.log(plan.keeps / widths).sum())
    assert plans["knapsack"] <= plans["uniform"] + 1e-9 <= plans["uniform-plain"] + 2e-9
