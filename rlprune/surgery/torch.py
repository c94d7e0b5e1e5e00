"""A plan applied to the torch module it was traced from: a smaller copy, ready to fine-tune.

Weights and buffers are cut by name with the ONNX trace's channel map; the attributes that name
widths follow. Where forward code has widths written into it that no attribute moves (a padded
shortcut, `view(-1, 1024)`, split sizes, channel slices) that module alone becomes a `torch.fx`
graph module in which the numbers are replaced (surgery.torch_graph). Every result is checked, on
random weights, against the unpruned module with the consumers of dropped channels zeroed; what
differs is refused.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from contextlib import redirect_stderr, suppress
from io import StringIO
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rlprune.errors import ModelError
from rlprune.graph.from_torch import TorchTrace
from rlprune.graph.torch_call import Call, detached_copy, named_tensors, plain_attention, tensors_in
from rlprune.graph.types import FloatArray, IntArray
from rlprune.surgery.importance import unit_scores
from rlprune.surgery.onnx import check_keeps, kept_units
from rlprune.surgery.removal import Removal
from rlprune.surgery.torch_attention import unpacked
from rlprune.surgery.torch_blocks import leave_out
from rlprune.surgery.torch_check import agree, blame, random_like, randomise, zero_consumers
from rlprune.surgery.torch_cut import Cut
from rlprune.surgery.torch_graph import Rewritten, rewrite_widths
from rlprune.surgery.torch_kernels import follow_borders, narrow_kernels
from rlprune.surgery.torch_layers import (
    MAX_CHOICES,
    follow_group_norm,
    follow_layer,
    put,
    width_choices,
)
from rlprune.surgery.torch_sites import own_code


def prune_torch(
    trace: TorchTrace, keeps: IntArray, *, scores: list[FloatArray] | None = None
) -> nn.Module:
    """A copy of the traced module with `keeps` [G] units left in each group, in the mode it was in.

    Which units stay is decided by `scores` (by default as for ONNX).

    Raises:
        PlanError: `keeps` does not fit the graph.
        ModelError: the forward code depends on widths in a way that cannot be followed.
    """
    check_keeps(trace.graph, keeps)
    units = kept_units(unit_scores(trace.onnx) if scores is None else scores, keeps)
    return cut_torch(trace, Removal(units))


def cut_torch(trace: TorchTrace, removal: Removal) -> nn.Module:
    """A copy of the traced module without what is to be removed, in the mode it was in: the twin of
    `surgery.onnx.cut`.

    The form of the result does not depend on which units and taps stay, but on how many: the same
    plan applied to the same architecture with other weights gives a module that takes this one's
    `state_dict` and then computes the same. In a part whose code had to be rewritten, statements
    under `if self.training` are those of eval mode.

    Args:
        removal: in the names of `trace.onnx`, e.g. by `schemes.removal_of`.

    Raises:
        ModelError: the forward code depends on widths or kernels in a way that cannot be followed,
            or a branch cannot be taken out of it.
    """
    with plain_attention():
        return _cut(trace, removal)


def _cut(trace: TorchTrace, removal: Removal) -> nn.Module:
    apart = unpacked(trace)
    cut = Cut(apart, removal.kept)
    probe = detached_copy(apart.module).eval().float()
    randomise(probe, seed=0)
    oracle = zero_consumers(detached_copy(probe), cut)
    call = random_like(trace.call, seed=1)
    with torch.no_grad():
        expected = list(tensors_in(call.run(oracle)))
    del oracle
    small, kept_whole = _follow_attributes(probe, cut, call), set[str]()
    if not agree(small, expected, call):
        whole = detached_copy(probe)
        rewritten = rewrite_widths(whole, trace, cut)
        unfollowed = {
            path: list(width_choices(whole.get_submodule(path), path, cut)) or [{}]
            for path in rewritten.refused
        }
        small, kept_whole = _rewrite(whole, rewritten, cut, call), rewritten.indices
        if not _try_unfollowed(small, unfollowed, expected, call):
            raise ModelError(
                f"module {type(trace.module).__name__} cannot be cut: "
                + blame(small, trace.module, rewritten.refused, call)
            )
    cut = Cut(apart, removal.kept, removal.windows)
    if removal.windows:
        narrow_kernels(small, apart, removal, cut, call)
    if removal.left_out:
        small = leave_out(small, apart, removal.left_out, cut, call)
    _fill(small, apart.module, cut, kept_whole)
    follow_borders(small)
    return small


def _follow_attributes(probe: nn.Module, cut: Cut, call: Call) -> nn.Module:
    """A cut copy, all code as it was, attributes at their likeliest."""
    small = detached_copy(probe)
    for path, part in small.named_modules():
        if own_code(part):
            _set(part, next(width_choices(part, path, cut), {}))
    _shrink(small, cut)
    _follow_inputs(small, call)
    return small


def _rewrite(small: nn.Module, rewritten: Rewritten, cut: Cut, call: Call) -> nn.Module:
    """`small`, whole still, cut with the widths in its code replaced, every part as like its old
    self as can be."""
    before = {path: small.get_submodule(path) for path in rewritten.followed}
    choices = {path: list(width_choices(part, path, cut)) for path, part in before.items()}
    for path, part in rewritten.parts.items():
        _set(part, (choices[path] or [{}])[0])
        small = put(small, path, part)
    _shrink(small, cut)
    _follow_inputs(small, call)
    return _restore(small, before, choices, call)


def _try_unfollowed(
    small: nn.Module,
    choices: Mapping[str, list[dict[str, int]]],
    expected: list[Tensor],
    call: Call,
) -> bool:
    """Whether `small` is right with some choice of the attributes of the parts whose code nothing
    is known of; sets it so."""
    picks = itertools.product(*choices.values())
    for pick in itertools.islice(picks, MAX_CHOICES):
        for path, values in zip(choices, pick, strict=True):
            _set(small.get_submodule(path), values)
        if agree(small, expected, call):
            return True
    return False


def _set(part: nn.Module, values: Mapping[str, int]) -> None:
    for name, value in values.items():
        setattr(part, name, value)


def _follow_inputs(small: nn.Module, call: Call) -> None:
    """Sets the widths of layers without tensors by what they are given, in place."""
    handles: list[RemovableHandle] = []
    for part in small.modules():
        if isinstance(part, nn.GroupNorm) and part.weight is None:

            def follow(part: nn.Module, args: Any) -> None:
                assert isinstance(part, nn.GroupNorm)
                follow_group_norm(part, args[0].shape[1])

            handles.append(part.register_forward_pre_hook(follow))
    if not handles:
        return
    with torch.no_grad(), redirect_stderr(StringIO()), suppress(Exception):
        call.run(small)  # forward code at widths it was not written for; the caller will see
    for handle in handles:
        handle.remove()


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
            _set(part, choice)
            if agree(part, expected, Call(args, kwargs)):
                small = put(small, path, part)
                break
            _set(part, old)
    return small


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
    """Gives `small` the values, types, devices and modes of the unpruned module, in place."""
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
