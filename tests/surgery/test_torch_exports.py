"""A net, its two exports and its trace are one graph; so are a cut net and its exports."""

from __future__ import annotations

import io
import logging
import warnings

import numpy as np
import pytest
import torch
from topologies import TOPOLOGIES
from torch import Tensor, nn
from torch_nets import TRANSFORMERS

from rlprune.graph.from_onnx import trace_onnx
from rlprune.graph.from_torch import trace_torch
from rlprune.surgery.onnx import prune_onnx
from rlprune.surgery.torch import prune_torch

NETS = {**TOPOLOGIES, **TRANSFORMERS}
QUICK = ("vit_packed", "convnext", "unet")
"""The newer exporter takes seconds a net: these, all with --long."""


def older(module: nn.Module, inputs: tuple[Tensor, ...]) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, inputs, file, dynamo=False)  # type: ignore[arg-type]
    return file.getvalue()


def newer(module: nn.Module, inputs: tuple[Tensor, ...]) -> bytes:
    file = io.BytesIO()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module, inputs, dynamo=True, opset_version=20, external_data=False, verbose=False
        )
    assert program is not None
    program.save(file)
    return file.getvalue()


def tell_apart(module: nn.Module) -> None:
    """Cloned layers start with equal weights, of which both exporters keep one: shared, they tie
    the layers' heads, rightly, and the graph is another."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("name", list(TRANSFORMERS))  # the others: test_torch_plans
def test_trace_of_module_and_of_its_older_export_have_one_fingerprint(name: str) -> None:
    module, inputs = NETS[name]()
    tell_apart(module)
    fingerprint = trace_torch(module, inputs).graph.fingerprint
    assert trace_onnx(older(module, inputs)).graph.fingerprint == fingerprint


@pytest.mark.parametrize("name", list(NETS))
def test_cut_module_and_its_exports_have_the_fingerprint_of_the_cut_file(
    name: str, long: bool
) -> None:
    if name not in QUICK and not long:
        pytest.skip("with --long")
    module, inputs = NETS[name]()
    trace = trace_torch(module, inputs)
    if long:
        assert trace_onnx(newer(module, inputs)).graph.fingerprint == trace.graph.fingerprint
    keeps = np.maximum(1, trace.graph.widths // 2)
    small = prune_torch(trace, keeps)
    fingerprint = trace_onnx(prune_onnx(trace.onnx, keeps)).graph.fingerprint
    tell_apart(small)
    assert trace_torch(small, inputs).graph.fingerprint == fingerprint
    assert trace_onnx(older(small, inputs)).graph.fingerprint == fingerprint
    assert trace_onnx(newer(small, inputs)).graph.fingerprint == fingerprint
