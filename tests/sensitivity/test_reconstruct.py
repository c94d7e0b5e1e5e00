"""Reconstruction: what stays stands in for what was cut, as well as least squares can."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

import numpy as np
import onnx
import pytest
from calibrated import own_images, shrunk, traced
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from onnx_oracle import Net
from reconstructing import RUNTIME, SIDE, halved, images_of, values

from rlprune.graph.from_onnx import OnnxTrace, trace_onnx
from rlprune.graph.types import FloatArray, IntArray
from rlprune.runtime.base import Array, Session
from rlprune.sensitivity import layers, moments, reconstruct
from rlprune.sensitivity.evaluate import Evaluator
from rlprune.sensitivity.reconstruct import Reconstruction
from rlprune.surgery.importance import unit_scores
from rlprune.surgery.onnx import cut, kept_units
from rlprune.surgery.removal import Removal

PROBES = 3
"""Runs that tell whether a model takes batches: two alone, both together."""


def duplicated() -> OnnxTrace:
    """A linear net, one of whose first layer's channels is the double of another's."""
    net = Net(1, 3, SIDE, SIDE)
    first = net.conv("x", 3, 8, 3)
    weight, bias = (
        next(t for t in net.weights if t.name == name) for name in net.nodes[0].input[1:]
    )
    for tensor in (weight, bias):
        value = numpy_helper.to_array(tensor).copy()
        value[5] = value[2]
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    return trace_onnx(net.model(net.head(net.conv(first, 8, 6, 1), 6)))


def test_what_a_double_did_the_other_takes_over(monkeypatch: pytest.MonkeyPatch) -> None:
    trace = duplicated()
    kept = [np.delete(np.arange(8), 5), np.arange(6)]
    pruned = cut(trace, Removal(kept))
    output = trace.model.graph.output[0].name
    unseen = images_of(trace, seed=1).x
    [wanted], [alone] = (values(model, [output], unseen) for model in (trace.model, pruned))
    assert np.abs(alone - wanted).max() > 0.1 * np.abs(wanted).max()

    def far_off() -> float:
        images = images_of(trace, 256)
        corrected = Reconstruction.of(trace, images, RUNTIME).apply(pruned, Removal(kept))
        [found] = values(corrected, [output], unseen)
        return float(np.abs(found - wanted).max() / np.abs(wanted).max())

    assert far_off() < 3e-3  # the ridge holds the weights back a little
    monkeypatch.setattr(moments, "PLACES", SIDE * SIDE)
    monkeypatch.setattr(moments, "RIDGE", 0.0)
    assert far_off() < 1e-4


@pytest.mark.parametrize("name", ["mobilenet_v2", "grouped_conv", "channel_shuffle"])
def test_grouped_layers_are_cut_and_no_more(name: str) -> None:
    trace = traced(name)
    kept = kept_units(unit_scores(trace), shrunk(trace))
    pruned = cut(trace, Removal(kept))
    corrected = Reconstruction.of(trace, images_of(trace), RUNTIME).apply(pruned, Removal(kept))
    before, after = layers_of(pruned), layers_of(corrected)
    assert before.keys() == after.keys()
    grouped = [name for name, (groups, _) in before.items() if groups > 1]
    changed = [name for name in before if not same(before[name][1], after[name][1])]
    assert grouped and changed and not set(grouped) & set(changed)


def layers_of(model: onnx.ModelProto) -> dict[str, tuple[int, list[FloatArray]]]:
    """Groups and weights of every convolution and BatchNorm, by its output."""
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return {
        node.output[0]: (
            max([a.i for a in node.attribute if a.name == "group"], default=1),
            [weights[name] for name in node.input[1:]],
        )
        for node in model.graph.node
        if node.op_type in ("Conv", "BatchNormalization")
    }


def same(one: list[FloatArray], other: list[FloatArray]) -> bool:
    return len(one) == len(other) and all(map(np.array_equal, one, other))


def test_a_batch_norm_behind_something_else_stays_as_it_was_cut() -> None:
    trace = traced("preact")
    kept = kept_units(unit_scores(trace), shrunk(trace))
    pruned = cut(trace, Removal(kept))
    corrected = Reconstruction.of(trace, images_of(trace), RUNTIME).apply(pruned, Removal(kept))
    norms = [node for node in corrected.graph.node if node.op_type == "BatchNormalization"]
    before, after = layers_of(pruned), layers_of(corrected)
    assert len(norms) >= 3
    assert all(same(before[n.output[0]][1], after[n.output[0]][1]) for n in norms)
    evaluators = {
        how: Evaluator(trace, own_images(trace, 128), runtime=RUNTIME, reconstruct=how)
        for how in (False, True)
    }
    alone, better = (one.evaluate(shrunk(trace)).divergence for one in evaluators.values())
    assert better < 0.5 * alone


@pytest.mark.parametrize("most_bytes", [0, reconstruct.MAX_CACHE_BYTES])
def test_what_was_solved_before_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, most_bytes: int
) -> None:
    monkeypatch.setattr(reconstruct, "MAX_CACHE_BYTES", most_bytes)
    trace = traced("resnet_b")
    images = images_of(trace)
    plans = [shrunk(trace, ratio) for ratio in (0.75, 0.5, 0.75)]
    mixed = plans[0].copy()
    mixed[::2] = plans[1][::2]  # some layers read what the first plan left them, some do not
    plans.append(mixed)

    def made(evaluator: Evaluator, plan: IntArray) -> bytes:
        return evaluator.corrected_model(plan).SerializeToString(deterministic=True)

    one = Evaluator(trace, images, runtime=RUNTIME)
    together = [made(one, plan) for plan in plans]
    afresh = [made(Evaluator(trace, images, runtime=RUNTIME), plan) for plan in plans]
    assert together == afresh and together[0] == together[2] != together[1]


def test_which_units_stay_counts_and_not_only_how_many() -> None:
    trace = traced("resnet_b")
    images = images_of(trace)
    reconstruction = Reconstruction.of(trace, images, RUNTIME)
    for start in (0, 1, 0):
        gone = Removal([np.arange(start, width, 2) for width in trace.graph.widths])
        found = reconstruction.apply(cut(trace, gone), gone)
        assert found == Reconstruction.of(trace, images, RUNTIME).apply(cut(trace, gone), gone)


class Watched:
    """A runtime that notes how many images each run of it takes."""

    name, version = RUNTIME.name, RUNTIME.version

    def __init__(self) -> None:
        self.batches: list[int] = []

    def load(self, model: bytes, *, thread_count: int = 1, precision: str = "f32") -> Session:
        session = RUNTIME.load(model, thread_count=thread_count)
        run = session.run

        def watched(feeds: Mapping[str, Array]) -> list[Array]:
            self.batches.append(len(next(iter(feeds.values()))))
            return run(feeds)

        session.run = watched  # type: ignore[method-assign]
        return session


@pytest.mark.usefixtures("everywhere")
@pytest.mark.parametrize("batch", [1, "N"])
def test_large_images_go_in_batches_that_memory_holds(
    monkeypatch: pytest.MonkeyPatch, batch: int | str
) -> None:
    net = Net(batch, 3, SIDE, SIDE)
    seen = net.add("Relu", net.conv("x", 3, 6))
    trace = trace_onnx(net.model(net.head(net.conv(seen, 6, 8), 8)))
    gone, images = Removal(halved(trace)), images_of(trace, 64)
    whole = Reconstruction.of(trace, images, RUNTIME).apply(cut(trace, gone), gone)
    monkeypatch.setattr(moments, "MAX_VALUES", 10 * (6 * SIDE * SIDE + 8))
    watched = Watched()
    parts = Reconstruction.of(trace, images, watched).apply(cut(trace, gone), gone)
    assert watched.batches[PROBES:] == [10] * 6 + [4]
    for one, other in zip(whole.graph.initializer, parts.graph.initializer, strict=True):
        np.testing.assert_allclose(*map(numpy_helper.to_array, (one, other)), atol=1e-3)
    monkeypatch.setattr(moments, "MAX_VALUES", 1)  # less than one image has
    watched.batches.clear()
    Reconstruction.of(trace, images, watched)
    assert watched.batches[PROBES:] == [1] * 64


def test_a_layer_of_more_inputs_than_can_be_solved_stays_as_it_was_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net = Net(1, 3, SIDE, SIDE)
    first = net.conv("x", 3, 6)
    wide, narrow = net.conv(first, 6, 8, 3), net.conv(first, 6, 8, 1)  # 54 and 6 inputs
    trace = trace_onnx(net.model(net.head(net.add("Add", wide, narrow), 8)))
    kept, images = halved(trace), images_of(trace)
    pruned = cut(trace, Removal(kept))

    def changed() -> list[str]:
        after = layers_of(Reconstruction.of(trace, images, RUNTIME).apply(pruned, Removal(kept)))
        return [
            name for name, (_, own) in layers_of(pruned).items() if not same(own, after[name][1])
        ]

    assert changed() == [wide, narrow]
    monkeypatch.setattr(layers, "MAX_INPUTS", 53)
    assert changed() == [narrow]


WHOLE = ["vgg_view", "resnet_a", "mobilenet_v2", "dense_concat", "se_hardswish", "channel_shuffle",
         "keywords_1d", "preact", "inception", "c2f"]  # fmt: skip


@pytest.fixture(scope="module")
def evaluators() -> Callable[[str], tuple[Evaluator, Evaluator]]:
    """By name: what a net's plans lose when they are only cut, and when they are reconstructed."""

    @cache
    def of(name: str) -> tuple[Evaluator, Evaluator]:
        trace = traced(name)
        images = own_images(trace, 128)
        return (
            Evaluator(trace, images, runtime=RUNTIME, reconstruct=False),
            Evaluator(trace, images, runtime=RUNTIME),
        )

    return of


@given(st.data())
@settings(max_examples=30, deadline=None, derandomize=True)
def test_reconstruction_never_leads_further_from_the_dense_networks_answers(
    evaluators: Callable[[str], tuple[Evaluator, Evaluator]], data: st.DataObject
) -> None:
    """On the images that were looked at, whatever a plan keeps above a half."""
    alone, reconstructed = evaluators(data.draw(st.sampled_from(WHOLE), label="net"))
    widths = alone.trace.graph.widths
    keeps = np.array(
        [data.draw(st.integers((int(width) + 1) // 2, int(width))) for width in widths]
    )
    before, after = alone.evaluate(keeps).divergence, reconstructed.evaluate(keeps).divergence
    assert after <= before + 1e-6
    if (keeps < 0.9 * widths).all():
        assert after < 0.6 * before


@pytest.mark.parametrize("name", WHOLE)
def test_a_quarter_less_of_everything_costs_far_less_once_reconstructed(
    evaluators: Callable[[str], tuple[Evaluator, Evaluator]], name: str
) -> None:
    alone, reconstructed = evaluators(name)
    keeps = shrunk(alone.trace)
    assert reconstructed.evaluate(keeps).divergence < 0.5 * alone.evaluate(keeps).divergence
