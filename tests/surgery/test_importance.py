"""Which units stay: those through which most energy passes, made times read."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx_oracle import Net, inputs_of, relative_error, run
from small_onnx import small_onnx

from rlprune.graph.from_onnx import trace_onnx
from rlprune.graph.types import FloatArray
from rlprune.surgery.importance import unit_scores
from rlprune.surgery.onnx import prune_onnx


def normed_net() -> onnx.ModelProto:
    """Two convolutions, a BatchNorm behind each, and a classifier: groups of 8 and 12."""
    net = Net(1, 3, 8, 8)
    first = net.add("Relu", net.norm(net.conv("x", 3, 8), 8))
    second = net.add("Relu", net.norm(net.conv(first, 8, 12), 12))
    return net.model(net.head(second, 12))


def scores_of(model: onnx.ModelProto) -> list[FloatArray]:
    return unit_scores(trace_onnx(model))


def weight_of(model: onnx.ModelProto, op: str, place: int, slot: int) -> FloatArray:
    """What input `slot` of the model's `place`th `op` holds."""
    node = [node for node in model.graph.node if node.op_type == op][place]
    [tensor] = [t for t in model.graph.initializer if t.name == node.input[slot]]
    return numpy_helper.to_array(tensor).astype(np.float64)


def change(
    model: onnx.ModelProto, op: str, place: int, slot: int, by: Callable[[FloatArray], FloatArray]
) -> None:
    """Changes in place what input `slot` of the model's `place`th `op` holds."""
    node = [node for node in model.graph.node if node.op_type == op][place]
    [tensor] = [t for t in model.graph.initializer if t.name == node.input[slot]]
    value = by(numpy_helper.to_array(tensor).copy())
    tensor.CopyFrom(numpy_helper.from_array(value.astype(np.float32), tensor.name))


def energy(weight: FloatArray, axis: int) -> FloatArray:
    return np.square(np.moveaxis(weight, axis, 0)).reshape(weight.shape[axis], -1).sum(1)


def test_a_unit_scores_the_energy_it_is_made_with_times_that_it_is_read_with() -> None:
    model = small_onnx()
    w1, w2 = (weight_of(model, "Conv", place, 1) for place in (0, 1))
    w3 = weight_of(model, "Gemm", 0, 1)  # [in, out]
    first, second = scores_of(model)
    np.testing.assert_allclose(first, energy(w1, 0) * energy(w2, 1))
    np.testing.assert_allclose(second, energy(w2, 0) * energy(w3, 0))


@pytest.mark.parametrize("place", [0, 1])
def test_a_batch_norm_may_take_over_a_convolutions_scale(place: int) -> None:
    model = normed_net()
    before = scores_of(model)
    change(model, "Conv", place, 1, lambda weight: weight / 2)
    change(model, "BatchNormalization", place, 1, lambda gamma: gamma * 2)
    for one, other in zip(before, scores_of(model), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-6)


def test_what_is_made_and_read_has_its_batch_norm_folded_in() -> None:
    model = normed_net()
    boost = np.ones(12)
    boost[5] = 3.0
    change(model, "BatchNormalization", 1, 1, lambda gamma: gamma * boost)
    first, second = scores_of(model)
    made, both = effective(model, 0), effective(model, 1)
    np.testing.assert_allclose(first, energy(made, 0) * energy(both, 1), rtol=1e-6)
    head = weight_of(model, "Gemm", 0, 1)
    np.testing.assert_allclose(second, energy(both, 0) * energy(head, 0), rtol=1e-6)
    np.testing.assert_allclose(second / scores_of(normed_net())[1], boost**2, rtol=1e-6)


def effective(model: onnx.ModelProto, place: int) -> FloatArray:
    """A convolution's weight with the BatchNorm behind it folded in."""
    gamma, variance = (weight_of(model, "BatchNormalization", place, slot) for slot in (1, 4))
    scale = gamma / np.sqrt(variance + 1e-3)  # as Net.norm has it
    return np.asarray(weight_of(model, "Conv", place, 1) * scale[:, None, None, None])


def test_units_that_no_one_reads_score_zero_and_are_cut_first_at_no_cost() -> None:
    model = small_onnx()
    unread = [3, 4, 17, 31]
    silent = np.isin(np.arange(32), unread)
    # However much is put into them.
    change(model, "Conv", 0, 1, lambda w: w * np.where(silent, 9.0, 1.0)[:, None, None, None])
    change(model, "Conv", 1, 1, lambda w: w * ~silent[:, None, None])
    trace = trace_onnx(model)
    first, second = unit_scores(trace)
    assert (np.flatnonzero(first == 0.0) == unread).all() and (second > 0.0).all()

    inputs = inputs_of(trace)
    whole = run(model, inputs)
    without = run(prune_onnx(trace, np.array([28, 64])), inputs)
    assert relative_error(whole, without) < 1e-5
    assert relative_error(whole, run(prune_onnx(trace, np.array([27, 64])), inputs)) > 1e-4


def test_a_stream_is_scored_by_all_that_make_it_and_all_that_read_it() -> None:
    net = Net(1, 3, 8, 8)
    stem = net.add("Relu", net.conv("x", 3, 8))
    inner = net.add("Relu", net.conv(stem, 8, 6))
    stream = net.add("Add", stem, net.conv(inner, 6, 8))
    model = net.model(net.head(stream, 8))
    w0, w1, w2 = (weight_of(model, "Conv", place, 1) for place in range(3))
    head = weight_of(model, "Gemm", 0, 1)
    own = {len(score): score for score in scores_of(model)}
    np.testing.assert_allclose(
        own[8], (energy(w0, 0) + energy(w2, 0)) * (energy(w1, 1) + energy(head, 0))
    )
    np.testing.assert_allclose(own[6], energy(w1, 0) * energy(w2, 1))


def test_what_no_layer_reads_whole_is_scored_by_what_makes_it() -> None:
    """A grouped convolution's inputs: no output reads them all."""
    net = Net(1, 3, 8, 8)
    first = net.add("Relu", net.conv("x", 3, 8))
    second = net.add("Relu", net.conv(first, 8, 8, group=2))
    model = net.model(net.head(second, 8))
    trace = trace_onnx(model)
    made = energy(weight_of(model, "Conv", 0, 1), 0)
    [index] = [i for i, g in enumerate(trace.graph.groups) if g.name == model.graph.node[0].name]
    group, unit = trace.channels.axis_units(model.graph.node[0].input[1], 0)
    expected = np.zeros(trace.graph.groups[index].width)
    np.add.at(expected, unit[group == index], made[group == index])
    np.testing.assert_allclose(unit_scores(trace)[index], expected)


@pytest.mark.parametrize("trans_b", [0, 1])
def test_a_linear_layer_reads_along_its_inner_axis_however_it_lies(trans_b: int) -> None:
    net = Net(1, 3, 8, 8)
    flat = net.add("Flatten", net.add("GlobalAveragePool", net.conv("x", 3, 8)))
    weight = net.rng.standard_normal((8, 10)).astype(np.float32)
    laid = net.constant(weight.T.copy() if trans_b else weight)
    model = net.model(net.add("Gemm", flat, laid, transB=trans_b))
    [score] = scores_of(model)
    np.testing.assert_allclose(score, energy(weight_of(model, "Conv", 0, 1), 0) * energy(weight, 0))
