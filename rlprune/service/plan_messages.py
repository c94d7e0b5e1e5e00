"""Plans and profiles as protocol messages and back.

What comes from outside is checked here as far as it can be without asking the store: each
`..._from` raises InputError naming the field; what it returns has the right shapes and no NaN.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from rlprune.constraints import BoundConstraints, Constraints
from rlprune.errors import InputError
from rlprune.graph.types import FloatArray, IntArray, PruningGraph
from rlprune.plans import Candidate, PlanEntry, PlanFigures, PruningPlan
from rlprune.sensitivity.types import MAX_LEVELS, GroupProfiles
from rlprune.store.records import PlanRecord
from rlprune.v1 import plans_pb2, types_pb2

MAX_WIDTH = 1 << 20


def plan_to(plan: PruningPlan) -> types_pb2.PruningPlan:
    """The plan's message."""
    return types_pb2.PruningPlan(
        fingerprint=plan.fingerprint,
        policy=plan.policy,
        profiled=plan.profiled,
        device=plan.device,
        budget_ms=plan.budget_ms,
        feasible=plan.feasible,
        base_latency_ms=plan.base_latency_ms,
        least_latency_ms=plan.least_latency_ms,
        predicted_latency_ms=plan.predicted_latency_ms,
        predicted_interval_ms=_interval(plan.predicted_interval_ms),
        groups=[
            types_pb2.PlanEntry(
                name=entry.name,
                scheme=entry.scheme,
                width=entry.width,
                keep=entry.keep,
                members=entry.members,
                constraint=entry.constraint,
            )
            for entry in plan.groups
        ],
        macs=plan.macs,
        params=plan.params,
        reference=None if plan.reference is None else _figures_to(plan.reference),
        note=plan.note,
        constraints=types_pb2.Constraints(
            round_to=plan.constraints.round_to or 0,
            min_keep=plan.constraints.min_keep,
            min_keep_ratio=plan.constraints.min_keep_ratio,
            hold=plan.constraints.hold,
            pin=plan.constraints.pin,
        ),
        candidates=[
            types_pb2.Candidate(policy=one.policy, figures=_figures_to(one))
            for one in plan.candidates
        ],
        expected_divergence=plan.expected_divergence,
    )


def plan_from(message: types_pb2.PruningPlan) -> PruningPlan:
    """The plan of a message."""
    return PruningPlan(
        fingerprint=message.fingerprint,
        policy=message.policy,
        profiled=message.profiled,
        device=message.device,
        budget_ms=message.budget_ms,
        feasible=message.feasible,
        base_latency_ms=message.base_latency_ms,
        least_latency_ms=message.least_latency_ms,
        predicted_latency_ms=message.predicted_latency_ms,
        predicted_interval_ms=_pair(message.predicted_interval_ms),
        groups=tuple(
            PlanEntry(
                entry.name,
                entry.scheme,
                entry.width,
                entry.keep,
                tuple(entry.members),
                entry.constraint,
            )
            for entry in message.groups
        ),
        macs=message.macs,
        params=message.params,
        reference=PlanFigures(**_figures_from(message.reference))
        if message.HasField("reference")
        else None,
        note=message.note,
        constraints=constraints_from(message.constraints),
        candidates=tuple(
            Candidate(**_figures_from(one.figures), policy=one.policy) for one in message.candidates
        ),
        expected_divergence=message.expected_divergence
        if message.HasField("expected_divergence")
        else None,
    )


def constraints_from(
    message: types_pb2.Constraints | plans_pb2.CreatePlanRequest,
) -> Constraints:
    """The constraints of a message, or of a request, whose fields are called alike.

    Raises:
        InputError: a value that is none; names the field.
    """
    return Constraints(
        message.round_to or None,
        message.min_keep or 1,
        message.min_keep_ratio,
        tuple(message.hold),
        tuple(message.pin),
    )


def record_to(record: PlanRecord) -> plans_pb2.StoredPlan:
    """A stored plan's message."""
    return plans_pb2.StoredPlan(
        plan_id=record.plan_id, plan=plan_to(record.plan), created_sec=record.created_sec
    )


def record_from(message: plans_pb2.StoredPlan) -> PlanRecord:
    """The stored plan of a message."""
    return PlanRecord(message.plan_id, plan_from(message.plan), message.created_sec)


def _figures_to(figures: PlanFigures) -> types_pb2.PlanFigures:
    return types_pb2.PlanFigures(
        keeps=figures.keeps,
        predicted_latency_ms=figures.predicted_latency_ms,
        predicted_interval_ms=_interval(figures.predicted_interval_ms),
        macs=figures.macs,
        params=figures.params,
    )


def _figures_from(message: types_pb2.PlanFigures) -> dict[str, Any]:
    """What `PlanFigures` holds."""
    return {
        "keeps": tuple(message.keeps),
        "predicted_latency_ms": message.predicted_latency_ms,
        "predicted_interval_ms": _pair(message.predicted_interval_ms),
        "macs": message.macs,
        "params": message.params,
    }


def _interval(pair: tuple[float, float]) -> types_pb2.Interval:
    return types_pb2.Interval(low=pair[0], high=pair[1])


def _pair(message: types_pb2.Interval) -> tuple[float, float]:
    return message.low, message.high


def profiles_to(profiles: GroupProfiles) -> types_pb2.GroupProfiles:
    """The profiles' message."""
    measured = profiles.measured_loss
    return types_pb2.GroupProfiles(
        fingerprint=profiles.fingerprint,
        levels=_matrix_to(profiles.levels),
        level_count=profiles.level_count.tolist(),
        energy_loss=None if profiles.energy_loss is None else _matrix_to(profiles.energy_loss),
        measured_loss=[] if measured is None else [_matrix_to(fold) for fold in measured],
        base_loss=None if math.isnan(profiles.base_loss) else profiles.base_loss,
        image_count=profiles.image_count,
    )


