"""Blocks of a cut network trained for a few steps, each for itself, to answer as they did.

Blockwise distillation as in NVIDIA's Puzzle (arXiv 2411.19146, section 3): every block reads what
it reads in the cut network and is trained to give what the unpruned network's block gives, in the
channels that are left. Blocks are modules that are there in both networks: those with code of
their own, and outside of them every convolution, with what follows it in the same `Sequential`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from rlprune.finetuning.augment import flipped_and_shifted
from rlprune.graph.from_torch import TorchTrace
from rlprune.sensitivity.calibration import CalibrationSet
from rlprune.surgery.removal import Removal
from rlprune.surgery.torch_attention import unpacked
from rlprune.surgery.torch_cut import Cut

SEEN = 1024
"""Images, about a tenth of an epoch, each several times."""
BATCH = 64
RATE = 0.01
"""Of SGD with momentum, falling to 0 along half a cosine; BatchNorm keeps its statistics. Layers
come from least squares, where gradients are mostly noise: Adam, which gives every weight a step of
one size, took ResNet-20 at half its MACs from 0.29 nats to 0.36 (1e-4, 1e-3), SGD to 0.29 (0.001),
0.31 (0.01), 0.36 (0.03); VGG from 0.165 to 0.175 and to 0.161 at 0.01."""
WEIGHTED = (nn.Conv2d, nn.Linear)


@dataclass(frozen=True, slots=True)
class Block:
    """A module of both networks."""

    path: str
    kept: Tensor
    """Of the channels that it gives in the unpruned network, those that it gives still [C']."""


def train_blocks(
    small: nn.Module, trace: TorchTrace, removal: Removal, images: CalibrationSet
) -> list[Block]:
    """Trains `small`, cut from the traced module, where it is; returns what was trained of it."""
    x = torch.from_numpy(np.ascontiguousarray(images.x))
    teacher = trace.module
    blocks = blocks_of(small, trace, removal, x[:2])
    owned = {
        parameter: None  # a set in the module's order
        for block in blocks
        for parameter in small.get_submodule(block.path).parameters()
        if parameter.requires_grad
    }
    optimizer = torch.optim.SGD(owned, lr=RATE, momentum=0.9, nesterov=True)
    steps = SEEN // BATCH
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(0)
    paths = [block.path for block in blocks]
    small.eval()
    with _watched(small, paths, apart=True) as own, _watched(teacher, paths) as wanted:
        for _ in range(steps):
            index = torch.randperm(len(x), generator=generator)[:BATCH]
            batch = flipped_and_shifted(x[index], generator)
            with torch.no_grad():
                teacher(batch)
            small(batch)
            # In shares of what is to be matched, so that none counts for more by its scale.
            loss = torch.stack(
                [
                    functional.mse_loss(own[block.path], target) / (target.var() + 1e-12)
                    for block in blocks
                    for target in [wanted[block.path].index_select(1, block.kept)]
                ]
            ).sum()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return blocks


def blocks_of(small: nn.Module, trace: TorchTrace, removal: Removal, x: Tensor) -> list[Block]:
    """The blocks of which something is left, in the module's order; those that the rewritten code
    of a cut module no longer calls give way to what is in them."""
    whole = unpacked(trace)
    cut = Cut(whole, removal.kept)
    called: set[str] = set()
    handles = [
        part.register_forward_hook(lambda *_, path=path: called.add(path))
        for path, part in small.named_modules()
    ]
    with torch.no_grad():
        small(x)
    for handle in handles:
        handle.remove()
    left = {name.rpartition(".")[0] for name, _ in small.named_parameters()}
    found = []
    for path in _outermost(whole.module, "", called):
        if any(f"{name}.".startswith(f"{path}.") for name in left):
            found.append(Block(path, _kept(whole.module, path, cut)))
    return found


def divergence(small: nn.Module, teacher: nn.Module, images: CalibrationSet) -> float:
    """Mean divergence of a classifier's answers from the teacher's, nats, as the evaluator has it
    of an ONNX file."""
    small.eval()
    with torch.no_grad():
        x = torch.from_numpy(np.ascontiguousarray(images.x))
        own, wanted = (
            torch.cat([net(part) for part in torch.split(x, BATCH)]).double().log_softmax(1)
            for net in (small, teacher)
        )
    return float((wanted.exp() * (wanted - own)).sum(1).mean())


def _outermost(module: nn.Module, path: str, called: set[str]) -> Iterator[str]:
    """Paths of the blocks of a module."""
    weighted = [part for part in module.modules() if isinstance(part, WEIGHTED)]
    own_code = not type(module).__module__.startswith("torch.")
    one = isinstance(module, WEIGHTED) or (
        isinstance(module, nn.Sequential) and any(part in weighted for part in module)
    )
    if path in called and path and weighted and (own_code or (one and len(weighted) == 1)):
        yield path
        return
    for name, part in module.named_children():
        yield from _outermost(part, f"{path}.{name}" if path else name, called)


def _kept(whole: nn.Module, path: str, cut: Cut) -> Tensor:
    """The channels that are left of what the module there gives: those of its last layer."""
    name, weight = [
        (f"{path}.{name}" if name else path, part.weight)
        for name, part in whole.get_submodule(path).named_modules()
        if isinstance(part, (*WEIGHTED, nn.BatchNorm2d))
    ][-1]
    assert isinstance(weight, Tensor)
    places = torch.arange(len(weight)).view(-1, *[1] * (weight.dim() - 1)).expand_as(weight)
    left = cut.tensor(f"{name}.weight", places.contiguous())
    return left.reshape(len(left), -1)[:, 0]


@contextmanager
def _watched(
    module: nn.Module, paths: list[str], *, apart: bool = False
) -> Iterator[dict[str, Tensor]]:
    """What the modules there gave last, by path; `apart`: no gradient goes from one to another."""
    seen: dict[str, Tensor] = {}

    def note(path: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda _, args, result: seen.update({path: result})

    def detached(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(one.detach() if isinstance(one, Tensor) else one for one in args)

    handles = []
    for path in paths:
        part = module.get_submodule(path)
        handles.append(part.register_forward_hook(note(path)))
        if apart:
            handles.append(part.register_forward_pre_hook(detached))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
