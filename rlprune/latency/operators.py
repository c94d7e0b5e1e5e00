"""One operator at concrete widths, and the one-operator models that measure it.

Operators of equal form (kind, extents, kernel ... but not widths) share their points, within a
graph and between graphs: what was measured for one ResNet serves the next.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from rlprune.graph.types import GATES, Operator
from rlprune.latency.types import FORM_FIELDS, INT8, OperatorSpec
from rlprune.precision import with_made_up_scales

OPSET = 20
IR_VERSION = 9

HEAD = 64
"""Channels of an attention head, in most transformers."""

OVERHEAD = OperatorSpec("overhead", "", 1, 1, (), ())
"""A model of one operator on one number: what a call of the runtime costs besides its kernels."""

_NAMED = (
    *("Relu", "Clip", "Sigmoid", "Tanh", "LeakyRelu", "PRelu", "Elu", "Selu", "Celu", "HardSwish"),
    *("HardSigmoid", "Gelu", "Erf", "Exp", "Mish", "Softplus", "Softsign", "Sqrt"),
)
ACTIVATIONS = {name.lower(): name for name in _NAMED} | {"relu6": "Clip", "silu": "Sigmoid"}
ELEMENTWISE = frozenset(
    (
        *("abs", "and", "ceil", "cos", "equal", "floor", "greater", "greaterorequal", "isinf"),
        *("isnan", "less", "lessorequal", "log", "max", "min", "mod", "neg", "not", "or", "pow"),
        *("reciprocal", "round", "scale", "shrink", "sign", "sin", "sum", "thresholdedrelu"),
        *("where", "xor"),
    )
)
"""Variants of `activation` that cost about what a copy does."""


def known(kind: str, variant: str) -> bool:
    """Whether what `operator_model` makes of an operator costs about what the operator does."""
    if kind == "activation":
        plain = variant.lower().replace("_", "")
        return not plain or plain in ACTIVATIONS or plain in ELEMENTWISE
    return kind in _BUILDERS and (kind != "recurrent" or variant in GATES)


def form(spec: OperatorSpec) -> OperatorSpec:
    """The spec with its widths left out: operators of one form share an interpolation."""
    return replace(spec, in_width=0, out_width=0)


def spec_at(op: Operator, in_width: int, out_width: int) -> OperatorSpec:
    """The operator at concrete widths."""
    rest = {name: getattr(op, name) for name in FORM_FIELDS}
    return OperatorSpec(in_width=in_width, out_width=out_width, **rest)


@dataclass
class _Draft:
    """An ONNX model being put together around one operator."""

    rng: np.random.Generator
    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    weights: list[TensorProto] = field(default_factory=list)
    nodes: list[onnx.NodeProto] = field(default_factory=list)

    def input(self, *shape: int) -> str:
        name = f"x{len(self.inputs)}"
        self.inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        return name

    def channels_first(self, width: int, spatial: tuple[int, ...]) -> str:
        return self.input(1, width, *spatial)

    def weight(self, *shape: int, fan_in: int = 1) -> str:
        values = self.rng.standard_normal(shape, dtype=np.float32) / np.float32(np.sqrt(fan_in))
        return self._constant(values)

    def ints(self, *values: int) -> str:
        return self._constant(np.array(values, dtype=np.int64))

    def scalar(self, value: float) -> str:
        return self._constant(np.array(value, dtype=np.float32))

    def _constant(self, values: Any) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def node(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        name = f"y{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [name], **attributes))
        return name

    def model(self, output: str) -> onnx.ModelProto:
        result = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
        graph = helper.make_graph(self.nodes, "operator", self.inputs, [result], self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
        model.ir_version = IR_VERSION
        return onnx.shape_inference.infer_shapes(model)


def operator_model(spec: OperatorSpec) -> onnx.ModelProto:
    """A model of that one operator, with seeded weights; equal specs give equal models.

    A kind that is not known costs an elementwise copy. In int8 it has made-up scales, and the
    conversions of what it reads and answers are within; whole models say what that is worth.
    """
    draft = _Draft(np.random.default_rng(0))
    made = draft.model(_BUILDERS.get(spec.kind, _copy)(draft, spec))
    return with_made_up_scales(made) if spec.precision == INT8 else made


def canary_model() -> onnx.ModelProto:
    """A convolution, an addition and a transpose (about 0.1 ms): what stands in for a control.

    Always the same, so that latencies of operators measured months apart can be compared; of
    several kinds, since neighbours slow different kinds by different factors.
    """
    draft = _Draft(np.random.default_rng(0))
    x = draft.channels_first(16, (32, 32))
    conv = draft.node("Conv", x, draft.weight(16, 16, 3, 3, fan_in=144), pads=[1, 1, 1, 1])
    output = draft.node(
        "Transpose", draft.node("Add", draft.node("Sigmoid", conv), x), perm=[0, 2, 3, 1]
    )
    return draft.model(output)


def _window(spec: OperatorSpec) -> dict[str, Any]:
    """The attributes of what slides a window; those that are empty are left to ONNX's defaults."""
    named = {
        "kernel_shape": spec.kernel,
        "strides": spec.stride,
        "pads": spec.pads,
        "dilations": spec.dilation,
    }
    return {name: list(values) for name, values in named.items() if values}


