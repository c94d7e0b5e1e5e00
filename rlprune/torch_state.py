"""A module in training as one safetensors file: weights, optimizer, a JSON header, nothing else.

Reading one runs no code. Which header and further tensors it has is its writer's business.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

KEY = "rlprune"
"""Of the header in the file's metadata."""


def pack(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    header: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
) -> bytes:
    """The file's content; `tensors` are further ones by names of their own."""
    named = {f"module.{name}": tensor for name, tensor in tensors_of(module).items()}
    for index, slots in optimizer.state_dict()["state"].items():
        for name, value in slots.items():
            if value is not None:
                named[f"optimizer.{index}.{name}"] = torch.as_tensor(value)
    # Copies, for tied weights may not stand in a file twice.
    copies = {n: t.detach().clone().contiguous() for n, t in {**named, **tensors}.items()}
    return bytes(save_tensors(copies, metadata={KEY: json.dumps(header)}))


def unpack(content: bytes) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The header, and all tensors by name.

    Raises:
        ValueError: no such file, or damaged.
    """
    try:
        size = int.from_bytes(content[:8], "little")
        header = json.loads(json.loads(content[8 : 8 + size])["__metadata__"][KEY])
        if not isinstance(header, dict):
            raise ValueError("its header is no object")
        return header, load_tensors(content)
    except (KeyError, TypeError, RecursionError, SafetensorError) as error:
        raise ValueError(repr(error)) from error


def load_module(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copies tensors, named as those of the module itself, into it.

    Raises:
        ValueError, RuntimeError: other tensors than the module's, or of other shapes.
    """
    own = tensors_of(module)
    if set(own) != set(tensors):
        raise ValueError("other tensors than the module's")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Puts back the state that `pack` named; the settings stay the optimizer's own."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in part(tensors, "optimizer.").items():
        index, slot = name.split(".")
        state.setdefault(int(index), {})[slot] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those whose names begin so, without the beginning."""
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """What of a module's state are tensors, by name; not copied."""
    return {n: t for n, t in module.state_dict().items() if isinstance(t, Tensor)}
