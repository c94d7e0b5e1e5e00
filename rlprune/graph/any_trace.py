"""What a user gives as a model, traced: an ONNX file, bytes, a proto, a torch module, a trace."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlprune.errors import InputError

if TYPE_CHECKING:
    import onnx
    from torch import nn

    from rlprune.graph.from_onnx import OnnxTrace
    from rlprune.graph.from_torch import TorchTrace

    OnnxModel = str | Path | bytes | onnx.ModelProto | OnnxTrace
    TorchModel = nn.Module | TorchTrace

MAX_NAME = 200


def trace_any(
    model: OnnxModel | TorchModel,
    example_inputs: Any = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    input_values: Mapping[str, Any] | None = None,
) -> OnnxTrace | TorchTrace:
    """The trace of a model; see `rlprune.trace`. A trace is returned as it is.

    Raises:
        InputError: not a model, or a torch module without `example_inputs`.
        ModelError: the model is refused, or its channels cannot be followed.
    """
    from rlprune.graph.from_onnx import OnnxTrace, trace_onnx

    if isinstance(model, OnnxTrace):
        return model
    # Who holds a module has imported torch; who has not cannot hold one, and is spared the import.
    if "torch" in sys.modules:
        from torch import nn

        from rlprune.graph.from_torch import TorchTrace, trace_torch

        if isinstance(model, TorchTrace):
            return model
        if isinstance(model, nn.Module):
            if example_inputs is None:
                raise InputError("a torch module is traced with example_inputs; give a tensor")
            return trace_torch(model, example_inputs)
    import onnx

    if not isinstance(model, str | Path | bytes | onnx.ModelProto):
        raise InputError(
            f"cannot trace a {type(model).__name__}; give an ONNX file's path or bytes, "
            "a ModelProto, or a torch module"
        )
    return trace_onnx(model, input_shapes=input_shapes, input_values=input_values)


def model_name(model: OnnxModel | TorchModel) -> str:
    """What a person would call a model: its file's name, a module's class, a graph's name; may be
    empty."""
    import onnx

    from rlprune.graph.from_onnx import OnnxTrace

    if isinstance(model, str | Path):
        name = Path(model).name
    elif isinstance(model, bytes):
        name = ""
    elif isinstance(model, OnnxTrace):
        name = model.model.graph.name
    elif isinstance(model, onnx.ModelProto):
        name = model.graph.name
    else:  # a torch module, or its trace
        name = type(getattr(model, "module", model)).__name__
    return "".join(letter for letter in name if letter.isprintable())[:MAX_NAME]
