"""What a PyTorch user does with a pruned module, through public doors: save, reload, resume."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from topologies import TOPOLOGIES
from torch import Tensor, nn
from torch_nets import TRANSFORMERS
from torch_resume import optimizer_of, tensors, train

import rlprune
from rlprune.graph.from_torch import TorchTrace
from rlprune.plans import PlanEntry, PruningPlan
from rlprune.sensitivity.correct import Correction

NETS = {**TOPOLOGIES, **TRANSFORMERS}
QUICK = (*("resnet_a", "channel_shuffle", "c2f", "grouped_conv", "unet", "vit_packed"),)


def some_plan(trace: TorchTrace, seed: int = 0) -> PruningPlan:
    """A different share of every group, between a quarter and nearly all."""
    share = np.random.default_rng(seed).uniform(0.25, 0.9, len(trace.graph.groups))
    keeps = np.maximum(1, (trace.graph.widths * share).astype(np.int64))
    return plan_of(trace, keeps)


def plan_of(trace: TorchTrace, keeps: Any) -> PruningPlan:
    """A plan as a server would send it; its figures do not matter here."""
    groups = tuple(
        PlanEntry(group.name, "channel", group.width, int(keep), ())
        for group, keep in zip(trace.graph.groups, keeps, strict=True)
    )
    return PruningPlan(
        fingerprint=trace.graph.fingerprint,
        policy="test",
        profiled=False,
        device="macs",
        budget_ms=1.0,
        feasible=True,
        base_latency_ms=1.0,
        least_latency_ms=0.1,
        predicted_latency_ms=0.5,
        predicted_interval_ms=(0.4, 0.6),
        groups=groups,
        macs=1,
        params=1,
    )


def outputs(module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    with torch.no_grad():
        result: Tensor = module.eval()(*inputs)
    return result


def reseeded(name: str) -> nn.Module:
    """The same architecture, all weights different, so that other channels survive."""
    module = NETS[name]()[0]
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return module


def survivors(module: nn.Module, small: nn.Module) -> dict[str, list[int]]:
    """Which rows live on of each weight that lost rows alone."""
    rows = {}
    for name, weight in small.named_parameters():
        whole = module.get_parameter(name)
        if weight.dim() > 1 and whole.shape[1:] == weight.shape[1:] and len(whole) > len(weight):
            rows[name] = [int((whole == row).flatten(1).all(1).nonzero()[0]) for row in weight]
    return rows


@pytest.mark.parametrize("name", list(NETS))
def test_state_loads_into_the_plan_applied_to_other_weights_and_computes_the_same(
    name: str, long: bool
) -> None:
    if name not in QUICK and not long:
        pytest.skip("one of each kind is tried; all with --long")
    module, inputs = NETS[name]()
    trace = rlprune.trace(module, inputs)
    plan = some_plan(trace)
    told: list[Correction] = []
    small = rlprune.apply(plan, trace, on_result=told.append)
    assert told[0].inputs and told[0].moved is not None
    only_cut = rlprune.apply(plan, trace, calibration="none")
    other = reseeded(name)
    again = rlprune.apply(plan, other, example_inputs=inputs, calibration="none")
    assert survivors(module, only_cut) != survivors(other, again)
    again.load_state_dict(small.state_dict(), strict=True)
    torch.testing.assert_close(outputs(again, inputs), outputs(small, inputs))


@pytest.mark.parametrize("name", ["resnet_a", "vit_packed"])
def test_training_resumes_in_a_new_process_as_if_it_had_not_stopped(
    name: str, tmp_path: Path, long: bool
) -> None:
    if not long:
        pytest.skip("with --long; starting torch takes seconds")
    module, inputs = NETS[name]()
    trace = rlprune.trace(module.train(), inputs)
    plan = some_plan(trace)
    small = rlprune.apply(plan, trace)
    assert small.training
    batch = torch.randn(4, *inputs[0].shape[1:], generator=torch.Generator().manual_seed(5))
    optimizer = optimizer_of(small)
    train(small, optimizer, batch)
    plan.save(tmp_path / "plan.json")
    safetensors.torch.save_file(tensors(small), tmp_path / "small.safetensors")
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    safetensors.torch.save_file({"batch": batch}, tmp_path / "batch.safetensors")

    script = Path(__file__).parents[1] / "support" / "torch_resume.py"
    subprocess.run([sys.executable, str(script), name, str(tmp_path)], check=True, timeout=200)

    train(small, optimizer, batch)
    resumed = safetensors.torch.load_file(tmp_path / "resumed.safetensors")
    torch.testing.assert_close(resumed, tensors(small))
