"""A plan applied to the torch module it was traced from: a smaller copy, ready to fine-tune.

Weights and buffers are cut by name with the ONNX trace's channel map; the attributes of torch's own
layers follow. Where the forward code has widths written into it (the padded shortcut of an option-A
ResNet, `view(-1, 1024)`, split sizes, channel slices) the copy is a `torch.fx` graph module in
which those numbers are replaced (surgery.torch_graph). Every result is checked, on random weights,
against the uncut module with the consumers of dropped channels zeroed; what differs is refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import redirect_stderr
from io import StringIO

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from rlprune.errors import ModelError
from rlprune.graph.from_torch import TorchTrace, detached_copy, named_tensors
from rlprune.graph.types import FloatArray, IntArray
from rlprune.surgery.importance import unit_scores
from rlprune.surgery.onnx import check_keeps, kept_units
from rlprune.surgery.torch_graph import kept_positions, rewrite_widths

TOLERANCE = 1e-3
"""Greatest difference from the oracle, as a share of its greatest output; float32 reorders sums."""


def prune_torch(
    trace: TorchTrace, keeps: IntArray, *, scores: list[FloatArray] | None = None
) -> nn.Module:
    """A copy of the traced module with `keeps` [G] units left in each group, in the mode it was in.

    Which units stay is decided by `scores` (by default as for ONNX). Applying the same plan to the
    same trace again gives a module that takes this one's `state_dict`. In a module that had to be
    rewritten, branches on `self.training` (functional dropout) are those of eval mode.

    Raises:
        PlanError: `keeps` does not fit the graph.
        ModelError: the forward code depends on widths in a way that cannot be followed.
    """
    check_keeps(trace.graph, keeps)
    kept = kept_units(unit_scores(trace.onnx) if scores is None else scores, keeps)
    cut = _Cut(trace, kept)
    probe = detached_copy(trace.module).eval()
    randomise(probe, seed=0)
    oracle = _zero_consumers(detached_copy(probe), cut)
    inputs = _random_like(trace.inputs, seed=1)
    small = _shrink(detached_copy(probe), cut)
    if not _agree(small, oracle, inputs):
        small = _shrink(rewrite_widths(probe, trace, kept), cut)
        if not _agree(small, oracle, inputs):
            raise ModelError(
                f"module {type(trace.module).__name__} cannot be cut: its forward code depends on "
                "widths in a way that cannot be rewritten; prune its ONNX export instead"
            )
    true = dict(named_tensors(trace.module))
    with torch.no_grad():
        for name, tensor in named_tensors(small):
            if name in true:
                tensor.copy_(cut.tensor(name, true[name]))
    modes = {name: part.training for name, part in trace.module.named_modules()}
    for name, part in small.named_modules():
        part.training = modes.get(name, trace.module.training)
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


class _Cut:
    """Which positions of every named parameter and buffer stay."""

    def __init__(self, trace: TorchTrace, kept: list[IntArray]) -> None:
        self._channels = trace.onnx.channels
        self._kept = kept
        places = {name: (name, tuple(range(8))) for name in trace.onnx.normal.weights}
        places |= trace.moved
        # The exporter gives a shared tensor one of its names.
        shared = {id(t): places[name] for name, t in named_tensors(trace.module) if name in places}
        self._places = {
            name: shared[id(tensor)]
            for name, tensor in named_tensors(trace.module)
            if id(tensor) in shared
        }
        nodes = [n for n in trace.onnx.model.graph.node if n.op_type in ("Conv", "ConvTranspose")]
        self._data = {
            node.input[1]: node.input[0] if node.op_type == "Conv" else node.output[0]
            for node in nodes
        }

    def positions(self, name: str, axis: int, size: int) -> IntArray:
        """Positions of that axis that stay, ascending; all where the trace does not know it."""
        there, axes = self._places.get(name, ("", ()))
        if axis >= len(axes) or axes[axis] < 0:
            return np.arange(size, dtype=np.int64)
        return kept_positions(self._channels, there, axes[axis], size, self._kept)

    def tensor(self, name: str, tensor: Tensor) -> Tensor:
        """The part of it that stays."""
        for axis, size in enumerate(tensor.shape):
            stays = self.positions(name, axis, size)
            if len(stays) < size:
                tensor = tensor.index_select(axis, torch.from_numpy(stays).to(tensor.device))
        return tensor.detach().clone()

    def wide_side(self, name: str, size: int) -> int:
        """Channels that stay on the side of a grouped convolution its weight lists per group."""
        data = self._data[self._places[name][0]]
        return len(kept_positions(self._channels, data, 1, size, self._kept))


def _shrink(module: nn.Module, cut: _Cut) -> nn.Module:
    """Cuts every tensor of `module` in place and lets the layers' attributes follow."""
    done: dict[int, nn.Parameter] = {}  # a shared parameter stays shared
    for path, part in module.named_modules():
        prefix = f"{path}." if path else ""
        for name, parameter in list(part.named_parameters(recurse=False)):
            if id(parameter) not in done:
                smaller = cut.tensor(prefix + name, parameter)
                done[id(parameter)] = nn.Parameter(smaller, parameter.requires_grad)
            part._parameters[name] = done[id(parameter)]
        for name, buffer in list(part.named_buffers(recurse=False)):
            part._buffers[name] = cut.tensor(prefix + name, buffer)
        _follow(part, prefix + "weight", cut)
    return module


