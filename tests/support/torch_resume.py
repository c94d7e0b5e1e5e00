"""Run as a process of its own by `surgery/test_torch_users.py`: prune again, reload, resume.

`python torch_resume.py NAME DIRECTORY`: the directory has `plan.json`, `small.safetensors`,
`optimizer.pt` and `batch.safetensors`; the module after two more steps goes to `resumed`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import safetensors.torch
import torch
from topologies import TOPOLOGIES
from torch import Tensor, nn
from torch_nets import TRANSFORMERS

import rlprune


def train(module: nn.Module, optimizer: torch.optim.Optimizer, batch: Tensor) -> None:
    """Two steps, dropout drawn from a fixed seed."""
    torch.manual_seed(3)
    module.train()
    for _ in range(2):
        optimizer.zero_grad()
        module(batch).square().mean().backward()
        optimizer.step()


def optimizer_of(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(module.parameters(), lr=1e-3)


def main(name: str, directory: Path) -> None:
    architecture, inputs = {**TOPOLOGIES, **TRANSFORMERS}[name]()
    torch.manual_seed(11)
    for part in architecture.modules():
        if isinstance(part, nn.Linear | nn.modules.conv._ConvNd):
            part.reset_parameters()  # fresh: what was learned comes from the file alone
    plan = rlprune.PruningPlan.load(directory / "plan.json")
    small = rlprune.apply(plan, architecture, example_inputs=inputs)
    small.load_state_dict(safetensors.torch.load_file(directory / "small.safetensors"), strict=True)
    optimizer = optimizer_of(small)
    optimizer.load_state_dict(torch.load(directory / "optimizer.pt", weights_only=True))
    train(small, optimizer, safetensors.torch.load_file(directory / "batch.safetensors")["batch"])
    safetensors.torch.save_file(tensors(small), directory / "resumed.safetensors")


def tensors(module: nn.Module) -> dict[str, Tensor]:
    return {key: value.contiguous().clone() for key, value in module.state_dict().items()}


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
