"""Architectures in common use, as both exporters write them: every file, cut at many plans.

With `--long` every file at keep 0.75, 0.5 and 0.25 and at 20 random plans; else a few of each.
"""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
from onnx_oracle import assert_pruned_right

from rlprune.graph import skeleton
from rlprune.graph.from_onnx import OnnxTrace, trace_onnx
from rlprune.graph.types import IntArray

SHARED = Path(os.environ.get("RLPRUNE_SHARED", Path(__file__).parents[3] / "shared")) / "models"
pytestmark = pytest.mark.skipif(not SHARED.exists(), reason="no shared/models beside the code")

CNNS = ["densenet121", "efficientnet_b0", "mobilenet_v2", "resnet18", "shufflenet_v2_x1_0"]
EXPORTERS = ["legacy", "dynamo"]
SHARES = (0.75, 0.5, 0.25)
RANDOM_COUNT = 20


def shared_file(name: str, exporter: str) -> bytes:
    return gzip.decompress((SHARED / f"{name}.{exporter}.onnx.gz").read_bytes())


def filled(name: str, exporter: str) -> OnnxTrace:
    """The files come with their weights emptied."""
    bare = skeleton.strip(trace_onnx(shared_file(name, exporter)).model)
    return trace_onnx(skeleton.fill(bare))


def plans(trace: OnnxTrace, shares: tuple[float, ...], random_count: int) -> list[IntArray]:
    """Uniform plans, in multiples of eight where the width allows, and random ones."""
    widths = trace.graph.widths
    rng = np.random.default_rng(0)
    uniform = []
    for share in shares:
        eights = np.maximum(8, (share * widths // 8 * 8).astype(np.int64))
        ones = np.maximum(1, (share * widths).astype(np.int64))
        uniform.append(np.where(widths >= 16, eights, ones))
    return uniform + [rng.integers(1, widths + 1) for _ in range(random_count)]


def check(name: str, exporter: str, shares: tuple[float, ...], random_count: int) -> None:
    trace = filled(name, exporter)
    errors = [assert_pruned_right(trace, k) for k in plans(trace, shares, random_count)]
    print(f"{name}.{exporter}: {len(errors)} plans, largest relative error {max(errors):.1e}")


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("name", CNNS)
def test_cnn_cut_at_uniform_and_random_plans_equals_the_oracle(
    name: str, exporter: str, long: bool
) -> None:
    place = CNNS.index(name) + EXPORTERS.index(exporter)
    if long:
        check(name, exporter, SHARES, RANDOM_COUNT)
    else:
        check(name, exporter, (SHARES[place % 3],), 0 if name == "densenet121" else 1)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("exporter", EXPORTERS)
def test_vision_transformer_cut_at_uniform_and_random_plans_equals_the_oracle(
    exporter: str, long: bool
) -> None:
    if not long:
        pytest.skip("takes minutes; --long runs it")
    check("vit_b_16", exporter, SHARES, RANDOM_COUNT)


@pytest.mark.parametrize("name", CNNS)
def test_cnn_has_one_fingerprint_and_nearly_all_macs_prunable(name: str) -> None:
    older, newer = (trace_onnx(shared_file(name, exporter)).graph for exporter in EXPORTERS)
    assert older.fingerprint == newer.fingerprint
    assert newer.prunable_macs_ratio() > 0.99


def test_vision_transformer_offers_whole_heads_and_mlp_widths() -> None:
    graph = trace_onnx(shared_file("vit_b_16", "legacy")).graph
    assert graph.fingerprint == trace_onnx(shared_file("vit_b_16", "dynamo")).graph.fingerprint
    assert sorted(set(graph.widths.tolist())) == [12, 3072]
    assert len(graph.groups) == 24
    assert graph.prunable_macs_ratio() > 0.9
    stream = {held.reason.split()[0] for held in graph.held if held.width == 768}
    assert stream == {"LayerNormalization"}
