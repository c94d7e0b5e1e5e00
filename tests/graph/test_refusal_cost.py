"""Refusing a file that nobody should send costs little: CPU time and memory of a fresh process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper
from onnx_oracle import Net
from test_load_refusals import lengthy

MAX_SEC, MAX_MB = 1.0, 200.0
TRACE = """
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


def dangling(count: int) -> bytes:
    """So many nodes, the last of which reads what nobody makes."""
    nodes = [helper.make_node("Relu", ["x"], ["z"]) for _ in range(count)]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 3, 8, 8]) for n in "xy"]
    nodes.append(helper.make_node("Add", ["z", "nobody"], ["y"]))
    graph = helper.make_graph(nodes, "net", values[:1], values[1:])
    opsets = [helper.make_opsetid("", 18)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def long_range() -> bytes:
    """A constant of a few bytes that makes a tensor of terabytes."""
    net = Net(1, 3, 8, 8)
    ends = [net.constant(np.array(value, np.int64)) for value in (0, 2**40, 1)]
    made = net.add("Add", "x", net.add("Cast", net.add("Range", *ends), to=1))
    return net.model(made).SerializeToString()


FILES: dict[str, Callable[[], bytes]] = {
    "100,000 nodes": lambda: dangling(100_000),
    "a million nodes": lambda: lengthy(b"\x0a\x00", b"\x3a", 1_000_000),
    "ten million attributes": lambda: lengthy(b"\x40\x01", b"\x2a\x0a\x3a", 10_000_000),
    "ten million inputs": lambda: lengthy(b"\x0a\x00", b"\x0a\x3a", 10_000_000),
    "ten million axes": lambda: lengthy(b"\x08\x01", b"\x2a\x3a", 10_000_000),
    "a range": long_range,
    "no ONNX": lambda: b"\x89PNG" * 1000,
}


@pytest.mark.parametrize("name", FILES)
def test_a_refusal_takes_a_second_and_little_memory(name: str, tmp_path: Path, long: bool) -> None:
    if not long:
        pytest.skip("files of megabytes: --long")
    path = tmp_path / "file.onnx"
    path.write_bytes(FILES[name]())
    ran = subprocess.run(
        [sys.executable, "-c", TRACE, str(path)], check=True, capture_output=True, text=True
    )
    sec, mb, said = json.loads(ran.stdout)
    assert said and "\n" not in said
    assert sec < 2 * MAX_SEC and mb < MAX_MB, f"{sec:.2f} s, {mb:.0f} MB"  # of a busy machine
