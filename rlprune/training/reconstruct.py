"""A cut module's layers reconstructed, so that training starts from what is left at its best.

The same linear solves as for ONNX files (`profile.reconstruct`), written into the module's own
parameters. A layer's shift goes into its bias or off the mean of the BatchNorm behind; where there
is neither, the solve is for weights alone. What layers share stays shared.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch
from torch import nn

from rlprune.errors import CalibrationError, MissingExtraError
from rlprune.graph.from_torch import TorchTrace
from rlprune.graph.types import FloatArray, IntArray
from rlprune.profile.calibration import CalibrationSet
from rlprune.profile.correct import Correction, only_cut, samples_for, what_was_used
from rlprune.profile.reconstruct import Layer, Reconstruction, Shift
from rlprune.profile.sources import CalibrationSource
from rlprune.runtime import get_runtime
from rlprune.runtime.base import Runtime
from rlprune.surgery.importance import unit_scores
from rlprune.surgery.onnx import kept_units
from rlprune.surgery.torch import prune_torch
from rlprune.surgery.torch_attention import unpacked
from rlprune.surgery.torch_cut import Cut


def prune_module(
    trace: TorchTrace, keeps: IntArray, calibration: CalibrationSource | None
) -> tuple[nn.Module, Correction]:
    """The traced module as a plan wants it, and what was done for it: as
    `profile.correct.carry_out` does for ONNX models.

    Args:
        keeps: units to keep per group [G].

    Raises:
        CalibrationError: what was given is refused.
        MissingExtraError: something was given, and no runtime is installed.
    """
    small = prune_torch(trace, keeps)
    try:
        samples = samples_for(trace.onnx, calibration)
        if samples is None:
            return small, Correction(note="only cut")
        reconstruct_module(small, trace, keeps, samples, get_runtime())
    except (CalibrationError, MissingExtraError) as error:
        if calibration is not None:
            raise
        return small, Correction(note=only_cut(str(error)))
    return small, Correction(inputs=what_was_used(samples, samples))


def reconstruct_module(
    small: nn.Module, trace: TorchTrace, keeps: IntArray, samples: CalibrationSet, runtime: Runtime
) -> int:
    """Reconstructs `small`, cut from the traced module by `keeps` [G], in place.

    A parameter that the module computes with otherwise than as it is stays as it was cut.

    Returns:
        How many weights were reconstructed.

    Raises:
        CalibrationError: as `Reconstruction.of`.
    """
    kept = kept_units(unit_scores(trace.onnx), keeps)
    # A module may keep its units in another order than an ONNX file.
    cut = Cut(unpacked(trace), kept)
    reconstruction = Reconstruction.of(trace.onnx, samples, runtime)
    tensors = {**dict(small.named_parameters()), **dict(small.named_buffers())}
    # The trace gives each reader of a vector its own, NAME#2 and on; in the module they are one.
    own = {
        name: name if name in tensors else name.rpartition("#")[0]
        for node in trace.onnx.normal.nodes
        for name in node.inputs
    }
    uses = Counter(own[name] for node in trace.onnx.normal.nodes for name in node.inputs)
    done = 0
    with torch.no_grad():
        for layer, inputs in reconstruction.losing(kept):
            places = [(own[name], sign) for name, sign in _places(layer, trace)]
            names = {layer.tensor, *(name for name, _ in places)}
            counts = Counter([layer.tensor] * len(layer.outputs) + [name for name, _ in places])
            if any(uses[name] != counts[name] or name not in tensors for name in names):
                continue
            weight, shifts = reconstruction.uncut(layer, inputs, _shift(layer, places))
            whole: dict[str, FloatArray] = {layer.tensor: weight}
            for (name, sign), shift in zip(places, shifts, strict=False):
                whole[name] = sign * shift
            new = {
                name: cut.tensor(name, torch.from_numpy(np.ascontiguousarray(value)))
                for name, value in whole.items()
            }
            if any(new[name].shape != tensors[name].shape for name in new):
                continue
            tensors[layer.tensor].copy_(new.pop(layer.tensor))
            for name, added in new.items():
                tensors[name].add_(added)
            done += 1
    return done


def _places(layer: Layer, trace: TorchTrace) -> list[tuple[str, float]]:
    """Where each layer's shift goes, and by which sign; none where one has no place for it."""
    places = []
    for output, bias in zip(layer.outputs, layer.biases, strict=True):
        readers = trace.onnx.normal.readers.get(output, ())
        if len(readers) == 1 and readers[0].op == "BatchNormalization":
            places.append((readers[0].inputs[3], -1.0))
        elif bias:
            places.append((bias, 1.0))
        else:
            return []
    return places


def _shift(layer: Layer, places: list[tuple[str, float]]) -> Shift:
    if not places:
        return "none"
    return "own" if len({name for name, _ in places}) == len(layer.outputs) else "one"
