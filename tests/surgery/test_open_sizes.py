"""What a file leaves open stays open: batch, height, width and length, before and after a cut.

The older exporter's file of every net, and the newer one's of one; with `--long` both of all, at
several opsets, and the architectures and topologies of the other tests.
"""

from __future__ import annotations

import adversarial_layout
import adversarial_shapes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from architectures import ARCHITECTURES
from numpy.typing import NDArray
from onnx_oracle import relative_error, run, some_keeps, with_dead_readers
from open_nets import NETS, OpenNet, newer, older
from topologies import TOPOLOGIES

from rlprune.graph.from_onnx import OnnxTrace, trace_onnx
from rlprune.surgery.importance import unit_scores
from rlprune.surgery.onnx import kept_units, prune_onnx

NEWER = ("tokens",)
"""Whose newer export is tried in every run: each such export takes seconds."""


def as_written(model: onnx.ModelProto, x: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """Outputs in ONNX Runtime, every node computed as it stands."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, {"x": x}))


def dims(value: onnx.ValueInfoProto) -> list[str | int]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def analysed_at(net: OpenNet) -> tuple[int, ...]:
    return tuple(net.build()[1][0].shape)


def inputs(net: OpenNet) -> list[NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    sizes = (analysed_at(net), *net.others)
    return [rng.standard_normal(size).astype(np.float32) for size in sizes]


def check(net: OpenNet, model: onnx.ModelProto, plan_count: int) -> OnnxTrace:
    """The normal form equals the model, and the cut one the oracle, at every size."""
    trace = trace_onnx(model, input_shapes={"x": analysed_at(net)})
    assert trace.normal.closed == ()
    for x in inputs(net):
        whole = as_written(model, x)
        for before, after in zip(whole, as_written(trace.model, x), strict=True):
            np.testing.assert_array_equal(before, after)
    for keeps in some_keeps(trace)[-plan_count:]:
        kept = kept_units(unit_scores(trace), keeps)
        dead, pruned = with_dead_readers(trace, kept), prune_onnx(trace, keeps)
        assert dims(pruned.graph.input[0]) == dims(model.graph.input[0])
        for one, other in zip(model.graph.output, pruned.graph.output, strict=True):
            # The file leaves open what its exporter could not tell, too.
            pairs = zip(dims(one), dims(other), strict=True)
            assert all(a == b or (isinstance(a, str) and b in (a, *range(1, 99))) for a, b in pairs)
        for x in inputs(net):
            assert relative_error(run(dead, [x]), run(pruned, [x])) < 1e-4
    return trace


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", list(NETS))
def test_open_extents_stay_open_and_every_size_is_cut_right(name: str, long: bool) -> None:
    net = NETS[name]
    place = list(NETS).index(name)
    for opset in (13, 17, 18, 20) if long else (17 + place % 2,):
        trace = check(net, older(net, opset), 4 if long else 2)
        fixed = trace_onnx(older(net, opset, leave_open=False)).graph
        assert trace.graph.widths.tolist() == fixed.widths.tolist()
        assert trace.graph.fingerprint == fixed.fingerprint
        assert len(trace.graph.groups) > 0
    if long or name in NEWER:
        check(net, newer(net), 4 if long else 1)


ADVERSARIAL = {
    name: build
    for name, (build, _) in (adversarial_shapes.CASES | adversarial_layout.CASES).items()
    if isinstance(build()[0].shape[0], str)
}
"""Nets with an open batch that are made to lead the analysis astray."""


@pytest.mark.parametrize("name", list(ADVERSARIAL))
def test_nets_made_to_mislead_are_cut_right_at_a_batch_of_three(name: str) -> None:
    net, outputs = ADVERSARIAL[name]()
    model = net.model(*([outputs] if isinstance(outputs, str) else outputs))
    trace = trace_onnx(model)
    x = np.random.default_rng(0).standard_normal((3, *net.shape[1:])).astype(np.float32)
    for before, after in zip(as_written(model, x), as_written(trace.model, x), strict=True):
        np.testing.assert_array_equal(before, after)
    for keeps in some_keeps(trace):
        dead = with_dead_readers(trace, kept_units(unit_scores(trace), keeps))
        assert relative_error(run(dead, [x]), run(prune_onnx(trace, keeps), [x])) < 1e-4


EVERYTHING = {name: one.build for name, one in ARCHITECTURES.items()} | TOPOLOGIES


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", list(EVERYTHING))
def test_normal_form_is_the_model_to_the_bit_at_any_batch_and_size(name: str, long: bool) -> None:
    if not long and list(EVERYTHING).index(name) % 6:
        pytest.skip("--long runs it")
    x = EVERYTHING[name]()[1][0]
    maps = x.ndim == 4
    wider = tuple(x.shape[:2]) + tuple(2 * extent for extent in x.shape[2:])
    for axes in ({0: "batch"}, {0: "batch", 2: "height", 3: "width"})[: 2 if maps else 1]:
        sizes = (wider,) if len(axes) > 1 else ()
        net = OpenNet(EVERYTHING[name], axes, ((3, *x.shape[1:]), *sizes))
        model = older(net)
        trace = trace_onnx(model, input_shapes={"x": tuple(x.shape)})
        keeps = np.maximum(1, trace.graph.widths // 2)
        dead = with_dead_readers(trace, kept_units(unit_scores(trace), keeps))
        pruned = prune_onnx(trace, keeps)
        for given in inputs(net):
            try:
                whole = as_written(model, given)
            except Exception:  # the net takes one size alone, whatever its file says
                assert given.shape[2:] != x.shape[2:]
                continue
            for before, after in zip(whole, as_written(trace.model, given), strict=True):
                np.testing.assert_array_equal(before, after)
            assert relative_error(run(dead, [given]), run(pruned, [given])) < 1e-4
