"""What whole plans of one model lost when they were evaluated, and the Parquet file that keeps it.

One row per plan, for any tool that reads Parquet; the file's own metadata says of which graph, on
which images, with what, and where the weights are from (docs/recording.md). pyarrow comes with the
extra `train` and is imported where a file is read or written, so that planning does without.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlprune.errors import InputError, MissingExtraError
from rlprune.files import write_atomic
from rlprune.graph.types import FloatArray, IntArray, PruningGraph

FORMAT = "rlprune.recording/3"
"""Also part of what tells recordings apart: a new one where what an evaluation computes is new."""


@dataclass(frozen=True)
class Evaluations:
    """Losses of whole plans of one model, after reconstruction, on images of their own.

    The images are disjoint from those the profiles were measured on (ARCHITECTURE section 5).
    """

    keeps: IntArray
    """Units kept [N, G]."""
    loss: FloatArray
    """Of the pruned model [N], nats."""
    loss_se: FloatArray
    """Standard error of `loss` [N]."""
    divergence: FloatArray
    """Of the pruned model's answers from the unpruned one's [N], nats."""
    accuracy: FloatArray
    """Share (0-1) of the images classified rightly [N]."""
    base_loss: float
    """Of the unpruned model on the same images, nats."""
    source: NDArray[np.str_]
    """What proposed each plan [N], e.g. `knapsack` or `policy:learned/1f3a9c`."""
    device: NDArray[np.str_]
    """Whose costs it was proposed by [N]; empty where none were looked at."""
    budget: FloatArray
    """What it was to cost at most there [N], ms (millions of MACs); NaN where it had no budget."""
    batch: IntArray
    """Proposals of one batch knew the evaluations of all before it [N]."""
    about: Mapping[str, str] = field(default_factory=dict)
    """Where all this is from: digest, seed, images, versions, weights, licence, date."""

    def __post_init__(self) -> None:
        count = len(self.keeps)
        names = ("loss", "loss_se", "divergence", "accuracy", "source", "device", "budget", "batch")
        for name in names:
            shape = getattr(self, name).shape
            if shape != (count,):
                raise ValueError(f"{name} has shape {shape}, expected {(count,)} as keeps has rows")

    @staticmethod
    def none(group_count: int, base_loss: float, about: Mapping[str, str]) -> Evaluations:
        """Nothing evaluated yet but the unpruned model."""
        return Evaluations(
            keeps=np.zeros((0, group_count), dtype=np.int64),
            loss=np.zeros(0),
            loss_se=np.zeros(0),
            divergence=np.zeros(0),
            accuracy=np.zeros(0),
            base_loss=base_loss,
            source=np.zeros(0, dtype=np.str_),
            device=np.zeros(0, dtype=np.str_),
            budget=np.zeros(0),
            batch=np.zeros(0, dtype=np.int64),
            about=about,
        )

    @property
    def increase(self) -> FloatArray:
        """Loss above the unpruned model [N], nats; what an `Objective` predicts."""
        return self.loss - self.base_loss


def save_evaluations(path: Path, evaluations: Evaluations, graph: PruningGraph) -> None:
    """Writes the file, whole or not at all.

    Raises:
        MissingExtraError: without pyarrow.
        ValueError: the plans are not of this graph.
    """
    pa = pyarrow()
    if evaluations.keeps.shape[1:] != (len(graph.groups),):
        raise ValueError(
            f"keeps have shape {evaluations.keeps.shape}, graph has {len(graph.groups)} groups"
        )
    metadata = {
        **evaluations.about,
        "format": FORMAT,
        "fingerprint": graph.fingerprint,
        "base_loss": repr(float(evaluations.base_loss)),
    }
    columns = {
        "keeps": evaluations.keeps.tolist(),
        "loss": evaluations.loss,
        "loss_se": evaluations.loss_se,
        "divergence": evaluations.divergence,
        "accuracy": evaluations.accuracy,
        "source": evaluations.source.tolist(),
        "device": [device or None for device in evaluations.device.tolist()],
        "budget": pa.array(evaluations.budget, from_pandas=True),  # NaN as null
        "batch": evaluations.batch,
    }
    table = pa.table(columns, schema=_schema(pa).with_metadata(metadata))
    buffer = io.BytesIO()
    pa.parquet.write_table(
        table,
        buffer,
        compression="zstd",
        compression_level=19,
        write_page_checksum=True,
    )
    write_atomic(path, buffer.getvalue())


def load_evaluations(path: Path, graph: PruningGraph) -> Evaluations:
    """Reads what `save_evaluations` wrote.

    Raises:
        InputError: missing, damaged, of another format or of another graph.
        MissingExtraError: without pyarrow.
    """
    pa = pyarrow()
    try:
        with path.open("rb") as opened:
            file = pa.parquet.ParquetFile(opened, page_checksum_verification=True)
            table = file.read()
        about = {
            key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()
        }
        if about.get("format") != FORMAT:
            raise ValueError(f"its format is {about.get('format')!r}, not {FORMAT!r}")
        if about["fingerprint"] != graph.fingerprint:
            raise ValueError(
                f"of graph {about['fingerprint'][:12]}, beside graph {graph.fingerprint[:12]}"
            )
        schema = _schema(pa)
        table = table.select(schema.names).cast(schema)
        groups = len(graph.groups)
        rows = [row for row in table["keeps"].to_pylist() if len(row) == groups]
        if len(rows) != table.num_rows:
            raise ValueError(f"plans of other than {groups} groups")
        return Evaluations(
            keeps=np.array(rows, dtype=np.int64).reshape(-1, groups),
            loss=table["loss"].to_numpy(),
            loss_se=table["loss_se"].to_numpy(),
            divergence=table["divergence"].to_numpy(),
            accuracy=table["accuracy"].to_numpy(),
            base_loss=float(about["base_loss"]),
            source=np.array(table["source"].to_pylist(), dtype=np.str_),
            device=np.array(
                [device or "" for device in table["device"].to_pylist()], dtype=np.str_
            ),
            budget=table["budget"].to_numpy(),
            batch=table["batch"].to_numpy().astype(np.int64),
            about={
                key: value
                for key, value in about.items()
                if key not in ("format", "fingerprint", "base_loss")
            },
        )
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{path} holds no recorded evaluations ({reason}); record the model again"
        ) from error


def pyarrow() -> Any:
    """The package, with its Parquet module loaded.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise MissingExtraError("recording and what is recorded", "train") from error
    return pyarrow


def _schema(pa: Any) -> Any:
    """Columns and their types; only `device` and `budget` may be null."""
    return pa.schema(
        [
            pa.field("keeps", pa.list_(pa.field("element", pa.int32(), False)), False),
            pa.field("loss", pa.float64(), False),
            pa.field("loss_se", pa.float64(), False),
            pa.field("divergence", pa.float64(), False),
            pa.field("accuracy", pa.float64(), False),
            pa.field("source", pa.string(), False),
            pa.field("device", pa.string()),
            pa.field("budget", pa.float64()),
            pa.field("batch", pa.int32(), False),
        ]
    )
