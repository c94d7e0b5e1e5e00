"""What a model's layers read: the sums over it that least-squares reconstruction solves with."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from rlprune.errors import CalibrationError
from rlprune.graph.from_onnx import OnnxTrace
from rlprune.graph.types import FloatArray
from rlprune.graph.walk import Node
from rlprune.graph.windows import before_border, explicit_pads
from rlprune.runtime.base import Array, Runtime
from rlprune.sensitivity.batching import Batching
from rlprune.sensitivity.calibration import CalibrationSet, EqualSizes
from rlprune.surgery.importance import mixing_axes

PLACES = 16
"""Windows of every sample that a convolution's inputs are taken at, at least."""
ROWS_PER_INPUT = 8
"""Windows of all samples together, for every input of a layer: of few large images more are taken.
With 16 windows of each of 32 lines of text the covariance of 576 inputs is mostly noise."""
FEW = 16
"""Samples that are run one by one: trying whether a model takes them together costs three runs."""
BATCH = 100
MAX_VALUES = 1 << 28
"""Of all the layers' inputs of one batch (1 GiB); large images go in smaller batches."""
MAX_PRODUCTS = 2 * 10**10
"""Of a layer's covariance, beyond which no more than `PLACES` windows of a sample are taken."""
HURRIED_PRODUCTS = 6 * 10**9
"""The same where an answer is wanted at once."""
HURRIED_ROWS = 4
"""... and rows for every input."""
LARGE = 1000
"""Inputs of a layer beyond which its rows are kept until all are seen, where an answer is wanted at
once; of a kernel's several taps, and of few rows, no whole covariance is taken then (see
`large_layers`)."""
LARGE_ROWS = 1024
RIDGE = 1e-3
"""Added to every input's variance, as a share of their mean, at least."""
RIDGE_PER_INPUT = 0.2
"""The same for every input of a layer to every row that was seen: rows of one sample are alike."""


@dataclass
class Seen:
    """Sums over what the layers of one weight read."""

    first: FloatArray
    """[layers, G, d]: G groups of a grouped convolution, of d inputs each; one group of others."""
    square: FloatArray
    """Over all layers, within groups [G, d, d]."""
    count: FloatArray
    """Rows seen by each [layers]."""

    @staticmethod
    def nothing(layers: int, size: int, groups: int = 1) -> Seen:
        """Of layers that read `size` numbers a row."""
        each = size // groups
        return Seen(
            np.zeros((layers, groups, each)), np.zeros((groups, each, each)), np.zeros(layers)
        )

    def add(self, layer: int, rows: Array) -> None:
        """Counts rows [R, G * d] that one of the layers reads."""
        apart = rows.reshape(len(rows), *self.first.shape[1:]).swapaxes(0, 1)  # [G, R, d]
        with np.errstate(over="ignore", invalid="ignore"):
            self.square += apart.swapaxes(1, 2) @ apart
            self.first[layer] += apart.sum(1, dtype=np.float64)
        self.count[layer] += len(rows)

    def covariance(self) -> FloatArray:
        """About the layers' own means, with the ridge [G, d, d]."""
        total = self.count.sum()
        means = (self.first / self.count[:, None, None]).swapaxes(0, 1)  # [G, layers, d]
        weighted = means.swapaxes(1, 2) * (self.count / total)
        covariance: FloatArray = self.square / total - weighted @ means
        size = covariance.shape[-1]
        diagonal = np.arange(size)
        spread = covariance[:, diagonal, diagonal].mean(1, keepdims=True)
        covariance[:, diagonal, diagonal] += ridge_share(total, size) * spread + 1e-12
        return covariance


def ridge_share(rows: float, inputs: int) -> float:
    """Of the inputs' mean variance, what is added to each one's."""
    return max(RIDGE, RIDGE_PER_INPUT * inputs / rows)


class Looker(Protocol):
    """Something that looks at tensors of a network while it runs."""

    @property
    def names(self) -> Collection[str]:
        """The tensors, graph inputs among them where it looks at those."""
        ...

    def look(self, batch: EqualSizes, values: Mapping[str, Array]) -> None:
        """At what they hold in one batch."""
        ...


