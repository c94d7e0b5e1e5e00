"""`MODEL.onnx`: the argument of most commands, and its trace."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlprune.cli.inputs import parse_input_values
from rlprune.cli.shared import parse_input_shapes

if TYPE_CHECKING:
    from rlprune.graph.from_onnx import OnnxTrace

Model = Annotated[Path, typer.Argument(metavar="MODEL.onnx", show_default=False)]


def load_trace(
    path: Path, input_shapes: list[str] | None, input_values: list[str] | None = None
) -> OnnxTrace:
    """The traced model of a file; every refusal names the file."""
    from rlprune.graph.from_onnx import trace_onnx
    from rlprune.graph.load import load_onnx

    values = parse_input_values(input_values)
    model = load_onnx(path)
    shapes = parse_input_shapes(input_shapes, model)
    return trace_onnx(model, input_shapes=shapes, input_values=values)
