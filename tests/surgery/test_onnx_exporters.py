"""Files of the newer exporter beside the older one's."""

from __future__ import annotations

import io
import logging
import warnings

import numpy as np
import pytest
import torch
from onnx_oracle import assert_pruned_right
from topologies import TOPOLOGIES

from rlprune.graph.from_onnx import trace_onnx


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
