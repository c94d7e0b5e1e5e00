"""Architectures in common use, exported: each is cut right, and enough of it can be cut.

The older exporter's file of each, opsets 17 to 20 in turn, and the newer one's of a few; with
`--long` both exporters' of all, at several opsets.
"""

from __future__ import annotations

import pytest
from architectures import ARCHITECTURES
from exports import newer_export, older_export
from onnx_oracle import assert_every_group_matters, assert_pruned_right, some_keeps

from rlprune.graph.from_onnx import trace_onnx

NEWER = ("llama", "swin", "yolo")
"""Those whose newer export is tried in every run: each such export takes seconds."""

FOLDED = {"cross_attention": 0.3}
"""Where the newer exporter writes another graph, and what of it is prunable at least: learned
queries do not depend on the input, so it computes their projection once, and an attention whose
queries are a constant is held whole."""


def check(name: str, data: bytes, prunable: float) -> str:
    trace = trace_onnx(data)
    for keeps in some_keeps(trace):
        assert_pruned_right(trace, keeps)
    assert_every_group_matters(trace)
    assert trace.graph.prunable_macs_ratio() >= prunable
    return trace.graph.fingerprint


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_architecture_is_cut_right_and_enough_of_it_is_prunable(name: str, long: bool) -> None:
    build = ARCHITECTURES[name].build
    place = list(ARCHITECTURES).index(name)
    opsets = (17, 18, 19, 20) if long else (17 + place % 4,)
    least = ARCHITECTURES[name].prunable
    older = {check(name, older_export(build, opset), least) for opset in opsets}
    assert len(older) == 1
    if long or name in NEWER:
        least = FOLDED.get(name, least)
        opsets = (18, 20) if long else (20,)
        newer = {check(name, newer_export(build, opset), least) for opset in opsets}
        assert (newer == older) == (name not in FOLDED)
