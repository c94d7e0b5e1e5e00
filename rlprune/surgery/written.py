"""What every model that is written has passed, and what it says of where it came from."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from onnx import ModelProto

from rlprune.errors import ModelError
from rlprune.graph.load import without_weights


def check_written(model: ModelProto) -> None:
    """Refuses a model that is no sound ONNX, extents and types of all tensors included.

    Raises:
        ModelError: ONNX's checker refuses it; the extents that the file states for its outputs are
            wrong, or what it means is not what the operators' shapes say.
    """
    try:
        # Without the weights, which the checker would copy twice: 3 x the model at 100 MB.
        onnx.checker.check_model(without_weights(model), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        why = " ".join(str(error).split())[:300]
        raise ModelError(f"ONNX checker, of the cut model: {why}", field="model") from error


def note(model: ModelProto, about: Mapping[str, str]) -> None:
    """Writes into the model's metadata where it came from; entries of the same names go."""
    kept = [entry for entry in model.metadata_props if entry.key not in about]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    for key, value in about.items():
        model.metadata_props.add(key=key, value=value)