def _follow(part: nn.Module, weight_name: str, cut: _Cut) -> None:
    """Sets the attributes in which torch's layers keep their widths."""
    if isinstance(part, _ConvNd):
        transposed = isinstance(part, _ConvTransposeNd)
        wide = part.out_channels if transposed else part.in_channels
        if part.groups > 1:
            part.groups = cut.wide_side(weight_name, wide) // part.weight.shape[1]
        wide = part.weight.shape[1] * part.groups
        narrow = part.weight.shape[0]
        part.in_channels, part.out_channels = (narrow, wide) if transposed else (wide, narrow)
    elif isinstance(part, nn.Linear):
        part.out_features, part.in_features = part.weight.shape
    elif isinstance(part, _NormBase):
        tensor = part.weight if part.weight is not None else part.running_mean
        if tensor is not None:
            part.num_features = tensor.shape[0]
    elif isinstance(part, nn.GroupNorm) and part.weight is not None:
        part.num_channels = part.weight.shape[0]
    elif isinstance(part, nn.PReLU):
        part.num_parameters = part.weight.shape[0]


def _zero_consumers(module: nn.Module, cut: _Cut) -> nn.Module:
    """`module` with the weights that read dropped channels set to zero, in place: the oracle."""
    with torch.no_grad():
        for path, part in module.named_modules():
            for name, parameter in part.named_parameters(recurse=False):
                full = f"{path}.{name}" if path else name
                for axis in _reading_axes(part, parameter):
                    stays = torch.zeros(parameter.shape[axis], dtype=torch.bool)
                    stays[torch.from_numpy(cut.positions(full, axis, len(stays)))] = True
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


def _random_like(inputs: tuple[Tensor, ...], *, seed: int) -> tuple[Tensor, ...]:
    """Random inputs of the same shapes; what is not floating point (indices) stays as it is."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(t.shape, generator=generator).to(t) if t.is_floating_point() else t
        for t in inputs
    )


def _agree(small: nn.Module, oracle: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    """Whether both give the same outputs; False too where the smaller one does not run."""
    with torch.no_grad():
        expected = list(_tensors(oracle(*inputs)))
        try:
            with redirect_stderr(StringIO()):  # fx prints code beside the traceback
                outputs = list(_tensors(small(*inputs)))
        except Exception:  # whatever forward code raises when a width is not what it was
            return False
    if not expected or [t.shape for t in outputs] != [t.shape for t in expected]:
        return False  # what cannot be compared is not known to be right
    for ours, theirs in zip(outputs, expected, strict=True):
        scale = float(theirs.abs().max()) if theirs.numel() else 0.0
        if not bool(((ours - theirs).abs() <= TOLERANCE * scale).all()):
            return False
    return True


def _tensors(output: object) -> Iterable[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, dict):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from _tensors(value)
