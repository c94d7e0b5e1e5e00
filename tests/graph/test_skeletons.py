"""Skeletons: what is left of a model for the wire, and what it is good for."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_oracle import Net, inputs_of, run

from rlprune.errors import ModelError
from rlprune.graph import skeleton
from rlprune.graph.from_onnx import trace_onnx
from rlprune.graph.types import PruningGraph
from rlprune.surgery.onnx import prune_onnx


def model(width: int = 32) -> onnx.ModelProto:
    """Convolutions, a BatchNorm, a clipped activation, a reshape, a Constant node of weights."""
    net = Net(1, 3, 8, 8)
    x = net.norm(net.conv("x", 3, width), width)
    x = net.add("Clip", x, net.constant(np.float32(0)), net.constant(np.float32(6)))
    x = net.add("MaxPool", net.conv(x, width, 16), kernel_shape=[4, 4], strides=[4, 4])
    x = net.add("Reshape", x, net.ints(1, 64))
    kernel = numpy_helper.from_array(net.rng.standard_normal((64, 10)).astype(np.float32), "inside")
    head = net.add("Constant", value=kernel)
    made = net.model(net.add("MatMul", x, head))
    made.doc_string = "made in /home/somebody"
    made.graph.node[0].metadata_props.add(key="stack_trace", value="/home/somebody/net.py")
    return made


def test_skeleton_holds_no_weights_and_no_paths() -> None:
    bare = skeleton.strip(model())
    assert len(bare) < 6_000
    assert b"somebody" not in bare
    for tensor in model().graph.initializer:
        if np.prod(tensor.dims) >= 64:
            assert tensor.raw_data not in bare


def test_stripping_leaves_the_model_alone() -> None:
    whole = model()
    before = whole.SerializeToString(deterministic=True)
    skeleton.strip(whole)
    assert whole.SerializeToString(deterministic=True) == before


def test_skeleton_is_traced_like_the_model() -> None:
    assert trace_onnx(skeleton.parse(skeleton.strip(model()))).graph == trace_onnx(model()).graph


def test_filled_skeleton_runs_and_is_traced_like_the_model() -> None:
    filled = skeleton.fill(skeleton.strip(model()), seed=3)
    trace = trace_onnx(filled)
    assert trace.graph == trace_onnx(model()).graph
    output = run(filled, inputs_of(trace))[0]
    assert output.shape == (1, 10)
    assert 0.05 < float(output.std()) < 20


def test_filling_repeats_with_its_seed() -> None:
    bare = skeleton.strip(model())
    first, again, other = (skeleton.fill(bare, seed=seed) for seed in (1, 1, 2))
    assert first.SerializeToString() == again.SerializeToString()
    assert first.SerializeToString() != other.SerializeToString()


def test_filled_skeleton_is_pruned_to_the_extents_of_the_pruned_model() -> None:
    whole = trace_onnx(model())
    filled = trace_onnx(skeleton.fill(skeleton.strip(model())))
    keeps = np.array([8, 5])
    shapes = [
        {tensor.name: list(tensor.dims) for tensor in prune_onnx(trace, keeps).graph.initializer}
        for trace in (whole, filled)
    ]
    assert shapes[0] == shapes[1]


def test_weights_inside_are_no_skeleton() -> None:
    with pytest.raises(ModelError, match="not a skeleton"):
        skeleton.parse(model().SerializeToString())


def test_skeleton_of_absurd_size_is_refused_before_it_is_filled() -> None:
    bare = onnx.load_model_from_string(skeleton.strip(model()))
    for tensor in bare.graph.initializer:
        if list(tensor.dims) == [16, 32, 3, 3]:
            del tensor.dims[:]
            tensor.dims.extend([2**15, 2**15, 1, 1])
    with pytest.raises(ModelError):
        skeleton.fill(bare.SerializeToString())


def test_hollow_weights_in_a_plain_model_are_refused() -> None:
    hollow = onnx.load_model_from_string(skeleton.strip(model()))
    del hollow.metadata_props[:]
    with pytest.raises(ModelError, match="does not hold"):
        trace_onnx(hollow)


def test_constants_stay_where_they_decide_about_the_graph() -> None:
    net = Net(1, 70, 8, 8)
    order = list(range(69, -1, -1))
    x = net.add("Gather", net.conv("x", 70, 70), net.ints(*order), axis=1)
    made = net.model(net.head(net.add("Relu", x), 70))
    bare = skeleton.parse(skeleton.strip(made))
    assert bare.graph.initializer[2].data_type == TensorProto.INT64
    assert numpy_helper.to_array(bare.graph.initializer[2]).tolist() == order
    assert helper.tensor_dtype_to_np_dtype(TensorProto.INT64) == np.int64


def test_graph_survives_json() -> None:
    graph = trace_onnx(model()).graph
    assert PruningGraph.from_json(graph.to_json()) == graph
