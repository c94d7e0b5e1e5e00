"""Residual networks written straight as ONNX, whose blocks have names."""

from __future__ import annotations

from collections.abc import Callable

from onnx_oracle import Net

from rlprune.graph.from_onnx import OnnxTrace, trace_onnx


class Residual(Net):
    """Parts of residual networks; names of additions are what the tests call them."""

    def plain(self, x: str, name: str, *, then: str = "Relu", width: int = 8) -> str:
        """A basic block: activation behind the sum."""
        inside = self.add("Relu", self.conv(x, width, width))
        return self.behind(self.conv(inside, width, width), x, name, then)

    def bottleneck(self, x: str, name: str) -> str:
        inside = self.add("Relu", self.conv(x, 8, 4, 1))
        inside = self.add("Relu", self.conv(inside, 4, 4))
        return self.behind(self.conv(inside, 4, 8, 1), x, name, "Relu")

    def inverted(self, x: str, name: str, *, squeeze: bool = False) -> str:
        """A linear one, with or without a squeeze-excite inside."""
        inside = self.add("Relu", self.conv(x, 8, 16, 1))
        inside = self.add("Relu", self.conv(inside, 16, 16, group=16))
        if squeeze:
            gate = self.add("GlobalAveragePool", inside)
            gate = self.add("Relu", self.conv(gate, 16, 4, 1))
            inside = self.add("Mul", inside, self.add("Sigmoid", self.conv(gate, 4, 16, 1)))
        return self.behind(self.conv(inside, 16, 8, 1), x, name, "")

    def preactivated(self, x: str, name: str) -> str:
        inside = self.add("Relu", self.norm(x, 8))
        inside = self.add("Relu", self.norm(self.conv(inside, 8, 8), 8))
        return self.behind(self.conv(inside, 8, 8), x, name, "")

    def behind(self, branch: str, shortcut: str, name: str, then: str) -> str:
        added: str = self.add("Add", branch, shortcut)
        self.nodes[-1].name = name
        return self.add(then, added) if then else added

    def traced(self, x: str, *more: str) -> OnnxTrace:
        return trace_onnx(self.model(self.head(x, 8), *more))


def stack(
    block: Callable[[Residual, str, str], str], count: int = 3, *, side: int = 8
) -> OnnxTrace:
    """A stem and blocks `b0`, `b1` ..."""
    net = Residual(1, 3, side, side)
    x = net.add("Relu", net.conv("x", 3, 8))
    for index in range(count):
        x = block(net, x, f"b{index}")
    return net.traced(x)
