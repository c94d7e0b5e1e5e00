"""MACs and parameters that a traced model is said to have."""

from __future__ import annotations

import json

import onnx
import pytest
from onnx_oracle import Built, Net, assert_pruned_right, numbers_in_weights, some_keeps

from rlprune.graph.from_onnx import trace_onnx
from rlprune.graph.reach import attach
from rlprune.graph.types import PruningGraph
from rlprune.surgery.onnx import prune_onnx


def recurrent_net(
    op: str, directions: int, steps: int = 7, read: int = 12, hidden: int = 5
) -> Built:
    """[steps, 1, 3] -> a product to `read` channels, a layer of `op`, a product to 4."""
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[op]
    net = Net(steps, 1, 3)
    x = net.add("Relu", net.add("MatMul", "x", net.weight(3, read)))
    weights = [net.weight(directions, gates * hidden, width) for width in (read, hidden)]
    bias = net.weight(directions, 2 * gates * hidden)
    way = "bidirectional" if directions == 2 else "forward"
    y = net.add(op, x, *weights, bias, hidden_size=hidden, direction=way)
    y = net.add("Reshape", net.add("Transpose", y, perm=[0, 2, 1, 3]), net.ints(steps, 1, -1))
    return net, net.add("MatMul", y, net.weight(directions * hidden, 4))


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize(("op", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_recurrent_layer_is_an_operator_with_its_macs(op: str, gates: int, directions: int) -> None:
    net, output = recurrent_net(op, directions)
    graph = trace_onnx(net.model(str(output))).graph
    [layer] = [found for found in graph.operators if found.kind == "recurrent"]
    assert (layer.variant, layer.groups, layer.in_spatial) == (op.lower(), directions, (7,))
    assert layer.in_width.at(graph.widths) == 12 and layer.out_width.const == 5 * directions
    by_hand = 7 * (3 * 12 + directions * (gates * 5 * (12 + 5) + 5 * 4))
    assert graph.macs(graph.widths) == by_hand


def shared_net() -> Built:
    """One convolution with its bias called three times."""
    net = Net(1, 3, 8, 8)
    x = net.add("Relu", net.conv("x", 3, 12))
    weight, bias = net.weight(12, 12, 3, 3), net.weight(12)
    for _ in range(3):
        x = net.add("Relu", net.add("Conv", x, weight, bias, pads=[1, 1, 1, 1]))
    return net, net.head(x, 12)


def embedding_net() -> Built:
    """Rows of a table added to what is read of the input."""
    net = Net(1, 6, 8)
    rows = net.add("Gather", net.weight(50, 16), net.ints(3, 1, 4, 1, 5, 9))
    x = net.add("Add", net.add("MatMul", "x", net.weight(8, 16)), rows)
    y = net.add(
        "MatMul", net.add("Relu", net.add("MatMul", x, net.weight(16, 20))), net.weight(20, 4)
    )
    return net, net.add("ReduceMean", y, net.ints(1), keepdims=0)


def test_shared_weights_and_their_biases_count_once() -> None:
    net, output = shared_net()
    graph = trace_onnx(net.model(str(output))).graph
    by_hand = 3 * 9 * 12 + 12 + 12 * 9 * 12 + 12 + 12 * 10 + 10
    assert graph.params(graph.widths) == by_hand == numbers_in_weights(net.model(str(output)))


def tied_net() -> Built:
    """An embedding of five words, and the same matrix, turned, as the output layer."""
    net = Net(1, 5)
    table = net.weight(50, 16)
    words = net.add("Cast", net.add("Abs", "x"), to=onnx.TensorProto.INT64)
    x = net.add("Gather", table, words)
    y = net.add("Relu", net.add("MatMul", x, net.weight(16, 24)))
    y = net.add("Add", net.add("MatMul", y, net.weight(24, 16)), net.weight(16))
    return net, net.add("MatMul", y, net.add("Transpose", table, perm=[1, 0]))


def test_an_embedding_that_is_the_output_layer_too_stays_one_matrix() -> None:
    net, output = tied_net()
    built = net.model(str(output))
    trace = trace_onnx(built)
    assert int(trace.graph.params(trace.graph.widths)) == numbers_in_weights(built)
    assert [group.width for group in trace.graph.groups] == [24]
    for keeps in some_keeps(trace):
        assert_pruned_right(trace, keeps)
    assert "turned" in " ".join(held.reason for held in trace.graph.held)


@pytest.mark.parametrize(
    "built",
    [shared_net(), embedding_net(), tied_net(), recurrent_net("GRU", 2), recurrent_net("LSTM", 1)],
)
def test_parameters_of_every_plan_are_the_numbers_in_the_file_cut_by_it(built: Built) -> None:
    net, output = built
    trace = trace_onnx(net.model(str(output)))
    for keeps in some_keeps(trace, 5):
        assert trace.graph.params(keeps) == numbers_in_weights(prune_onnx(trace, keeps))


@pytest.mark.parametrize("op", ["Identity", "Transpose"])
def test_a_matrix_that_an_exporter_names_again_for_each_layer_stays_one(op: str) -> None:
    net = Net(1, 6, 8)
    x = net.add("Relu", net.add("MatMul", "x", net.weight(8, 24)))
    weight = net.weight(24, 24)
    turn = {"perm": [1, 0]} if op == "Transpose" else {}
    again = [net.add(op, weight, **turn) for _ in range(2)]
    for name in again if op == "Transpose" else [weight, *again]:
        x = net.add("Relu", net.add("Add", net.add("MatMul", x, name), net.weight(24)))
    built = net.model(str(net.add("MatMul", x, net.weight(24, 4))))
    trace = trace_onnx(built)
    assert int(trace.graph.params(trace.graph.widths)) == numbers_in_weights(built)
    assert len(trace.graph.groups) == 1
    for keeps in some_keeps(trace):
        assert_pruned_right(trace, keeps)


def test_recurrent_net_is_not_called_wholly_prunable() -> None:
    net, output = recurrent_net("GRU", 1)
    graph = trace_onnx(net.model(str(output))).graph
    assert graph.prunable_macs_ratio() < 1
    assert any("GRU" in held.reason for held in graph.held)


def test_operators_that_nobody_can_count_are_named_with_their_parameters() -> None:
    net = Net(1, 3, 8, 8)
    x = net.conv("x", 3, 16)
    model = net.model(net.add("PRelu", x, net.weight(16, 8, 8)))
    model.graph.node[-1].op_type, model.graph.node[-1].domain = "Custom", "acme"
    model.opset_import.add(domain="acme", version=1)
    graph = trace_onnx(model).graph
    assert [(u.operator, u.count, u.params) for u in graph.uncounted] == [("acme.Custom", 1, 1024)]
    assert graph.params(graph.widths) == 3 * 9 * 16 + 16 + 1024


def test_graph_stored_by_0_6_1_is_read_and_counts_by_its_operators() -> None:
    net, output = shared_net()
    graph = trace_onnx(net.model(str(output))).graph
    data = json.loads(graph.to_json())
    assert PruningGraph.from_json(json.dumps(data)) == graph
    del data["weights"], data["uncounted"]
    old = PruningGraph.from_json(json.dumps(data))
    assert old.fingerprint == graph.fingerprint
    # Once per call: what 0.6.1 said.
    assert old.params(graph.widths) - graph.params(graph.widths) == 2 * (12 * 9 * 12 + 12)
    assert (old.macs(graph.widths) == graph.macs(graph.widths)).all()


def test_weights_behind_the_analysed_part_count_and_are_named() -> None:
    """A detector's end: what NonMaxSuppression reads and all that follows is kept as it is."""
    net = Net(1, 3, 8, 8)
    x = net.add("Relu", net.conv("x", 3, 16))
    boxes = net.add("Reshape", net.conv(x, 16, 4), net.ints(1, 64, 4))
    scores = net.add("Reshape", net.conv(x, 16, 2), net.ints(1, 2, 64))
    chosen = net.add("Cast", net.add("NonMaxSuppression", boxes, scores, net.ints(5)), to=1)
    model = net.model(net.add("MatMul", chosen, net.weight(3, 7)))
    trace = trace_onnx(model)
    for keeps in some_keeps(trace):
        cut = attach(prune_onnx(trace, keeps), trace.tail)
        assert trace.graph.params(keeps) == numbers_in_weights(cut)
    assert [(u.operator, u.params) for u in trace.graph.uncounted] == [("MatMul", 21)]
