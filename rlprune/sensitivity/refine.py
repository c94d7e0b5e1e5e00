"""A second look: layers solved again for what they read in the pruned network itself.

Reconstruction solves every layer for its inputs in the dense network, so that a solution can be
kept for the next plan. In the network of one plan the inputs carry the errors of all layers before.
Here the layers are solved again, from the first to the last, for their inputs as they then are and
their outputs in the dense network (the asymmetric reconstruction of Zhang et al. 2015,
arXiv 1505.06798 section 3.3, and of He et al. 2017). That takes some runs of both networks, which
only the plan that is carried out is worth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx

from rlprune.errors import CalibrationError, MeasurementError
from rlprune.graph.types import FloatArray, IntArray
from rlprune.graph.walk import Node
from rlprune.runtime.base import Array, Runtime, Session
from rlprune.sensitivity.batching import Batching
from rlprune.sensitivity.calibration import CalibrationSet, EqualSizes
from rlprune.sensitivity.layers import LayerChange, with_layers
from rlprune.sensitivity.moments import RIDGE, batch_values, rows_read
from rlprune.sensitivity.reconstruct import Layer, Reconstruction
from rlprune.surgery.onnx import kept_mask

if TYPE_CHECKING:
    from rlprune.graph.from_onnx import OnnxTrace

PASSES = 24
"""Runs of both networks; layers are shared out over them in the file's order."""
MOST_MACS = 10**12
"""Of all runs together, half a minute of one core or so; of large networks fewer samples run."""
LEAST_SAMPLES = 32
DRAWN = 2.0
"""How strongly weights are drawn to those that they had, for every input of a layer to every row
that was seen. With a twentieth of that, networks became sure of what is wrong."""


@dataclass
class _Pair:
    """Sums over what the layers of one weight read: pruned [D'], and dense [D]."""

    first: FloatArray
    """[layers, D']."""
    dense: FloatArray
    """[layers, D]."""
    square: FloatArray
    """[D', D']."""
    cross: FloatArray
    """[D', D]."""
    count: FloatArray
    """[layers]."""


def refine(
    trace: OnnxTrace,
    pruned: onnx.ModelProto,
    kept: Sequence[IntArray],
    reconstruction: Reconstruction,
    samples: CalibrationSet,
    runtime: Runtime,
) -> onnx.ModelProto:
    """A copy of a model cut to the units `kept`, its layers reconstructed, and once more.

    Raises:
        CalibrationError: a network does not run on the samples.
    """
    changes = reconstruction.changes(kept)
    if not changes:
        return with_layers(pruned, changes)
    layers = reconstruction.layers
    batching = Batching.find(
        trace, samples, runtime, [value.name for value in trace.model.graph.output]
    )
    nodes = {node.outputs[0]: node for node in trace.normal.nodes}
    samples, _ = samples.split(min(len(samples), _affordable(trace)))
    size = -(-len(layers) // PASSES)
    for start in range(0, len(layers), size):
        chunk = layers[start : start + size]
        seen = _seen(
            trace, with_layers(pruned, changes), chunk, nodes, (samples, batching), runtime
        )
        for layer in chunk:
            outputs = kept_mask(*layer.made, kept)
            change = changes.get(layer.tensor)  # None where it loses no inputs
            whole = layer.weight[outputs]
            before = whole if change is None else layer.flat(change)
            changes[layer.tensor] = _again(layer, before, whole, seen[layer.tensor])
    return with_layers(pruned, changes)


def _affordable(trace: OnnxTrace) -> int:
    """How many samples both networks are run on, in every pass up to its last layer."""
    passed = PASSES * max(int(trace.graph.macs(trace.graph.widths)), 1)
    return max(LEAST_SAMPLES, MOST_MACS // passed)


def _again(layer: Layer, before: FloatArray, dense: FloatArray, seen: _Pair) -> LayerChange:
    """The layer solved for its inputs as they are, drawn to the weight that it has."""
    total = seen.count.sum()
    share = seen.count / total
    means, dense_means = seen.first / seen.count[:, None], seen.dense / seen.count[:, None]
    if layer.shift == "one":
        means, dense_means, share = (share @ means)[None], (share @ dense_means)[None], np.ones(1)
    elif layer.shift == "none":
        means, dense_means = np.zeros_like(means), np.zeros_like(dense_means)
    moment = seen.square / total - (means.T * share) @ means
    cross = seen.cross / total - (means.T * share) @ dense_means
    size = len(moment)
    ridge = max(RIDGE, DRAWN * size / total) * np.diag(moment).mean() + 1e-12
    missing = cross @ dense.T - moment @ before.T  # [D', C_out']
    weight = before + np.linalg.solve(moment + ridge * np.eye(size), missing).T
    shifts = dense_means @ dense.T - means @ weight.T
    return layer.change(weight, np.broadcast_to(shifts, (len(layer.outputs), shifts.shape[1])))


def _seen(
    trace: OnnxTrace,
    model: onnx.ModelProto,
    layers: Sequence[Layer],
    nodes: Mapping[str, Node],
    data: tuple[CalibrationSet, Batching],
    runtime: Runtime,
) -> dict[str, _Pair]:
    samples, batching = data
    readers = [
        (layer, k, nodes[output]) for layer in layers for k, output in enumerate(layer.outputs)
    ]
    wanted = [
        name
        for name in dict.fromkeys(node.inputs[0] for _, _, node in readers)
        if name not in batching.axes
    ]
    seen: dict[str, _Pair] = {}
    try:
        sessions = [
            runtime.load(batching.prepare(one, wanted).SerializeToString()) if wanted else None
            for one in (trace.model, model)
        ]
        for batch in samples.batches(batch_values(trace, batching, wanted)):
            dense, own = (_read(session, batching, batch, wanted) for session in sessions)
            for layer, k, node in readers:
                name = node.inputs[0]
                # The same windows of both.
                theirs, ours = (
                    rows_read(
                        trace,
                        node,
                        values[name],
                        len(samples),
                        np.random.default_rng(batch.index[0]),
                    )
                    for values in (dense, own)
                )
                _add(seen, layer, k, (ours, theirs))
        for session in sessions:
            if session is not None:
                session.close()
    except MeasurementError as error:
        raise CalibrationError(
            f"the pruned model does not run on these inputs: {error}", field="calibration"
        ) from error
    return seen


def _read(
    session: Session | None, batching: Batching, batch: EqualSizes, wanted: Sequence[str]
) -> dict[str, Array]:
    """What layers read in one batch; without a session they read the inputs alone."""
    feeds = batching.feeds(batch)
    if session is None:
        return feeds
    return {**feeds, **dict(zip(wanted, session.run(feeds), strict=True))}


def _add(seen: dict[str, _Pair], layer: Layer, k: int, rows: tuple[Array, Array]) -> None:
    ours, theirs = rows
    if layer.tensor not in seen:
        count, size, whole = len(layer.outputs), ours.shape[1], theirs.shape[1]
        seen[layer.tensor] = _Pair(
            np.zeros((count, size)),
            np.zeros((count, whole)),
            np.zeros((size, size)),
            np.zeros((size, whole)),
            np.zeros(count),
        )
    one = seen[layer.tensor]
    one.square += ours.T @ ours
    one.cross += ours.T @ theirs
    one.first[k] += ours.sum(0, dtype=np.float64)
    one.dense[k] += theirs.sum(0, dtype=np.float64)
    one.count[k] += len(ours)
