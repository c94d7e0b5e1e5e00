"""Least-squares reconstruction: channels that stay stand in for those that go, without running data
again.

With the mean and covariance of a layer's inputs in the dense network, taken once, the weights that
come nearest to its old answers from any subset of its inputs are one linear solve (channel pruning
by reconstruction, He et al. 2017, section 3.1; here with the dense network's inputs, so that a
solution depends on the subset alone and is kept). Layers that share a weight share the solve: their
moments are summed. No labels are read.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from rlprune.graph.from_onnx import OnnxTrace
from rlprune.graph.types import FloatArray
from rlprune.runtime.base import Runtime
from rlprune.sensitivity.calibration import CalibrationSet
from rlprune.sensitivity.layers import Layer, LayerChange, Shift, layer_of, sharing, site_of
from rlprune.sensitivity.moments import InputMoments, run_once
from rlprune.surgery.removal import BoolArray, Removal, kept_mask

MAX_CACHE_BYTES = 1 << 28


@dataclass
class Reconstruction:
    """Reconstructs pruned models of one trace; keeps what it has solved. For one thread."""

    layers: Sequence[Layer]
    _solved: dict[tuple[str, bytes, Shift], tuple[FloatArray, FloatArray]] = field(
        default_factory=dict
    )
    _bytes: int = 0

    @staticmethod
    def of(
        trace: OnnxTrace,
        samples: CalibrationSet,
        runtime: Runtime,
        kernels: Collection[str] = (),
    ) -> Reconstruction:
        """Runs the dense network once to see what its layers read.

        Args:
            kernels: weights of convolutions whose kernels may be cut, beside those of layers that
                may lose channels.

        Raises:
            CalibrationError: it does not run on the samples, or overflows on them.
        """
        shared = sharing(trace, kernels)
        moments = InputMoments(trace, shared, len(samples))
        run_once(trace, samples, runtime, [moments])
        tensors = {tensor.name: tensor for tensor in trace.model.graph.initializer}
        seen = moments.seen()
        return Reconstruction(
            [
                layer_of(site_of(trace, nodes, tensors[name]), seen[name])
                for name, nodes in shared.items()
            ]
        )

    def apply(self, pruned: onnx.ModelProto, removal: Removal) -> onnx.ModelProto:
        """A copy of a model cut by `removal`, its layers reconstructed."""
        return with_layers(pruned, self.changes(removal))

    def changes(self, removal: Removal) -> dict[str, LayerChange]:
        """By weight, what becomes of the layers that lose inputs to `removal`."""
        changes = {}
        for layer, inputs in self.affected_layers(removal):
            weight, shifts = self._solve(layer, inputs, layer.shift)
            outputs = kept_mask(*layer.made, removal.kept)
            changes[layer.tensor] = layer.change(weight[outputs], shifts[:, outputs], removal)
        return changes

    def unexplained(self, removal: Removal) -> float:
        """Share (0-1) of the output variance that least squares cannot restore, in the layer that
        loses most."""
        affected = self.affected_layers(removal)
        return max((layer.lost(inputs) for layer, inputs in affected), default=0.0)

    def affected_layers(self, removal: Removal) -> Iterator[tuple[Layer, BoolArray]]:
        """Layers that lose inputs, channels or taps, and which of them they keep [d]."""
        for layer in self.layers:
            inputs = layer.stay(removal)
            if not inputs.all():
                yield layer, inputs

    def _solve(
        self, layer: Layer, inputs: BoolArray, shift: Shift
    ) -> tuple[FloatArray, FloatArray]:
        """Weights [C_out, d'] and shifts [layers, C_out] of all outputs for the kept inputs [d]."""
        key = (layer.tensor, inputs.tobytes(), shift)
        if key not in self._solved:
            # Least squares in moments: W C[:, S] C[S, S]^-1, the means left to the shifts if any.
            whole, means = layer.moment(shift)
            dense = layer.weight.reshape(len(whole), -1, len(inputs))  # [G, C_out / G, d]
            moment = whole[:, inputs]  # [G, d', d]
            solved = np.linalg.solve(moment[:, :, inputs], moment @ dense.swapaxes(1, 2))
            part = np.asarray(solved.swapaxes(1, 2), dtype=np.float64)
            by_group = means.swapaxes(0, 1)  # [G, layers, d]
            lost = by_group @ dense.swapaxes(1, 2) - by_group[:, :, inputs] @ part.swapaxes(1, 2)
            weight: FloatArray = part.reshape(len(layer.weight), -1)
            shifts = lost.swapaxes(0, 1).reshape(len(means), -1)
            # To the bit the same for all that share a bias: it stays one.
            shifts = np.broadcast_to(shifts, (len(layer.outputs), shifts.shape[1]))
            if self._bytes > MAX_CACHE_BYTES:
                self._solved.clear()
                self._bytes = 0
            self._solved[key] = weight, shifts
            self._bytes += weight.nbytes + shifts.nbytes
        return self._solved[key]


def with_layers(model: onnx.ModelProto, changes: Mapping[str, LayerChange]) -> onnx.ModelProto:
    """A copy of `model` in which the weights named have other values.

    Every tensor keeps its name, shape and type, however many layers read it, and none is added. A
    change that the type cannot hold, or of a weight that is not there, is left out.
    """
    made = deepcopy(model)
    constants = {tensor.name: tensor for tensor in made.graph.initializer}
    for name, change in changes.items():
        if name not in constants:
            continue  # of a branch that was left out
        new = {name: _cast(change.weight, constants[name])}
        for behind, added in change.added.items():
            if behind not in constants:
                continue  # of a layer that shares the weight, in such a branch
            old = np.asarray(numpy_helper.to_array(constants[behind]), dtype=np.float64)
            new[behind] = _cast(old + added.reshape(old.shape), constants[behind])
        if any(values is None for values in new.values()):
            continue
        for tensor, values in new.items():
            constants[tensor].CopyFrom(numpy_helper.from_array(np.asarray(values), tensor))
    return made


def _cast(values: FloatArray, like: onnx.TensorProto) -> NDArray[Any] | None:
    """In the type of another tensor; None where that overflows."""
    kind = helper.tensor_dtype_to_np_dtype(like.data_type)
    with np.errstate(over="ignore"):
        cast = np.ascontiguousarray(values).astype(kind)
    return cast if np.isfinite(cast.astype(np.float64)).all() else None
