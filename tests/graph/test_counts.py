"""MACs and parameters that a traced model is said to have."""

from __future__ import annotations

import pytest
from onnx_oracle import Built, Net

from rlprune.graph.from_onnx import trace_onnx


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
