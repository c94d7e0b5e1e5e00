"""A Resize keeps the size it is told, whatever the file computes it from."""

from __future__ import annotations

import numpy as np
import pytest
from onnx_oracle import Net, assert_pruned_right, relative_error, run

import rlprune
from rlprune.surgery.onnx import prune_onnx

SIZES = [(7, 13), (3, 5), (5, 9), (22, 26), (4, 31), (19, 40)]


def lateral(small: int, large: int, *, batch: int | str, opset: int) -> Net:
    """A map of `small`, grown to the size of a map of `large` by nearest neighbours and added."""
    net = Net(batch, 3, large, large, opset=opset)
    fine = net.conv("x", 3, 16)
    coarse = net.add("AveragePool", net.conv("x", 3, 16), kernel_shape=[large - small + 1] * 2)
    parts = [
        net.add("Slice", net.add("Shape", map_), net.ints(start), net.ints(start + 2), net.ints(0))
        for map_, start in ((coarse, 0), (fine, 2))
    ]
    size = net.add("Concat", *parts, axis=0)
    grown = net.add(
        "Resize",
        coarse,
        "",
        "",
        size,
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )
    net.add("Relu", net.add("Add", grown, fine))
    return net


@pytest.mark.parametrize("opset", [13, 17, 18])
@pytest.mark.parametrize(("small", "large"), SIZES)
def test_the_same_pixels_are_picked_with_an_open_batch(small: int, large: int, opset: int) -> None:
    net = lateral(small, large, batch="b", opset=opset)
    model = net.model(net.head(net.nodes[-1].output[0], 16))
    trace = rlprune.trace(model)
    rng = np.random.default_rng(0)
    for batch in (1, 3):
        x = rng.standard_normal((batch, 3, large, large)).astype(np.float32)
        pruned = prune_onnx(trace, trace.graph.widths)
        assert relative_error(run(model, [x]), run(pruned, [x])) < 1e-6
    assert_pruned_right(trace, np.maximum(1, trace.graph.widths // 2))


def test_the_channels_of_resized_maps_are_offered_as_with_a_fixed_batch() -> None:
    graphs = []
    for batch in ("b", 1):
        net = lateral(7, 13, batch=batch, opset=17)
        graphs.append(rlprune.trace(net.model(net.head(net.nodes[-1].output[0], 16))).graph)
    assert graphs[0].widths.tolist() == graphs[1].widths.tolist() == [16]
    assert graphs[0].fingerprint == graphs[1].fingerprint
