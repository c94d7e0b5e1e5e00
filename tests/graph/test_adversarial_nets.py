"""Nets made to lead the analysis astray: what is cut is cut right, what is not known is held."""

from __future__ import annotations

import adversarial_compute
import adversarial_layout
import adversarial_shapes
import adversarial_sharing
import pytest
from onnx_oracle import assert_every_group_matters, assert_pruned_right, some_keeps

from rlprune.graph.from_onnx import trace_onnx

CASES = (
    adversarial_compute.CASES
    | adversarial_layout.CASES
    | adversarial_shapes.CASES
    | adversarial_sharing.CASES
)


@pytest.mark.parametrize("name", list(CASES))
def test_only_these_groups_are_offered_and_each_is_cut_right(name: str) -> None:
    build, widths = CASES[name]
    net, outputs = build()
    trace = trace_onnx(net.model(*([outputs] if isinstance(outputs, str) else outputs)))
    assert trace.graph.widths.tolist() == widths
    for keeps in some_keeps(trace):
        assert_pruned_right(trace, keeps)
    assert_every_group_matters(trace)
