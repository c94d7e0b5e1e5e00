"""The on-disk form of what training needs of one model: graph, profiles, recorded evaluations.

A model directory holds `graph.json`, `profiles.npz` and `evaluations.npz`. No weights, no images,
and nothing that is unpickled when read, so a directory from elsewhere can do no harm.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlprune.errors import InputError
from rlprune.graph.types import FloatArray, IntArray, PruningGraph
from rlprune.plans import write_atomic
from rlprune.profile.types import GroupProfiles


@dataclass(frozen=True)
class Evaluations:
    """Losses of whole plans of one model, after statistics correction, on images of their own.

    The images are disjoint from those the profiles were measured on (ARCHITECTURE section 5).
    """

    keeps: IntArray
    """Units kept [N, G]."""
    loss: FloatArray
    """Cross-entropy of the pruned model [N], nats."""
    loss_se: FloatArray
    """Standard error of `loss` [N]."""
    accuracy: FloatArray
    """Share (0-1) of the images classified rightly [N]."""
    base_loss: float
    """Cross-entropy of the unpruned model on the same images, nats."""
    source: NDArray[np.str_]
    """What proposed each plan [N], e.g. `knapsack` or `random`."""

    def __post_init__(self) -> None:
        count = len(self.keeps)
        for name in ("loss", "loss_se", "accuracy", "source"):
            shape = getattr(self, name).shape
            if shape != (count,):
                raise ValueError(f"{name} has shape {shape}, expected {(count,)} as keeps has rows")

    @property
    def increase(self) -> FloatArray:
        """Loss above the unpruned model [N], nats; what an `Objective` predicts."""
        return self.loss - self.base_loss


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
    _check(graph, profiles, evaluations)
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
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
    if evaluations is not None:
        write_npz(
            folder / "evaluations.npz",
            {
                "keeps": evaluations.keeps,
                "loss": evaluations.loss,
                "loss_se": evaluations.loss_se,
                "accuracy": evaluations.accuracy,
                "base_loss": np.array(evaluations.base_loss),
                "source": np.asarray(evaluations.source, dtype=np.str_),
            },
        )
    else:
        (folder / "evaluations.npz").unlink(missing_ok=True)
    write_atomic(folder / "graph.json", graph.to_json().encode() + b"\n")


def load_model_dir(path: str | Path) -> RecordedModel:
    """Reads a model directory; `evaluations.npz` may be missing.

    Raises:
        InputError: a file is missing, damaged, or not of the same model.
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
        evaluations = None
        if (folder / "evaluations.npz").exists():
            data = read_npz(folder / "evaluations.npz")
            evaluations = Evaluations(
                keeps=data["keeps"].astype(np.int64),
                loss=data["loss"].astype(np.float64),
                loss_se=data["loss_se"].astype(np.float64),
                accuracy=data["accuracy"].astype(np.float64),
                base_loss=float(data["base_loss"]),
                source=data["source"].astype(np.str_),
            )
        _check(graph, profiles, evaluations)
    except (OSError, KeyError, ValueError) as error:
        raise InputError(
            f"{folder} is no model directory ({error}); record the model again"
        ) from error
    return RecordedModel(graph, profiles, evaluations)


def write_npz(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Writes named arrays as compressed npz, whole or not at all."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **dict(arrays))
    write_atomic(path, buffer.getvalue())


def read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """Reads every array of an npz file; nothing is unpickled.

    Raises:
        ValueError: damaged, or holding objects. OSError: not readable.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as data:
            return {name: data[name] for name in data.files}
    except (zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"{path.name} is damaged: {error}") from error


def _check(graph: PruningGraph, profiles: GroupProfiles, evaluations: Evaluations | None) -> None:
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
    if evaluations is not None and evaluations.keeps.shape[1:] != (groups,):
        raise ValueError(f"keeps have shape {evaluations.keeps.shape}, graph has {groups} groups")


def _present(name: str, array: FloatArray | None) -> dict[str, FloatArray]:
    return {} if array is None else {name: array}


def _floats(array: NDArray[Any] | None) -> FloatArray | None:
    return None if array is None else array.astype(np.float64)
