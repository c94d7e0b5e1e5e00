"""The pretrained CIFAR ResNets: their residual stream is prunable, their groups as expected."""

from __future__ import annotations

import functools
import importlib.util
import io
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from onnx_oracle import assert_every_group_matters, assert_pruned_right

from rlprune.graph.from_onnx import OnnxTrace, trace_onnx

DATA = Path(os.environ.get("RLPRUNE_SHARED", Path(__file__).parents[3] / "shared")) / "data"
pytestmark = pytest.mark.skipif(not DATA.exists(), reason="no shared/data beside the code")


@functools.cache
def models() -> ModuleType:
    spec = importlib.util.spec_from_file_location("shared_models", DATA / "models.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def exported(depth: int, seed: int | None = None) -> bytes:
    """With the pretrained weights, or with fresh ones from a seed."""
    from safetensors.torch import load_file

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed or 0)
        net = models().build("CifarResNetA", {"depth": depth})
    if seed is None:
        net.load_state_dict(load_file(DATA / "weights" / f"cifar10_resnet{depth}.safetensors"))
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net.eval(), (torch.zeros(1, 3, 32, 32),), file, dynamo=False)
    return file.getvalue()


def traced(depth: int) -> OnnxTrace:
    return trace_onnx(exported(depth))


def test_resnet20_has_nine_inner_groups_and_three_of_the_stream() -> None:
    graph = traced(20).graph
    inner = [group.width for group in graph.groups if group.name.endswith(".conv1")]
    stream = [group.width for group in graph.groups if not group.name.endswith(".conv1")]
    assert inner == [16] * 3 + [32] * 3 + [64] * 3
    assert stream == [16, 16, 32]
    assert int(graph.macs(graph.widths)) == 40_551_040


@pytest.mark.parametrize("depth", [20, 56])
def test_nearly_all_macs_are_prunable(depth: int) -> None:
    graph = traced(depth).graph
    assert graph.prunable_macs_ratio() >= 0.95
    assert [held.reason.split()[0] for held in graph.held] == ["graph"]


@pytest.mark.parametrize("depth", [20, 56])
def test_pretrained_network_equals_the_oracle(depth: int) -> None:
    trace = traced(depth)
    widths = trace.graph.widths
    rng = np.random.default_rng(0)
    for keeps in (widths // 2, rng.integers(1, widths + 1)):
        assert_pruned_right(trace, keeps)


def test_every_group_of_the_pretrained_network_matters() -> None:
    assert_every_group_matters(traced(20))


def test_fingerprint_is_of_the_architecture_not_of_weights_or_depth() -> None:
    first = traced(20).graph.fingerprint
    assert trace_onnx(exported(20, seed=7)).graph.fingerprint == first
    assert traced(56).graph.fingerprint != first


def test_fingerprint_is_the_same_in_another_process(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(exported(20))
    code = (
        "from rlprune.graph.from_onnx import trace_onnx; "
        f"print(trace_onnx({str(path)!r}).graph.fingerprint)"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "123"}
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert answer.stdout.strip() == traced(20).graph.fingerprint


def test_tracing_is_quick() -> None:
    data = exported(56)
    start = time.process_time()
    trace_onnx(data)
    # Some 0.1 s here; the bound is wide because neighbours share the machine.
    assert time.process_time() - start < 2.0
