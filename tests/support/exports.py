"""Torch nets as both of torch's ONNX exporters write them."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable

import torch
from torch_parts import Built


def newer_export(build: Callable[[], Built], opset: int) -> bytes:
    module, inputs = build()
    file = io.BytesIO()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module, inputs, dynamo=True, opset_version=opset, external_data=False, verbose=False
        )
        assert program is not None
        program.save(file)  # type: ignore[arg-type]
    return file.getvalue()


def older_export(build: Callable[[], Built], opset: int = 17) -> bytes:
    module, inputs = build()
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, inputs, file, dynamo=False, opset_version=opset)  # type: ignore[arg-type]
    return file.getvalue()
