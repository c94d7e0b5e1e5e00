"""Recording what plans lose on a real model: the material that policies are trained on.

First every group is pruned alone, on one set of images: the profile, which is what a policy will
see. Then whole plans (`propose`) are evaluated on other images, which is what it will be judged by.

A recording goes on where it was killed: everything lies in the model directory after every batch,
and the plans of a batch follow from the seed and the batches before, so that an interrupted
recording ends as one that was not. Devices and policy may be others when it goes on: whose plans
the later ones are stands in their rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from onnx import numpy_helper

from rlprune.errors import ConflictError, InputError, NotFoundError
from rlprune.files import read_npz, write_npz
from rlprune.graph.from_onnx import OnnxTrace
from rlprune.graph.types import IntArray
from rlprune.latency.macs import macs_tables
from rlprune.latency.tables import LatencyTables
from rlprune.latency.types import MACS_DEVICE
from rlprune.policy.base import Policy
from rlprune.recording.evaluations import FORMAT, Evaluations, load_evaluations, save_evaluations
from rlprune.recording.evaluations import pyarrow as require_pyarrow
from rlprune.recording.model_dir import EVALUATIONS, RecordedModel, load_model_dir, save_model_dir
from rlprune.recording.pool import EvaluationPool, evaluation_pool
from rlprune.recording.propose import PlanProposer, Proposal
from rlprune.sensitivity.calibration import CalibrationSet
from rlprune.sensitivity.energy import energy_profiles
from rlprune.sensitivity.evaluate import Evaluation
from rlprune.sensitivity.measured import single_group_plans, with_losses
from rlprune.sensitivity.types import GroupProfiles, keep_levels
from rlprune.solver.task import PruningTask

if TYPE_CHECKING:
    from rlprune.store import Store

OnProgress = Callable[[str, int, int], None]
"""(`profile` or `evaluations`, done, of)."""

PACKAGES = ("rlprune", "numpy", "onnx", "onnxruntime")
"""Whose versions are written beside what was recorded."""


@dataclass(frozen=True, slots=True)
class RecordConfig:
    """What is recorded of one model."""

    evaluation_count: int = 300
    """Whole plans to evaluate."""
    batch_size: int = 16
    """Plans proposed at a time: what a kill can lose, and how soon evolution sees its children."""
    round_to: int = 8
    """Keep levels are multiples of this."""
    worker_count: int = 0
    """Ray actors that evaluate in parallel; 0 evaluates in this process."""
    seed: int = 0


def record_model(
    path: str | Path,
    trace: OnnxTrace,
    profile_images: CalibrationSet,
    objective_images: CalibrationSet,
    *,
    config: RecordConfig | None = None,
    tables: Sequence[LatencyTables] = (),
    policy: Policy | None = None,
    provenance: Mapping[str, str] | None = None,
    on_progress: OnProgress | None = None,
) -> RecordedModel:
    """Records one model into the model directory `path` (`rlprune.recording.model_dir`).

    Args:
        profile_images: what the profile is measured on.
        objective_images: what plans are judged on; must share no image with `profile_images`.
        tables: the costs that budgets are drawn of (`proposal_tables`), a device each; MACs if none
            are given.
        policy: proposes plans, too: recordings should know the places where policies go.
        provenance: of weights and images, for the reader; written beside what was recorded.
        on_progress: called after every evaluation. Raising from it, as Ctrl+C does, loses the
            running batch and nothing else.

    Raises:
        InputError: the two sets of images overlap.
        ConflictError: `path` holds a recording of another model, other images or another seed.
        MissingExtraError: the extra `train` is not installed.
        UnavailableError: the workers died.
    """
    config = RecordConfig() if config is None else config
    require_pyarrow()
    shared = _image_hashes(profile_images) & _image_hashes(objective_images)
    if shared:
        raise InputError(
            f"{len(shared)} images are in both sets; profile and objective need images apart"
        )
    folder = Path(path)
    levels, level_count = keep_levels(trace.graph, round_to=config.round_to)
    tables = tables or [macs_tables(trace.graph, levels, level_count)]
    if any(not np.array_equal(one.levels, levels) for one in tables):
        raise ValueError(f"tables are not over the levels of round_to {config.round_to}")
    about = {
        **(provenance or {}),
        **_conditions(profile_images, objective_images, config.seed),
        "digest": _digest(trace, profile_images, objective_images, levels, config),
    }
    known = _known(folder, trace, about)
    if known is not None and len(known.keeps) >= config.evaluation_count:
        return load_model_dir(folder)
    images = {"profile": profile_images, "evaluations": objective_images}
    with evaluation_pool(trace, images, config.worker_count) as pool:
        if known is None:
            base_loss = pool.base("evaluations").loss
            known = Evaluations.none(len(trace.graph.groups), base_loss, about)
            folder.mkdir(parents=True, exist_ok=True)
            save_evaluations(folder / EVALUATIONS, known, trace.graph)
        profiles = _profile(folder, trace, pool, profile_images, known, config, on_progress)
        tasks = [PruningTask(trace.graph, one, profiles) for one in tables]
        known = _evaluate(folder, tasks, pool, known, policy, config, on_progress)
    return RecordedModel(trace.graph, profiles, known)


def proposal_tables(
    trace: OnnxTrace, devices: Sequence[str], *, store: Store, round_to: int = 8
) -> list[LatencyTables]:
    """What plans cost in MACs, and on each device as the store has it now.

    Raises:
        NotFoundError: a device is not in the store, or has not measured this model.
    """
    from rlprune.planning import latency_model

    levels, level_count = keep_levels(trace.graph, round_to=round_to)
    tables = [macs_tables(trace.graph, levels, level_count)]
    for device in dict.fromkeys(devices):
        if device == MACS_DEVICE:
            continue
        store.device(device)
        model = latency_model(store, device)
        if not model.knows(trace.graph):
            raise NotFoundError(
                f"device {device!r} has not measured this model; "
                f"`rlprune plan MODEL --device {device}` has it measured",
                field="device",
            )
        tables.append(model.compile(trace.graph, levels, level_count))
    return tables


def _profile(
    folder: Path,
    trace: OnnxTrace,
    pool: EvaluationPool,
    images: CalibrationSet,
    known: Evaluations,
    config: RecordConfig,
    on_progress: OnProgress | None,
) -> GroupProfiles:
    """The measured profile, from the directory if it is complete there."""
    if (folder / "graph.json").exists():
        return load_model_dir(folder).profiles
    part = folder / "profile.part.npz"
    levels, level_count = keep_levels(trace.graph, round_to=config.round_to)
    plans = single_group_plans(levels, level_count)
    done = _load_rows(part)
    for start in range(len(done), len(plans), config.batch_size):
        batch = []
        for evaluation in pool.evaluate("profile", plans[start : start + config.batch_size]):
            batch.append(evaluation)
            if on_progress is not None:
                on_progress("profile", start + len(batch), len(plans))
        done += batch
        _save_rows(part, done)
    energy = energy_profiles(trace, levels, level_count)
    profiles = with_losses(
        energy,
        plans,
        np.array([evaluation.fold_divergences for evaluation in done]),
        base_loss=pool.base("profile").loss,
        image_count=len(images),
    )
    save_model_dir(folder, trace.graph, profiles, known)
    part.unlink(missing_ok=True)
    return profiles


def _evaluate(
    folder: Path,
    tasks: Sequence[PruningTask],
    pool: EvaluationPool,
    known: Evaluations,
    policy: Policy | None,
    config: RecordConfig,
    on_progress: OnProgress | None,
) -> Evaluations:
    while len(known.keeps) < config.evaluation_count:
        start = len(known.keeps)
        rng = np.random.default_rng([config.seed, start])
        count = min(config.batch_size, config.evaluation_count - start)
        proposals = PlanProposer(tasks, known, policy).propose(count, rng)
        if not proposals:
            break
        found = []
        plans = np.array([proposal.keeps for proposal in proposals])
        for evaluation in pool.evaluate("evaluations", plans):
            found.append(evaluation)
            if on_progress is not None:
                on_progress("evaluations", start + len(found), config.evaluation_count)
        known = _extended(known, proposals, found)
        save_evaluations(folder / EVALUATIONS, known, tasks[0].graph)
    return known


def _extended(
    known: Evaluations, proposals: Sequence[Proposal], found: Sequence[Evaluation]
) -> Evaluations:
    batch = int(known.batch.max(initial=-1)) + 1
    return replace(
        known,
        keeps=np.concatenate([known.keeps, [proposal.keeps for proposal in proposals]]),
        loss=np.append(known.loss, [evaluation.loss for evaluation in found]),
        loss_se=np.append(known.loss_se, [evaluation.loss_se for evaluation in found]),
        divergence=np.append(known.divergence, [evaluation.divergence for evaluation in found]),
        accuracy=np.append(known.accuracy, [evaluation.accuracy for evaluation in found]),
        source=np.append(known.source, [proposal.source for proposal in proposals]),
        device=np.append(known.device, [proposal.device for proposal in proposals]),
        budget=np.append(known.budget, [proposal.budget for proposal in proposals]),
        batch=np.append(known.batch, np.full(len(found), batch)),
    )


def _known(folder: Path, trace: OnnxTrace, about: Mapping[str, str]) -> Evaluations | None:
    """What the directory holds of this recording; None where it holds nothing yet.

    Raises:
        ConflictError: it holds something else.
    """
    path = folder / EVALUATIONS
    if not path.exists() and not (folder / "graph.json").exists():
        return None
    try:
        known = load_evaluations(path, trace.graph)
    except InputError as error:
        raise ConflictError(f"{error}, into another directory") from error
    if known.about.get("digest") != about["digest"]:
        raise ConflictError(
            f"{folder} holds a recording of another model, other images or another seed; "
            "record into another directory"
        )
    return replace(known, about=about)


def _conditions(
    profile_images: CalibrationSet, objective_images: CalibrationSet, seed: int
) -> dict[str, str]:
    """What a reader should know that nobody needs to be told."""
    versions = []
    for name in PACKAGES:
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    both = [array for one in (profile_images, objective_images) for array in (one.x, one.labels)]
    return {
        "seed": str(seed),
        "profile_images": str(len(profile_images)),
        "objective_images": str(len(objective_images)),
        "images_sha256": _hash_of(array.tobytes() for array in both),
        "versions": ", ".join(versions),
        "date": datetime.now(UTC).date().isoformat(),
    }


def _digest(
    trace: OnnxTrace,
    profile_images: CalibrationSet,
    objective_images: CalibrationSet,
    levels: IntArray,
    config: RecordConfig,
) -> str:
    """Of everything that decides what is recorded, but not how much of it nor whose plans."""
    # Weights by value, not the file: names in it are an exporter's and a version's own.
    weights = [numpy_helper.to_array(tensor) for tensor in trace.model.graph.initializer]
    large = [weight.tobytes() for weight in weights if weight.size >= 64]
    parts = [FORMAT.encode(), b"".join(sorted(hashlib.sha256(weight).digest() for weight in large))]
    for images in (profile_images, objective_images):
        parts += [images.x.tobytes(), images.labels.tobytes()]
    parts += [levels.tobytes(), f"{config.seed} {config.batch_size}".encode()]
    return _hash_of(parts)


def _hash_of(parts: Iterable[bytes]) -> str:
    """Of parts that cannot run into each other."""
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


def _image_hashes(images: CalibrationSet) -> set[bytes]:
    return {hashlib.sha256(image.tobytes()).digest() for image in images.x}


def _save_rows(path: Path, rows: Sequence[Evaluation]) -> None:
    names = [field.name for field in fields(Evaluation)]
    write_npz(path, {name: np.array([getattr(row, name) for row in rows]) for name in names})


def _load_rows(path: Path) -> list[Evaluation]:
    if not path.exists():
        return []
    try:
        data = read_npz(path)
        return [
            Evaluation(**dict(zip(data, row, strict=True)))
            for row in zip(*data.values(), strict=True)
        ]
    except (OSError, TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error}); remove it to profile again") from error
