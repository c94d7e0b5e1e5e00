"""Reconstruction: what stays stands in for what was cut, as well as least squares can."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import onnx
import pytest
from calibrated import own_images, shrunk, traced
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from onnx_oracle import Net, numbers_in_weights

from rlprune.graph.from_onnx import OnnxTrace, trace_onnx
from rlprune.graph.types import FloatArray, IntArray
from rlprune.profile import moments, reconstruct
from rlprune.profile.batching import open_batch
from rlprune.profile.calibration import CalibrationSet
from rlprune.profile.evaluate import Evaluator
from rlprune.profile.reconstruct import Reconstruction
from rlprune.runtime import get_runtime
from rlprune.runtime.base import Array, Session
from rlprune.surgery.importance import unit_scores
from rlprune.surgery.onnx import cut, kept_units

RUNTIME = get_runtime()

SIDE = 8
PROBES = 3
"""Runs that tell whether a model takes batches: two alone, both together."""


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every window is looked at, and nothing but what few samples need is added to variances."""
    monkeypatch.setattr(moments, "PLACES", 1 << 20)
    monkeypatch.setattr(moments, "RIDGE", 0.0)


def values(model: onnx.ModelProto, names: Sequence[str], x: Array) -> list[FloatArray]:
    """What the tensors named hold on a batch."""
    opened = open_batch(model)
    del opened.graph.output[:]
    opened.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = RUNTIME.load(opened.SerializeToString())
    return [np.asarray(v, np.float64) for v in session.run({session.input_names[0]: x})]


def images_of(trace: OnnxTrace, count: int = 128, *, seed: int = 0) -> CalibrationSet:
    """Random images without labels of any meaning."""
    shape = trace.graph.input_shapes[0][1:]
    x = np.random.default_rng(seed).standard_normal((count, *shape)).astype(np.float32)
    return CalibrationSet.single(x, np.zeros(count, dtype=np.int64))


def halved(trace: OnnxTrace) -> list[IntArray]:
    """Every other unit of every group."""
    return [np.arange(0, width, 2) for width in trace.graph.widths]


# --- against an oracle ---

Reader = Callable[[Net, str], str]
"""Adds the layer that is looked at, reading six channels; gives its output."""


def convolution(*kernel: int, bias: bool = True, out: int = 5, **attrs: list[int] | str) -> Reader:
    def add(net: Net, x: str) -> str:
        inputs = [x, net.weight(out, 6, *kernel), *([net.weight(out)] if bias else [])]
        return str(net.add("Conv", *inputs, **attrs))

    return add


def linear(*, trans_b: int = 0, bias: bool = True, **attrs: float) -> Reader:
    def add(net: Net, x: str) -> str:
        flat = net.add("Flatten", net.add("GlobalAveragePool", x))
        weight = net.weight(5, 6) if trans_b else net.weight(6, 5)
        inputs = [flat, weight, *([net.weight(5)] if bias else [])]
        return str(net.add("Gemm", *inputs, transB=trans_b, **attrs))

    return add


def flattened(net: Net, x: str) -> str:
    """Each channel is read once per pixel."""
    weight = net.weight(6 * SIDE * SIDE, 5)
    return str(net.add("Gemm", net.add("Flatten", x), weight, net.weight(5)))


def token_product(net: Net, x: str) -> str:
    """A MatMul without bias over [N, pixels, channels]."""
    tokens = net.add("Reshape", x, net.ints(0, 0, -1))
    return str(net.add("MatMul", net.add("Transpose", tokens, perm=[0, 2, 1]), net.weight(6, 5)))


def token_layer(net: Net, x: str) -> str:
    """The same, its bias in an Add behind: the product is looked at."""
    product = token_product(net, x)
    net.add("Add", net.weight(1, 5), product)
    return product


def normed(net: Net, x: str) -> str:
    """A convolution without bias, a BatchNorm behind: the convolution is looked at."""
    made = convolution(3, 3, bias=False)(net, x)
    net.norm(made, 5)
    return made


READERS: dict[str, Reader] = {
    "pointwise": convolution(1, 1),
    "padded": convolution(3, 3, pads=[1] * 4),
    "padded on one side": convolution(3, 2, pads=[0, 1, 2, 0]),
    "strided": convolution(3, 3, pads=[1] * 4, strides=[2, 3]),
    "dilated": convolution(3, 3, pads=[2, 2, 2, 2], dilations=[2, 2]),
    "same upper": convolution(3, 3, auto_pad="SAME_UPPER", strides=[2, 2]),
    "same lower": convolution(2, 2, auto_pad="SAME_LOWER"),
    "without bias": convolution(3, 3, bias=False),
    "gemm": linear(),
    "gemm, transposed": linear(trans_b=1),
    "gemm without bias": linear(bias=False),
    "gemm, half the bias": linear(beta=0.5),
    "gemm without the bias it would halve": linear(bias=False, beta=0.5),
    "flattened": flattened,
    "matmul": token_product,
    "matmul with an Add behind": token_layer,
    "batch norm behind": normed,
    "one axis": convolution(5, strides=[2], pads=[3, 1]),
}


