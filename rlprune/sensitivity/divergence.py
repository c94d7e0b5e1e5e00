"""How far a network's answers lie from the unpruned one's, whatever kind of answers they are.

- Where an output ends in a Softmax (LogSoftmax, Exp over its sum, ArgMax), or is the logits of a
  classifier: the KL divergence KL(unpruned || this) of what is chosen between, nats.
- Where it ends in a Sigmoid: that of every yes or no, nats, their mean.
- Else 0.5 log(1 + e / v) of every output channel, e the squared error and v what the channel varies
  by in the unpruned network: for small errors the squared error in units of the channel, so that a
  detector's boxes in pixels do not drown its scores; for large ones its logarithm, so that neither
  does a channel that hardly varies.

The first two are read before the Softmax or Sigmoid, where nothing is rounded to 0 or 1; layers
that only move values are seen through. Positions of one output are averaged, and then outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import onnx
from onnx import helper, numpy_helper

from rlprune.errors import CalibrationError
from rlprune.graph.types import FloatArray
from rlprune.runtime.base import Array

if TYPE_CHECKING:
    from rlprune.graph.from_onnx import OnnxTrace

Kind = Literal["logits", "sigmoid", "values", "labels"]

MOST_DIVERGENCE = 1e4
"""Nats; also where an answer is no number."""
MOVED = ("Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose", "Cast", "Dropout")
"""Operators that only move, or round, what they are given."""
LOGITS_AHEAD = ("Gemm", "MatMul", "GlobalAveragePool", "ReduceMean", "AveragePool")
"""What makes logits [N, classes] where nothing follows."""
LEAST_SPREAD = 1e-6
"""Of a channel, as a share of its mean square."""


@dataclass(frozen=True)
class Judged:
    """One tensor by which a network is judged."""

    output: str
    """The graph output it stands for."""
    tensor: str
    """What is read: the output, or what its Softmax or Sigmoid reads."""
    kind: Kind
    axes: tuple[int, ...] | None = None
    """Axes of what is chosen between (logits), or of channels (values); None for channels that are
    found in the answers (`with_channels`), empty for one channel."""


def judged_outputs(model: onnx.ModelProto, chosen: Sequence[str] = ()) -> tuple[Judged, ...]:
    """By which tensors a model's answers are judged: of all outputs, or of those `chosen`
    (`NAME` or `NAME=logits|values|sigmoid`; any tensor of the file will do).

    Integers and truth values count only where there is nothing else.

    Raises:
        CalibrationError: no such output or kind.
    """
    graph = _Graph.of(model)
    if chosen:
        return tuple(_stated(text, graph) for text in chosen)
    found = [graph.judged(value.name) for value in model.graph.output]
    soft = [one for one in found if one.kind != "labels"]
    return tuple(dict.fromkeys(soft or found))


def class_counts(trace: OnnxTrace) -> int:
    """Classes that the first output is chosen between, where it is one choice a sample; else 0."""
    shape: tuple[int, ...] = ()
    judged = judged_outputs(trace.model)
    if judged:
        shape = tuple(trace.normal.shapes.get(judged[0].tensor, ()))
    axes = judged[0].axes if judged and judged[0].kind == "logits" else None
    if judged and axes is None and len(shape) == 2:
        axes = (1,)  # [N, classes] with labels are logits, however they are made
    if axes is None or not shape:
        return 0
    count = int(np.prod([shape[axis] for axis in axes]))
    return count if count >= 2 and count == int(np.prod(shape)) else 0


def labelled(judged: Sequence[Judged]) -> tuple[Judged, ...]:
    """The same where there are labels: an output [N, classes] of values holds logits."""
    first, *others = judged
    if first.kind == "values":
        first = replace(first, kind="logits", axes=(1,))
    return (first, *others)


def arranged(answer: Array, one: Judged) -> Array:
    """An answer [n, ...], its own shape behind the samples, as [n, positions, channels]."""
    rank = answer.ndim - 1
    where = [axis % rank + 1 for axis in one.axes or () if rank]
    rest = [axis for axis in range(1, rank + 1) if axis not in where]
    moved = np.transpose(answer, (0, *rest, *where))
    channels = int(np.prod([answer.shape[axis] for axis in where], dtype=np.int64))
    return moved.reshape(len(answer), -1, channels)


def with_channels(one: Judged, answers: Sequence[Array]) -> Judged:
    """`one` with the axis of its channels, found in answers [n, ...] of several sizes.

    It is the axis along which values differ most in scale: a detector's [1, 84, 8400] is told from
    a language model's [1, 60, 6625] by that alone. Axes whose extents vary hold no channels.
    """
    if one.axes is not None:
        return one
    first = answers[0]
    best, most = None, -np.inf
    for axis in range(1, first.ndim):
        extent = first.shape[axis]
        if extent < 2 or any(answer.shape[axis] != extent for answer in answers):
            continue
        rows = np.moveaxis(first, axis, 0).reshape(extent, -1).astype(np.float64)
        spread = np.log(rows.var(1) + LEAST_SPREAD * np.square(rows).mean() + 1e-30)
        # An axis of many positions splits into few values each, whose spread is chance.
        score = float(spread.var()) - 2.0 / rows.shape[1]
        if score > most:
            best, most = axis - 1, score
    return replace(one, axes=() if best is None else (best,))


def channel_spread(answers: Sequence[Array]) -> FloatArray:
    """What every channel of answers [P, C] varies by [C]."""
    rows = np.concatenate([np.asarray(answer, dtype=np.float64) for answer in answers])
    floor = LEAST_SPREAD * np.square(rows).mean(0) + 1e-12
    return np.asarray(rows.var(0) + floor)


def divergence(one: Judged, dense: Array, own: Array, spread: FloatArray) -> FloatArray:
    """Of each sample [n], from answers [n, P, C]; `spread` [C] of values. Never above
    `MOST_DIVERGENCE`."""
    a, b = np.asarray(dense, dtype=np.float64), np.asarray(own, dtype=np.float64)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        if one.kind == "logits":
            theirs, ours = log_softmax(a), log_softmax(b)
            share = np.exp(theirs)
            # A class masked by -inf in both costs nothing.
            each = np.where(share > 0, share * (theirs - ours), 0.0).sum(2).mean(1)
        elif one.kind == "sigmoid":
            p = 1.0 / (1.0 + np.exp(-a))
            yes, no = _softplus(-b) - _softplus(-a), _softplus(b) - _softplus(a)
            each = (np.where(p > 0, p * yes, 0.0) + np.where(p < 1, (1 - p) * no, 0.0)).mean((1, 2))
        elif one.kind == "labels":
            each = (a != b).mean((1, 2))
        else:
            each = 0.5 * np.log1p(np.square(a - b).mean(1) / spread).mean(1)
    return np.asarray(
        np.clip(np.nan_to_num(each, nan=MOST_DIVERGENCE), 0.0, MOST_DIVERGENCE), dtype=np.float64
    )


def agreement(one: Judged, dense: Array, own: Array) -> FloatArray | None:
    """Share (0-1) of each sample's positions that are decided as by the unpruned network [n]; None
    where values are no decisions."""
    match one.kind:
        case "logits":
            return np.asarray((dense.argmax(2) == own.argmax(2)).mean(1))
        case "sigmoid":
            return np.asarray(((dense > 0) == (own > 0)).mean((1, 2)))
        case "labels":
            return np.asarray((dense == own).mean((1, 2)))
    return None


def log_softmax(logits: FloatArray) -> FloatArray:
    """Over the last axis."""
    shifted = logits - logits.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))


def _softplus(x: FloatArray) -> FloatArray:
    return np.asarray(np.logaddexp(0.0, x))


@dataclass(frozen=True)
class _Graph:
    """Who makes each tensor, and what is known of it."""

    makers: Mapping[str, onnx.NodeProto]
    constants: Mapping[str, onnx.TensorProto]
    outputs: Mapping[str, onnx.ValueInfoProto]
    opset: int

    @staticmethod
    def of(model: onnx.ModelProto) -> _Graph:
        graph = model.graph
        return _Graph(
            {name: node for node in graph.node for name in node.output if name},
            {tensor.name: tensor for tensor in graph.initializer},
            {value.name: value for value in graph.output},
            max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")),
        )

    def judged(self, output: str, kind: Kind | None = None) -> Judged:
        """How an output is judged by the nodes that make it; as `kind` where that is stated."""
        tensor = output
        node = self.makers.get(tensor)
        while node is not None and node.op_type in MOVED:
            tensor = node.input[0]
            node = self.makers.get(tensor)
        found = self._ending(output, tensor, node)
        if kind is None:
            return found
        if found.kind == kind:
            return found
        rank = self._rank(output)
        last = (rank - 1,) if rank is not None else (-1,)
        return Judged(output, output, kind, last if kind in ("logits", "sigmoid") else None)

    def _ending(self, output: str, tensor: str, node: onnx.NodeProto | None) -> Judged:
        attributes = _attributes(node)
        op = "" if node is None else node.op_type
        if node is not None and op in ("Softmax", "LogSoftmax", "Hardmax"):
            axis = int(attributes.get("axis", -1 if self.opset >= 13 else 1))
            return Judged(output, node.input[0], "logits", self._from(axis, output))
        if node is not None and op == "ArgMax":
            axis = int(attributes.get("axis", 0))
            before = self.judged(node.input[0])
            if before.kind == "logits":
                return Judged(output, before.tensor, "logits", before.axes)
            return Judged(output, node.input[0], "logits", (axis,))
        if node is not None and op == "Sigmoid":
            return Judged(output, node.input[0], "sigmoid", (-1,))
        if node is not None and op == "Log":
            before = self.judged(node.input[0])
            if before.kind == "logits":
                return Judged(output, before.tensor, "logits", before.axes)
        if node is not None and op == "Div" and (spelt := self._spelt_softmax(node)) is not None:
            return Judged(output, spelt[0], "logits", spelt[1])
        if not self._is_float(output):
            return Judged(output, output, "labels", (-1,))
        if self._rank(output) == 2 and self._makes_logits(node):
            return Judged(output, output, "logits", (1,))
        return Judged(output, output, "values")

    def _from(self, axis: int, output: str) -> tuple[int, ...]:
        """The axes that a Softmax goes over: before opset 13 all from `axis` on."""
        if self.opset >= 13 or axis == -1:
            return (axis,)
        rank = self._rank(output)
        return (axis,) if rank is None else tuple(range(axis, rank))

    def _spelt_softmax(self, div: onnx.NodeProto) -> tuple[str, tuple[int, ...]] | None:
        """What Exp(z) / ReduceSum(Exp(z)) reads, less a maximum, and over which axes."""
        top, bottom = self.makers.get(div.input[0]), self.makers.get(div.input[1])
        if top is None or bottom is None or top.op_type != "Exp" or bottom.op_type != "ReduceSum":
            return None
        if bottom.input[0] != div.input[0]:
            return None
        axes = _attributes(bottom).get("axes")
        if axes is None and len(bottom.input) > 1 and bottom.input[1] in self.constants:
            axes = numpy_helper.to_array(self.constants[bottom.input[1]]).ravel().tolist()
        return None if not axes else (top.input[0], tuple(int(axis) for axis in axes))

    def _makes_logits(self, node: onnx.NodeProto | None) -> bool:
        """Whether a linear layer, or a mean over positions, ends here, whatever is added."""
        for _ in range(8):
            if node is None:
                return False
            if node.op_type in LOGITS_AHEAD:
                return True
            if node.op_type not in ("Add", *MOVED):
                return False
            made = [name for name in node.input if name not in self.constants]
            node = self.makers.get(made[0]) if len(made) == 1 else None
        return False

    def _is_float(self, output: str) -> bool:
        value = self.outputs.get(output)
        if value is None or not value.type.tensor_type.elem_type:
            return True
        kind = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        return kind.kind == "f" or kind.name == "bfloat16"

    def _rank(self, output: str) -> int | None:
        value = self.outputs.get(output)
        if value is None or not value.type.tensor_type.HasField("shape"):
            return None
        return len(value.type.tensor_type.shape.dim)


def _stated(text: str, graph: _Graph) -> Judged:
    """What `NAME` or `NAME=KIND` says."""
    name, sign, kind = text.rpartition("=")
    kinds = [one for one in get_args(Kind) if one != "labels"]
    if not sign or kind not in kinds:
        name, kind = text, ""
    if name not in graph.outputs and name not in graph.makers:
        raise CalibrationError(
            f"no output {text!r}; the outputs are {', '.join(graph.outputs)} (NAME, or "
            f"NAME={'|'.join(kinds)})",
            field="output",
        )
    stated: Any = kind or None
    return graph.judged(name, stated)


def _attributes(node: onnx.NodeProto | None) -> dict[str, Any]:
    if node is None:
        return {}
    return {item.name: helper.get_attribute_value(item) for item in node.attribute}
