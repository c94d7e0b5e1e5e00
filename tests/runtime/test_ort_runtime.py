"""ONNX Runtime behind the seam: what it computes, what it refuses, what it leaves alone."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from rlprune.errors import MeasurementError, MissingExtraError, NotFoundError
from rlprune.runtime import get_runtime


def conv_model(width: int = 8, extent: int = 6) -> tuple[onnx.ModelProto, np.ndarray]:
    weight = np.random.default_rng(0).standard_normal((width, width, 1, 1)).astype(np.float32)
    shape = [1, width, extent, extent]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    model.ir_version = 9
    return model, weight


def test_runs_a_model_and_gives_its_outputs() -> None:
    model, weight = conv_model()
    session = get_runtime("ort").load(model.SerializeToString())
    x = np.random.default_rng(1).standard_normal((1, 8, 6, 6)).astype(np.float32)
    (y,) = session.run({"x": x})
    assert session.input_names == ["x"]
    np.testing.assert_allclose(y, np.einsum("oi,nihw->nohw", weight[:, :, 0, 0], x), atol=1e-4)
    session.close()


@pytest.mark.parametrize("damage", ["not a model", "unknown operator", "wrong input"])
def test_refusals_are_one_line_of_our_own_error(damage: str) -> None:
    model, _ = conv_model()
    runtime = get_runtime()
    if damage == "unknown operator":
        model.graph.node[0].op_type = "Convolute"
    content = b"\x00not onnx" if damage == "not a model" else model.SerializeToString()
    with pytest.raises(MeasurementError) as caught:
        runtime.load(content).run({"x": np.zeros((1, 9, 6, 6), np.float32)})
    assert "\n" not in str(caught.value)


def test_one_thread_computes_on_the_calling_thread() -> None:
    """So that the caller's thread-CPU time is the model's."""
    model, _ = conv_model(64, 64)
    session = get_runtime().load(model.SerializeToString(), thread_count=1)
    feeds = {"x": np.zeros((1, 64, 64, 64), np.float32)}
    session.run(feeds)
    thread, process = time.thread_time_ns(), time.process_time_ns()
    for _ in range(30):
        session.run(feeds)
    thread, process = time.thread_time_ns() - thread, time.process_time_ns() - process
    assert thread >= 0.9 * process


def test_importing_the_runtime_writes_nothing_to_the_home(tmp_path: Path) -> None:
    """The wheel's telemetry would leave files there."""
    environment = {name: value for name, value in os.environ.items() if "TELEMETRY" not in name}
    environment |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    code = "from rlprune.runtime import get_runtime; print(get_runtime().version)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.rglob("*")) == []


def test_naming_a_runtime_is_what_imports_it() -> None:
    code = "import sys, rlprune.runtime; assert 'onnxruntime' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_an_unknown_runtime_is_not_found() -> None:
    with pytest.raises(NotFoundError, match="tract"):
        get_runtime("tract")


def test_without_the_extra_one_line_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "rlprune.runtime.ort", raising=False)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"rlprune\[device\]"):
        get_runtime()