@dataclass(frozen=True)
class Layer:
    """One layer of a model that reads six channels whole."""

    trace: OnnxTrace
    output: str
    end: str = ""
    """What is added to or scaled behind it, as a net answers; the layer's own output if empty."""

    @property
    def has_bias(self) -> bool:
        return self.end not in ("", self.output) or len(self.node.input) > 2

    @property
    def node(self) -> onnx.NodeProto:
        [node] = [node for node in self.trace.model.graph.node if self.output in node.output]
        return node

    def rows(self, value: FloatArray) -> FloatArray:
        """One row per answer [R, C]."""
        axis = 1 if self.node.op_type == "Conv" else -1
        return np.moveaxis(value, axis, -1).reshape(-1, value.shape[axis])

    def answers(self, model: onnx.ModelProto, x: Array) -> FloatArray:
        """Behind the layer in `model`, which may be a corrected one [R, C_out]."""
        return self.rows(values(model, [self.end or self.output], x)[0])

    def inputs(self, x: Array) -> FloatArray:
        """All that goes into each answer in the dense network [R, D].

        The runtime itself finds it: a layer whose weight is the identity answers with its inputs.
        """
        model = onnx.ModelProto()
        model.CopyFrom(self.trace.model)
        [place] = [i for i, node in enumerate(model.graph.node) if self.output in node.output]
        del model.graph.node[place + 1 :]
        node = model.graph.node[place]
        [weight] = [t for t in model.graph.initializer if t.name == node.input[1]]
        count = int(np.prod(weight.dims)) // 5  # of five outputs
        eye = np.eye(count, dtype=np.float32)
        if node.op_type == "Conv":
            eye = eye.reshape(count, *weight.dims[1:])
        model.graph.initializer.append(numpy_helper.from_array(eye, "eye"))
        node.input[1] = "eye"
        del node.input[2:]
        return self.rows(values(model, [self.output], x)[0])


