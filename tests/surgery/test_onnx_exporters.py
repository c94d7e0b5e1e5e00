"""Files of the newer exporter beside the older one's."""

from __future__ import annotations

import numpy as np
import pytest
from exports import newer_export, older_export
from onnx_oracle import assert_pruned_right
from topologies import TOPOLOGIES

from rlprune.graph.from_onnx import trace_onnx


@pytest.mark.parametrize(
    ("name", "opset"),
    [("vgg_view", 18), ("resnet_a", 20), ("se_hardswish", 20), ("channel_shuffle", 18)],
)
def test_both_exporters_give_one_fingerprint_and_the_newer_prunes_right(
    name: str, opset: int
) -> None:
    trace = trace_onnx(newer_export(TOPOLOGIES[name], opset))
    assert trace.graph.fingerprint == trace_onnx(older_export(TOPOLOGIES[name])).graph.fingerprint
    assert_pruned_right(trace, np.maximum(1, trace.graph.widths // 2))
