"""Files that nobody should send, and what refusing each costs in time and memory.

Each is built, written to disk and traced in a fresh process, whose CPU time and peak memory above
what the imports took are reported. CPU time, since a busy machine lengthens wall time only.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from benchmarks.harness import Row
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

MOST_SEC = 1.0
MOST_MB = 200.0

_TRACE = """
import json, sys, time
from pathlib import Path
from rlprune.errors import RlpruneError
from rlprune.graph.from_onnx import trace_onnx

def peak_mb():
    # Not ru_maxrss, which a child takes over from the process that started it.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024

before, began = peak_mb(), time.process_time()
try:
    trace_onnx(sys.argv[1])
    said = ""
except RlpruneError as error:
    said = str(error)
print(json.dumps([time.process_time() - began, peak_mb() - before, said]))
"""


def model(
    nodes: list[NodeProto], weights: list[TensorProto] | None = None, *, out: str = "y"
) -> ModelProto:
    """One float input x [1, 3, 8, 8], one output."""
    shape = [1, 3, 8, 8]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(out, TensorProto.FLOAT, None)],
        weights or [],
    )
    graph.output[0].type.tensor_type.shape.SetInParent()
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def ints(name: str, *values: int) -> TensorProto:
    return numpy_helper.from_array(np.array(values, np.int64), name)


def node(op: str, inputs: list[str], output: str = "y", **attributes: object) -> NodeProto:
    return helper.make_node(op, inputs, [output], name=f"{op}_{output}", **attributes)


def cycle() -> ModelProto:
    return model([node("Add", ["x", "y"], "z"), node("Relu", ["z"])])


def dangling_name() -> ModelProto:
    return model([node("Add", ["x", "nobody"])])


def extent(value: int) -> ModelProto:
    huge = model([node("Relu", ["x"])])
    huge.graph.input[0].type.tensor_type.shape.dim[2].dim_value = value
    return huge


def weight_extent(value: int) -> ModelProto:
    huge = model([node("Add", ["x", "w"])], [ints("w", 1)])
    huge.graph.initializer[0].dims[0] = value
    return huge


def many_nodes(count: int) -> ModelProto:
    many = model([node("Relu", ["x"])])
    many.graph.node.extend([node("Relu", ["x"], "z")] * count)
    return many


def nested_functions() -> ModelProto:
    nested = model([helper.make_node("f0", ["x"], ["y"], domain="own")])
    for depth in range(200):
        body = [helper.make_node(f"f{depth + 1}", ["a"], ["b"], domain="own") for _ in "12"]
        opset = [helper.make_opsetid("own", 1)]
        nested.functions.append(
            helper.make_function("own", f"f{depth}", ["a"], ["b"], body[:1], opset)
        )
    nested.opset_import.append(helper.make_opsetid("own", 1))
    return nested


def bodies(depth: int) -> ModelProto:
    """If within If, as deep as asked."""
    inner = [node("Identity", ["x"], "b")]
    for _ in range(depth):
        body = helper.make_graph(
            inner, "body", [], [helper.make_tensor_value_info("b", TensorProto.FLOAT, None)]
        )
        inner = [node("If", ["c"], "b", then_branch=body, else_branch=body)]
    inner[0].output[0] = "y"
    return model(inner, [numpy_helper.from_array(np.array(True), "c")])


def strings() -> ModelProto:
    words = helper.make_tensor("w", TensorProto.STRING, [2], [b"a", b"b"])
    return model([node("Add", ["x", "w"])], [words])


def wrong_dtype() -> ModelProto:
    return model([node("Add", ["x", "w"])], [ints("w", 1)])


def made_large(op: str, *values: int) -> ModelProto:
    """A constant of few bytes that makes a tensor of many."""
    inputs = ["s"] if op == "ConstantOfShape" else ["x", "s"]
    return model([node(op, inputs, "f"), node("ReduceMean", ["f"])], [ints("s", *values)])


def long_range() -> ModelProto:
    bounds = {"a": 0, "b": 2**40, "c": 1}
    scalars = [numpy_helper.from_array(np.array(v, np.int64), n) for n, v in bounds.items()]
    nodes = [node("Range", ["a", "b", "c"], "big"), node("Cast", ["big"], "f", to=1)]
    return model([*nodes, node("Add", ["x", "f"])], scalars)


def doubling() -> ModelProto:
    """Forty concats of a constant with itself."""
    nodes = [node("Concat", [f"w{k}", f"w{k}"], f"w{k + 1}", axis=0) for k in range(40)]
    return model([*nodes, node("Reshape", ["x", "w40"])], [ints("w0", *range(1024))])


def outer_product() -> ModelProto:
    """A sum of a column and a row of a million integers each."""
    million = np.arange(2**20, dtype=np.int64)
    weights = [
        numpy_helper.from_array(million[:, None], "a"),
        numpy_helper.from_array(million[None], "b"),
    ]
    return model([node("Add", ["a", "b"], "z"), node("Reshape", ["x", "z"])], weights)


def repeated(entry: bytes, tags: bytes, count: int) -> bytes:
    """`entry` many times within messages of these tags, written by hand, which is faster."""
    inner = entry * count
    for tag in tags:
        inner = bytes([tag]) + length(inner) + inner
    return b"\x08\x0a" + inner + b"\x42\x02\x10\x12"


FILES: dict[str, Callable[[], ModelProto | bytes]] = {
    "cycle": cycle,
    "dangling_name": dangling_name,
    "extent_2_40": lambda: extent(2**40),
    "extent_negative": lambda: extent(-3),
    "weight_extent_2_40": lambda: weight_extent(2**40),
    "weight_extent_negative": lambda: weight_extent(-1),
    "nodes_100k": lambda: many_nodes(100_000),
    "nodes_1m": lambda: repeated(b"\x0a\x00", b"\x3a", 1_000_000),
    "nested_functions": nested_functions,
    "if_bodies": lambda: bodies(8),
    "deep_protobuf": lambda: nested_bytes(5000),
    "strings": strings,
    "wrong_dtype": wrong_dtype,
    "constant_of_shape": lambda: made_large("ConstantOfShape", 2**20, 2**20),
    "expand": lambda: made_large("Expand", 2**20, 2**10, 3, 8, 8),
    "tile": lambda: made_large("Tile", 2**20, 2**10, 1, 1),
    "range": long_range,
    "doubling_concat": doubling,
    "outer_product": outer_product,
    "attribute_10m": lambda: repeated(b"\x40\x01", b"\x2a\x0a\x3a", 10_000_000),
    "inputs_10m": lambda: repeated(b"\x0a\x00", b"\x0a\x3a", 10_000_000),
    "axes_10m": lambda: repeated(b"\x08\x01", b"\x2a\x3a", 10_000_000),
    "no_onnx": lambda: b"\x89PNG" * 1000,
}


def nested_bytes(depth: int) -> bytes:
    """A graph attribute in a node of a graph, and so on, written by hand: make_* would recurse."""
    inner = b""
    for _ in range(depth):
        for tag in (0x32, 0x2A, 0x0A):  # attribute.g, node.attribute, graph.node
            inner = bytes([tag]) + length(inner) + inner
    opset = b"\x42\x02\x10\x12"
    return b"\x08\x0a" + b"\x3a" + length(inner) + inner + opset


def length(data: bytes) -> bytes:
    count, coded = len(data), bytearray()
    while True:
        coded.append(count & 0x7F | (0x80 if count > 0x7F else 0))
        count >>= 7
        if not count:
            return bytes(coded)


def refusal(path: Path) -> tuple[float, float, str]:
    """CPU seconds, megabytes of peak memory beyond the imports, and what was said; "" if traced."""
    ran = subprocess.run(
        [sys.executable, "-c", _TRACE, str(path)], check=True, capture_output=True, text=True
    )
    sec, mb, said = json.loads(ran.stdout)
    return float(sec), float(mb), str(said)


def rows(quick: bool, seed: int) -> list[Row]:
    """Seconds and megabytes per file, and the worst of all. Nothing is random: `seed` is unused.

    Raises:
        AssertionError: a file was not refused.
    """
    found = []
    worst_sec = worst_mb = 0.0
    names = [name for name in FILES if not quick or not name.endswith(("1m", "10m"))]
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            built = FILES[name]()
            path = Path(folder) / f"{name}.onnx"
            path.write_bytes(built if isinstance(built, bytes) else built.SerializeToString())
            sec, mb, said = refusal(path)
            path.unlink()
            assert said, f"{name} was traced"
            assert "\n" not in said, said
            worst_sec, worst_mb = max(worst_sec, sec), max(worst_mb, mb)
            found.append(Row(f"refusal/{name}/cpu", sec, "s", MOST_SEC, "min", 1, None))
            found.append(Row(f"refusal/{name}/memory", mb, "MB", MOST_MB, "min", 1, None))
    count = len(names)
    found.append(Row("refusal/worst/cpu", worst_sec, "s", MOST_SEC, "min", count, None))
    found.append(Row("refusal/worst/memory", worst_mb, "MB", MOST_MB, "min", count, None))
    return found
