"""What a model offers to a pruning policy: groups, and operators whose cost follows from them.

A `PruningGraph` holds no weights and no code. It is made by `trace` (from ONNX or torch), sent over
the wire as JSON, and is all that latency model, task and policy know of a model. Two exports of one
network give equal graphs up to names, and so one `fingerprint`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from rlprune.errors import ModelError

FORMAT = "rlprune.graph/1"

ABSENT = "absent"
"""Variant of an operator that a plan leaves out: it costs nothing."""
GATES = {"lstm": 4, "gru": 3, "rnn": 1}
"""Products with the input, and with the hidden state, that one step of a `recurrent` takes."""

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Width:
    """The length of a channel axis as a function of what the groups keep: const + sum(repeat *
    keep).

    A concat's or padded shortcut's input is a sum of groups; an axis that a Flatten made holds
    every channel `repeat` times.
    """

    const: int = 0
    """Channels that no plan removes."""
    terms: tuple[tuple[int, int], ...] = ()
    """(group index, channels per kept unit), ascending by group index, each group once."""

    def at(self, keeps: IntArray) -> IntArray:
        """Axis length for keeps [..., G] -> [...]."""
        # Of one plan plain numbers: a graph's hundreds take as many microseconds less.
        total = np.int64(self.const) if keeps.ndim == 1 else np.full(keeps.shape[:-1], self.const)
        for group, repeat in self.terms:
            total = total + repeat * keeps[..., group]
        return cast(IntArray, total)


@dataclass(frozen=True, slots=True)
class WeightCount:
    """How many numbers weights of one shape hold, as a function of what the groups keep."""

    often: int
    """Numbers per entry of `axes`: those along axes that no plan shortens, of all such weights."""
    axes: tuple[Width, ...] = ()
    """Of the axes that a plan may shorten; their lengths multiply."""
    operators: tuple[int, ...] = ()
    """Those that read the weights: they go with all of these together; none where not known."""

    def at(self, keeps: IntArray) -> IntArray:
        """Numbers for keeps [..., G] -> [...]."""
        total = np.int64(self.often) if keeps.ndim == 1 else np.full(keeps.shape[:-1], self.often)
        for width in self.axes:
            total = total * width.at(keeps)
        return cast(IntArray, total)


@dataclass(frozen=True, slots=True)
class Uncounted:
    """Operators of one type that no rule knows: their MACs are counted as none."""

    operator: str
    """With its domain, e.g. `com.microsoft.Attention`."""
    count: int
    params: int
    """Numbers in the weights they read."""


@dataclass(frozen=True, slots=True)
class Member:
    """One axis of one weight whose channels a group owns."""

    node: str
    """Name of the node that reads the weight."""
    tensor: str
    """Name of the weight in the file it was traced from (torch name where traced from torch)."""
    axis: int
    repeat: int
    """Entries of this axis per unit of the group."""
    layer: str = ""
    """Module path of the layer that reads the weight, where names or the exporter's notes tell."""
    reads: bool = False
    """Whether the layer only reads the channels here; False where it makes or carries them."""


