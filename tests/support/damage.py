"""Damages small models in every way a file can be damaged, and watches what comes of it.

    python tests/support/damage.py --seed 0 --count 300 [--seconds 300]

Every outcome must be a refusal in one line, or a trace whose cut model equals the oracle. Prints
how often which; ends with 1, naming the case, at anything else. The test runs it as a process of
its own, so that a crash is a result too.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import psutil
from onnx import ModelProto, TensorProto, helper
from onnx_oracle import Net, inputs_of, relative_error, run, with_dead_readers

from rlprune.errors import RlpruneError
from rlprune.graph.from_onnx import trace_onnx
from rlprune.graph.load import is_skeleton
from rlprune.surgery.importance import unit_scores
from rlprune.surgery.onnx import kept_units, prune_onnx

Generator = np.random.Generator
Damage = Callable[[ModelProto, Generator], None]
SECONDS_EACH = 30


def residual() -> ModelProto:
    net = Net("batch", 3, 8, 8)
    x = net.add("Relu", net.norm(net.conv("x", 3, 8), 8))
    y = net.conv(net.conv(x, 8, 8, group=8), 8, 8, group=2)
    gate = net.add("Sigmoid", net.conv(net.add("GlobalAveragePool", y), 8, 8, 1))
    x = net.add("Add", x, net.add("Mul", y, gate))
    low, high = net.add("Split", x, net.ints(2, 6), outputs=2, axis=1)
    x = net.add(
        "Concat", high, low, net.add("Slice", x, net.ints(-4), net.ints(99), net.ints(1)), axis=1
    )
    return net.model(net.head(x, 12))


def shuffled() -> ModelProto:
    net = Net(1, 3, 8, 8)
    x = net.add("PRelu", net.conv("x", 3, 8), net.weight(8, 1, 1))
    shape = net.add("Shape", x)
    half = net.add("Div", net.add("Gather", shape, net.ints(1), axis=0), net.ints(2))
    target = net.add("Concat", net.ints(1, 2), half, net.ints(8, 8), axis=0)
    x = net.add("Transpose", net.add("Reshape", x, target), perm=[0, 2, 1, 3, 4])
    x = net.add("Reshape", x, net.ints(0, -1, 8, 8))
    x = net.add("Pad", x, net.ints(0, 2, 1, 1, 0, 2, 1, 1))
    x = net.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = net.add("Resize", x, "", net.constant(np.array([1, 1, 2, 2], np.float32)), mode="nearest")
    x = net.add("ConvTranspose", x, net.weight(12, 3, 2, 2), strides=[2, 2], group=2)
    x = net.add("Clip", x, net.constant(np.float32(0)), net.constant(np.float32(6)))
    return net.model(net.head(net.add("Gather", x, net.ints(5, 0, 1, 2, 3, 4), axis=1), 6))


def attending() -> ModelProto:
    net = Net(1, 6, 8)
    x = net.add("LayerNormalization", "x", net.weight(8, positive=True), net.weight(8))
    qkv = net.add("Add", net.add("MatMul", x, net.weight(8, 24)), net.weight(24))
    qkv = net.add(
        "Transpose", net.add("Reshape", qkv, net.ints(1, 6, 3, 4, 2)), perm=[2, 0, 3, 1, 4]
    )
    q, k, v = (net.add("Gather", qkv, net.constant(i, np.int64), axis=0) for i in range(3))
    scores = net.add("MatMul", q, net.add("Transpose", k, perm=[0, 1, 3, 2]))
    mixed = net.add("MatMul", net.add("Softmax", scores, axis=-1), v)
    mixed = net.add("Reshape", net.add("Transpose", mixed, perm=[0, 2, 1, 3]), net.ints(1, 6, 8))
    x = net.add("Add", x, net.add("MatMul", mixed, net.weight(8, 8)))
    x = net.add("ReduceMean", x, net.ints(1), keepdims=0)
    return net.model(net.add("Gemm", net.add("Gemm", x, net.weight(8, 16)), net.weight(16, 4)))


def branching() -> ModelProto:
    """An If of known condition, one that is not, kernels that are computed, a tail behind."""
    net = Net("batch", 3, 8, 8)
    kernel = net.weight(8, 3, 3, 3)
    unit = net.add("Div", kernel, net.add("ReduceL2", kernel, net.ints(1, 2, 3)))
    x = net.add("Relu", net.add("Conv", "x", unit, pads=[1] * 4))
    rank = net.add("Size", net.add("Shape", x))
    known = net.add("Equal", rank, net.constant(4, np.int64))
    x = net.add("If", known, **bodies(x))  # type: ignore[arg-type]
    x = net.add("Relu", net.conv(x, 8, 12))
    unknown = net.add("Greater", net.add("ReduceMax", x, keepdims=0), net.constant(0.0, np.float32))
    end = net.add("If", unknown, **bodies(x))  # type: ignore[arg-type]
    model = net.model(end, net.head(x, 12))
    del model.graph.value_info[:]
    return model


def bodies(x: str) -> dict[str, onnx.GraphProto]:
    found = {}
    for place, op in (("then_branch", "Relu"), ("else_branch", "Sigmoid")):
        nodes = [helper.make_node(op, [x], ["y"]), helper.make_node("Mul", ["y", "w"], ["z"])]
        weight = onnx.numpy_helper.from_array(np.float32(0.5).reshape(1), "w")
        ends = [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)]
        found[place] = helper.make_graph(nodes, "body", [], ends, [weight])
    return found


def old() -> ModelProto:
    """Of an opset that is converted."""
    net = Net(1, 3, 8, 8, opset=9)
    x = net.add("Clip", net.norm(net.conv("x", 3, 8), 8), min=0.0, max=6.0)
    x = net.add("Pad", x, mode="constant", pads=[0, 0, 1, 1, 0, 0, 1, 1])
    x = net.add("Slice", net.conv(x, 8, 12), axes=[1], starts=[2], ends=[12])
    return net.model(net.head(x, 10))


SOURCES = (residual, shuffled, attending, branching, old)


def pick(rng: Generator, items: Any) -> Any:
    return items[int(rng.integers(len(items)))] if len(items) else None


def names(model: ModelProto) -> list[str]:
    found = [value.name for value in model.graph.input]
    found += [tensor.name for tensor in model.graph.initializer]
    return found + [name for node in model.graph.node for name in node.output] + ["", "nobody"]


def rewire(model: ModelProto, rng: Generator) -> None:
    node = pick(rng, model.graph.node)
    side = node.input if rng.random() < 0.8 else node.output
    if len(side):
        side[int(rng.integers(len(side)))] = pick(rng, names(model))


def drop_or_add_name(model: ModelProto, rng: Generator) -> None:
    node = pick(rng, model.graph.node)
    side = node.input if rng.random() < 0.7 else node.output
    if rng.random() < 0.5 and len(side):
        del side[int(rng.integers(len(side)))]
    else:
        side.append(pick(rng, names(model)))


def change_operator(model: ModelProto, rng: Generator) -> None:
    node = pick(rng, model.graph.node)
    other = [n.op_type for n in model.graph.node]
    more = ["If", "NonZero", "SplitToSequence", "QLinearConv", "Cast", "DequantizeLinear"]
    more += ["Add", "Softmax", "Tile", "Expand", "TopK", "Loop", "LSTM", "QuantizeLinear", "Range"]
    more += ["Squeeze", "Flatten", "Split", "DepthToSpace", "ReduceMax", "ArgMax", "Einsum", "Size"]
    node.op_type = pick(rng, other + more)


def change_attribute(model: ModelProto, rng: Generator) -> None:
    found = [a for node in model.graph.node for a in node.attribute]
    attribute = pick(rng, found)
    value = int(pick(rng, [-(2**63), -1, 0, 1, 2, 3, 7, 2**31, 2**40, 2**63 - 1]))
    choice = rng.integers(4)
    if choice == 0:
        attribute.i = value
    elif choice == 1 and len(attribute.ints):
        attribute.ints[int(rng.integers(len(attribute.ints)))] = value
    elif choice == 2:
        attribute.type = int(rng.integers(0, 15))
    else:
        attribute.name = pick(rng, [a.name for a in found] + ["unknown"])


def change_weight(model: ModelProto, rng: Generator) -> None:
    tensor = pick(rng, model.graph.initializer)
    choice = rng.integers(4)
    if choice == 0 and len(tensor.dims):
        place = int(rng.integers(len(tensor.dims)))
        tensor.dims[place] = int(pick(rng, [-1, 0, 1, 2, tensor.dims[place] * 2, 2**40]))
    elif choice == 1:
        tensor.data_type = int(rng.integers(0, 27))
    elif choice == 2 and tensor.data_type == TensorProto.INT64:
        # Not by its dims, which may have been changed before.
        values = np.frombuffer(tensor.raw_data[: len(tensor.raw_data) // 8 * 8], np.int64).copy()
        if len(values):
            values[int(rng.integers(len(values)))] = int(
                pick(rng, [-9, -1, 0, 1, 2, 3, 4, 6, 2**40])
            )
        tensor.raw_data = values.tobytes()
    elif len(tensor.dims) > 1:
        order = rng.permutation(len(tensor.dims))
        tensor.dims[:] = [tensor.dims[int(k)] for k in order]


def change_nodes(model: ModelProto, rng: Generator) -> None:
    nodes = list(model.graph.node)
    place = int(rng.integers(len(nodes)))
    choice = rng.integers(4)
    if choice == 0:
        del nodes[place]
    elif choice == 1:
        nodes.insert(place, nodes[place])
    elif choice == 2:
        other = int(rng.integers(len(nodes)))
        nodes[place], nodes[other] = nodes[other], nodes[place]
    else:
        twin = onnx.NodeProto()
        twin.CopyFrom(nodes[place])
        twin.output[:] = [f"{name}_twin" for name in twin.output]
        nodes.insert(place + 1, twin)
        if len(nodes) > place + 2 and len(nodes[place + 2].input) > 1 and len(twin.output):
            nodes[place + 2].input[1] = twin.output[0]
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def change_ends(model: ModelProto, rng: Generator) -> None:
    value = pick(rng, [*model.graph.input, *model.graph.output, *model.graph.value_info])
    choice = rng.integers(5)
    dims = value.type.tensor_type.shape.dim
    if choice == 0 and len(dims):
        dims[int(rng.integers(len(dims)))].dim_value = int(pick(rng, [-1, 0, 1, 2, 5, 2**40]))
    elif choice == 1:
        value.type.tensor_type.elem_type = int(rng.integers(0, 27))
    elif choice == 2:
        value.name = pick(rng, names(model))
    elif choice == 3:
        model.graph.output.append(helper.make_tensor_value_info(pick(rng, names(model)), 1, None))
    else:
        model.opset_import[0].version = int(rng.integers(6, 28))


def change_body(model: ModelProto, rng: Generator) -> None:
    """Puts a node into a body, takes one out, or makes a body of the whole graph."""
    graphs = [a.g for node in model.graph.node for a in node.attribute if a.HasField("g")]
    inner = pick(rng, graphs)
    if inner is None or rng.random() < 0.1:
        node = pick(rng, model.graph.node)
        copy = onnx.GraphProto.FromString(model.graph.SerializeToString())
        node.attribute.append(helper.make_attribute(pick(rng, ["then_branch", "body", "g"]), copy))
    elif rng.random() < 0.5 and len(inner.node):
        other = pick(rng, inner.node)
        side = other.input if rng.random() < 0.5 else other.output
        if len(side):
            side[int(rng.integers(len(side)))] = pick(rng, [*names(model), "y", "z", "w"])
    else:
        # By its bytes: the node may hold the body it is put into.
        inner.node.add().ParseFromString(pick(rng, model.graph.node).SerializeToString())


DAMAGES: list[Damage] = [
    *(rewire, rewire, drop_or_add_name, change_operator, change_attribute, change_attribute),
    *(change_weight, change_weight, change_nodes, change_ends, change_body),
]


def damaged(sources: list[bytes], rng: Generator) -> bytes:
    """One of the models with some bytes overwritten, cut or repeated, or some fields changed."""
    data = sources[int(rng.integers(len(sources)))]
    if rng.random() < 0.25:
        raw = bytearray(data)
        for _ in range(int(rng.integers(1, 4))):
            place = int(rng.integers(len(raw)))
            if rng.random() < 0.7:
                raw[place] = int(rng.integers(256))
            else:
                end = place + int(rng.integers(1, 40))
                raw[place:end] = raw[place:end] * int(rng.integers(0, 3))
        return bytes(raw)
    model = ModelProto.FromString(data)
    for _ in range(int(rng.integers(1, 4))):
        if len(model.graph.node):
            DAMAGES[int(rng.integers(len(DAMAGES)))](model, rng)
    return model.SerializeToString()


def outcome(data: bytes, rng: Generator, *, running: bool = True) -> str:
    """What came of a file: `refused`, `whole` (nothing to cut), `cut`, or where cut models are run
    `equal` or `not run`.

    Raises:
        AssertionError: the cut model differs from the oracle. Anything but an `RlpruneError`.
    """
    try:
        trace = trace_onnx(data)
        if not trace.graph.groups:
            return "whole"
        keeps = rng.integers(1, trace.graph.widths + 1)
        if is_skeleton(trace.model):
            return "whole"
        kept = kept_units(unit_scores(trace), keeps)
        pruned = prune_onnx(trace, keeps)
    except RlpruneError as error:
        assert "\n" not in str(error)
        return "refused"
    if not running:
        return "cut"
    inputs = inputs_of(trace)
    try:
        expected = run(with_dead_readers(trace, kept), inputs)
    except Exception:  # the file itself cannot be run
        return "not run"
    found = run(pruned, inputs)
    if all(np.isfinite(array).all() for array in expected):
        assert relative_error(expected, found) < 1e-3
    return "equal"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seconds", type=float, default=1e9, help="stop after so long")
    parser.add_argument("--run-each", type=int, default=1, help="run only each so many-th")
    parser.add_argument("--start", type=int, default=0, help="first case, to go on where one ended")
    options = parser.parse_args()
    faulthandler.enable()
    sources = [make().SerializeToString() for make in SOURCES]
    counts: Counter[str] = Counter()
    slowest, began = 0.0, time.monotonic()
    for case in range(options.start, options.start + options.count):
        if time.monotonic() - began > options.seconds:
            break
        rng = np.random.default_rng([options.seed, case])
        data = damaged(sources, rng)
        print(f"seed {options.seed} case {case}", file=sys.stderr, flush=True)
        faulthandler.dump_traceback_later(SECONDS_EACH, exit=True)
        start = time.process_time()
        counts[outcome(data, rng, running=case % options.run_each == 0)] += 1
        slowest = max(slowest, time.process_time() - start)
        faulthandler.cancel_dump_traceback_later()
    print(
        json.dumps(
            {
                "cases": sum(counts.values()),
                **counts,
                "slowest_cpu_sec": round(slowest, 2),
                "resident_mb": round(psutil.Process().memory_info().rss / 2**20),
            }
        )
    )


if __name__ == "__main__":
    main()
