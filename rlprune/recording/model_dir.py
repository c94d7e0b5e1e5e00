"""The on-disk form of what training needs of one model: graph, profiles, recorded evaluations.

A model directory holds `graph.json`, `profiles.npz` and `evaluations.parquet` (docs/recording.md).
No weights, no images, and nothing that is unpickled when read, so a directory from elsewhere can do
no harm.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlprune.errors import InputError
from rlprune.files import read_npz, write_atomic, write_npz
from rlprune.graph.types import FloatArray, PruningGraph
from rlprune.mdp.objective import AdditiveObjective, SurrogateObjective
from rlprune.recording.evaluations import Evaluations, load_evaluations, save_evaluations
from rlprune.sensitivity.energy import loss_curve
from rlprune.sensitivity.types import GroupProfiles
from rlprune.solver.task import Objective

EVALUATIONS = "evaluations.parquet"


@dataclass(frozen=True)
class RecordedModel:
    """One model as training sees it."""

    graph: PruningGraph
    profiles: GroupProfiles
    evaluations: Evaluations | None
    """None where nothing was recorded."""


def save_model_dir(
    path: str | Path,
    graph: PruningGraph,
    profiles: GroupProfiles,
    evaluations: Evaluations | None,
) -> None:
    """Writes a model directory, made where missing; each file is there whole or not at all.

    Raises:
        ValueError: profiles or evaluations are not of this graph.
    """
    _check(graph, profiles)
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    if evaluations is not None:
        save_evaluations(folder / EVALUATIONS, evaluations, graph)
    else:
        (folder / EVALUATIONS).unlink(missing_ok=True)
    write_npz(
        folder / "profiles.npz",
        {
            "fingerprint": np.array(profiles.fingerprint),
            "levels": profiles.levels,
            "level_count": profiles.level_count,
            "base_loss": np.array(profiles.base_loss),
            "image_count": np.array(profiles.image_count),
            **_present("energy_loss", profiles.energy_loss),
            **_present("measured_loss", profiles.measured_loss),
        },
    )
    write_atomic(folder / "graph.json", graph.to_json().encode() + b"\n")


def load_model_dir(path: str | Path) -> RecordedModel:
    """Reads a model directory; `evaluations.parquet` may be missing.

    Raises:
        InputError: a file is missing, damaged, or not of the same model.
        MissingExtraError: evaluations are there, and pyarrow is not.
    """
    folder = Path(path)
    try:
        graph = PruningGraph.from_json((folder / "graph.json").read_text(encoding="utf-8"))
        data = read_npz(folder / "profiles.npz")
        profiles = GroupProfiles(
            fingerprint=str(data["fingerprint"]),
            levels=data["levels"].astype(np.int64),
            level_count=data["level_count"].astype(np.int64),
            energy_loss=_floats(data.get("energy_loss")),
            measured_loss=_floats(data.get("measured_loss")),
            base_loss=float(data["base_loss"]),
            image_count=int(data["image_count"]),
        )
        _check(graph, profiles)
    except (OSError, KeyError, ValueError) as error:
        raise InputError(
            f"{folder} is no model directory ({error}); record the model again"
        ) from error
    path = folder / EVALUATIONS
    return RecordedModel(graph, profiles, load_evaluations(path, graph) if path.exists() else None)


def _check(graph: PruningGraph, profiles: GroupProfiles) -> None:
    if profiles.fingerprint != graph.fingerprint:
        raise ValueError(
            f"profiles are of graph {profiles.fingerprint[:12]}, not {graph.fingerprint[:12]}"
        )
    groups = len(graph.groups)
    if profiles.levels.ndim != 2 or len(profiles.levels) != groups:
        raise ValueError(f"profiles have levels {profiles.levels.shape}, graph has {groups} groups")
    if profiles.level_count.shape != (groups,):
        raise ValueError(
            f"level_count has shape {profiles.level_count.shape}, expected {(groups,)}"
        )
    for name, curve in (("energy", profiles.energy_loss), ("measured", profiles.measured_loss)):
        if curve is not None and curve.shape[-2:] != profiles.levels.shape:
            raise ValueError(f"{name}_loss has shape {curve.shape}, levels {profiles.levels.shape}")


def _present(name: str, array: FloatArray | None) -> dict[str, FloatArray]:
    return {} if array is None else {name: array}


def _floats(array: NDArray[Any] | None) -> FloatArray | None:
    return None if array is None else array.astype(np.float64)


def objective_of(recorded: RecordedModel, *, seed: int = 0) -> Objective:
    """The surrogate of what was recorded; the additive objective where that is too little."""
    profiles, evaluations = recorded.profiles, recorded.evaluations
    curve = loss_curve(profiles, recorded.graph)
    if evaluations is None or len(evaluations.keeps) < LEAST_RECORDS:
        return AdditiveObjective(profiles.levels, curve)
    return SurrogateObjective.fit(
        profiles.levels,
        curve,
        evaluations.keeps,
        evaluations.increase,
        increase_se=evaluations.loss_se,
        seed=seed,
    )
