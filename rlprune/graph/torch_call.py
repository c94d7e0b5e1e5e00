"""A torch module as it is given: out of its wrappers, copied, and called as its user calls it.

What rlprune does to a module it does to a copy. The caller's keeps its tensors, hooks and mode, and
is never run.
"""

from __future__ import annotations

import copy
import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map
from torch.utils.weak import WeakIdKeyDictionary

from rlprune.errors import InputError, ModelError

_HOOKS = (
    *("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"),
    *("_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks"),
    "_load_state_dict_post_hooks",
)
_COMPUTING_HOOKS = ("torch.nn.utils.weight_norm", "torch.nn.utils.spectral_norm")
_WRAPPERS = {
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "OptimizedModule": "_orig_mod",
}
"""Classes of torch that wrap a module, and the attribute where it is."""


@dataclass(frozen=True)
class Call:
    """What a module is called with: positional and keyword arguments, tensors and others."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @classmethod
    def of(cls, example_inputs: Any) -> Call:
        """A tensor, a sequence of positional arguments, or a mapping of keyword arguments.

        The tensors are copied, in float32 where they are floating point.

        Raises:
            InputError: there is no tensor in it.
        """
        if isinstance(example_inputs, Mapping):
            call = cls((), dict(example_inputs))
        elif isinstance(example_inputs, list | tuple):
            call = cls(tuple(example_inputs), {})
        else:
            call = cls((example_inputs,), {})
        if not call.tensors():
            kind = type(example_inputs).__name__
            raise InputError(
                f"example_inputs hold no tensor (got {kind}); give a tensor, a tuple of arguments, "
                "or a dict of keyword arguments"
            )
        return call.map(lambda tensor: as_float32(tensor.detach()).clone())

    def run(self, module: nn.Module) -> Any:
        return module(*self.args, **self.kwargs)

    def tensors(self) -> tuple[Tensor, ...]:
        leaves = tree_leaves((self.args, dict(self.kwargs)))
        return tuple(leaf for leaf in leaves if isinstance(leaf, Tensor))

    def map(self, change: Any) -> Call:
        """The same call with every tensor changed."""

        def one(leaf: Any) -> Any:
            return change(leaf) if isinstance(leaf, Tensor) else leaf

        args, kwargs = tree_map(one, (self.args, dict(self.kwargs)))
        return Call(args, kwargs)

    def flatten(self, module: nn.Module) -> None:
        """Makes `module` take `tensors()` in their order and return a tuple of tensors; in place.

        Exporters take no dicts and no numbers.
        """
        leaves, spec = tree_flatten((self.args, dict(self.kwargs)))
        forward = module.forward

        def flat(*tensors: Tensor) -> tuple[Tensor, ...]:
            given = iter(tensors)
            full = [next(given) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            args, kwargs = spec.unflatten(full)
            return tuple(tensors_in(forward(*args, **kwargs)))

        module.forward = flat


def as_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def tensors_in(output: object) -> Iterator[Tensor]:
    """The tensors of a module's output, in order; mappings and dataclasses are looked into."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from tensors_in(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from tensors_in(value)
    elif is_dataclass(output) and not isinstance(output, type):
        for field in fields(output):
            yield from tensors_in(getattr(output, field.name))


def named_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and buffer under each of its names: a shared one comes more than once."""
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def unwrap(module: nn.Module) -> nn.Module:
    """The module inside DataParallel, DistributedDataParallel and `torch.compile`.

    Raises:
        ModelError: a module that rlprune can know nothing of: scripted, on the meta device, or with
            weights that an old-style hook computes.
    """
    while type(module).__name__ in _WRAPPERS and type(module).__module__.startswith("torch."):
        module = getattr(module, _WRAPPERS[type(module).__name__])
    name = type(module).__name__
    if isinstance(module, torch.jit.ScriptModule):
        raise ModelError(f"module {name} is TorchScript; give the nn.Module it was made from")
    for path, tensor in named_tensors(module):
        if tensor.is_meta or is_lazy(tensor):
            raise ModelError(
                f"module {name} has no values in {path!r} (meta device or lazy); "
                "materialise it, e.g. module.to_empty(device='cpu') and load_state_dict"
            )
    for path, part in module.named_modules():
        for hook in part._forward_pre_hooks.values():
            made_in = type(hook).__module__
            if made_in in _COMPUTING_HOOKS or made_in == "torch.nn.utils.prune":
                raise ModelError(
                    f"module {name}: a hook computes the weights of {path or 'the module'!r} "
                    f"({type(hook).__name__}); remove it first (torch.nn.utils.remove_weight_norm, "
                    "remove_spectral_norm, prune.remove)"
                )
    return module


def detached_copy(module: nn.Module) -> nn.Module:
    """A deep copy without gradients and hooks: a hook may reach into objects of the caller's.

    Raises:
        ModelError: torch cannot copy it.
    """
    # What `deepcopy` finds in its memo it does not copy: hooks are left behind.
    memo: dict[int, Any] = {
        id(hooks): OrderedDict()
        for part in module.modules()
        for hooks in (getattr(part, name, None) for name in _HOOKS)
        if hooks is not None
    }
    try:
        twin = copy.deepcopy(module, memo)
    except (RuntimeError, TypeError) as error:
        raise ModelError(
            f"module {type(module).__name__} cannot be copied: {first_line(error)}"
        ) from error
    for parameter in twin.parameters():
        parameter.grad = None
    return twin


@contextmanager
def plain_attention() -> Iterator[None]:
    """Attention without torch's fused operator, which ONNX does not know and which blanks what is
    masked; so that all modules compute alike here."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__


def refuse_value_reads(module: nn.Module, call: Call) -> None:
    """Runs `module` (in eval mode) and refuses it where its code branches on what it computes.

    A trace follows one path; the other would be lost without a word.

    Raises:
        ModelError: naming the line; or the module does not run on `call`.
    """
    name = type(module).__name__
    try:
        with torch.no_grad(), _Reads(call.tensors()) as reads:
            call.run(module)
    except Exception as error:  # forward code may raise anything
        raise ModelError(
            f"module {name} does not run on the example inputs: {first_line(error)}"
        ) from error
    if reads.place:
        raise ModelError(
            f"module {name} branches on values it computes ({reads.place}); a trace follows one "
            "path only: use torch.where, or trace the part without the branch"
        )


class _Reads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes where what was computed from the inputs is turned into Python values."""

    def __init__(self, inputs: tuple[Tensor, ...]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.place = ""
        self._computed = WeakIdKeyDictionary()
        for tensor in inputs:
            self._computed[tensor] = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        computed = any(
            isinstance(leaf, Tensor) and leaf in self._computed
            for leaf in tree_leaves((args, kwargs))
        )
        if computed and func in (
            torch.ops.aten._local_scalar_dense.default,
            torch.ops.aten.equal.default,
        ):
            self.place = self.place or _user_line(sys._getframe(1))
        result = func(*args, **kwargs)
        if computed:
            for leaf in tree_leaves(result):
                if isinstance(leaf, Tensor):
                    self._computed[leaf] = True
        return result


def _user_line(frame: FrameType | None) -> str:
    """`file:line` of the code that asked; empty where torch's own code did (a hint, a check)."""
    root = str(Path(torch.__file__).parent)
    while frame is not None and frame.f_code.co_filename.startswith(root):
        if frame.f_code.co_filename.startswith(f"{root}/nn/"):
            return ""
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name} line {frame.f_lineno}" if frame else ""
