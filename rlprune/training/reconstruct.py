"""A cut module's layers reconstructed, so that training starts from what is left at its best.

The same linear solves as for ONNX files (`profile.reconstruct`), written into the module's own
parameters. A layer's shift goes into its bias or off the mean of the BatchNorm behind; where there
is neither, the solve is for weights alone.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch
from torch import nn

from rlprune.graph.from_torch import TorchTrace
from rlprune.graph.types import IntArray
from rlprune.profile.calibration import Calibration
from rlprune.profile.reconstruct import Reconstruction
from rlprune.runtime.base import Runtime
from rlprune.surgery.importance import unit_scores
from rlprune.surgery.onnx import kept_units
from rlprune.surgery.torch_cut import Cut


def reconstruct_module(
    small: nn.Module, trace: TorchTrace, keeps: IntArray, images: Calibration, runtime: Runtime
) -> int:
    """Reconstructs `small`, cut from the traced module by `keeps` [G], in place.

    A parameter that several layers share, or that the module computes with otherwise than as it
    is, stays as it was cut.

    Returns:
        How many layers were reconstructed.

    Raises:
        CalibrationError, MeasurementError: as `Reconstruction.of`.
    """
    kept = kept_units(unit_scores(trace.onnx), keeps)
    cut = Cut(trace, kept)  # a module may keep its units in another order than an ONNX file
    reconstruction = Reconstruction.of(trace.onnx, images, runtime)
    tensors = {**dict(small.named_parameters()), **dict(small.named_buffers())}
    normal = trace.onnx.normal
    uses = Counter(name for node in normal.nodes for name in node.inputs)
    done = 0
    with torch.no_grad():
        for layer, inputs in reconstruction.losing(kept):
            place, sign = layer.bias, 1.0  # where the shift goes, if anywhere
            readers = normal.readers.get(layer.output, ())
            if len(readers) == 1 and readers[0].op == "BatchNormalization":
                place, sign = readers[0].inputs[3], -1.0
            names = [layer.tensor, place] if place else [layer.tensor]
            if any(uses[name] != 1 or name not in tensors for name in names):
                continue
            weight, shift = reconstruction.uncut(layer, inputs, shifted=bool(place))
            whole = {layer.tensor: weight, place: sign * shift}
            new = {
                name: cut.tensor(name, torch.from_numpy(np.ascontiguousarray(whole[name])))
                for name in names
            }
            if any(new[name].shape != tensors[name].shape for name in names):
                continue
            tensors[layer.tensor].copy_(new[layer.tensor])
            if place:
                tensors[place].add_(new[place])
            done += 1
    return done
