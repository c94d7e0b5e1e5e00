"""Random small networks: surgery, shapes and the oracle agree on every one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx_oracle import Net, assert_pruned_right

from rlprune.graph import skeleton
from rlprune.graph.from_onnx import trace_onnx

Map = tuple[str, int]
"""A feature map of 8x8 and its channel count."""


def convolve(net: Net, draw: st.DrawFn, x: Map, out: int | None = None) -> Map:
    name, width = x
    groups = draw(st.sampled_from([g for g in (1, 1, 2, 4) if width % g == 0]))
    count = out or draw(st.sampled_from([4, 6, 8, 12]))
    if count % groups:
        groups = 1
    made = net.conv(name, width, count, draw(st.sampled_from([1, 3])), group=groups)
    if draw(st.booleans()):
        made = net.norm(made, count)
    return made, count


def depthwise(net: Net, draw: st.DrawFn, x: Map, _: Map) -> Map:
    multiple = draw(st.sampled_from([1, 1, 2]))
    count = x[1] * multiple
    if count > 24:
        return x
    return net.conv(x[0], x[1], count, 3, group=x[1]), count


def activate(net: Net, draw: st.DrawFn, x: Map, _: Map) -> Map:
    op = draw(st.sampled_from(["Relu", "Sigmoid", "HardSwish", "LeakyRelu", "Elu", "Neg"]))
    return net.add(op, x[0]), x[1]


def total(net: Net, draw: st.DrawFn, x: Map, y: Map) -> Map:
    if x[1] != y[1]:
        y = convolve(net, draw, y, x[1])
    return net.add(draw(st.sampled_from(["Add", "Mul", "Sub", "Max"])), x[0], y[0]), x[1]


def concat(net: Net, draw: st.DrawFn, x: Map, y: Map) -> Map:
    if x[1] + y[1] > 24:
        return x
    return net.add("Concat", x[0], y[0], axis=1), x[1] + y[1]


def part(net: Net, draw: st.DrawFn, x: Map, _: Map) -> Map:
    start = draw(st.integers(0, x[1] - 2))
    end = draw(st.integers(start + 1, x[1]))
    return net.add("Slice", x[0], net.ints(start), net.ints(end), net.ints(1)), end - start


def split(net: Net, draw: st.DrawFn, x: Map, _: Map) -> Map:
    first = draw(st.integers(1, x[1] - 1))
    parts = net.add("Split", x[0], net.ints(first, x[1] - first), outputs=2, axis=1)
    back = net.add("Concat", parts[1], parts[0], axis=1)
    return back, x[1]


def pad(net: Net, draw: st.DrawFn, x: Map, _: Map) -> Map:
    low, high = draw(st.integers(0, 4)), draw(st.integers(0, 4))
    pads = net.ints(0, low, 0, 0, 0, high, 0, 0)
    return net.add("Pad", x[0], pads), x[1] + low + high


def shuffle(net: Net, draw: st.DrawFn, x: Map, _: Map) -> Map:
    groups = draw(st.sampled_from([g for g in (2, 3, 4) if x[1] % g == 0] or [1]))
    y = net.add("Reshape", x[0], net.ints(1, groups, x[1] // groups, 8, 8))
    y = net.add("Transpose", y, perm=[0, 2, 1, 3, 4])
    return net.add("Reshape", y, net.ints(1, x[1], 8, 8)), x[1]


def scale(net: Net, draw: st.DrawFn, x: Map, _: Map) -> Map:
    shape = draw(st.sampled_from([(x[1], 1, 1), (1, x[1], 1, 1), (1,), (1, x[1], 8, 8)]))
    constant = net.constant(net.rng.uniform(0.5, 1.5, shape).astype(np.float32))
    return net.add(draw(st.sampled_from(["Mul", "Add", "Div"])), x[0], constant), x[1]


def squeeze_excite(net: Net, draw: st.DrawFn, x: Map, _: Map) -> Map:
    pooled = net.add("GlobalAveragePool", x[0])
    inner = net.add("Relu", net.conv(pooled, x[1], 4, 1))
    gate = net.add("Sigmoid", net.conv(inner, 4, x[1], 1))
    return net.add("Mul", x[0], gate), x[1]


def transposed(net: Net, draw: st.DrawFn, x: Map, _: Map) -> Map:
    count = draw(st.sampled_from([4, 8]))
    weight = net.weight(x[1], count, 1, 1)
    return net.add("ConvTranspose", x[0], weight, net.weight(count)), count


def pool(net: Net, draw: st.DrawFn, x: Map, _: Map) -> Map:
    op = draw(st.sampled_from(["MaxPool", "AveragePool"]))
    return net.add(op, x[0], kernel_shape=[3, 3], pads=[1, 1, 1, 1]), x[1]


def gather(net: Net, draw: st.DrawFn, x: Map, _: Map) -> Map:
    order = draw(st.permutations(range(x[1])))
    return net.add("Gather", x[0], net.ints(*order), axis=1), x[1]


def softmax(net: Net, draw: st.DrawFn, x: Map, _: Map) -> Map:
    return net.add("Softmax", x[0], axis=draw(st.sampled_from([1, 3]))), x[1]


def attend(net: Net, draw: st.DrawFn, x: Map, _: Map) -> Map:
    """Attention over the 64 positions, by one projection or three."""
    width, heads = 8, draw(st.sampled_from([2, 4]))
    rows = net.add("Transpose", net.add("Reshape", x[0], net.ints(1, x[1], 64)), perm=[0, 2, 1])
    if draw(st.booleans()):
        rows = net.add("LayerNormalization", rows, net.weight(x[1], positive=True))
    split = net.ints(1, 64, heads, width // heads)
    parts = [
        net.add("Reshape", net.add("MatMul", rows, net.weight(x[1], width)), split) for _ in "qkv"
    ]
    if draw(st.booleans()):
        parts[0] = net.add("Mul", parts[0], net.weight(64, 1, width // heads))
    q, v = (net.add("Transpose", part, perm=[0, 2, 1, 3]) for part in (parts[0], parts[2]))
    scores = net.add("MatMul", q, net.add("Transpose", parts[1], perm=[0, 2, 3, 1]))
    mixed = net.add("MatMul", net.add("Softmax", scores, axis=-1), v)
    mixed = net.add("Reshape", net.add("Transpose", mixed, perm=[0, 2, 1, 3]), net.ints(0, -1, 8))
    mixed = net.add("MatMul", mixed, net.weight(width, x[1]))
    back = net.add("Transpose", mixed, perm=[0, 2, 1])
    return net.add("Add", x[0], net.add("Reshape", back, net.ints(1, x[1], 8, 8))), x[1]


def normalise(net: Net, draw: st.DrawFn, x: Map, _: Map) -> Map:
    op = draw(st.sampled_from(["InstanceNormalization", "LRN", "LpNormalization", "Mean"]))
    if op == "InstanceNormalization":
        parts = [net.weight(x[1], positive=True), net.weight(x[1])]
        return net.add(op, x[0], *parts), x[1]
    if op == "Mean":
        mean = net.add("ReduceMean", x[0], net.ints(draw(st.sampled_from([1, -1, 2]))), keepdims=1)
        return net.add("Sub", x[0], mean), x[1]
    return net.add(op, x[0], **({"size": 3} if op == "LRN" else {"axis": 1})), x[1]


def choose(net: Net, draw: st.DrawFn, x: Map, _: Map) -> Map:
    """Elementwise operators that read constants, each with its channels or without."""
    op = draw(st.sampled_from(["Where", "Clip", "PRelu", "Pow", "Max"]))
    shape = draw(st.sampled_from([(x[1], 1, 1), (1,), (8,)]))
    if op == "Where":
        mask = net.add("Greater", x[0], net.weight(*shape))
        return net.add(op, mask, x[0], net.weight(x[1], 1, 1)), x[1]
    if op == "Clip":
        limits = [net.constant(np.float32(v)) for v in (-1, 2)]
        return net.add(op, x[0], *limits), x[1]
    if op == "Pow":
        return net.add(op, net.add("Abs", x[0]), net.weight(*shape[:1], positive=True)), x[1]
    return net.add(op, x[0], net.weight(*shape)), x[1]


def relayout(net: Net, draw: st.DrawFn, x: Map, _: Map) -> Map:
    """There and back: channels last, other axes, blocks of positions, repeats, branches."""
    way = draw(st.sampled_from(["last", "axes", "space", "depth", "tile", "stack", "branches"]))
    if way == "last":
        last = net.add("Transpose", x[0], perm=[0, 2, 3, 1])
        last = net.add("Add", last, net.weight(x[1]))
        return net.add("Transpose", last, perm=[0, 3, 1, 2]), x[1]
    if way == "axes":
        return net.add("Squeeze", net.add("Unsqueeze", x[0], net.ints(-1)), net.ints(4)), x[1]
    if way == "space":
        deep = net.add("SpaceToDepth", x[0], blocksize=2)
        mode = draw(st.sampled_from(["DCR", "CRD"]))
        return net.add("DepthToSpace", deep, blocksize=2, mode=mode), x[1]
    if way == "depth" and x[1] % 4 == 0:
        wide = net.add("DepthToSpace", x[0], blocksize=2)
        return net.add("MaxPool", wide, kernel_shape=[2, 2], strides=[2, 2]), x[1] // 4
    if way == "tile" and x[1] <= 12:
        return net.add("Tile", x[0], net.ints(1, 2, 1, 1)), 2 * x[1]
    if way == "branches" and x[1] % 2 == 0:
        halves = net.add("Reshape", x[0], net.ints(1, 2, x[1] // 2, 8, 8))
        halves = net.add("Softmax", halves, axis=1)
        return net.add("ReduceSum", halves, net.ints(1), keepdims=0), x[1] // 2
    stacked = [net.add("Unsqueeze", x[0], net.ints(1)) for _ in "ab"]
    both = net.add("Concat", *stacked, axis=1)
    return net.add("ReduceMax", both, net.ints(1), keepdims=0), x[1]


def resize(net: Net, draw: st.DrawFn, x: Map, _: Map) -> Map:
    small = net.add("AveragePool", x[0], kernel_shape=[2, 2], strides=[2, 2])
    if draw(st.booleans()):
        return net.add("Resize", small, "", "", net.ints(1, x[1], 8, 8), mode="linear"), x[1]
    scales = net.constant(np.array([1, 1, 2, 2], np.float32))
    return net.add("Resize", small, "", scales, mode="nearest"), x[1]


def gate(net: Net, draw: st.DrawFn, x: Map, _: Map) -> Map:
    pooled = net.add("GlobalMaxPool", x[0])
    if draw(st.booleans()):
        pooled = net.add("Expand", pooled, net.add("Shape", x[0]))
    return net.add("Mul", x[0], net.add("Sigmoid", pooled)), x[1]


def conv_step(net: Net, draw: st.DrawFn, x: Map, _: Map) -> Map:
    return convolve(net, draw, x)


STEPS: list[Callable[[Net, st.DrawFn, Map, Map], Map]] = [
    *(conv_step, conv_step, conv_step, depthwise, activate, total, total, concat, part, split),
    *(pad, shuffle, scale, squeeze_excite, transposed, pool, gather, softmax, attend, normalise),
    *(choose, relayout, relayout, resize, gate),
]


@st.composite
def networks(draw: st.DrawFn) -> tuple[Net, str]:
    """A net of a few steps, each on maps made before it, and a classifier over some of them."""
    net = Net(1, 3, 8, 8, seed=draw(st.integers(0, 99)))
    maps = [convolve(net, draw, ("x", 3), 8)]
    if draw(st.booleans()):
        maps.append(("x", 3))
    for _ in range(draw(st.integers(2, 9))):
        step = draw(st.sampled_from(STEPS))
        x, y = draw(st.sampled_from(maps[-3:])), draw(st.sampled_from(maps))
        if x[1] >= 2:
            maps.append(step(net, draw, x, y))
    last = concat(net, draw, maps[-1], draw(st.sampled_from(maps)))
    return net, net.head(*last)


def check(built: tuple[Net, str], seed: int) -> None:
    net, output = built
    model = net.model(output)
    trace = trace_onnx(model)
    widths = trace.graph.widths
    assert_pruned_right(trace, np.random.default_rng(seed).integers(1, widths + 1))
    assert_pruned_right(trace, np.ones_like(widths))
    assert trace_onnx(skeleton.parse(skeleton.strip(model))).graph == trace.graph


@pytest.mark.timeout(7200)
def test_random_networks_at_random_plans_equal_the_oracle(long: bool) -> None:
    """Extents too: `onnx.checker`'s full check infers and compares them all."""
    tried = settings(
        max_examples=3000 if long else 80,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    tried(given(networks(), st.integers(0, 2**31))(check))()