@dataclass(frozen=True, slots=True)
class Group:
    """Channels that must live or die together; `width` units, of which a plan keeps some."""

    name: str
    """Name of the first node that produces the group; unique in its graph."""
    width: int
    members: tuple[Member, ...]

    def step(self, round_to: int) -> int:
        """Units that make whole multiples of `round_to` channels on every axis."""
        repeat = min((member.repeat for member in self.members), default=1)
        return max(1, round_to // math.gcd(round_to, repeat))


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator that costs time, with its channel widths as functions of the groups' keeps.

    kinds: `conv` (dense or grouped), `depthwise_conv`, `conv_transpose`, `linear`, `matmul`, `norm`
    (a normalisation that no convolution can absorb), `activation`, `add`, `mul`, `concat`, `pool`,
    `global_pool`, `pad`, `slice`, `resize`, `softmax`, `layout` (transpose, reshape that moves
    data), `recurrent` (an `lstm`, `gru` or `rnn` over a whole sequence: `in_width` channels read,
    `out_width` hidden ones of all directions, `groups` directions, `in_spatial` the steps),
    `attention` (queries, keys and values in one operator: `in_width` channels of the queries of all
    heads, `out_width` of the result, `out_spatial` the queries, `kernel` the keys). A
    BatchNorm that a runtime folds into the convolution before it is not an operator.
    """

    name: str
    kind: str
    variant: str
    """What distinguishes operators of a kind, e.g. `relu`, `max`, `average`; may be empty."""
    inputs: tuple[int, ...]
    """Indices of the operators that produce the inputs; -1 - i for the i-th graph input."""
    in_width: Width
    """Channels read (for add, mul, concat: of the result)."""
    out_width: Width
    in_spatial: tuple[int, ...]
    """Extent of the other axes of the first input, batch left out; empty after global pooling."""
    out_spatial: tuple[int, ...]
    kernel: tuple[int, ...] = ()
    """Of a `matmul`: the extent it sums over."""
    stride: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    """As ONNX has them: all begins, then all ends."""
    dilation: tuple[int, ...] = ()
    groups: int = 1
    """Convolution groups where fixed; 0 where they follow the width (`depthwise_conv`, or a
    `conv_transpose` that is depthwise). Of a `recurrent`: its directions, 1 or 2."""
    weight: str = ""
    """Of a convolution the name of its kernel in the file it was traced from, where nothing else
    reads it, so that it may be cut; empty otherwise."""

    @property
    def absent(self) -> bool:
        """Whether a plan leaves it out."""
        return self.variant == ABSENT

    def macs_at(self, in_width: IntArray, out_width: IntArray) -> IntArray:
        """Multiply-accumulates of one inference (batch 1); 0 for operators that sum nothing up."""
        cells = math.prod(self.out_spatial)
        taps = math.prod(self.kernel)
        if self.absent:
            return np.zeros_like(out_width)
        if self.kind == "conv":
            return in_width * out_width // self.groups * (taps * cells)
        if self.kind == "conv_transpose":
            in_cells = math.prod(self.in_spatial)
            pairs = in_width * out_width // self.groups if self.groups else out_width
            return pairs * (taps * in_cells)
        if self.kind in ("depthwise_conv", "matmul"):
            return out_width * (taps * cells)
        if self.kind == "linear":
            return in_width * out_width * cells
        if self.kind == "attention":
            return (in_width + out_width) * (taps * cells)
        if self.kind == "recurrent":
            hidden = out_width // max(self.groups, 1)
            return GATES.get(self.variant, 1) * out_width * (in_width + hidden) * cells
        return np.zeros_like(out_width)

    def params_at(self, in_width: IntArray, out_width: IntArray) -> IntArray:
        """Weights and one bias per output; 0 for operators without weights."""
        taps = math.prod(self.kernel)
        if self.absent:
            return np.zeros_like(out_width)
        if self.kind in ("conv", "conv_transpose") and self.groups:
            return in_width * out_width // self.groups * taps + out_width
        if self.kind in ("depthwise_conv", "conv_transpose"):
            return out_width * (taps + 1)
        if self.kind == "linear":
            return in_width * out_width + out_width
        if self.kind == "norm":
            return 2 * out_width
        if self.kind == "recurrent":
            hidden = out_width // max(self.groups, 1)
            return GATES.get(self.variant, 1) * out_width * (in_width + hidden + 2)
        return np.zeros_like(out_width)


@dataclass(frozen=True, slots=True)
class Held:
    """An axis that is not prunable, and why."""

    node: str
    tensor: str
    width: int
    reason: str
    layer: str = ""
    """Module path of the layer that makes the channels, where known."""
    forced_by: str = ""
    """Node or graph output whose rule it is; empty where no single one is to blame."""


@dataclass(frozen=True)
class PruningGraph:
    """Groups in topological order of their first producer, operators in topological order."""

    fingerprint: str
    """sha256 (hex) of the canonical form: names and weights left out."""
    groups: tuple[Group, ...]
    operators: tuple[Operator, ...]
    input_shapes: tuple[tuple[int, ...], ...]
    """Of the graph inputs, batch included (1 where the file leaves it open)."""
    held: tuple[Held, ...] = ()
    weights: tuple[WeightCount, ...] = ()
    """Of every initializer, shared ones once; empty in graphs that 0.6.1 stored."""
    uncounted: tuple[Uncounted, ...] = ()
    outputs: tuple[int, ...] = ()
    """Of every output of the model the operator that it comes from, -1 - i for an input; empty in
    graphs that 0.8.0 stored."""

    @property
    def widths(self) -> IntArray:
        """Full width of every group [G]."""
        return np.array([group.width for group in self.groups], dtype=np.int64)

    def macs(self, keeps: IntArray) -> IntArray:
        """Multiply-accumulates at batch 1 for keeps [..., G] -> [...]."""
        total = np.zeros(keeps.shape[:-1], dtype=np.int64)
        for op in self.operators:
            total = total + op.macs_at(op.in_width.at(keeps), op.out_width.at(keeps))
        return total

    def params(self, keeps: IntArray) -> IntArray:
        """Numbers in the weights of the cut file for keeps [..., G] -> [...].

        Every floating-point initializer counts, those of BatchNorm, its statistics included, and
        constants too; a weight that several nodes read counts once. Integers count where they are
        of eight bits or fewer, as quantised weights are.
        """
        total = np.zeros(keeps.shape[:-1], dtype=np.int64)
        for weight in self._weights_together:
            total = total + weight.at(keeps)
        if self.weights:
            return total
        for op in self.operators:
            total = total + op.params_at(op.in_width.at(keeps), op.out_width.at(keeps))
        return total

    @cached_property
    def _weights_together(self) -> list[WeightCount]:
        """The weights, whoever reads them: those whose axes shrink alike are one entry."""
        often: dict[tuple[Width, ...], int] = {}
        for weight in self.weights:
            often[weight.axes] = often.get(weight.axes, 0) + weight.often
        return [WeightCount(count, axes) for axes, count in often.items()]

    def prunable_macs_ratio(self, held: Collection[int] = ()) -> float:
        """Share (0-1) of the MACs counted that lie in operators with a prunable axis.

        Groups of `held` count as not prunable.
        """
        keeps = self.widths
        whole = prunable = 0
        for op in self.operators:
            cost = int(op.macs_at(op.in_width.at(keeps), op.out_width.at(keeps)))
            whole += cost
            if any(group not in held for group, _ in (*op.in_width.terms, *op.out_width.terms)):
                prunable += cost
        return prunable / whole if whole else 0.0

    def to_json(self) -> str:
        """The graph as one JSON object (format `rlprune.graph/1`)."""
        return json.dumps({"format": FORMAT, **asdict(self)}, separators=(",", ":"))

    @staticmethod
    def from_json(text: str) -> PruningGraph:
        """The inverse of `to_json`.

        Raises:
            ModelError: not JSON, another format, or fields missing or of the wrong type.
        """
        try:
            data = json.loads(text)
            if data["format"] != FORMAT:
                raise ModelError(
                    f"graph format is {data['format']!r}, this version reads {FORMAT!r}"
                )
            return PruningGraph(
                fingerprint=str(data["fingerprint"]),
                groups=tuple(
                    Group(str(g["name"]), int(g["width"]), tuple(Member(**m) for m in g["members"]))
                    for g in data["groups"]
                ),
                operators=tuple(_operator(op) for op in data["operators"]),
                input_shapes=tuple(_ints(shape) for shape in data["input_shapes"]),
                held=tuple(Held(**item) for item in data["held"]),
                weights=tuple(
                    WeightCount(
                        int(w["often"]),
                        tuple(_width(axis) for axis in w["axes"]),
                        _ints(w.get("operators", ())),
                    )
                    for w in data.get("weights", ())
                ),
                uncounted=tuple(Uncounted(**item) for item in data.get("uncounted", ())),
                outputs=_ints(data.get("outputs", ())),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"graph JSON is damaged ({error!r}); trace the model again") from error


def _ints(values: Sequence[Any]) -> tuple[int, ...]:
    return tuple(int(value) for value in values)


def _width(data: dict[str, Any]) -> Width:
    return Width(int(data["const"]), tuple((int(g), int(r)) for g, r in data["terms"]))


def _operator(data: dict[str, Any]) -> Operator:
    extents = ("in_spatial", "out_spatial", "kernel", "stride", "pads", "dilation")
    return Operator(
        name=str(data["name"]),
        kind=str(data["kind"]),
        variant=str(data["variant"]),
        inputs=_ints(data["inputs"]),
        in_width=_width(data["in_width"]),
        out_width=_width(data["out_width"]),
        groups=int(data["groups"]),
        weight=str(data.get("weight", "")),
        **{name: _ints(data[name]) for name in extents},
    )
