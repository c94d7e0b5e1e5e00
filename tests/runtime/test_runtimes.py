"""Every runtime behind the seam: what it computes, what it refuses, what it leaves alone."""

from __future__ import annotations

import functools
import io
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from topologies import TOPOLOGIES

from rlprune.errors import MeasurementError, MissingExtraError, NotFoundError
from rlprune.latency.measure import random_inputs
from rlprune.runtime import RUNTIMES, Runtime, get_runtime

EVERY = pytest.mark.parametrize("name", list(RUNTIMES))
PACKAGES = {"ort": "onnxruntime", "openvino": "openvino", "mnn": "MNN"}

runtime_of = functools.cache(get_runtime)


def conv_model(
    width: int = 8, extent: int = 6, kernel: int = 1, *, batch: int | str = 1
) -> tuple[onnx.ModelProto, np.ndarray]:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((width, width, kernel, kernel)).astype(np.float32)
    shape = [batch, width, extent, extent]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], pads=[kernel // 2] * 4)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    model.ir_version = 9
    return model, weight


@functools.cache
def exported(topology: str) -> onnx.ModelProto:
    module, inputs = TOPOLOGIES[topology]()
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, inputs, file, dynamo=False, opset_version=17)
    return onnx.load_model_from_string(file.getvalue())


def cpu_seconds(
    runtime: Runtime, thread_count: int, *, width: int = 64, run_count: int = 20
) -> tuple[float, float]:
    """CPU time of the calling thread and of the whole process over some runs."""
    model, _ = conv_model(width, 48, 3)
    session = runtime.load(model.SerializeToString(), thread_count=thread_count)
    feeds = random_inputs(model)
    session.run(feeds)
    thread, process = time.thread_time(), time.process_time()
    for _ in range(run_count):
        session.run(feeds)
    thread, process = time.thread_time() - thread, time.process_time() - process
    session.close()
    return thread, process


@EVERY
@pytest.mark.parametrize("topology", list(TOPOLOGIES))
def test_computes_in_float32_what_onnxruntime_does(name: str, topology: str) -> None:
    model = exported(topology)
    feeds = random_inputs(model, seed=1)
    content = model.SerializeToString()
    expected = runtime_of("ort").load(content).run(feeds)
    found = runtime_of(name).load(content).run(feeds)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        assert np.abs(ours - theirs).max() <= 1e-3 * np.abs(theirs).max()


@EVERY
def test_runs_again_with_new_values_and_in_a_fresh_session(name: str) -> None:
    """What is converted once serves every session, and no run sees another's inputs."""
    model, weight = conv_model()
    rng = np.random.default_rng(1)
    for _ in range(2):
        session = runtime_of(name).load(model.SerializeToString())
        assert session.input_names == ["x"]
        for _ in range(2):
            x = rng.standard_normal((1, 8, 6, 6)).astype(np.float32)
            (y,) = session.run({"x": x})
            expected = np.einsum("oi,nihw->nohw", weight[:, :, 0, 0], x)
            np.testing.assert_allclose(y, expected, atol=1e-4)
        session.close()


@EVERY
def test_outputs_come_in_the_models_order_and_types(name: str) -> None:
    shape = [1, 8, 4, 4]
    kinds = (("z", TensorProto.FLOAT), ("a", TensorProto.INT64), ("m", TensorProto.FLOAT))
    graph = helper.make_graph(
        [
            helper.make_node("Relu", ["x"], ["z"]),
            helper.make_node("ArgMax", ["z"], ["a"], axis=1),
            helper.make_node("Neg", ["x"], ["m"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(output, kind, None) for output, kind in kinds],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    session = runtime_of(name).load(model.SerializeToString())
    relu, most, negative = session.run({"x": x})
    np.testing.assert_array_equal(relu, np.maximum(x, 0))
    np.testing.assert_array_equal(most, relu.argmax(1, keepdims=True))
    np.testing.assert_array_equal(negative, -x)


@EVERY
def test_an_open_extent_is_one(name: str) -> None:
    model, _ = conv_model(batch="N")
    (y,) = runtime_of(name).load(model.SerializeToString()).run(random_inputs(model))
    assert y.shape == (1, 8, 6, 6)


@EVERY
@pytest.mark.parametrize(
    "damage", ["not a model", "empty", "cut off", "unknown operator", "wrong input", "lost weight"]
)
def test_refusals_are_one_line_of_our_own_error(name: str, damage: str) -> None:
    model, _ = conv_model()
    if damage == "unknown operator":
        model.graph.node[0].op_type = "Convolute"
    if damage == "lost weight":
        del model.graph.initializer[:]
    content = model.SerializeToString()
    content = {"not a model": b"\x00not onnx", "empty": b"", "cut off": content[:90]}.get(
        damage, content
    )
    extent = 9 if damage == "wrong input" else 6
    with pytest.raises(MeasurementError) as caught:
        runtime_of(name).load(content).run({"x": np.zeros((1, 8, extent, 6), np.float32)})
    assert "\n" not in str(caught.value) and len(str(caught.value)) > 20


@EVERY
def test_one_thread_computes_on_the_calling_thread(name: str) -> None:
    """So that the caller's thread-CPU time is the model's."""
    thread, process = cpu_seconds(runtime_of(name), 1)
    assert process <= 1.1 * thread


@EVERY
def test_two_threads_share_the_work(name: str) -> None:
    ratios = []
    for more in range(5):  # on a busy machine the first thread may have done all before the second
        thread, process = cpu_seconds(runtime_of(name), 2, width=256, run_count=3 * 3**more)
        ratios.append(process / thread)
        if ratios[-1] > 1.2:
            return
    pytest.fail(f"process over thread CPU time: {ratios}")


@EVERY
def test_closing_frees_the_memory(name: str) -> None:
    model, weight = conv_model(400, 4, 3)  # 6 MB
    content, feeds = model.SerializeToString(), random_inputs(model)

    def resident_bytes() -> int:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGESIZE")

    def once() -> int:
        session = runtime_of(name).load(content)
        session.run(feeds)
        session.close()
        return resident_bytes()

    settled = max(once() for _ in range(3))
    assert max(once() for _ in range(6)) < settled + 3 * weight.nbytes


@EVERY
def test_importing_the_runtime_writes_nothing_to_the_home_or_to_stdout(
    name: str, tmp_path: Path
) -> None:
    """Telemetry would leave files there; MNN prints where JSON is printed."""
    model, _ = conv_model()
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    home = tmp_path / "home"
    home.mkdir()
    environment = {key: value for key, value in os.environ.items() if "TELEMETRY" not in key}
    environment |= {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")}
    code = (
        "import sys; from rlprune.runtime import get_runtime; r = get_runtime(sys.argv[1])\n"
        "r.load(open(sys.argv[2], 'rb').read()).close(); print(r.version)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, name, str(path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{runtime_of(name).version}\n"
    assert list(home.rglob("*")) == []


def test_naming_a_runtime_is_what_imports_it() -> None:
    code = f"import sys, rlprune.runtime; assert not set(sys.modules) & {set(PACKAGES.values())!r}"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_an_unknown_runtime_is_not_found_and_the_known_are_named() -> None:
    with pytest.raises(NotFoundError, match=r"'tract'.*ort, openvino, mnn"):
        get_runtime("tract")


@EVERY
def test_without_the_extra_one_line_says_which(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, _, extra = RUNTIMES[name]
    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, PACKAGES[name], None)
    with pytest.raises(MissingExtraError, match=rf"rlprune\[{extra}\]"):
        get_runtime(name)
