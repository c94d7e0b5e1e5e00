"""A plan applied to the torch module it was traced from: a smaller copy, ready to fine-tune.

Weights and buffers are cut by name with the ONNX trace's channel map; the attributes that name
widths follow. Where forward code has widths written into it that no attribute moves (a padded
shortcut, `view(-1, 1024)`, split sizes, channel slices) that module alone becomes a `torch.fx`
graph module in which the numbers are replaced (surgery.torch_graph). Every result is checked, on
random weights, against the uncut module with the consumers of dropped channels zeroed; what differs
is refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import redirect_stderr
from io import StringIO
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from rlprune.errors import ModelError
from rlprune.graph.from_torch import TorchTrace
from rlprune.graph.torch_call import Call, detached_copy, named_tensors, plain_attention, tensors_in
from rlprune.graph.types import FloatArray, IntArray
from rlprune.surgery.importance import unit_scores
from rlprune.surgery.onnx import check_keeps, kept_units
from rlprune.surgery.torch_cut import Cut
from rlprune.surgery.torch_graph import own_code, rewrite_widths
from rlprune.surgery.torch_layers import follow_layer, width_choices

TOLERANCE = 1e-3
"""Greatest difference from the oracle, as a share of its greatest output; float32 reorders sums."""


def prune_torch(
    trace: TorchTrace, keeps: IntArray, *, scores: list[FloatArray] | None = None
) -> nn.Module:
    """A copy of the traced module with `keeps` [G] units left in each group, in the mode it was in.

    Which units stay is decided by `scores` (by default as for ONNX). The form of the result does
    not depend on it: the same plan applied to the same architecture with other weights gives a
    module that takes this one's `state_dict` and then computes the same. In a part whose code had
    to be rewritten, statements under `if self.training` are those of eval mode.

    Raises:
        PlanError: `keeps` does not fit the graph.
        ModelError: the forward code depends on widths in a way that cannot be followed.
    """
    check_keeps(trace.graph, keeps)
    with plain_attention():
        return _prune(trace, keeps, scores)


def _prune(trace: TorchTrace, keeps: IntArray, scores: list[FloatArray] | None) -> nn.Module:
    survivors = kept_units(unit_scores(trace.onnx) if scores is None else scores, keeps)
    cut = Cut(trace, survivors)
    probe = detached_copy(trace.module).eval().float()
    randomise(probe, seed=0)
    oracle = _zero_consumers(detached_copy(probe), cut)
    call = _random_like(trace.call, seed=1)
    with torch.no_grad():
        expected = list(tensors_in(call.run(oracle)))
    del oracle
    small, kept_whole = _follow_attributes(probe, cut), set[str]()
    if not _agree(small, expected, call):
        small, kept_whole = _rewrite(probe, trace, cut, call)
        if not _agree(small, expected, call):
            raise ModelError(
                f"module {type(trace.module).__name__} cannot be cut: its forward code depends on "
                f"widths in a way that cannot be rewritten{_plain_tensors(trace.module)}; prune "
                "its ONNX export instead"
            )
    _fill(small, trace.module, cut, kept_whole)
    return small


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


def _follow_attributes(probe: nn.Module, cut: Cut) -> nn.Module:
    """A cut copy, all code as it was, attributes at their likeliest."""
    small = detached_copy(probe)
    for path, part in small.named_modules():
        if own_code(part):
            for name, value in next(width_choices(part, path, cut), {}).items():
                setattr(part, name, value)
    _shrink(small, cut)
    return small


def _rewrite(
    probe: nn.Module, trace: TorchTrace, cut: Cut, call: Call
) -> tuple[nn.Module, set[str]]:
    """A cut copy with the widths in its code replaced, every part as like its old self as can be.

    Also the names of tensors that are no longer to be cut.
    """
    small = detached_copy(probe)
    rewritten, traced, indices = rewrite_widths(small, trace, cut)
    before = {path: small.get_submodule(path) for path in traced}
    choices = {path: list(width_choices(part, path, cut)) for path, part in before.items()}
    for path, part in small.named_modules():
        if own_code(part) and path not in traced:
            for name, value in next(width_choices(part, path, cut), {}).items():
                setattr(part, name, value)
    for path, part in rewritten.items():
        for name, value in (choices[path] or [{}])[0].items():
            setattr(part, name, value)
        small = _put(small, path, part)
    _shrink(small, cut)
    small = _restore(small, before, choices, call)
    return small, indices


def _restore(
    small: nn.Module,
    before: dict[str, nn.Module],
    choices: dict[str, list[dict[str, int]]],
    call: Call,
) -> nn.Module:
    """Puts back every part whose own code, its attributes set right, does what the graph does."""
    seen: dict[str, tuple[Any, Any, Any]] = {}
    handles = []
    for path in before:

        def note(_: nn.Module, args: Any, kwargs: Any, result: Any, path: str = path) -> None:
            seen.setdefault(path, (args, kwargs, result))

        part = small.get_submodule(path)
        handles.append(part.register_forward_hook(note, with_kwargs=True))
    try:
        with torch.no_grad(), redirect_stderr(StringIO()):
            call.run(small)
    except Exception:  # forward code at widths it was not written for; the caller will see
        return small
    finally:
        for handle in handles:
            handle.remove()
    for path, part in before.items():
        if path not in seen:
            continue
        args, kwargs, result = seen[path]
        part._buffers = small.get_submodule(path)._buffers
        part._parameters = small.get_submodule(path)._parameters
        expected = list(tensors_in(result))
        for choice in choices[path] or [{}]:
            old = {name: getattr(part, name) for name in choice}
            for name, value in choice.items():
                setattr(part, name, value)
            if _agree(part, expected, Call(args, kwargs)):
                small = _put(small, path, part)
                break
            for name, value in old.items():
                setattr(part, name, value)
    return small


def _put(root: nn.Module, path: str, part: nn.Module) -> nn.Module:
    """`root` with `part` at `path`, wherever the module there is used."""
    if not path:
        return part
    old = root.get_submodule(path)
    for owner in root.modules():
        for name, child in owner._modules.items():
            if child is old:
                owner._modules[name] = part
    return root


def _shrink(module: nn.Module, cut: Cut) -> None:
    """Cuts every tensor of `module` in place and lets the attributes of torch's layers follow."""
    done: dict[int, Tensor] = {}  # a shared tensor stays shared
    for path, part in module.named_modules():
        prefix = f"{path}." if path else ""
        for name, parameter in list(part.named_parameters(recurse=False)):
            if id(parameter) not in done:
                smaller = cut.tensor(prefix + name, parameter)
                done[id(parameter)] = nn.Parameter(smaller, parameter.requires_grad)
            part._parameters[name] = done[id(parameter)]
        for name, buffer in list(part.named_buffers(recurse=False)):
            if id(buffer) not in done:
                done[id(buffer)] = cut.tensor(prefix + name, buffer)
            part._buffers[name] = done[id(buffer)]
    for path, part in reversed(list(module.named_modules())):  # what is inside first
        follow_layer(part, path, cut)


