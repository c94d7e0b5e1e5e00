"""A cut module's layers reconstructed, so that training starts from what is left at its best.

The same linear solves as for ONNX files (`sensitivity.reconstruct`), written into the module's own
parameters. What layers share stays shared.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch
from torch import nn

from rlprune.errors import CalibrationError, MissingExtraError
from rlprune.graph.from_torch import TorchTrace
from rlprune.graph.types import FloatArray, IntArray
from rlprune.runtime import get_runtime
from rlprune.runtime.base import Runtime
from rlprune.sensitivity.calibration import CalibrationSet
from rlprune.sensitivity.correct import Correction, only_cut, samples_for
from rlprune.sensitivity.reconstruct import Reconstruction, Shift
from rlprune.sensitivity.sources import CalibrationSource
from rlprune.surgery.importance import unit_scores
from rlprune.surgery.onnx import kept_units
from rlprune.surgery.torch import prune_torch
from rlprune.surgery.torch_attention import unpacked
from rlprune.surgery.torch_cut import Cut


def prune_module(
    trace: TorchTrace, keeps: IntArray, calibration: CalibrationSource | None
) -> tuple[nn.Module, Correction]:
    """The traced module as a plan wants it, and what was done for it: as
    `sensitivity.correct.carry_out` does for ONNX models.

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
        return small, Correction(note=only_cut(str(error)), lost=True)
    return small, Correction(inputs=samples.text())


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
        for layer, inputs in reconstruction.affected_layers(kept):
            places = [(own[name], factor) for name, factor in layer.places]
            held = Counter(name for name, _ in places)
            if any(uses[name] != held[name] or name not in tensors for name in held):
                places = []  # the module computes with them in other places too
            if uses[layer.tensor] != len(layer.outputs) or layer.tensor not in tensors:
                continue
            shift: Shift = layer.shift if len(held) == len(layer.outputs) else "one"
            weight, shifts = reconstruction.padded_weight(
                layer, inputs, shift if places else "none"
            )
            whole: dict[str, FloatArray] = {layer.tensor: weight}
            for (name, factor), added in zip(places, shifts, strict=bool(places)):
                whole[name] = factor * added
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
