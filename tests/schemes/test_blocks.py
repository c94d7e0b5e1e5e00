"""Blocks: a branch that is left out answers as the dense network whose branch answers zero."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from architectures import ARCHITECTURES
from exports import older_export
from onnx_oracle import relative_error, run
from residual_net import Residual, stack
from scheme_oracle import (
    EVERY,
    assert_carried_out,
    random_settings,
    settings_of,
    sites_of,
)
from topologies import TOPOLOGIES
from torch_parts import Built

from rlprune.graph.from_onnx import OnnxTrace, trace_onnx
from rlprune.schemes import carry_out

BLOCK = ("channel", "block")


BLOCKS: dict[str, Callable[[Residual, str, str], str]] = {
    "basic": Residual.plain,
    "basic, another activation": lambda net, x, name: net.plain(x, name, then="HardSwish"),
    "basic, no activation": lambda net, x, name: net.plain(x, name, then=""),
    "bottleneck": Residual.bottleneck,
    "inverted": Residual.inverted,
    "squeeze-excite inside": lambda net, x, name: net.inverted(x, name, squeeze=True),
    "pre-activation": Residual.preactivated,
}


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_left_out_answer_as_if_they_added_nothing(name: str) -> None:
    trace = stack(BLOCKS[name])
    assert list(sites_of(trace, "block")) == ["b1", "b2"]  # never the first
    for gone in ({"b1": 0}, {"b2": 0}, {"b1": 0, "b2": 0}):
        small = assert_carried_out(trace, settings_of(trace, gone, BLOCK), BLOCK)
        convolutions = [node for node in small.graph.node if node.op_type == "Conv"]
        whole = [node for node in trace.model.graph.node if node.op_type == "Conv"]
        assert len(convolutions) < len(whole)


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_taps_and_channels_go_together(name: str) -> None:
    trace = stack(BLOCKS[name])
    rng = np.random.default_rng(0)
    for _ in range(4):
        assert_carried_out(trace, random_settings(trace, rng))


@pytest.mark.parametrize(("name", "activations"), [("basic", 2), ("basic, another activation", 3)])
def test_an_activation_that_would_do_nothing_goes_with_its_block(
    name: str, activations: int
) -> None:
    """Of a stem and three blocks: two inside blocks, one behind each sum."""
    trace = stack(BLOCKS[name])
    small = carry_out(trace, settings_of(trace, {"b1": 0}, BLOCK), BLOCK)
    kind = "Relu" if name == "basic" else "HardSwish"
    behind = [n.input[0] for n in small.graph.node if n.op_type == kind]
    sums = {n.output[0] for n in small.graph.node if n.op_type in ("Add", "Identity")}
    assert len(sums.intersection(behind)) == activations


def test_a_projection_is_no_shortcut_and_the_first_of_a_stage_stays() -> None:
    net = Residual(1, 3, 8, 8)
    x = net.add("Relu", net.conv("x", 3, 8))
    x = net.plain(net.plain(x, "a0"), "a1")
    inside = net.conv(net.add("Relu", net.conv(x, 8, 8, stride=2)), 8, 8)
    x = net.behind(inside, net.conv(x, 8, 8, 1, stride=2), "b0", "Relu")
    trace = net.traced(net.plain(net.plain(x, "b1"), "b2"))
    assert list(sites_of(trace, "block")) == ["a1", "b1", "b2"]


def test_a_branch_that_somebody_else_reads_stays() -> None:
    net = Residual(1, 3, 8, 8)
    x = net.plain(net.add("Relu", net.conv("x", 3, 8)), "b0")
    inside = net.add("Relu", net.conv(x, 8, 8))
    x = net.plain(net.behind(net.conv(inside, 8, 8), x, "b1", "Relu"), "b2")
    read_on = net.head(net.add("Concat", x, inside, axis=1), 16)
    assert list(sites_of(trace_onnx(net.model(read_on)), "block")) == ["b2"]


def test_a_branch_of_which_the_model_answers_stays() -> None:
    net = Residual(1, 3, 8, 8)
    x = net.plain(net.add("Relu", net.conv("x", 3, 8)), "b0")
    inside = net.add("Relu", net.conv(x, 8, 8))
    x = net.plain(net.behind(net.conv(inside, 8, 8), x, "b1", "Relu"), "b2")
    assert list(sites_of(net.traced(x, inside), "block")) == ["b2"]


@pytest.mark.parametrize("then", ["", "Relu"])
def test_a_sum_that_the_model_answers_with_keeps_its_name(then: str) -> None:
    net = Residual(1, 3, 8, 8)
    x = net.plain(net.add("Relu", net.conv("x", 3, 8)), "b0", then=then)
    x = net.plain(x, "b1", then=then)
    [added] = [node.output[0] for node in net.nodes if node.name == "b1"]
    trace = trace_onnx(net.model(*dict.fromkeys((added, x))))
    small = assert_carried_out(trace, settings_of(trace, {"b1": 0}, BLOCK), BLOCK)
    assert [one.name for one in small.graph.output] == list(dict.fromkeys((added, x)))


@pytest.mark.parametrize("shortcut_first", [True, False])
def test_a_difference_keeps_the_shortcut_and_its_sign(shortcut_first: bool) -> None:
    net = Residual(1, 3, 8, 8)
    x = net.plain(net.add("Relu", net.conv("x", 3, 8)), "b0")
    inside = net.conv(net.add("Relu", net.conv(x, 8, 8)), 8, 8)
    x = net.add("Sub", *((x, inside) if shortcut_first else (inside, x)))
    net.nodes[-1].name = "b1"
    trace = net.traced(net.add("Relu", x))
    if "b1" in sites_of(trace, "block"):
        assert_carried_out(trace, settings_of(trace, {"b1": 0}, BLOCK), BLOCK)
    assert ("b1" in sites_of(trace, "block")) or not shortcut_first


def test_of_nested_branches_the_inner_one_is_offered() -> None:
    """As in a U-Net whose levels are residual."""
    net = Residual(1, 3, 8, 8)
    outer = net.plain(net.plain(net.add("Relu", net.conv("x", 3, 8)), "b0"), "b1")
    x = net.add("MaxPool", outer, kernel_shape=[2, 2], strides=[2, 2])
    x = net.plain(net.plain(net.add("Relu", net.conv(x, 8, 8)), "inner0"), "inner1")
    scales = net.constant(np.array([1, 1, 2, 2], np.float32))
    x = net.conv(net.add("Resize", x, "", scales, mode="nearest"), 8, 8)
    x = net.behind(x, outer, "outer", "Relu")
    trace = net.traced(net.plain(x, "b2"))
    assert list(sites_of(trace, "block")) == ["b1", "inner1", "b2"]
    for name in ("b1", "inner1", "b2"):
        assert_carried_out(trace, settings_of(trace, {name: 0}, BLOCK), BLOCK)


def test_a_concatenation_is_no_shortcut() -> None:
    net = Residual(1, 3, 8, 8)
    x = net.plain(net.add("Relu", net.conv("x", 3, 8)), "b0")
    x = net.add("Concat", x, net.conv(x, 8, 8), axis=1)
    x = net.conv(x, 16, 8, 1)
    trace = net.traced(net.plain(x, "after"))
    assert not sites_of(trace, "block")  # the first behind it


def test_what_a_loop_carries_is_not_offered_and_its_body_s_reads_stay() -> None:
    net = Residual(1, 3, 8, 8)
    x = net.plain(net.plain(net.add("Relu", net.conv("x", 3, 8)), "b0"), "b1")
    held = net.weight(8, 8, 3, 3)
    body = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Conv", ["carried", held], ["inside"], "body_conv", pads=[1] * 4),
            onnx.helper.make_node("Add", ["carried", "inside"], ["next"], "body_add"),
            onnx.helper.make_node("Identity", ["go"], ["go_on"], "body_go"),
        ],
        "body",
        [
            onnx.helper.make_tensor_value_info("step", onnx.TensorProto.INT64, []),
            onnx.helper.make_tensor_value_info("go", onnx.TensorProto.BOOL, []),
            onnx.helper.make_tensor_value_info("carried", onnx.TensorProto.FLOAT, [1, 8, 8, 8]),
        ],
        [
            onnx.helper.make_tensor_value_info("go_on", onnx.TensorProto.BOOL, []),
            onnx.helper.make_tensor_value_info("next", onnx.TensorProto.FLOAT, [1, 8, 8, 8]),
        ],
    )
    x = net.add("Loop", net.constant(np.int64(3)), net.constant(np.bool_(True)), x, body=body)
    trace = net.traced(x)
    assert "b1" in sites_of(trace, "block")
    assert not any("body" in name for name in sites_of(trace, "block"))
    assert_carried_out(trace, settings_of(trace, {"b1": 0}, BLOCK), BLOCK)


def test_a_block_of_more_than_half_the_network_is_none() -> None:
    net = Residual(1, 3, 8, 8)
    x = net.behind(net.conv("x", 3, 8), net.conv("x", 3, 8), "b0", "Relu")
    wide = net.conv(net.add("Relu", net.conv(x, 8, 32)), 32, 8)
    assert not sites_of(net.traced(net.behind(wide, x, "b1", "Relu")), "block")


@functools.cache
def exported(build: Callable[[], Built]) -> OnnxTrace:
    return trace_onnx(older_export(build, 18))


OFFERED: dict[str, tuple[str, ...]] = {
    "resnet_a": ("/blocks/blocks.2/Add",),
    "resnet_b": ("/blocks/blocks.2/Add",),
    "preact": ("/blocks/blocks.1/Add",),
    "c2f": ("/c2f/Add_2",),
    "mobilenet_v2": (),
    "dense_concat": (),
    "unet": (),
    "inception": (),
    "channel_shuffle": (),
    "convnext": ("/blocks/blocks.1/Add_1",),
    "vit_unbound": ("/blocks/blocks.0/Add_1", "/blocks/blocks.1/Add", "/blocks/blocks.1/Add_1"),
    "vit_fused": ("/blocks/blocks.0/Add_1", "/blocks/blocks.1/Add", "/blocks/blocks.1/Add_1"),
    "vit_packed": ("/blocks/blocks.0/Add_1", "/blocks/blocks.1/Add", "/blocks/blocks.1/Add_1"),
    "mixer": ("/blocks/blocks.0/Add_1", "/blocks/blocks.1/Add", "/blocks/blocks.1/Add_1"),
    "swin": (
        "/blocks/blocks.0/Add_1",
        "/blocks/blocks.1/Add",
        "/blocks/blocks.1/Add_1",
        "/last/Add_1",
    ),
    "encoder_layer": ("/layer/Add_1",),
    "spatial_reduction": ("/Add_2",),
    "mobile_vit": ("/block/Add_1",),
    "ghostnet": (),
    "res2net": (),
}
"""Blocks by the names of their additions."""


@pytest.mark.parametrize("name", OFFERED)
def test_what_common_networks_offer_and_that_each_goes_alone(name: str) -> None:
    build = TOPOLOGIES.get(name) or ARCHITECTURES[name].build
    trace = exported(build)
    assert tuple(sites_of(trace, "block")) == OFFERED[name]
    for site in OFFERED[name]:
        assert_carried_out(trace, settings_of(trace, {site: 0}))
    rng = np.random.default_rng(0)
    assert_carried_out(trace, random_settings(trace, rng))


def test_every_block_that_goes_changes_the_answers() -> None:
    trace = stack(Residual.plain)
    x = np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)
    whole = run(trace.model, [x])
    for name in sites_of(trace, "block"):
        small = carry_out(trace, settings_of(trace, {name: 0}, EVERY), EVERY)
        assert relative_error(whole, run(small, [x])) > 1e-3
