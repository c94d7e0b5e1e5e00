"""A model written in pieces is the same model, in one ordinary file."""

from __future__ import annotations

import onnx
from onnx_nets import conv_net

import rlprune
from rlprune.surgery.encode import encode


def test_the_pieces_are_the_model_and_none_is_larger_than_its_largest_tensor() -> None:
    model = conv_net((64, 128))
    model.metadata_props.add(key="note", value="kept")
    model.doc_string = "kept too"
    pieces = list(encode(model))
    back = onnx.load_model_from_string(b"".join(pieces))
    assert back == model
    onnx.checker.check_model(back, full_check=True)
    assert sum(map(len, pieces)) == model.ByteSize()
    assert max(map(len, pieces)) < 1.01 * max(t.ByteSize() for t in model.graph.initializer)


def test_a_model_without_weights_and_a_pruned_one_come_back() -> None:
    net = conv_net()
    plan = rlprune.plan(net, device="macs", budget_ratio=0.5, policy="uniform")
    pruned = rlprune.apply(plan, net)
    assert onnx.load_model_from_string(b"".join(encode(pruned))) == pruned
    bare = onnx.ModelProto(ir_version=10)
    bare.graph.node.add(op_type="Relu", input=["x"], output=["y"])
    assert onnx.load_model_from_string(b"".join(encode(bare))) == bare
