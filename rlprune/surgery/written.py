"""What every model that is written has passed, and what it says of where it came from."""

from __future__ import annotations

import hashlib
from importlib.metadata import version

from onnx import ModelProto

from rlprune.graph.load import run_checker, without_weights
from rlprune.plans import PruningPlan


def check_written(model: ModelProto) -> None:
    """Refuses a model that is no sound ONNX, extents and types of all tensors included.

    Raises:
        ModelError: ONNX's checker refuses it; the extents that the file states for its outputs are
            wrong, or what it means is not what the operators' shapes say.
    """
    # Without the weights, which the checker would copy twice: 3 x the model at 100 MB.
    run_checker(without_weights(model), full=True, of=", of the cut model")


def note_plan(model: ModelProto, plan: PruningPlan) -> None:
    """Writes into the model's metadata which plan it was cut by; entries of an earlier cut go.

    `rlprune.plan` is the sha256 (hex) of the plan's JSON as `plan.to_json()` gives it.
    """
    about = {
        "rlprune.version": version("rlprune"),
        "rlprune.graph": plan.fingerprint,
        "rlprune.plan": hashlib.sha256(plan.to_json().encode()).hexdigest(),
        "rlprune.policy": plan.policy,
        "rlprune.device": plan.device,
        "rlprune.budget_ms": repr(plan.budget_ms),
        "rlprune.predicted_latency_ms": repr(plan.predicted_latency_ms),
    }
    kept = [entry for entry in model.metadata_props if entry.key not in about]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    for key, value in about.items():
        model.metadata_props.add(key=key, value=value)
