"""The check that every cut of a module passes, and what is said where one does not.

The oracle is the unpruned module, on random weights, with the consumers of dropped channels zeroed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import redirect_stderr
from io import StringIO
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from rlprune.graph.torch_call import Call, first_line, tensors_in
from rlprune.surgery.torch_cut import Cut
from rlprune.surgery.torch_sites import own_code

TOLERANCE = 1e-3
"""Greatest difference from the oracle, as a share of its greatest output; float32 reorders sums."""


def randomise(module: nn.Module, *, seed: int) -> None:
    """Random weights that keep the variance about even, so that every channel matters; in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1:
                noise *= (parameter.shape[0] / max(parameter.numel(), 1)) ** 0.5
            else:
                noise = 1.0 + 0.3 * noise
            parameter.copy_(noise)
        for part in module.modules():
            if isinstance(part, _NormBase) and part.running_var is not None:
                assert part.running_mean is not None
                part.running_mean.normal_(0.0, 0.3, generator=generator)
                part.running_var.uniform_(0.5, 1.5, generator=generator)


def zero_consumers(module: nn.Module, cut: Cut) -> nn.Module:
    """`module` with the weights that read dropped channels set to zero, in place: the oracle."""
    with torch.no_grad():
        for path, part in module.named_modules():
            for name, parameter in part.named_parameters(recurse=False):
                full = f"{path}.{name}" if path else name
                for axis in _reading_axes(part, parameter):
                    stays = torch.zeros(parameter.shape[axis], dtype=torch.bool)
                    stays[torch.from_numpy(cut.alive(full, axis, len(stays)))] = True
                    parameter.index_fill_(axis, torch.nonzero(~stays).flatten(), 0.0)
    return module


def _reading_axes(part: nn.Module, parameter: Tensor) -> Iterable[int]:
    """Axes along which a parameter reads channels; all where the layer is not torch's own."""
    if isinstance(part, _NormBase | nn.PReLU) or parameter.dim() < 2:
        return ()
    if isinstance(part, _ConvTransposeNd):
        return (0,)
    if isinstance(part, _ConvNd | nn.Linear):
        return (1,)
    return range(parameter.dim())


def random_like(call: Call, *, seed: int) -> Call:
    """Random inputs of the same shapes; what is not floating point (indices) stays as it is."""
    generator = torch.Generator().manual_seed(seed)
    return call.map(
        lambda t: torch.randn(t.shape, generator=generator) if t.is_floating_point() else t
    )


def agree(small: nn.Module, expected: list[Tensor], call: Call) -> bool:
    """Whether it gives these outputs; False too where it does not run."""
    with torch.no_grad():
        try:
            with redirect_stderr(StringIO()):  # fx prints code beside the traceback
                outputs = list(tensors_in(call.run(small)))
        except Exception:  # whatever forward code raises when a width is not what it was
            return False
    if not expected or [t.shape for t in outputs] != [t.shape for t in expected]:
        return False  # what cannot be compared is not known to be right
    for ours, theirs in zip(outputs, expected, strict=True):
        if not theirs.is_floating_point():
            if not torch.equal(ours, theirs):
                return False
            continue
        scale = float(theirs.abs().max()) if theirs.numel() else 0.0
        if not bool(((ours - theirs).abs() <= TOLERANCE * scale).all()):
            return False
    return True


def blame(small: nn.Module, whole: nn.Module, refused: Mapping[str, str], call: Call) -> str:
    """Which part of a cut module, that is not right, stands in the way, and what to do.

    Args:
        small, whole: after the cut and before.
        refused: by path, why torch.fx cannot trace the code there.
    """
    path, why = _failing(small, call)
    if not why and refused:
        path = next(iter(refused))
    if path in refused:
        why = f"torch.fx cannot trace it: {refused[path]}"
    whose = f"the code of {_called(whole, path)}" if why else "its forward code"
    what = f"{whose} depends on widths in a way that cannot be rewritten"
    what += f" ({why})" if why else ""
    found = _plain_tensor(whole)
    if found:
        return f"{what}; register {found!r} as a buffer, or prune its ONNX export instead"
    held = f"hold its layers (hold={path + '.*'!r})" if path and why else "hold layers"
    return f"{what}; take sizes from the tensors, {held}, or prune its ONNX export instead"


def _called(module: nn.Module, path: str) -> str:
    kind = type(module.get_submodule(path)).__name__
    return f"{path!r} ({kind})" if path else "the module itself"


def _failing(small: nn.Module, call: Call) -> tuple[str, str]:
    """The innermost part that raises as the module runs, and its first line; empty for none."""
    entered: list[str] = []
    handles = []
    for path, part in small.named_modules():

        def enter(_: nn.Module, __: Any, path: str = path) -> None:
            entered.append(path)

        def leave(_: nn.Module, __: Any, ___: Any) -> None:
            entered.pop()

        handles += [part.register_forward_pre_hook(enter), part.register_forward_hook(leave)]
    try:
        with torch.no_grad(), redirect_stderr(StringIO()):
            call.run(small)
    except Exception as error:  # whatever forward code raises when a width is not what it was
        # A layer of torch's own is given something wrong by the code around it.
        while entered and not own_code(small.get_submodule(entered[-1])):
            entered.pop()
        return entered[-1] if entered else "", first_line(error)
    finally:
        for handle in handles:
            handle.remove()
    return "", ""


def _plain_tensor(module: nn.Module) -> str:
    """The name of a tensor that is neither parameter nor buffer, the likeliest cause; or empty."""
    for path, part in module.named_modules():
        if isinstance(part, fx.GraphModule):
            continue
        for name, value in vars(part).items():
            if isinstance(value, Tensor):
                return f"{path}.{name}".lstrip(".")
    return ""
