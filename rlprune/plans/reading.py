"""Plan files read: from JSON to the fields of a plan.

The format is `rlprune.plan/2`; files of `rlprune.plan/1`, which do not say options in words, are
read all the same. Words are for the reader: an entry is what its `keep` says.
"""

from __future__ import annotations

import json
from typing import Any

from rlprune.constraints import Constraints
from rlprune.device_keys import canonical_key
from rlprune.errors import InputError, PlanError
from rlprune.json_values import count, finite, known, pair
from rlprune.plans.parts import (
    Candidate,
    Certificate,
    MeasuredRound,
    PlanEntry,
    PlanFigures,
    Unpruned,
)

FORMATS = ("rlprune.plan/1", "rlprune.plan/2")
"""Those that are read; the last one is written."""
FORMAT = FORMATS[-1]


def plan_fields(text: str) -> dict[str, Any]:
    """What `PruningPlan` is made of, by the text of a plan file.

    Raises:
        PlanError: truncated, not JSON, another format, or fields missing or of the wrong type.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PlanError(f"plan is not JSON or is cut short ({error}); make it again") from error
    if not isinstance(data, dict) or data.get("format") not in FORMATS:
        raise PlanError(
            f"not a plan of format {FORMAT!r} or before; make it again with `rlprune plan`"
        )
    try:
        reference = data["reference"]
        return dict(
            fingerprint=str(data["fingerprint"]),
            policy=str(data["policy"]),
            profiled=bool(data["profiled"]),
            device=canonical_key(str(data["device"])),
            precision=str(data.get("precision", "f32")),
            budget_ms=finite(data["budget_ms"]),
            feasible=bool(data["feasible"]),
            base_latency_ms=finite(data["base_latency_ms"]),
            least_latency_ms=finite(data["least_latency_ms"]),
            predicted_latency_ms=finite(data["predicted_latency_ms"]),
            predicted_interval_ms=pair(data["predicted_interval_ms"]),
            groups=tuple(
                PlanEntry(
                    name=str(entry["name"]),
                    scheme=str(entry["scheme"]),
                    width=count(entry["width"]),
                    keep=count(entry["keep"]),
                    members=tuple(str(member) for member in entry["members"]),
                    constraint=str(entry.get("constraint", "")),
                )
                for entry in data["groups"]
            ),
            macs=count(data["macs"]),
            params=count(data["params"]),
            reference=None if reference is None else PlanFigures(**_figures(reference)),
            note=str(data["note"]),
            certificate=_certificate(data.get("certificate")),
            constraints=_constraints(data.get("constraints", {})),
            candidates=tuple(_candidate(one) for one in data.get("candidates", ())),
            unpruned=tuple(
                Unpruned(str(one["precision"]), finite(one["latency_ms"]))
                for one in data.get("unpruned", ())
            ),
            expected_divergence=known(data.get("expected_divergence")),
        )
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
        InputError,
    ) as error:
        raise PlanError(
            f"plan is damaged ({repr(error)[:200]}); make it again with `rlprune plan`"
        ) from error


def _figures(data: Any) -> dict[str, Any]:
    """What `PlanFigures` holds."""
    return {
        "keeps": tuple(count(keep) for keep in data["keeps"]),
        "predicted_latency_ms": finite(data["predicted_latency_ms"]),
        "predicted_interval_ms": pair(data["predicted_interval_ms"]),
        "macs": count(data["macs"]),
        "params": count(data["params"]),
    }


def _candidate(data: Any) -> Candidate:
    return Candidate(
        **_figures(data),
        policy=str(data["policy"]),
        divergence=known(data.get("divergence")),  # not in plans of 0.4 and before
        gain_se=known(data["gain_se"]),
        loss=known(data["loss"]),
        loss_se=known(data["loss_se"]),
        image_count=count(data.get("image_count", 0)),
        chosen=bool(data["chosen"]),
    )


def _certificate(data: Any) -> Certificate | None:
    if data is None:
        return None
    return Certificate(
        within=bool(data["within"]),
        measured_latency_ms=finite(data["measured_latency_ms"]),
        measured_interval_ms=pair(data["measured_interval_ms"]),
        rounds=tuple(
            MeasuredRound(
                keeps=tuple(count(keep) for keep in one["keeps"]),
                predicted_latency_ms=finite(one["predicted_latency_ms"]),
                measured_latency_ms=finite(one["measured_latency_ms"]),
                measured_interval_ms=pair(one["measured_interval_ms"]),
                status=str(one["status"]),
                reason=str(one["reason"]),
            )
            for one in data["rounds"]
        ),
    )


def _constraints(data: Any) -> Constraints:
    """Of plans made before constraints were recorded: none."""
    patterns = {key: tuple(data.get(key, ())) for key in ("hold", "pin", "keep_float")}
    return Constraints(**{**data, **patterns})