def _fill(small: nn.Module, true: nn.Module, cut: Cut, kept_whole: set[str]) -> None:
    """Gives `small` the values, types, devices and modes of the uncut module, in place."""
    values = dict(named_tensors(true))
    done: dict[int, Tensor] = {}
    for path, part in small.named_modules():
        prefix = f"{path}." if path else ""
        for held in (part._parameters, part._buffers):
            for name, old in held.items():
                full = prefix + name
                if old is None or full not in values:
                    continue
                if id(old) not in done:
                    value = values[full]
                    new = old.to(value) if full in kept_whole else cut.tensor(full, value)
                    if isinstance(old, nn.Parameter):
                        new = nn.Parameter(new, value.requires_grad)
                    done[id(old)] = new
                held[name] = done[id(old)]
    modes = {name: part.training for name, part in true.named_modules()}
    for name, part in small.named_modules():
        part.training = modes.get(name, true.training)


def _zero_consumers(module: nn.Module, cut: Cut) -> nn.Module:
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


def _random_like(call: Call, *, seed: int) -> Call:
    """Random inputs of the same shapes; what is not floating point (indices) stays as it is."""
    generator = torch.Generator().manual_seed(seed)
    return call.map(
        lambda t: torch.randn(t.shape, generator=generator) if t.is_floating_point() else t
    )


def _agree(small: nn.Module, expected: list[Tensor], call: Call) -> bool:
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


def _plain_tensors(module: nn.Module) -> str:
    """Names tensors that are neither parameter nor buffer, the likeliest cause."""
    for path, part in module.named_modules():
        if isinstance(part, fx.GraphModule):
            continue
        for name, value in vars(part).items():
            if isinstance(value, Tensor):
                return f" (register {f'{path}.{name}'.lstrip('.')!r} as a buffer)"
    return ""
