"""Reconstruction of kernels that lose taps, and channels besides, against least squares."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx_oracle import Net, numbers_in_weights
from reconstructing import RUNTIME, images_of, values

from rlprune.graph.from_onnx import OnnxTrace, trace_onnx
from rlprune.graph.types import FloatArray, IntArray
from rlprune.runtime.base import Array
from rlprune.schemes import cut_kernels, removal_of
from rlprune.sensitivity.calibration import CalibrationSet
from rlprune.sensitivity.correct import solve
from rlprune.sensitivity.reconstruct import Reconstruction
from rlprune.surgery.onnx import cut
from rlprune.surgery.removal import Removal

SHAPE = ("channel", "shape")
CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "dense": {"pads": [1, 1, 1, 1]},
    "strided": {"pads": [1, 1, 1, 1], "strides": [2, 2]},
    "dilated": {"pads": [2, 2, 2, 2], "dilations": [2, 2]},
    "same upper": {"pads": [1, 1, 1, 1], "auto_pad": "SAME_UPPER"},
    "border of its own node": {"pads": [1, 1, 1, 1], "pad": True},
    "depthwise": {"pads": [1, 1, 1, 1], "group": 6},
    "grouped": {"pads": [1, 1, 1, 1], "group": 2},
    "without bias": {"pads": [1, 1, 1, 1], "bias": False},
}


def network(attrs: dict[str, Any]) -> tuple[OnnxTrace, str]:
    """Six channels, read by the convolution that is looked at; and its output."""
    own = dict(attrs)
    net = Net(1, 3, 8, 8)
    x = net.add("Relu", net.conv("x", 3, 6))
    group, bias = own.get("group", 1), own.pop("bias", True)
    if "auto_pad" in own:
        own.pop("pads")
    if own.pop("pad", False):
        x = net.add("Pad", x, net.ints(0, 0, 1, 1, 0, 0, 1, 1))
        own["pads"] = [0] * 4
    inputs = [x, net.weight(6, 6 // group, 3, 3), *([net.weight(6)] if bias else [])]
    looked_at = net.add("Conv", *inputs, **own)
    net.nodes[-1].name = "c"
    return trace_onnx(net.model(net.head(net.add("Relu", looked_at), 6))), str(looked_at)


def columns(trace: OnnxTrace, attrs: dict[str, Any], x: Array) -> FloatArray:
    """All that the convolution reads for each of its answers in the dense network [N, P, 6, 9]."""
    [first] = [node for node in trace.model.graph.node if node.op_type == "Relu"][:1]
    [read] = values(trace.model, [first.output[0]], x)
    begin_y, begin_x, end_y, end_x = attrs["pads"]
    padded = np.pad(read, [(0, 0), (0, 0), (begin_y, end_y), (begin_x, end_x)])
    step, apart = attrs.get("strides", [1, 1])[0], attrs.get("dilations", [1, 1])[0]
    extent = (padded.shape[2] - 2 * apart - 1) // step + 1
    taps = [
        padded[:, :, dy : dy + step * extent : step, dx : dx + step * extent : step]
        for dy in (0, apart, 2 * apart)
        for dx in (0, apart, 2 * apart)
    ]
    return np.stack(taps, -1).reshape(len(x), 6, -1, 9)[:, :, :, :].swapaxes(1, 2)


def nearest(rows: FloatArray, wanted: FloatArray, bias: bool) -> FloatArray:
    used = np.column_stack([rows, np.ones(len(rows))]) if bias else rows
    return np.asarray(used @ np.linalg.lstsq(used, wanted, rcond=None)[0])


@pytest.mark.usefixtures("everywhere")
@pytest.mark.parametrize("value", [103, 202])
@pytest.mark.parametrize("with_channels", [False, True], ids=["taps", "taps and channels"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_no_weights_over_the_taps_that_stay_answer_nearer(
    name: str, with_channels: bool, value: int
) -> None:
    attrs = CONVOLUTIONS[name]
    trace, output = network(attrs)
    images = images_of(trace)
    keeps = trace.graph.widths.copy()
    if with_channels:
        keeps[0] = keeps[0] // 2
    removal = removal_of(trace, np.array([*keeps, trace_whole(trace), value]), SHAPE)
    pruned = cut(trace, removal)
    kernels = cut_kernels(trace, SHAPE)
    found = Reconstruction.of(trace, images, RUNTIME, kernels).apply(pruned, removal)
    onnx.checker.check_model(found, full_check=True)
    assert numbers_in_weights(found) == numbers_in_weights(pruned)
    assert_nearest(trace, output, attrs, removal, found, images)


def trace_whole(trace: OnnxTrace) -> int:
    """The other convolution's kernel stays."""
    assert [op.name for op in trace.graph.operators if op.weight][1] == "c"
    return 303


def assert_nearest(
    trace: OnnxTrace,
    output: str,
    attrs: dict[str, Any],
    removal: Removal,
    found: onnx.ModelProto,
    images: CalibrationSet,
) -> None:
    x = images.x
    read = columns(trace, attrs, x)
    wanted = np.moveaxis(values(trace.model, [output], x)[0], 1, -1).reshape(-1, 6)
    ours = np.moveaxis(values(found, [output], x)[0], 1, -1)
    ours = ours.reshape(-1, ours.shape[-1])
    [weight] = [op.weight for op in trace.graph.operators if op.name == "c"]
    taps = removal.taps(weight, (3, 3))
    channels, outputs = kept_channels(trace, weight, removal)
    groups = attrs.get("group", 1)
    place = 0
    for group in range(groups):
        own = np.arange(6) // (6 // groups) == group
        rows = read[:, :, own & channels][..., taps]
        rows = rows.reshape(rows.shape[0] * rows.shape[1], -1)
        into = np.flatnonzero(own & outputs)
        if not len(into):
            continue
        target = wanted[:, into]
        best = nearest(rows, target, attrs.get("bias", True))
        answered = ours[:, place : place + len(into)]
        place += len(into)
        least = np.square(best - target).mean()
        assert least > 1e-4 * target.var()  # what went is missed
        assert np.square(answered - target).mean() < 1.003 * least
    assert place == ours.shape[1]


def kept_channels(trace: OnnxTrace, weight: str, removal: Removal) -> tuple[np.ndarray, np.ndarray]:
    """Masks over the six channels read and made."""
    made_group, made_unit = trace.channels.axis_units(weight, 0)
    outputs = kept(made_group, made_unit, removal)
    [first] = [op.weight for op in trace.graph.operators if op.weight][:1]
    return kept(*trace.channels.axis_units(first, 0), removal), outputs


def kept(group: IntArray, unit: IntArray, removal: Removal) -> np.ndarray:
    stays = [g < 0 or u in removal.kept[g] for g, u in zip(group, unit, strict=True)]
    return np.array(stays)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_layers_with_cut_kernels_are_solved_again_for_what_they_then_read(name: str) -> None:
    trace, _ = network(CONVOLUTIONS[name])
    settings = np.array([*np.maximum(1, trace.graph.widths * 2 // 3), 103, 301])
    removal = removal_of(trace, settings, SHAPE)
    kernels = cut_kernels(trace, SHAPE)
    solved = solve(trace, removal, images_of(trace, 200), RUNTIME, kernels=kernels)
    assert numbers_in_weights(solved.model) == numbers_in_weights(cut(trace, removal))
    onnx.checker.check_model(solved.model, full_check=True)
