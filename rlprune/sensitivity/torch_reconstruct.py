"""A cut module's layers reconstructed, so that training starts from what is left at its best.

The same linear solves as for ONNX files (`sensitivity.correct`), written into the module's own
parameters. What layers share stays shared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from rlprune.errors import CalibrationError, MissingExtraError
from rlprune.graph.from_torch import Place, TorchTrace
from rlprune.graph.torch_call import named_tensors
from rlprune.graph.types import FloatArray, IntArray
from rlprune.runtime import get_runtime
from rlprune.runtime.base import Runtime
from rlprune.schemes import CHANNEL_ONLY, cut_kernels, removal_of
from rlprune.sensitivity.calibration import CalibrationSet
from rlprune.sensitivity.correct import Correction, Solved, only_cut, samples_for, solve
from rlprune.sensitivity.layers import Layer
from rlprune.sensitivity.sources import CalibrationSource
from rlprune.surgery.torch import cut_torch
from rlprune.surgery.torch_attention import unpacked
from rlprune.surgery.torch_cut import Cut


def prune_module(
    trace: TorchTrace,
    settings: IntArray,
    calibration: CalibrationSource | None,
    schemes: Sequence[str] = CHANNEL_ONLY,
) -> tuple[nn.Module, Correction]:
    """The traced module as a plan wants it, and what was done for it: as
    `sensitivity.correct.carry_out` does for ONNX models.

    Args:
        settings: of all sites of the schemes [S]; of channels the units to keep per group [G].

    Raises:
        CalibrationError: what was given is refused.
        MissingExtraError: something was given, and no runtime is installed.
        ModelError: the module's code does not follow the plan.
    """
    small = cut_torch(trace, removal_of(trace.onnx, settings, schemes))
    try:
        samples = samples_for(trace.onnx, calibration)
        if samples is None:
            return small, Correction(note="only cut")
        solved = reconstruct_module(small, trace, settings, samples, get_runtime(), schemes)
    except (CalibrationError, MissingExtraError) as error:
        if calibration is not None:
            raise
        return small, Correction(note=only_cut(str(error)), lost=True)
    if not solved.changes:
        return small, Correction(note="only cut: no layer can be solved", moved=solved.moved)
    return small, Correction(inputs=samples.text(), moved=solved.moved)


def reconstruct_module(
    small: nn.Module,
    trace: TorchTrace,
    settings: IntArray,
    samples: CalibrationSet,
    runtime: Runtime,
    schemes: Sequence[str] = CHANNEL_ONLY,
) -> Solved:
    """Reconstructs `small`, cut from the traced module by the settings [S] of `schemes`, in place.

    A parameter that the module computes with otherwise than as it is stays as it was cut.

    Returns:
        What was solved; no changes where no layer could be.

    Raises:
        CalibrationError: the network does not run on the samples, or overflows on them.
    """
    removal = removal_of(trace.onnx, settings, schemes)
    # A module may keep its units in another order than an ONNX file.
    whole = unpacked(trace)
    cut = Cut(whole, removal.kept, removal.windows)
    module = _Parameters(whole)
    kernels = cut_kernels(trace.onnx, schemes)
    solved = solve(trace.onnx, removal, samples, runtime, kernels=kernels, fitted=module.fitted)
    tensors = dict(named_tensors(small))
    with torch.no_grad():
        for name, change in solved.changes.items():
            weight, added = solved.layers[name].padded(change, removal)
            parameter, axes = module.homes[name]
            if parameter not in tensors:
                continue  # of a branch that was left out
            tensors[parameter].copy_(cut.tensor(parameter, _tensor(weight.transpose(axes))))
            for own, values in {module.own[name]: values for name, values in added.items()}.items():
                tensors[own].add_(cut.tensor(own, _tensor(values)))
    return solved


class _Parameters:
    """Which parameters of a traced module hold what the trace's layers read."""

    def __init__(self, trace: TorchTrace) -> None:
        self._shapes = {name: tuple(tensor.shape) for name, tensor in named_tensors(trace.module)}
        nodes, traced = trace.onnx.normal.nodes, trace.onnx.normal.shapes
        # The trace gives each reader of a vector its own, NAME#2 and on; the module has one.
        self.own = {
            name: name.rpartition("#")[0] if "#" in name and name not in self._shapes else name
            for node in nodes
            for name in node.inputs
        }
        self._uses = Counter(self.own[name] for node in nodes for name in node.inputs)
        self.homes: dict[str, tuple[str, tuple[int, ...]]] = {}
        """By weight the parameter that is it and nothing else, and of each of its axes the
        weight's."""
        for name, shape in self._shapes.items():
            places = list(trace.moved.get(name, ()))
            if self._uses[name]:
                places.append(Place(name, tuple(range(len(shape))), (0,) * len(shape)))
            if len(places) != 1:
                continue  # it is held in parts, or is an embedding too
            [place] = places
            axes = place.axes[: len(shape)]
            if sorted(axes) == list(range(len(shape))) and shape == tuple(
                traced[place.tensor][axis] for axis in axes
            ):
                self.homes[place.tensor] = name, axes

    def fitted(self, layer: Layer) -> Layer | None:
        """The layer as the module can hold its solution; None where it cannot."""
        if layer.tensor not in self.homes or self._uses[layer.tensor] != len(layer.outputs):
            return None
        held = Counter(self.own[name] for name, _ in layer.places)
        if not held or any(
            self._uses[name] != count or len(self._shapes.get(name, ())) != 1
            for name, count in held.items()
        ):
            return replace(layer, places=(), shift="none")  # used elsewhere too
        return replace(layer, shift=layer.shift if len(held) == len(layer.outputs) else "one")


def _tensor(values: FloatArray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))
