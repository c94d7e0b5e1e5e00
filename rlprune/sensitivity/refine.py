"""Layers solved a second time, for what they read in the pruned network itself.

Reconstruction solves every layer for its inputs in the dense network, so that a solution serves
every plan. Here the layers are solved again, from the first to the last, for their inputs as they
then are and their outputs in the dense network (the asymmetric reconstruction of Zhang et al. 2015,
arXiv 1505.06798 section 3.3, and of He et al. 2017). It takes a run of both networks, and so is for
plans that are carried out, or compared as they would be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

import numpy as np
import onnx

from rlprune.graph.from_onnx import OnnxTrace
from rlprune.graph.types import FloatArray, IntArray
from rlprune.graph.walk import Node
from rlprune.runtime.base import Array, Runtime
from rlprune.sensitivity.batching import Batching
from rlprune.sensitivity.calibration import CalibrationSet, EqualSizes
from rlprune.sensitivity.layers import Layer, LayerChange, Shift
from rlprune.sensitivity.moments import RIDGE, Seen, batch_values, rows_read, source_of
from rlprune.sensitivity.parts import PartwiseRun, Stage, most_kept
from rlprune.sensitivity.reconstruct import Reconstruction
from rlprune.surgery.removal import Removal, kept_mask

MAX_MACS = 10**12
"""Of both networks together, half a minute of one core or so; of large networks fewer samples run.
"""
MAX_ROOM = 2**30
"""Bytes of what is kept of both networks between two layers."""
MIN_SAMPLES = 32
DRAWN = 2.0
"""How strongly weights are drawn to those that they had, for every input of a layer to every row
that was seen. With a twentieth of that, networks became sure of what is wrong."""
MOST_RESTORED = 2.0
"""By which outputs are made larger, at most. What stays explains the less of a layer's outputs the
less is left and the less its inputs are like those that it was solved on, and what is lost adds up
from layer to layer. On made-up inputs a ResNet-32 at 0.3 of its MACs has 51 % of its accuracy with
it and 40 % without, VGG a point and a half more, MobileNetV2 a point less."""
MAX_KEPT = 2**29
"""Bytes of `DenseRows`."""


class DenseRows:
    """What layers read in the dense network, and how that is fed, kept where several plans are
    solved on one set of samples: running that network is half of the work."""

    def __init__(self, room: int = MAX_KEPT) -> None:
        """`room`: bytes that may be kept."""
        self._rows: dict[tuple[str, int, int, int], Array] = {}
        self._room = room
        self._fed: _Fed | None = None

    def fed(self, find: Callable[[], _Fed]) -> _Fed:
        """What the networks are run on, found once."""
        if self._fed is None:
            self._fed = find()
        return self._fed

    def get(self, tensor: str, k: int, batch: IntArray) -> Array | None:
        """Rows [R, D] of the k-th layer of a weight in a batch of these samples, where kept."""
        return self._rows.get((tensor, k, int(batch[0]), len(batch)))

    def put(self, tensor: str, k: int, batch: IntArray, rows: Array) -> None:
        """Keeps them, while there is room."""
        key = (tensor, k, int(batch[0]), len(batch))
        if key not in self._rows and rows.nbytes <= self._room:
            self._rows[key] = rows
            self._room -= rows.nbytes


@dataclass
class _Pair:
    """Sums over what the layers of one weight read: pruned [D'], and dense [D]."""

    own: Seen
    dense: FloatArray
    """[layers, D]."""
    cross: FloatArray
    """[D', D]."""

    def means(self, shift: Shift) -> tuple[FloatArray, FloatArray, FloatArray]:
        """What a shift makes up for: shares of what was seen [k], and means, pruned [k, D'] and
        dense [k, D]; of each layer, or of all together (k is 1)."""
        count = self.own.count
        share = count / count.sum()
        means, dense = self.own.first[:, 0] / count[:, None], self.dense / count[:, None]
        if shift == "one":
            return np.ones(1), (share @ means)[None], (share @ dense)[None]
        if shift == "none":
            return share, np.zeros_like(means), np.zeros_like(dense)
        return share, means, dense


def refine(
    trace: OnnxTrace,
    pruned: onnx.ModelProto,
    removal: Removal,
    reconstruction: Reconstruction,
    samples: CalibrationSet,
    runtime: Runtime,
    *,
    dense: DenseRows | None = None,
    restored: bool = False,
) -> dict[str, LayerChange]:
    """By weight, what becomes of the layers of a model cut by `removal`, solved twice.

    Grouped convolutions are solved once: what they read is looked at group by group.

    Args:
        dense: of the same network and samples, where other plans were or will be solved on them.
        restored: whether outputs get back the variance that least squares leaves out.

    Raises:
        CalibrationError: a network does not run on the samples.
    """
    changes = reconstruction.changes(removal)
    if not changes and not removal.left_out:
        return changes
    answers = {value.name for value in trace.model.graph.output}
    layers = _solvable(reconstruction.layers, pruned, removal)
    if not changes:
        layers = _behind(layers, trace, removal)
    known = dense or DenseRows(room=0)
    fed = known.fed(lambda: _Fed.of(trace, reconstruction.layers, samples, runtime))
    both = _Both.of(trace, pruned, layers, fed, runtime, known)
    for stage, chunk in enumerate(both.chunks):
        seen = both.seen(stage, changes, removal)
        for layer in chunk.layers:
            outputs = kept_mask(*layer.made, removal.kept)
            change = changes.get(layer.tensor)  # None where it loses no inputs
            whole = layer.weight[outputs]
            before = whole if change is None else layer.flat(change)
            pair = seen[layer.tensor]
            weight, shifts = _again(layer, before, whole, pair)
            if restored and layer.shift == "own" and len(layer.outputs) == 1:
                weight, shifts = _restored(layer, weight, whole, pair, last=answers)
            changes[layer.tensor] = layer.change(weight, shifts, removal)
    return changes


def _solvable(layers: Sequence[Layer], pruned: onnx.ModelProto, removal: Removal) -> list[Layer]:
    """The layers that are all there still, and read channels that may go or lose taps now."""
    made = {name for node in pruned.graph.node for name in node.output}
    return [
        layer
        for layer in layers
        if len(layer.covariance) == 1
        and made.issuperset(layer.outputs)
        and ((layer.read[0] >= 0).any() or layer.tensor in removal.windows)
    ]


def _behind(layers: Sequence[Layer], trace: OnnxTrace, removal: Removal) -> list[Layer]:
    """The layers behind the first branch that is left out; those before read what they did."""
    names = [node.name for node in trace.normal.nodes]
    first = min(names.index(name) for name in removal.left_out)
    later = {name for node in trace.normal.nodes[first:] for name in node.outputs}
    return [layer for layer in layers if later.issuperset(layer.outputs)]


def _again(
    layer: Layer, before: FloatArray, dense: FloatArray, seen: _Pair
) -> tuple[FloatArray, FloatArray]:
    """Weight [C_out', D'] and shifts of the layer solved for its inputs as they are, drawn to the
    weight that it has."""
    total = seen.own.count.sum()
    share, means, dense_means = seen.means(layer.shift)
    moment = seen.own.square[0] / total - (means.T * share) @ means
    cross = seen.cross / total - (means.T * share) @ dense_means
    size = len(moment)
    ridge = max(RIDGE, DRAWN * size / total) * np.diag(moment).mean() + 1e-12
    missing = cross @ dense.T - moment @ before.T  # [D', C_out']
    weight = before + np.linalg.solve(moment + ridge * np.eye(size), missing).T
    shifts = dense_means @ dense.T - means @ weight.T
    return weight, np.broadcast_to(shifts, (len(layer.outputs), shifts.shape[1]))


def _restored(
    layer: Layer, weight: FloatArray, dense: FloatArray, seen: _Pair, last: Set[str]
) -> tuple[FloatArray, FloatArray]:
    """Weight and shifts of a layer whose outputs vary as the dense one's do (REPAIR, Jordan et al.
    2022); of one that gives an answer half as much is made up for, in the logarithm."""
    _, mean, dense_mean = seen.means(layer.shift)  # [1, D'], [1, D]
    moment = seen.own.square[0] / seen.own.count.sum() - mean.T @ mean
    found = ((weight @ moment) * weight).sum(1)  # [C_out']
    wanted = ((dense @ layer.covariance[0]) * dense).sum(1)
    factor = np.sqrt(np.clip(wanted / np.maximum(found, 1e-12), 1.0, MOST_RESTORED**2))
    if not last.isdisjoint(layer.outputs):
        factor = np.sqrt(factor)
    weight = weight * factor[:, None]
    return weight, dense_mean @ dense.T - mean @ weight.T


@dataclass(frozen=True)
class _Chunk:
    """Layers that are solved together, for they read the same."""

    readers: list[tuple[Layer, int, Node]]
    """The layers of each weight, and which of the weight's each is."""
    reads: list[str]

    @property
    def layers(self) -> list[Layer]:
        """A weight's layers count as one."""
        return [layer for layer, k, _ in self.readers if k == 0]

    @property
    def makes(self) -> set[str]:
        """Outputs that change when they are solved."""
        return {node.outputs[0] for _, _, node in self.readers}


@dataclass(frozen=True)
class _Both:
    """The dense network and the pruned one, run side by side from layer to layer."""

    trace: OnnxTrace
    chunks: list[_Chunk]
    sample_count: int
    batches: list[EqualSizes]
    networks: tuple[PartwiseRun, PartwiseRun]
    """Dense, and pruned."""
    known: DenseRows

    @staticmethod
    def of(
        trace: OnnxTrace,
        pruned: onnx.ModelProto,
        layers: Sequence[Layer],
        fed: _Fed,
        runtime: Runtime,
        known: DenseRows,
    ) -> _Both:
        chunks = _chunks(trace, layers)
        batching = fed.batching
        computed = batching.computed(name for chunk in chunks for name in chunk.reads)
        feeds = [batching.feeds(batch) for batch in fed.batches]
        left = [set[str]().union(*(one.makes for one in chunks[k:])) for k in range(len(chunks))]
        stages = (
            [Stage(chunk.reads, set()) for chunk in chunks],
            [Stage(chunk.reads, makes) for chunk, makes in zip(chunks, left, strict=True)],
        )
        dense, own = (
            PartwiseRun(batching.prepare(model, computed), ends, feeds, runtime)
            for model, ends in zip((trace.model, pruned), stages, strict=True)
        )
        return _Both(trace, chunks, fed.sample_count, fed.batches, (dense, own), known)

    def seen(
        self, stage: int, changes: Mapping[str, LayerChange], removal: Removal
    ) -> dict[str, _Pair]:
        """What the layers of a chunk read in both networks, those before it as they are now."""
        readers, seen = self.chunks[stage].readers, dict[str, _Pair]()
        own_runs = self.networks[1].run(stage, changes)
        for (number, values), dense_rows in zip(own_runs, self._dense(stage), strict=True):
            for (layer, k, node), theirs in zip(readers, dense_rows, strict=True):
                ours = self._read(node, values, number)
                ours = ours[:, layer.taps(ours.shape[1], removal)]
                if layer.tensor not in seen:
                    count, size, whole = len(layer.outputs), ours.shape[1], theirs.shape[1]
                    cross = np.zeros((size, whole))
                    seen[layer.tensor] = _Pair(
                        Seen.nothing(count, size), np.zeros((count, whole)), cross
                    )
                one = seen[layer.tensor]
                one.own.add(k, ours)
                one.cross += ours.T @ theirs
                one.dense[k] += theirs.sum(0, dtype=np.float64)
        return seen

    def _dense(self, stage: int) -> Iterator[list[Array]]:
        readers = self.chunks[stage].readers
        found = [
            [self.known.get(layer.tensor, k, batch.index) for layer, k, _ in readers]
            for batch in self.batches
        ]
        known = [[rows for rows in batch if rows is not None] for batch in found]
        if all(len(rows) == len(readers) for rows in known):
            yield from known
            return
        for number, values in self.networks[0].run(stage, {}):
            rows = [self._read(node, values, number) for _, _, node in readers]
            for (layer, k, _), own in zip(readers, rows, strict=True):
                self.known.put(layer.tensor, k, self.batches[number].index, own)
            yield rows

    def _read(self, node: Node, values: Mapping[str, Array], number: int) -> Array:
        """The same windows of both networks."""
        rng = np.random.default_rng(self.batches[number].index[0])
        value = values[source_of(self.trace, node)]
        return rows_read(self.trace, node, value, self.sample_count, rng)


@dataclass(frozen=True)
class _Fed:
    """What both networks are run on, the same for all plans of a network."""

    batching: Batching
    batches: list[EqualSizes]
    sample_count: int

    @staticmethod
    def of(
        trace: OnnxTrace, layers: Sequence[Layer], samples: CalibrationSet, runtime: Runtime
    ) -> _Fed:
        """As many of the samples as time and memory suffice for, whichever of `layers` are solved.

        Raises:
            CalibrationError: the network does not run on them.
        """
        answers = [value.name for value in trace.model.graph.output]
        batching = Batching.find(trace, samples, runtime, answers)
        wanted = [chunk.reads for chunk in _chunks(trace, layers)]
        prepared = batching.prepare(
            trace.model, batching.computed(name for names in wanted for name in names)
        )
        stages = [Stage(names, set()) for names in wanted]
        # A pruned network keeps as much at most, and what is run again of shared layers.
        kept = 2 * most_kept(prepared, stages, trace.normal.shapes)
        by_time = MAX_MACS // (2 * max(int(trace.graph.macs(trace.graph.widths)), 1))
        count = max(MIN_SAMPLES, min(by_time, MAX_ROOM // (4 * max(kept, 1))))
        samples, _ = samples.split(min(len(samples), count))
        widest = max(wanted, key=lambda names: _values(trace, names), default=[])
        batches = list(samples.batches(batch_values(trace, batching, widest)))
        return _Fed(batching, batches, len(samples))


def _chunks(trace: OnnxTrace, layers: Sequence[Layer]) -> list[_Chunk]:
    """Layers in their order, those together that read the same."""
    nodes = {node.outputs[0]: node for node in trace.normal.nodes}
    own = [[(layer, k, nodes[name]) for k, name in enumerate(layer.outputs)] for layer in layers]
    found: list[_Chunk] = []
    for readers in own:
        reads = list(dict.fromkeys(source_of(trace, node) for _, _, node in readers))
        if found and found[-1].reads == reads:
            found[-1].readers.extend(readers)
        else:
            found.append(_Chunk(readers, reads))
    return found


def _values(trace: OnnxTrace, names: Sequence[str]) -> int:
    return sum(int(np.prod(trace.normal.shapes[name], dtype=np.int64)) for name in names)