def _conv(draft: _Draft, spec: OperatorSpec) -> str:
    groups = spec.groups or spec.in_width
    per_group = spec.in_width // groups
    x = draft.channels_first(spec.in_width, spec.in_spatial)
    taps = int(np.prod(spec.kernel, dtype=np.int64))
    w = draft.weight(spec.out_width, per_group, *spec.kernel, fan_in=per_group * taps)
    return draft.node("Conv", x, w, draft.weight(spec.out_width), group=groups, **_window(spec))


def _conv_transpose(draft: _Draft, spec: OperatorSpec) -> str:
    groups = spec.groups or spec.in_width
    x = draft.channels_first(spec.in_width, spec.in_spatial)
    w = draft.weight(spec.in_width, spec.out_width // groups, *spec.kernel, fan_in=spec.in_width)
    bias = draft.weight(spec.out_width)
    return draft.node("ConvTranspose", x, w, bias, group=groups, **_window(spec))


def _linear(draft: _Draft, spec: OperatorSpec) -> str:
    w = draft.weight(spec.in_width, spec.out_width, fan_in=spec.in_width)
    x = draft.input(1, *spec.out_spatial, spec.in_width)
    bias = draft.weight(spec.out_width)
    if not spec.out_spatial:
        return draft.node("Gemm", x, w, bias)
    return draft.node("Add", draft.node("MatMul", x, w), bias)


def _matmul(draft: _Draft, spec: OperatorSpec) -> str:
    if spec.kernel and spec.out_spatial:
        # A product per head (`out_width` of them), or one along the positions of all channels.
        *batch, rows, columns = (*spec.out_spatial[:-1], spec.out_width, spec.out_spatial[-1])
        if len(spec.out_spatial) > 1:
            batch[-1], rows = rows, batch[-1]
        summed = int(np.prod(spec.kernel, dtype=np.int64))
        x = draft.input(1, *batch, rows, summed)
        return draft.node("MatMul", x, draft.input(1, *batch, summed, columns))
    *batch, rows = spec.out_spatial or (1,)
    x = draft.input(1, *batch, rows, spec.in_width)
    return draft.node("MatMul", x, draft.input(1, *batch, spec.in_width, spec.out_width))


def _attention(draft: _Draft, spec: OperatorSpec) -> str:
    """As two products and a softmax, which every runtime has; of heads of about `HEAD` channels,
    since the spec does not tell how many there are."""
    heads = max(1, spec.in_width // HEAD)
    if spec.in_width % heads or spec.out_width % heads:
        heads = 1
    rows, columns = (int(np.prod(e, dtype=np.int64)) for e in (spec.out_spatial, spec.kernel))
    q = draft.input(1, heads, rows, spec.in_width // heads)
    k = draft.input(1, heads, spec.in_width // heads, columns)
    v = draft.input(1, heads, columns, spec.out_width // heads)
    shares = draft.node("Softmax", draft.node("MatMul", q, k), axis=-1)
    return draft.node("MatMul", shares, v)


def _recurrent(draft: _Draft, spec: OperatorSpec) -> str:
    directions = max(spec.groups, 1)
    hidden, steps = spec.out_width // directions, int(np.prod(spec.in_spatial, dtype=np.int64))
    rows = GATES.get(spec.variant, 1) * hidden
    x = draft.input(steps, 1, spec.in_width)
    w = draft.weight(directions, rows, spec.in_width, fan_in=spec.in_width)
    r = draft.weight(directions, rows, hidden, fan_in=hidden)
    bias = draft.weight(directions, 2 * rows, fan_in=hidden)
    direction = "bidirectional" if directions == 2 else "forward"
    return draft.node(spec.variant.upper(), x, w, r, bias, hidden_size=hidden, direction=direction)


def _norm(draft: _Draft, spec: OperatorSpec) -> str:
    width = spec.out_width
    scale, bias = draft.weight(width), draft.weight(width)
    if "layer" in spec.variant.lower():
        x = draft.input(1, *spec.out_spatial, width)
        return draft.node("LayerNormalization", x, scale, bias, axis=-1)
    x = draft.channels_first(width, spec.out_spatial)
    if "batch" not in spec.variant.lower() and spec.out_spatial:
        return draft.node("InstanceNormalization", x, scale, bias)
    variance = draft._constant(np.ones(width, dtype=np.float32))
    return draft.node("BatchNormalization", x, scale, bias, draft.weight(width), variance)


def _activation(draft: _Draft, spec: OperatorSpec) -> str:
    variant = spec.variant.lower().replace("_", "")
    op_type = ACTIVATIONS.get(variant)
    if op_type is None:
        return _copy(draft, spec)
    x = draft.channels_first(spec.out_width, spec.out_spatial)
    if op_type == "Clip":
        return draft.node(op_type, x, draft.scalar(0.0), draft.scalar(6.0))
    if op_type == "PRelu":
        slope = draft.weight(spec.out_width, *(1 for _ in spec.out_spatial))
        return draft.node(op_type, x, slope)
    y = draft.node(op_type, x)
    return draft.node("Mul", x, y) if variant == "silu" else y


def _binary(op_type: str) -> Callable[[_Draft, OperatorSpec], str]:
    def build(draft: _Draft, spec: OperatorSpec) -> str:
        x = draft.channels_first(spec.out_width, spec.out_spatial)
        return draft.node(op_type, x, draft.channels_first(spec.out_width, spec.out_spatial))

    return build


def _concat(draft: _Draft, spec: OperatorSpec) -> str:
    if spec.out_width < 2:
        return _copy(draft, spec)
    half = spec.out_width // 2
    first = draft.channels_first(half, spec.out_spatial)
    second = draft.channels_first(spec.out_width - half, spec.out_spatial)
    return draft.node("Concat", first, second, axis=1)


def _pool(draft: _Draft, spec: OperatorSpec) -> str:
    if not spec.kernel:
        return _global_pool(draft, spec)
    x = draft.channels_first(spec.in_width, spec.in_spatial)
    op_type = "MaxPool" if "max" in spec.variant.lower() else "AveragePool"
    return draft.node(op_type, x, **_window(spec))


def _global_pool(draft: _Draft, spec: OperatorSpec) -> str:
    if not spec.in_spatial:
        return _copy(draft, spec)
    x = draft.channels_first(spec.in_width, spec.in_spatial)
    op_type = "GlobalMaxPool" if "max" in spec.variant.lower() else "GlobalAveragePool"
    return draft.node(op_type, x)


def _pad(draft: _Draft, spec: OperatorSpec) -> str:
    before, after = (spec.in_width, *spec.in_spatial), (spec.out_width, *spec.out_spatial)
    if len(before) != len(after):
        return _copy(draft, spec)
    more = [max(0, b - a) for a, b in zip(before, after, strict=True)]
    begins = [0, *(m // 2 for m in more)]
    ends = [0, *(m - m // 2 for m in more)]
    x = draft.channels_first(spec.in_width, spec.in_spatial)
    return draft.node("Pad", x, draft.ints(*begins, *ends))


def _slice(draft: _Draft, spec: OperatorSpec) -> str:
    before, after = (spec.in_width, *spec.in_spatial), (spec.out_width, *spec.out_spatial)
    if len(before) != len(after) or any(a < b for a, b in zip(before, after, strict=True)):
        return _copy(draft, spec)
    # Channels are cut to a run, other axes thinned out where that gives the right extent.
    steps = [1] + [-(-a // b) for a, b in zip(before[1:], after[1:], strict=True)]
    steps = [s if -(-a // s) == b else 1 for a, b, s in zip(before, after, steps, strict=True)]
    ends = [a if s > 1 else b for a, b, s in zip(before, after, steps, strict=True)]
    axes = draft.ints(*range(1, len(before) + 1))
    x = draft.channels_first(spec.in_width, spec.in_spatial)
    starts = draft.ints(*(0 for _ in before))
    return draft.node("Slice", x, starts, draft.ints(*ends), axes, draft.ints(*steps))


def _resize(draft: _Draft, spec: OperatorSpec) -> str:
    if len(spec.in_spatial) != len(spec.out_spatial):
        return _copy(draft, spec)
    x = draft.channels_first(spec.in_width, spec.in_spatial)
    variant = spec.variant.lower()
    mode = next((mode for mode in ("linear", "cubic") if mode in variant), "nearest")
    sizes = draft.ints(1, spec.in_width, *spec.out_spatial)
    return draft.node("Resize", x, "", "", sizes, mode=mode)


def _softmax(draft: _Draft, spec: OperatorSpec) -> str:
    return draft.node("Softmax", draft.input(1, *spec.out_spatial, spec.out_width), axis=-1)


def _layout(draft: _Draft, spec: OperatorSpec) -> str:
    if not spec.in_spatial:
        return _copy(draft, spec)
    x = draft.channels_first(spec.in_width, spec.in_spatial)
    last = len(spec.in_spatial) + 1
    return draft.node("Transpose", x, perm=[0, *range(2, last + 1), 1])


def _copy(draft: _Draft, spec: OperatorSpec) -> str:
    return draft.node("Neg", draft.channels_first(spec.out_width, spec.out_spatial))


_BUILDERS: dict[str, Callable[[_Draft, OperatorSpec], str]] = {
    "conv": _conv,
    "depthwise_conv": _conv,
    "conv_transpose": _conv_transpose,
    "linear": _linear,
    "matmul": _matmul,
    "attention": _attention,
    "recurrent": _recurrent,
    "norm": _norm,
    "activation": _activation,
    "add": _binary("Add"),
    "mul": _binary("Mul"),
    "concat": _concat,
    "pool": _pool,
    "global_pool": _global_pool,
    "pad": _pad,
    "slice": _slice,
    "resize": _resize,
    "softmax": _softmax,
    "layout": _layout,
}
