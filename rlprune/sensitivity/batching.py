"""How a model is run on many samples at once, where it can be.

Files are exported for a batch of one, an open batch, or no batch at all; recurrent states carry
theirs on another axis than images. Nothing of that is believed: two samples are run one by one and
together, and only where the answers agree are samples batched afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from rlprune.errors import CalibrationError, MeasurementError
from rlprune.graph.bodies import reads_of
from rlprune.graph.from_onnx import OnnxTrace
from rlprune.runtime.base import Array, Runtime
from rlprune.sensitivity.calibration import CalibrationSet, EqualSizes

AGREE = 0.02
"""Answers of one network, batched and one by one, differ by rounding: less than this share of
their spread (float16 included); of a batch that was mixed up, by all of it."""


def real_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Graph inputs that are fed: no initializers."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in constants]


def declared_dims(value: onnx.ValueInfoProto) -> list[int | None]:
    """Extents of an input or output, None where the file leaves one open (negative ones, too)."""
    return [
        dim.dim_value if dim.dim_value > 0 else None for dim in value.type.tensor_type.shape.dim
    ]


def batch_axes(trace: OnnxTrace) -> dict[str, int | None]:
    """By input, the axis that samples lie along; None where it has none.

    That is an axis of extent one in the trace, rather an open one, rather the first.
    """
    axes: dict[str, int | None] = {}
    for value, shape in zip(trace.model.graph.input, trace.graph.input_shapes, strict=True):
        dims = declared_dims(value)
        ones = [axis for axis, extent in enumerate(shape) if extent == 1]
        ones.sort(key=lambda axis: dims[axis] is not None)
        axes[value.name] = ones[0] if ones else None
    inputs = {value.name for value in real_inputs(trace.model)}
    return {name: axis for name, axis in axes.items() if name in inputs}


@dataclass(frozen=True)
class Batching:
    """How samples of one traced model are fed, and its answers taken apart again."""

    axes: Mapping[str, int | None]
    """Batch axis of every input."""
    answer_axes: tuple[int, ...] | None
    """Batch axis of every output asked for; None where samples are run one by one."""

    @staticmethod
    def alone(trace: OnnxTrace) -> Batching:
        """One sample after the other, which every model takes."""
        return Batching(batch_axes(trace), None)

    @staticmethod
    def find(
        trace: OnnxTrace, samples: CalibrationSet, runtime: Runtime, wanted: Sequence[str]
    ) -> Batching:
        """Tries whether the model takes batches; `wanted` are the tensors that it is asked for.

        Raises:
            CalibrationError: it does not run on these samples at all, with what the runtime says.
        """
        alone = Batching.alone(trace)
        axes = alone.axes
        pair = _pair(samples)
        model = asked(trace.model, wanted)
        with does_not_run():
            rows = (np.array([k]) for k in range(len(pair.index)))
            one_by_one = alone._run_whole(runtime, model, [pair.take(row, row) for row in rows])
        if len(one_by_one) < 2:
            return alone
        try:
            [together] = Batching(axes, ())._run_whole(runtime, _opened(model, axes), [pair])
        except (MeasurementError, CalibrationError):
            return alone
        answer_axes = []
        for first, second, both in zip(*one_by_one, together, strict=True):
            axis = _doubled(first.shape, both.shape)
            if axis is None or not _same(first, second, both, axis):
                return alone
            answer_axes.append(axis)
        return Batching(axes, tuple(answer_axes))

    def computed(self, names: Iterable[str]) -> list[str]:
        """Those of the tensors `names` that are not fed, once each."""
        return [name for name in dict.fromkeys(names) if name not in self.axes]

    def prepare(self, model: onnx.ModelProto, wanted: Sequence[str]) -> onnx.ModelProto:
        """A copy of the model, cut or not, that takes batches and answers with `wanted`."""
        model = asked(model, wanted)
        return model if self.answer_axes is None else _opened(model, self.axes)

    def run(
        self,
        runtime: Runtime,
        model: onnx.ModelProto,
        wanted: Sequence[str],
        batches: Iterable[EqualSizes],
    ) -> Iterator[tuple[EqualSizes, dict[str, Array]]]:
        """Runs a model, cut or not, batch by batch: each batch, and by name what was fed and what
        the tensors `wanted` hold. Where nothing is wanted nothing is run.

        Raises:
            CalibrationError: it does not run, with what the runtime says.
        """
        if not wanted:
            yield from ((batch, self.feeds(batch)) for batch in batches)
            return
        prepared = self.prepare(model, wanted)
        with does_not_run(), closing(runtime.load(prepared.SerializeToString())) as session:
            for batch in batches:
                feeds = self.feeds(batch)
                yield batch, {**feeds, **dict(zip(wanted, session.run(feeds), strict=True))}

    def feeds(self, batch: EqualSizes) -> dict[str, Array]:
        """What a session is fed for a batch: one sample, or several where samples are batched."""
        names = list(self.axes)
        given = dict(batch.arrays)
        if len(names) == 1 and len(given) == 1:  # whatever its name
            given = {names[0]: next(iter(given.values()))}
        feeds = {}
        for name in names:
            array, axis = given[name], self.axes[name]
            fed = array[0] if axis is None else np.moveaxis(array, 0, axis)
            if fed.dtype == np.float64 or fed.dtype.name == "bfloat16":
                fed = fed.astype(np.float32)
            feeds[name] = np.ascontiguousarray(fed)
        return feeds

    def apart(self, answers: Sequence[Array]) -> list[Array]:
        """Answers with the samples in front: [n, ...], each as if it had been run alone."""
        if self.answer_axes is None:
            return [np.asarray(answer)[None] for answer in answers]
        return [
            np.expand_dims(np.moveaxis(np.asarray(answer), axis, 0), axis + 1)
            for answer, axis in zip(answers, self.answer_axes, strict=True)
        ]

    def _run_whole(
        self, runtime: Runtime, model: onnx.ModelProto, batches: Sequence[EqualSizes]
    ) -> list[list[Array]]:
        """All answers of each."""
        if self.answer_axes is not None and not all(_alike(one, self.axes) for one in batches):
            raise CalibrationError("an input without a batch differs")
        with closing(runtime.load(model.SerializeToString())) as session:
            return [
                [np.array(answer) for answer in session.run(self.feeds(one))] for one in batches
            ]


@contextmanager
def does_not_run() -> Iterator[None]:
    """Names the failure of a runtime as what it is: inputs that the model does not take."""
    try:
        yield
    except MeasurementError as error:
        raise CalibrationError(f"the model does not run on these inputs: {error}") from error


def asked(model: onnx.ModelProto, wanted: Sequence[str]) -> onnx.ModelProto:
    """A copy whose outputs are `wanted`, in that order, shapes left to the runtime; with only what
    computes them."""
    made = deepcopy(model)
    _drop_unneeded(made.graph, wanted)
    known = {value.name: value for value in model.graph.output}
    del made.graph.output[:]
    for name in wanted:
        value = onnx.ValueInfoProto(name=name)
        if name in known:
            value.type.tensor_type.elem_type = known[name].type.tensor_type.elem_type
        made.graph.output.append(value)
    _compute_in_float32(made)
    return made


def _drop_unneeded(graph: onnx.GraphProto, wanted: Sequence[str]) -> None:
    """Nodes and constants that none of `wanted` depends on; runtimes would compute them."""
    needed, nodes = set(wanted), []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(reads_of(node))
            nodes.append(node)
    kept = [deepcopy(node) for node in reversed(nodes)]
    del graph.node[:]
    graph.node.extend(kept)
    for index in reversed(range(len(graph.initializer))):
        if graph.initializer[index].name not in needed:
            del graph.initializer[index]


def _compute_in_float32(model: onnx.ModelProto) -> None:
    """Doubles and bfloat16 become float32, in place: runtimes have no kernels for them."""
    others = (TensorProto.DOUBLE, TensorProto.BFLOAT16)

    def turned(tensor: TensorProto) -> None:
        if tensor.data_type in others:
            value = np.asarray(numpy_helper.to_array(tensor), dtype=np.float32)
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))

    for tensor in model.graph.initializer:
        turned(tensor)
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        if value.type.tensor_type.elem_type in others:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                turned(attribute.t)
            elif node.op_type == "Cast" and attribute.name == "to" and attribute.i in others:
                attribute.i = TensorProto.FLOAT


def _pair(samples: CalibrationSet) -> EqualSizes:
    """Two samples of one size; one, where all differ."""
    part = max(samples.parts, key=lambda part: len(part.index))
    rows = np.arange(min(2, len(part.index)))
    return part.take(rows, rows)


def _alike(batch: EqualSizes, axes: Mapping[str, int | None]) -> bool:
    """Whether inputs without a batch axis are the same for all samples."""
    return all(
        (array == array[:1]).all()
        for name, array in batch.arrays.items()
        if axes.get(name, 0) is None
    )


def _doubled(one: Sequence[int], two: Sequence[int]) -> int | None:
    """The axis along which two samples lie; None where it cannot be told."""
    if len(one) != len(two):
        return None
    changed = [axis for axis, (a, b) in enumerate(zip(one, two, strict=True)) if a != b]
    return changed[0] if len(changed) == 1 and one[changed[0]] * 2 == two[changed[0]] else None


def _same(first: Array, second: Array, both: Array, axis: int) -> bool:
    if first.shape[axis] != 1:
        return False  # samples cannot be told apart along a merged axis
    wanted = np.concatenate([first, second], axis).astype(np.float64)
    finite = np.isfinite(wanted)
    spread = float(np.ptp(wanted[finite])) if finite.any() else 0.0
    return bool(np.allclose(both, wanted, rtol=AGREE, atol=AGREE * spread + 1e-9, equal_nan=True))


def _opened(model: onnx.ModelProto, axes: Mapping[str, int | None]) -> onnx.ModelProto:
    """A copy that takes any number of samples along `axes`, where its file fixes one.

    A Reshape to a constant shape that leads with the fixed batch is made to copy it instead.
    """
    made = deepcopy(model)
    fixed = False
    for value in real_inputs(made):
        axis = axes.get(value.name)
        if axis is not None:
            dim = value.type.tensor_type.shape.dim[axis]
            fixed |= dim.dim_value == 1
            dim.Clear()
            dim.dim_param = "N"
    if fixed:
        _open_reshapes(made.graph)
    del made.graph.value_info[:]
    return made


def open_batch(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that takes any number of samples along the first axis of what it reads and answers,
    also where the file fixes it to one.

    Raises:
        CalibrationError: the file fixes the batch to something else than one.
    """
    first = real_inputs(model)[0].type.tensor_type.shape.dim[0].dim_value
    if first > 1:
        raise CalibrationError(
            f"the model's batch is fixed to {first}; export it with a batch of 1 or a dynamic one",
            field="model",
        )
    made = _opened(model, {value.name: 0 for value in real_inputs(model)})
    for value in made.graph.output:
        if value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_param = "N"
    return made


def _open_reshapes(graph: onnx.GraphProto) -> None:
    """Reshape(x, [1, ...]) -> Reshape(x, [0, ...]) wherever x depends on an input."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    fed = {value.name for value in graph.input} - set(constants)
    for node in graph.node:
        if not any(name in fed for name in node.input):
            continue
        fed.update(node.output)
        if node.op_type != "Reshape" or node.input[1] not in constants:
            continue
        shape = numpy_helper.to_array(constants[node.input[1]]).copy()
        if shape.size and shape[0] == 1:
            kept = [attribute for attribute in node.attribute if attribute.name != "allowzero"]
            del node.attribute[:]
            node.attribute.extend(kept)
            shape[0] = 0
            name = f"{node.output[0]}//shape"
            graph.initializer.append(numpy_helper.from_array(shape, name))
            node.input[1] = name
