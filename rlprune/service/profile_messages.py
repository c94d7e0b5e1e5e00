"""Sensitivity profiles as protocol messages and back.

What comes from outside is checked: `profiles_from` raises InputError naming the field; what it
returns has the right shapes and no NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from rlprune.constraints import BoundConstraints
from rlprune.errors import InputError
from rlprune.graph.types import FloatArray, PruningGraph
from rlprune.schemes import CHANNEL_ONLY, Space, other_sites, space_with
from rlprune.schemes.channels import MAX_OPTIONS
from rlprune.sensitivity.types import GroupProfiles
from rlprune.v1 import types_pb2

MAX_WIDTH = 1 << 20
MAX_SCORE_NAME = 200


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
        image_count=profiles.image_count or profiles.passed_count,
        initial_loss=None if profiles.initial_loss is None else _matrix_to(profiles.initial_loss),
        initial_score=profiles.initial_score,
        predicted_loss=None
        if profiles.predicted_loss is None
        else _matrix_to(profiles.predicted_loss),
    )


def check_levels(space: Space, bound: BoundConstraints) -> None:
    """Refuses options of channels that do not keep to the constraints stated beside them.

    Raises:
        InputError: names the constraint.
    """
    stated, graph = bound.requested, space.graph
    ratio = space.shares
    for index, group in enumerate(graph.groups):
        own = space.settings[index, : space.option_count[index] - 1]  # those that prune
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
    message: types_pb2.GroupProfiles,
    graph: PruningGraph,
    schemes: Sequence[str] = CHANNEL_ONLY,
    *,
    field: str = "profiles",
) -> tuple[GroupProfiles, Space]:
    """The profiles of a message, if they can be of `graph`, and the options that they are of.

    Raises:
        InputError: other graph, levels that the graph does not have, NaN, or shapes that differ.
    """
    if message.fingerprint != graph.fingerprint:
        raise InputError(
            f"profiles are of graph {message.fingerprint[:12]!r}, the model is "
            f"{graph.fingerprint[:12]!r}; profile the model again",
            field=f"{field}.fingerprint",
        )
    space = _space_from(message, graph, schemes, field)
    shape = space.settings.shape
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
    initial = None
    if message.HasField("initial_loss"):
        initial = _matrix_from(message.initial_loss, shape, f"{field}.initial_loss")
        if (initial < -1e-9).any() or folds:
            raise InputError(
                "losses at initialisation are at least 0, and stand beside none that was measured",
                field=f"{field}.initial_loss",
            )
    score = message.initial_score
    if len(score) > MAX_SCORE_NAME or bool(score) != (initial is not None):
        raise InputError(
            f"what initial_loss goes by has 1 to {MAX_SCORE_NAME} characters, and no place "
            "without it",
            field=f"{field}.initial_score",
        )
    predicted = None
    if message.HasField("predicted_loss"):
        predicted = _matrix_from(message.predicted_loss, shape, f"{field}.predicted_loss")
        if (predicted < 0.0).any() or folds or initial is not None:
            raise InputError(
                "losses by one pass are at least 0, and stand beside none that was measured",
                field=f"{field}.predicted_loss",
            )
    profiles = GroupProfiles(
        fingerprint=graph.fingerprint,
        levels=space.settings,
        level_count=space.option_count,
        energy_loss=energy,
        measured_loss=np.stack(folds) if folds else None,
        base_loss=message.base_loss if message.HasField("base_loss") else float("nan"),
        image_count=0 if predicted is not None else message.image_count,
        passed_count=0 if predicted is None else message.image_count,
        initial_loss=initial,
        initial_score=score,
        predicted_loss=predicted,
    )
    return profiles, space


def _space_from(
    message: types_pb2.GroupProfiles, graph: PruningGraph, schemes: Sequence[str], field: str
) -> Space:
    columns = message.levels.column_count
    if not 1 <= columns <= MAX_OPTIONS:
        raise InputError(f"{columns} levels, not 1..{MAX_OPTIONS}", field=f"{field}.levels")
    site_count = len(graph.groups) + len(other_sites(graph, schemes))
    raw = _matrix_from(message.levels, (site_count, columns), f"{field}.levels")
    # Of channels one stays at least; other schemes have options of value 0.
    if ((raw < 0) | (raw > MAX_WIDTH) | (raw != np.floor(raw))).any() or (
        raw[: len(graph.groups)] < 1
    ).any():
        raise InputError(
            "levels are whole numbers, of channels at least 1", field=f"{field}.levels"
        )
    levels = raw.astype(np.int64)
    level_count = np.array(list(message.level_count), dtype=np.int64)
    if len(level_count) != site_count or ((level_count < 1) | (level_count > columns)).any():
        raise InputError(
            f"one count of levels per group, 1..{columns}", field=f"{field}.level_count"
        )
    for group, row, count in zip(graph.groups, levels, level_count, strict=False):
        if (np.diff(row[:count]) <= 0).any() or (row[count - 1 :] != group.width).any():
            raise InputError(
                f"levels of group {group.name!r} must ascend to its width {group.width} and repeat "
                "it after that",
                field=f"{field}.levels",
            )
    try:
        return space_with(graph, levels, level_count, schemes)
    except InputError as error:
        error.field = f"{field}.levels"
        raise


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
