"""Networks of many kinds, small and always the same, that golden plans are made for."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import torch
from onnx_oracle import Net
from topologies import TOPOLOGIES
from torch import Tensor, nn


def plain() -> onnx.ModelProto:
    net = Net(1, 3, 16, 16)
    x, width = "x", 3
    for out, stride in ((16, 1), (24, 2), (32, 1), (40, 2)):
        x, width = net.add("Relu", net.conv(x, width, out, stride=stride)), out
    return net.model(net.head(x, width))


def residual() -> onnx.ModelProto:
    net = Net(1, 3, 16, 16, seed=1)
    x, width = net.add("Relu", net.norm(net.conv("x", 3, 16), 16)), 16
    for out, stride in ((16, 1), (32, 2), (32, 1)):
        y = net.add("Relu", net.norm(net.conv(x, width, out, stride=stride), out))
        y = net.norm(net.conv(y, out, out), out)
        short = x if (out, stride) == (width, 1) else net.conv(x, width, out, 1, stride=stride)
        x, width = net.add("Relu", net.add("Add", y, short)), out
    return net.model(net.head(x, width))


def separable() -> onnx.ModelProto:
    net = Net(1, 3, 16, 16, seed=2)
    x, width = net.add("Relu", net.conv("x", 3, 16, stride=2)), 16
    for out, hidden in ((16, 48), (24, 64)):
        y = net.add("Relu", net.conv(x, width, hidden, 1))
        y = net.add("Relu", net.conv(y, hidden, hidden, group=hidden))
        y = net.conv(y, hidden, out, 1)
        x, width = (net.add("Add", x, y) if out == width else y), out
    return net.model(net.head(x, width))


def dense() -> onnx.ModelProto:
    net = Net(1, 3, 16, 16, seed=3)
    x, width = net.add("Relu", net.conv("x", 3, 16)), 16
    for _ in range(3):
        y = net.add("Relu", net.norm(net.conv(net.add("Relu", x), width, 16), 16))
        x, width = net.add("Concat", x, y, axis=1), width + 16
    return net.model(net.head(net.add("Relu", net.conv(x, width, 32, 1)), 32))


def grouped() -> onnx.ModelProto:
    net = Net(1, 3, 16, 16, seed=4)
    x = net.add("Relu", net.conv("x", 3, 32))
    x = net.add("Relu", net.conv(x, 32, 32, group=4))
    x = net.add("Relu", net.conv(x, 32, 48, 1))
    return net.model(net.head(net.add("Relu", net.conv(x, 48, 48, group=48)), 48))


def attention() -> onnx.ModelProto:
    """Four heads of eight over 12 positions, and two linear layers behind."""
    net = Net(1, 12, 24, seed=5)

    def heads(name: str, perm: list[int]) -> str:
        made = net.add("Add", net.add("MatMul", name, net.weight(24, 32)), net.weight(32))
        split = net.add("Reshape", made, net.ints(0, 0, 4, 8))
        return str(net.add("Transpose", split, perm=perm))

    scores = net.add("MatMul", heads("x", [0, 2, 1, 3]), heads("x", [0, 2, 3, 1]))
    mixed = net.add("MatMul", net.add("Softmax", scores, axis=-1), heads("x", [0, 2, 1, 3]))
    joined = net.add("Reshape", net.add("Transpose", mixed, perm=[0, 2, 1, 3]), net.ints(0, 0, 32))
    x = net.add("Add", "x", net.add("MatMul", joined, net.weight(32, 24)))
    y = net.add("Relu", net.add("Add", net.add("MatMul", x, net.weight(24, 64)), net.weight(64)))
    x = net.add("Add", x, net.add("MatMul", y, net.weight(64, 24)))
    return net.model(net.add("MatMul", net.add("ReduceMean", x, net.ints(1), keepdims=0),
                             net.weight(24, 10)))  # fmt: skip


NETS: dict[str, Callable[[], onnx.ModelProto]] = {
    made.__name__: made for made in (plain, residual, separable, dense, grouped, attention)
}

MODULES = ("vgg_view", "mobilenet_v2")
"""Torch modules that are planned before training."""


def module(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    built, inputs = TOPOLOGIES[name]()
    return built.eval(), inputs