def run_once(
    trace: OnnxTrace, samples: CalibrationSet, runtime: Runtime, lookers: Sequence[Looker]
) -> None:
    """Runs the network once on the samples, for all that look at it.

    Raises:
        CalibrationError: it does not run on them.
    """
    if len(samples) > FEW:
        answers = [value.name for value in trace.model.graph.output]
        batching = Batching.find(trace, samples, runtime, answers)
    else:
        batching = Batching.alone(trace)
    wanted = batching.computed(name for one in lookers for name in one.names)
    batches = samples.batches(batch_values(trace, batching, wanted))
    for batch, values in batching.run(runtime, trace.model, wanted, batches):
        for one in lookers:
            one.look(batch, values)


class InputMoments:
    """What the layers of each weight read, by its name."""

    def __init__(
        self,
        trace: OnnxTrace,
        shared: Mapping[str, Sequence[Node]],
        sample_count: int,
        *,
        hurried: bool = False,
    ) -> None:
        """
        Args:
            shared: by weight, the layers that read it.
            sample_count: in all batches.
            hurried: see less of large layers, and of large kernels only rows.
        """
        self.shared = shared
        self._trace, self._sample_count = trace, sample_count
        self._rng = np.random.default_rng(0)
        self._seen: dict[str, Seen] = {}
        self._large = [
            name for name, nodes in shared.items() if hurried and _is_large(trace, nodes)
        ]
        self._rows: dict[str, list[Array]] = {}

    @property
    def names(self) -> Collection[str]:
        """See `Looker`."""
        return [source_of(self._trace, node) for own in self.shared.values() for node in own]

    def look(self, batch: EqualSizes, values: Mapping[str, Array]) -> None:
        """See `Looker`."""
        for name, nodes in self.shared.items():
            for k, node in enumerate(nodes):
                value = values[source_of(self._trace, node)]
                most = self._most_rows(name) if name in self._large else None
                rows = rows_read(self._trace, node, value, self._sample_count, self._rng, most)
                if name in self._large:
                    self._rows.setdefault(name, []).append(rows)
                    continue
                if name not in self._seen:
                    groups = int(node.attrs.get("group", 1))
                    self._seen[name] = Seen.nothing(len(nodes), rows.shape[1], groups)
                self._seen[name].add(k, rows)

    def seen(self) -> dict[str, Seen]:
        """Sums over all batches; of a large kernel, and where rows are few, there are `rows`.

        Raises:
            CalibrationError: they are not finite.
        """
        for name in [name for name in self._rows if not self._stay_rows(name)]:
            rows = np.concatenate(self._rows.pop(name))
            self._seen[name] = Seen.nothing(1, rows.shape[1])
            self._seen[name].add(0, rows)
        for name, one in self._seen.items():
            _check(name, np.isfinite(one.square).all() and np.isfinite(one.first).all())
        return self._seen

    def rows(self) -> dict[str, Array]:
        """What large kernels read [R, C_in * K], and layers of far more inputs than rows.

        Raises:
            CalibrationError: it is not finite.
        """
        names = [name for name in self._rows if self._stay_rows(name)]
        found = {name: np.concatenate(self._rows[name]) for name in names}
        for name, rows in found.items():
            _check(name, np.isfinite(rows).all())
        return found

    def _stay_rows(self, name: str) -> bool:
        rows = self._rows[name]
        return self._has_taps(name) or 2 * sum(map(len, rows)) < rows[0].shape[1]

    def _has_taps(self, name: str) -> bool:
        [node] = self.shared[name]
        return node.op == "Conv" and math.prod(self._trace.normal.shapes[name][2:]) > 1

    def _most_rows(self, name: str) -> int:
        if self._has_taps(name):
            return LARGE_ROWS
        size = inputs_of(self._trace, self.shared[name][0])
        return int(min(HURRIED_ROWS * size, HURRIED_PRODUCTS // size**2))


def _check(name: str, finite: bool | np.bool_) -> None:
    if not finite:
        raise CalibrationError(
            f"on these inputs the layers with weight {name!r} read NaN, infinite or far too large "
            "values; give them as the model takes them"
        )


def _is_large(trace: OnnxTrace, nodes: Sequence[Node]) -> bool:
    [node, *others] = nodes
    alone = not others and int(node.attrs.get("group", 1)) == 1
    return alone and inputs_of(trace, node) > LARGE


def inputs_of(trace: OnnxTrace, node: Node) -> int:
    """What each of a layer's outputs is made of, numbers of one sample's place."""
    shape = trace.normal.shapes[node.inputs[1]]
    _, made = mixing_axes(node, trace.normal.shapes) or (1, 0)
    return math.prod(shape) // shape[made]


def batch_values(trace: OnnxTrace, batching: Batching, wanted: Sequence[str]) -> int:
    """Input values that go in one batch, so that memory holds the tensors `wanted` of it."""
    if batching.answer_axes is None:
        return 1
    each = sum(int(np.prod(trace.normal.shapes[name], dtype=np.int64)) for name in wanted)
    traced = sum(int(np.prod(shape, dtype=np.int64)) for shape in trace.graph.input_shapes)
    return max(1, min(BATCH, MAX_VALUES // max(each, 1))) * traced


def source_of(trace: OnnxTrace, node: Node) -> str:
    """What a layer reads; of a convolution before a border of zeros, which cut models may lack."""
    return before_border(node, trace.normal)[0] if node.op == "Conv" else node.inputs[0]


def rows_read(
    trace: OnnxTrace,
    node: Node,
    value: Array,
    sample_count: int,
    rng: np.random.Generator,
    most: int | None = None,
) -> Array:
    """What one output reads, for a sample of the outputs of a batch: [R, C_in * K].

    Args:
        value: the layer's input in one batch (`source_of`).
        sample_count: in all batches.
        most: rows of all samples together, about; by default what the covariance takes, but
            `PLACES` of each.
    """
    if node.op != "Conv":
        rows = np.asarray(value, dtype=np.float32).reshape(-1, value.shape[-1])
        few = len(rows) if most is None else most * len(value) // sample_count
        return rows[rng.choice(len(rows), few, replace=False)] if few < len(rows) else rows
    kernel = trace.normal.shapes[node.inputs[1]][2:]
    stride = list(node.attrs.get("strides", [1] * len(kernel)))
    dilation = list(node.attrs.get("dilations", [1] * len(kernel)))
    own = explicit_pads(node, value.shape[2:], kernel, stride, dilation)
    _, border = before_border(node, trace.normal)
    pads = [one + other for one, other in zip(own, border, strict=True)]
    sides = list(zip(pads[: len(kernel)], pads[len(kernel) :], strict=True))
    padded = np.pad(value, [(0, 0), (0, 0), *sides])
    extents = [
        (size - (k - 1) * d - 1) // s + 1
        for size, k, s, d in zip(padded.shape[2:], kernel, stride, dilation, strict=True)
    ]
    total = int(np.prod(extents))
    if most is None:
        size = inputs_of(trace, node)
        most = max(min(ROWS_PER_INPUT * size, MAX_PRODUCTS // size**2), PLACES * sample_count)
    places = -(-most // sample_count)
    chosen = rng.choice(total, min(places, total), replace=False)
    corner = np.unravel_index(chosen, extents)  # per axis [P]
    offset = np.unravel_index(np.arange(int(np.prod(kernel))), kernel)  # per axis [K]
    index = tuple(
        at[:, None] * s + o[None] * d
        for at, s, o, d in zip(corner, stride, offset, dilation, strict=True)
    )
    windows = padded[(slice(None), slice(None), *index)]  # [N, C_in, P, K]
    return np.asarray(windows.transpose(0, 2, 1, 3), dtype=np.float32).reshape(
        -1, windows.shape[1] * windows.shape[3]
    )