def assert_nearest(layer: Layer, corrected: onnx.ModelProto, kept: IntArray, x: Array) -> None:
    """No weights over the `kept` of the six channels, and no bias where the file has one, answer
    nearer to the dense layer."""
    inputs, wanted = layer.inputs(x), layer.answers(layer.trace.model, x)
    stay = np.repeat(np.isin(np.arange(6), kept), inputs.shape[1] // 6)
    used = inputs[:, stay]
    if layer.has_bias:
        used = np.column_stack([used, np.ones(len(inputs))])
    best = used @ np.linalg.lstsq(used, wanted, rcond=None)[0]
    found = layer.answers(corrected, x)
    least = np.square(best - wanted).mean()
    assert least > 1e-3 * wanted.var()  # what went is missed
    assert np.square(found - wanted).mean() < 1.002 * least
    assert np.square(found - best).mean() < 1e-3 * wanted.var()


@pytest.mark.usefixtures("everywhere")
@pytest.mark.parametrize("name", READERS)
def test_no_weights_over_what_stays_answer_nearer(name: str) -> None:
    axes = 1 if name == "one axis" else 2
    net = Net(1, 3, *[SIDE] * axes)
    made = net.add("Relu", net.add("Conv", "x", net.weight(6, 3, *[3] * axes), pads=[1, 1] * axes))
    layer = READERS[name](net, made)
    end = net.nodes[-1].output[0]
    trace = trace_onnx(net.model(end))
    [kept] = halved(trace)
    few_rows = "gemm" in name or name == "flattened"
    images = images_of(trace, 2000 if few_rows else 128)
    corrected = Reconstruction.of(trace, images, RUNTIME).apply(cut(trace, [kept]), [kept])
    onnx.checker.check_model(corrected, full_check=True)
    assert numbers_in_weights(corrected) == numbers_in_weights(cut(trace, [kept]))
    assert_nearest(Layer(trace, layer, end), corrected, kept, images.x)


@pytest.mark.usefixtures("everywhere")
@pytest.mark.parametrize("bias", ["none", "shared", "own"])
def test_layers_that_share_a_weight_are_solved_together_and_still_share_it(bias: str) -> None:
    net = Net(1, 3, SIDE, SIDE)
    weight = net.weight(5, 6, 3, 3)
    shared = net.weight(5)
    biases = {"none": ([], []), "shared": ([shared], [shared]), "own": ([shared], [net.weight(5)])}
    # The readers' inputs correlate in other ways, so that one weight cannot suit both.
    sides = [net.add("Relu", net.conv("x", 3, 6, kernel)) for kernel in (1, 3)]
    readers = [
        net.add("Conv", side, weight, *own, pads=[1] * 4)
        for side, own in zip(sides, biases[bias], strict=True)
    ]
    trace = trace_onnx(net.model(net.head(net.add("Add", *readers), 5)))
    by_width = {group.width: index for index, group in enumerate(trace.graph.groups)}
    assert sorted(by_width) == [5, 6]  # the weight ties what the two sides keep
    kept = [np.arange(group.width) for group in trace.graph.groups]
    kept[by_width[6]] = np.array([0, 2, 4])
    images = images_of(trace)

    corrected = Reconstruction.of(trace, images, RUNTIME).apply(cut(trace, kept), kept)

    nodes = [node for node in corrected.graph.node if node.output[0] in readers]
    assert {node.input[1] for node in nodes} == {weight}
    names = {name for node in nodes for name in node.input[2:]}
    assert len(names) == {"none": 0, "shared": 1, "own": 2}[bias]
    layers = [Layer(trace, reader) for reader in readers]
    inputs = [layer.inputs(images.x)[:, np.repeat([1, 0, 1, 0, 1, 0], 9) > 0] for layer in layers]
    rows = np.concatenate(inputs)
    which = np.repeat([0, 1], [len(one) for one in inputs])
    wanted = np.concatenate([layer.answers(trace.model, images.x) for layer in layers])
    found = np.concatenate([layer.answers(corrected, images.x) for layer in layers])
    # One shift where the file has one bias for both, or one for each.
    shifts = {"none": rows[:, :0], "shared": np.ones((len(rows), 1)), "own": np.eye(2)[which]}
    both = np.column_stack([rows, shifts[bias]])
    best = both @ np.linalg.lstsq(both, wanted, rcond=None)[0]
    assert np.square(found - wanted).mean() < 1.002 * np.square(best - wanted).mean()


# --- whole networks ---


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
    pruned = cut(trace, kept)
    output = trace.model.graph.output[0].name
    unseen = images_of(trace, seed=1).x
    [wanted], [alone] = (values(model, [output], unseen) for model in (trace.model, pruned))
    assert np.abs(alone - wanted).max() > 0.1 * np.abs(wanted).max()

    def far_off() -> float:
        images = images_of(trace, 256)
        corrected = Reconstruction.of(trace, images, RUNTIME).apply(pruned, kept)
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
    pruned = cut(trace, kept)
    corrected = Reconstruction.of(trace, images_of(trace), RUNTIME).apply(pruned, kept)
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
    pruned = cut(trace, kept)
    corrected = Reconstruction.of(trace, images_of(trace), RUNTIME).apply(pruned, kept)
    norms = [node for node in corrected.graph.node if node.op_type == "BatchNormalization"]
    before, after = layers_of(pruned), layers_of(corrected)
    assert len(norms) >= 3
    assert all(same(before[n.output[0]][1], after[n.output[0]][1]) for n in norms)
    evaluators = {
        how: Evaluator(trace, own_images(trace, 128), runtime=RUNTIME, correction=how)
        for how in ("none", "reconstruct")
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
        kept = [np.arange(start, width, 2) for width in trace.graph.widths]
        found = reconstruction.apply(cut(trace, kept), kept)
        assert found == Reconstruction.of(trace, images, RUNTIME).apply(cut(trace, kept), kept)


class Watched:
    """A runtime that notes how many images each run of it takes."""

    name, version = RUNTIME.name, RUNTIME.version

    def __init__(self) -> None:
        self.batches: list[int] = []

    def load(self, model: bytes, *, thread_count: int = 1) -> Session:
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
    kept, images = halved(trace), images_of(trace, 64)
    whole = Reconstruction.of(trace, images, RUNTIME).apply(cut(trace, kept), kept)
    monkeypatch.setattr(moments, "MOST_VALUES", 10 * (6 * SIDE * SIDE + 8))
    watched = Watched()
    parts = Reconstruction.of(trace, images, watched).apply(cut(trace, kept), kept)
    assert watched.batches[PROBES:] == [10] * 6 + [4]
    for one, other in zip(whole.graph.initializer, parts.graph.initializer, strict=True):
        np.testing.assert_allclose(*map(numpy_helper.to_array, (one, other)), atol=1e-3)
    monkeypatch.setattr(moments, "MOST_VALUES", 1)  # less than one image has
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
    pruned = cut(trace, kept)

    def changed() -> list[str]:
        after = layers_of(Reconstruction.of(trace, images, RUNTIME).apply(pruned, kept))
        return [
            name for name, (_, own) in layers_of(pruned).items() if not same(own, after[name][1])
        ]

    assert changed() == [wide, narrow]
    monkeypatch.setattr(reconstruct, "MOST_INPUTS", 53)
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
            Evaluator(trace, images, runtime=RUNTIME, correction="none"),
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