def check_levels(profiles: GroupProfiles, graph: PruningGraph, bound: BoundConstraints) -> None:
    """Refuses profiles whose levels do not keep to the constraints stated beside them.

    Raises:
        InputError: names the constraint.
    """
    stated = bound.stated
    ratio = profiles.levels / graph.widths[:, None]
    for index, group in enumerate(graph.groups):
        own = profiles.levels[index, : profiles.level_count[index] - 1]  # those that prune
        step = group.step(bound.round_to) if stated.round_to else 1
        wrong = ""
        if (own % step).any():
            wrong = "round_to"
        elif (own < stated.min_keep).any():
            wrong = "min_keep"
        elif (ratio[index] < stated.min_keep_ratio - 1e-9).any():
            wrong = "min_keep_ratio"
        elif index in bound.held and len(own):
            wrong = "hold"
        if wrong:
            raise InputError(
                f"levels of group {group.name!r} in profiles do not keep to {wrong}; make both "
                "with the same constraints",
                field=wrong,
            )
    for pins in bound.pins:
        if (ratio[list(pins)] != ratio[pins[0]]).any():
            names = ", ".join(repr(graph.groups[g].name) for g in pins)
            raise InputError(
                f"levels of pinned groups {names} in profiles differ in their ratios; make both "
                "with the same constraints",
                field="pin",
            )


def profiles_from(
    message: types_pb2.GroupProfiles, graph: PruningGraph, *, field: str = "profiles"
) -> GroupProfiles:
    """The profiles of a message, if they can be of `graph`.

    Raises:
        InputError: other graph, levels that the graph does not have, NaN, or shapes that differ.
    """
    if message.fingerprint != graph.fingerprint:
        raise InputError(
            f"profiles are of graph {message.fingerprint[:12]!r}, the model is "
            f"{graph.fingerprint[:12]!r}; profile the model again",
            field=f"{field}.fingerprint",
        )
    levels, level_count = _levels_from(message, graph, field)
    shape = (len(graph.groups), levels.shape[1])
    folds = [
        _matrix_from(fold, shape, f"{field}.measured_loss[{index}]")
        for index, fold in enumerate(message.measured_loss)
    ]
    energy = None
    if message.HasField("energy_loss"):
        energy = _matrix_from(message.energy_loss, shape, f"{field}.energy_loss")
        if (energy < -1e-9).any() or (energy > 1 + 1e-9).any():
            raise InputError("energy losses are shares, 0..1", field=f"{field}.energy_loss")
    if message.HasField("base_loss") and not math.isfinite(message.base_loss):
        raise InputError(f"base_loss is {message.base_loss}", field=f"{field}.base_loss")
    if message.image_count < 0:
        raise InputError("image_count is negative", field=f"{field}.image_count")
    return GroupProfiles(
        fingerprint=graph.fingerprint,
        levels=levels,
        level_count=level_count,
        energy_loss=energy,
        measured_loss=np.stack(folds) if folds else None,
        base_loss=message.base_loss if message.HasField("base_loss") else float("nan"),
        image_count=message.image_count,
    )


def _levels_from(
    message: types_pb2.GroupProfiles, graph: PruningGraph, field: str
) -> tuple[IntArray, IntArray]:
    columns = message.levels.column_count
    if not 1 <= columns <= MAX_LEVELS:
        raise InputError(f"{columns} levels, not 1..{MAX_LEVELS}", field=f"{field}.levels")
    raw = _matrix_from(message.levels, (len(graph.groups), columns), f"{field}.levels")
    if ((raw < 1) | (raw > MAX_WIDTH) | (raw != np.floor(raw))).any():
        raise InputError("levels are whole numbers, at least 1", field=f"{field}.levels")
    levels = raw.astype(np.int64)
    level_count = np.array(list(message.level_count), dtype=np.int64)
    if len(level_count) != len(graph.groups) or ((level_count < 1) | (level_count > columns)).any():
        raise InputError(
            f"one count of levels per group, 1..{columns}", field=f"{field}.level_count"
        )
    for group, row, count in zip(graph.groups, levels, level_count, strict=True):
        if (np.diff(row[:count]) <= 0).any() or (row[count - 1 :] != group.width).any():
            raise InputError(
                f"levels of group {group.name!r} must ascend to its width {group.width} and repeat "
                "it after that",
                field=f"{field}.levels",
            )
    return levels, level_count


def _matrix_to(matrix: npt.NDArray[np.int64] | npt.NDArray[np.float64]) -> types_pb2.Matrix:
    rows, columns = matrix.shape
    return types_pb2.Matrix(
        row_count=rows, column_count=columns, values=matrix.astype(np.float64).ravel().tolist()
    )


def _matrix_from(message: types_pb2.Matrix, shape: tuple[int, int], field: str) -> FloatArray:
    found = (message.row_count, message.column_count)
    if found != shape or len(message.values) != shape[0] * shape[1]:
        raise InputError(
            f"a matrix of {found[0]} x {found[1]} with {len(message.values)} values, not "
            f"{shape[0]} x {shape[1]}",
            field=field,
        )
    matrix = np.array(message.values, dtype=np.float64).reshape(shape)
    if not np.isfinite(matrix).all():
        raise InputError("a value is NaN or infinite", field=field)
    return matrix
