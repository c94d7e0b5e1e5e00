"""What every model that is written has passed, and what it says of where it came from."""

from __future__ import annotations

from collections.abc import Mapping

from onnx import ModelProto

from rlprune.graph.load import run_checker, without_weights


def check_written(model: ModelProto) -> None:
    """Refuses a model that is no sound ONNX, extents and types of all tensors included.

    Raises:
        ModelError: ONNX's checker refuses it; the extents that the file states for its outputs are
            wrong, or what it means is not what the operators' shapes say.
    """
    # Without the weights, which the checker would copy twice: 3 x the model at 100 MB.
    run_checker(without_weights(model), full=True, of=", of the cut model")


def note(model: ModelProto, about: Mapping[str, str]) -> None:
    """Writes into the model's metadata where it came from; entries of the same names go."""
    kept = [entry for entry in model.metadata_props if entry.key not in about]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    for key, value in about.items():
        model.metadata_props.add(key=key, value=value)
