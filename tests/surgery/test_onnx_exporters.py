"""Files of the newer exporter, and of architectures in common use as both exporters write them."""

from __future__ import annotations

import gzip
import io
import logging
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx_oracle import assert_pruned_right
from topologies import TOPOLOGIES

from rlprune.graph import skeleton
from rlprune.graph.from_onnx import trace_onnx

SHARED = Path(os.environ.get("RLPRUNE_SHARED", Path(__file__).parents[3] / "shared")) / "models"
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="no shared/models beside the code")

SMALL = ["densenet121", "efficientnet_b0", "mobilenet_v2", "resnet18", "shufflenet_v2_x1_0"]


def newer_export(name: str, opset: int) -> bytes:
    module, inputs = TOPOLOGIES[name]()
    file = io.BytesIO()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module, inputs, dynamo=True, opset_version=opset, external_data=False, verbose=False
        )
        assert program is not None
        program.save(file)
    return file.getvalue()


def older_export(name: str) -> bytes:
    module, inputs = TOPOLOGIES[name]()
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, inputs, file, dynamo=False, opset_version=17)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "opset"),
    [("vgg_view", 18), ("resnet_a", 20), ("se_hardswish", 20), ("channel_shuffle", 18)],
)
def test_both_exporters_give_one_fingerprint_and_the_newer_prunes_right(
    name: str, opset: int
) -> None:
    trace = trace_onnx(newer_export(name, opset))
    assert trace.graph.fingerprint == trace_onnx(older_export(name)).graph.fingerprint
    assert_pruned_right(trace, np.maximum(1, trace.graph.widths // 2))


def shared_file(name: str, exporter: str) -> bytes:
    return gzip.decompress((SHARED / f"{name}.{exporter}.onnx.gz").read_bytes())


@needs_shared
@pytest.mark.parametrize("name", SMALL)
def test_architecture_has_one_fingerprint_and_at_half_keep_equals_the_oracle(name: str) -> None:
    older = trace_onnx(shared_file(name, "legacy"))
    # The files come with their weights emptied.
    trace = trace_onnx(skeleton.fill(skeleton.strip(trace_onnx(shared_file(name, "dynamo")).model)))
    assert trace.graph.fingerprint == older.graph.fingerprint
    assert trace.graph.prunable_macs_ratio() > 0.99
    widths = trace.graph.widths
    half = np.where(widths >= 16, np.maximum(8, widths // 16 * 8), np.maximum(1, widths // 2))
    assert_pruned_right(trace, half)


@needs_shared
@pytest.mark.parametrize("name", ["mobilenet_v2", "shufflenet_v2_x1_0"])
def test_older_exporters_architecture_equals_the_oracle_at_random_plans(name: str) -> None:
    trace = trace_onnx(skeleton.fill(skeleton.strip(trace_onnx(shared_file(name, "legacy")).model)))
    rng = np.random.default_rng(0)
    assert_pruned_right(trace, rng.integers(1, trace.graph.widths + 1))


@needs_shared
def test_vision_transformer_offers_whole_heads_and_mlp_widths() -> None:
    graph = trace_onnx(shared_file("vit_b_16", "legacy")).graph
    assert graph.fingerprint == trace_onnx(shared_file("vit_b_16", "dynamo")).graph.fingerprint
    assert sorted(set(graph.widths.tolist())) == [12, 3072]
    assert len(graph.groups) == 24
    assert graph.prunable_macs_ratio() > 0.9
    stream = {held.reason.split()[0] for held in graph.held if held.width == 768}
    assert stream == {"LayerNormalization"}
