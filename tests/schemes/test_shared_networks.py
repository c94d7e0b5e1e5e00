"""What networks in common use offer, as both exporters write them, and that each option goes."""

from __future__ import annotations

import functools
import gzip
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from scheme_oracle import EVERY, assert_carried_out, assert_costs, settings_of, sites_of

from rlprune.graph import skeleton
from rlprune.graph.from_onnx import OnnxTrace, trace_onnx
from rlprune.schemes import carry_out, other_sites

SHARED = Path(os.environ.get("RLPRUNE_SHARED", Path(__file__).parents[3] / "shared")) / "models"
pytestmark = pytest.mark.skipif(not SHARED.exists(), reason="no shared/models beside the code")

OFFERED = {
    "densenet121": (59, 0),
    "efficientnet_b0": (17, 4),
    "mobilenet_v2": (18, 10),
    "resnet18": (17, 4),
    "shufflenet_v2_x1_0": (20, 0),
    "vit_b_16": (0, 23),
}
"""Kernels that may shrink, and blocks that may go: of 9, 10, 5 and 24 with an identity beside them
all but the first of each stage."""


@functools.cache
def traced(name: str, exporter: str) -> OnnxTrace:
    """The files come without weights."""
    return trace_onnx(gzip.decompress((SHARED / f"{name}.{exporter}.onnx.gz").read_bytes()))


@pytest.mark.parametrize("name", OFFERED)
def test_both_exporters_offer_as_much(name: str) -> None:
    for exporter in ("legacy", "dynamo"):
        trace = traced(name, exporter)
        found = tuple(len(sites_of(trace, scheme)) for scheme in ("shape", "block"))
        assert found == OFFERED[name]
    older, newer = (
        [(one.values, one.operators) for one in other_sites(traced(name, own).graph, EVERY)]
        for own in ("legacy", "dynamo")
    )
    assert older == newer


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", [one for one, (_, blocks) in OFFERED.items() if blocks])
def test_every_block_alone_goes_and_saves_what_is_said(name: str, long: bool) -> None:
    trace = trace_onnx(skeleton.strip(traced(name, "legacy").model))
    blocks = list(sites_of(trace, "block"))
    shapes = [
        (tuple(d.dim_value for d in o.type.tensor_type.shape.dim)) for o in trace.model.graph.output
    ]
    for block in blocks if long else blocks[:2]:
        settings = settings_of(trace, {block: 0})
        small = carry_out(trace, settings, EVERY)
        inferred = onnx.shape_inference.infer_shapes(small, strict_mode=True, data_prop=True)
        found = [
            tuple(d.dim_value for d in o.type.tensor_type.shape.dim) for o in inferred.graph.output
        ]
        assert found == shapes
        assert_costs(trace, settings, small)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_all_blocks_and_taps_and_some_channels_at_once_answer_as_the_oracle(name: str) -> None:
    trace = trace_onnx(skeleton.fill(skeleton.strip(traced(name, "dynamo").model)))
    sites = other_sites(trace.graph, EVERY)
    settings = settings_of(trace, {site.name: site.values[0] for site in sites})
    groups = len(trace.graph.groups)
    settings[:groups] = np.maximum(1, trace.graph.widths // 2)
    assert_carried_out(trace, settings)
