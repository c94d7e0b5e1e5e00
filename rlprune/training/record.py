"""Recording what plans lose on a real model: the material that policies are trained on.

First every group is pruned alone, on one set of images: the profile, which is what a policy will
see. Then whole plans (`propose`) are evaluated on other images, which is what it will be judged by.

A recording goes on where it was killed: everything lies in the model directory after every batch,
and the plans of a batch follow from the seed and the batches before, so that an interrupted
recording ends as one that was not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from onnx import numpy_helper

from rlprune.errors import ConflictError, InputError, UnavailableError
from rlprune.graph.from_onnx import OnnxTrace, trace_onnx
from rlprune.graph.types import IntArray
from rlprune.latency.macs import macs_tables
from rlprune.latency.tables import LatencyTables
from rlprune.plans import write_atomic
from rlprune.profile.calibration import Calibration
from rlprune.profile.energy import energy_profiles
from rlprune.profile.evaluate import Evaluation, Evaluator
from rlprune.profile.measured import single_group_plans, with_losses
from rlprune.profile.types import GroupProfiles, keep_levels
from rlprune.task.task import PruningTask
from rlprune.task.taskdir import (
    Evaluations,
    RecordedModel,
    load_model_dir,
    read_npz,
    save_model_dir,
    write_npz,
)
from rlprune.training.propose import MIX, PlanProposer

FORMAT = "rlprune.recording/1"
EVALUATION_TIMEOUT_SEC = 600.0
"""Deadline of one evaluation in a worker."""

OnProgress = Callable[[str, int, int], None]
"""(`profile` or `evaluations`, done, of)."""


@dataclass(frozen=True, slots=True)
class RecordConfig:
    """What is recorded of one model."""

    evaluation_count: int = 300
    """Whole plans to evaluate."""
    batch_size: int = 15
    """Plans proposed at a time: what a kill can lose, and how soon evolution sees its children."""
    round_to: int = 8
    """Keep levels are multiples of this."""
    worker_count: int = 0
    """Ray actors that evaluate in parallel; 0 evaluates in this process."""
    seed: int = 0


def record_model(
    path: str | Path,
    trace: OnnxTrace,
    profile_images: Calibration,
    objective_images: Calibration,
    *,
    config: RecordConfig | None = None,
    tables: LatencyTables | None = None,
    provenance: dict[str, str] | None = None,
    on_progress: OnProgress | None = None,
) -> RecordedModel:
    """Records one model into the model directory `path` (`rlprune.task.taskdir`).

    Args:
        profile_images: what the profile is measured on.
        objective_images: what plans are judged on; must share no image with `profile_images`.
        tables: the cost that budgets are drawn of, over `keep_levels(graph, round_to=...)`; MACs by
            default.
        provenance: written to `recording.json` beside what was recorded, for the reader.
        on_progress: called after every evaluation. Raising from it, as Ctrl+C does, loses the
            running batch and nothing else.

    Raises:
        InputError: the two sets of images overlap.
        ConflictError: `path` holds a recording of another model, other images or another seed.
        UnavailableError: the workers died.
    """
    config = RecordConfig() if config is None else config
    overlap = _fingerprints(profile_images) & _fingerprints(objective_images)
    if overlap:
        raise InputError(
            f"{len(overlap)} images are in both sets; profile and objective need images apart"
        )
    folder = Path(path)
    levels, level_count = keep_levels(trace.graph, round_to=config.round_to)
    tables = macs_tables(trace.graph, levels, level_count) if tables is None else tables
    digest = _digest(trace, profile_images, objective_images, config, tables)
    _claim(folder, digest, config, provenance or {})
    images = {"profile": profile_images, "evaluations": objective_images}
    with _pool(trace, images, config.worker_count) as pool:
        profiles = _profile(folder, trace, pool, levels, level_count, profile_images, on_progress)
        task = PruningTask(trace.graph, tables, profiles)
        return _evaluate(folder, task, pool, config, on_progress)


def _profile(
    folder: Path,
    trace: OnnxTrace,
    pool: _Pool,
    levels: IntArray,
    level_count: IntArray,
    images: Calibration,
    on_progress: OnProgress | None,
) -> GroupProfiles:
    """The measured profile, from the directory if it is complete there."""
    if (folder / "graph.json").exists():
        return replace(load_model_dir(folder).profiles, fingerprint=trace.graph.fingerprint)
    part = folder / "profile.part.npz"
    base = pool.base("profile")
    plans = single_group_plans(levels, level_count)
    done = _load_rows(part)
    for evaluation in pool.evaluate("profile", plans[len(done) :]):
        done.append(evaluation)
        _save_rows(part, done)
        if on_progress is not None:
            on_progress("profile", len(done), len(plans))
    profiles = with_losses(
        energy_profiles(trace, levels, level_count), plans, done, base, len(images)
    )
    save_model_dir(folder, trace.graph, profiles, None)
    part.unlink(missing_ok=True)
    return profiles


def _evaluate(
    folder: Path,
    task: PruningTask,
    pool: _Pool,
    config: RecordConfig,
    on_progress: OnProgress | None,
) -> RecordedModel:
    known = load_model_dir(folder).evaluations
    if known is None:
        known = Evaluations(
            keeps=np.zeros((0, task.group_count), dtype=np.int64),
            loss=np.zeros(0),
            loss_se=np.zeros(0),
            accuracy=np.zeros(0),
            base_loss=pool.base("evaluations").loss,
            source=np.zeros(0, dtype=np.str_),
        )
    while len(known.keeps) < config.evaluation_count:
        start = len(known.keeps)
        rng = np.random.default_rng([config.seed, start])
        count = min(config.batch_size, config.evaluation_count - start)
        proposals = PlanProposer(task, known).propose(count, rng)
        if not proposals:
            break
        plans = np.array([keeps for keeps, _ in proposals])
        found = []
        for evaluation in pool.evaluate("evaluations", plans):
            found.append(evaluation)
            if on_progress is not None:
                on_progress("evaluations", start + len(found), config.evaluation_count)
        known = _extended(known, plans, found, [source for _, source in proposals])
        save_model_dir(folder, task.graph, task.profiles, known)
    return RecordedModel(task.graph, task.profiles, known)


def _extended(
    known: Evaluations, plans: IntArray, found: Sequence[Evaluation], sources: Sequence[str]
) -> Evaluations:
    return replace(
        known,
        keeps=np.concatenate([known.keeps, plans]),
        loss=np.append(known.loss, [evaluation.loss for evaluation in found]),
        loss_se=np.append(known.loss_se, [evaluation.loss_se for evaluation in found]),
        accuracy=np.append(known.accuracy, [evaluation.accuracy for evaluation in found]),
        source=np.append(known.source, list(sources)).astype(np.str_),
    )


class _Pool(Protocol):
    """What evaluates plans on named sets of images."""

    def base(self, images: str) -> Evaluation:
        """The unpruned model's evaluation."""
        ...

    def evaluate(self, images: str, plans: IntArray) -> Iterable[Evaluation]:
        """Evaluations of plans [N, G], in their order."""
        ...


@dataclass
class _Worker:
    """Evaluates in this process; makes an evaluator when its images are first asked for."""

    model: bytes
    """A model whose trace is the one recorded: traced again where it is used."""
    images: dict[str, Calibration]
    evaluators: dict[str, Evaluator] = field(default_factory=dict)

    def evaluator(self, images: str) -> Evaluator:
        if images not in self.evaluators:
            from rlprune.runtime import get_runtime

            trace = trace_onnx(self.model)
            self.evaluators = {images: Evaluator(trace, self.images[images], runtime=get_runtime())}
        return self.evaluators[images]

    def base(self, images: str) -> Evaluation:
        return self.evaluator(images).base

    def evaluate_one(self, images: str, keeps: IntArray) -> Evaluation:
        return self.evaluator(images).evaluate(keeps)

    def evaluate(self, images: str, plans: IntArray) -> Iterator[Evaluation]:
        for keeps in plans:
            yield self.evaluate_one(images, keeps)


@dataclass(frozen=True)
class _RayPool:
    """Workers in processes of their own; a plan whose worker died is given to another."""

    workers: list[Any]

    def base(self, images: str) -> Evaluation:
        return self._wait(self.workers[0].base.remote(images))

    def evaluate(self, images: str, plans: IntArray) -> Iterator[Evaluation]:
        count = len(self.workers)
        calls = [
            self.workers[index % count].evaluate_one.remote(images, keeps)
            for index, keeps in enumerate(plans)
        ]
        for call in calls:
            yield self._wait(call)

    @staticmethod
    def _wait(call: Any) -> Evaluation:
        import ray

        try:
            evaluation: Evaluation = ray.get(call, timeout=EVALUATION_TIMEOUT_SEC)
        except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError) as error:
            raise UnavailableError(
                f"a recording worker died or hung ({type(error).__name__}); record again to go on"
            ) from error
        return evaluation


@contextmanager
def _pool(trace: OnnxTrace, images: dict[str, Calibration], worker_count: int) -> Iterator[_Pool]:
    model = trace.model.SerializeToString()
    if worker_count == 0:
        yield _Worker(model, images)
        return
    from rlprune.training.population import ray_session

    with ray_session(None):
        import ray

        shared = ray.put(images)
        # A worker that dies is started again and its calls repeated; evaluations are pure.
        actor = ray.remote(num_cpus=1, max_restarts=2, max_task_retries=2)(_Worker)
        workers = [actor.remote(model, shared) for _ in range(worker_count)]
        try:
            yield _RayPool(workers)
        finally:
            for worker in workers:
                ray.kill(worker, no_restart=True)


def _claim(folder: Path, digest: str, config: RecordConfig, provenance: dict[str, str]) -> None:
    """Marks the directory as holding this recording; refuses one that holds another."""
    path = folder / "recording.json"
    if path.exists():
        try:
            held = json.loads(path.read_text(encoding="utf-8"))["digest"]
        except (ValueError, KeyError, TypeError) as error:
            raise ConflictError(f"{path} is damaged; record into another directory") from error
        if held != digest:
            raise ConflictError(
                f"{folder} holds a recording of another model, other images or another seed; "
                "record into another directory"
            )
    folder.mkdir(parents=True, exist_ok=True)
    about = {"format": FORMAT, "digest": digest, "seed": config.seed, "mix": MIX, **provenance}
    write_atomic(path, (json.dumps(about, indent=1) + "\n").encode())


def _digest(
    trace: OnnxTrace,
    profile_images: Calibration,
    objective_images: Calibration,
    config: RecordConfig,
    tables: LatencyTables,
) -> str:
    """Of everything that decides what is recorded, but not how much of it."""
    # Weights by value, not the file: names in it are an exporter's and a version's own.
    weights = [numpy_helper.to_array(tensor) for tensor in trace.model.graph.initializer]
    large = [weight.tobytes() for weight in weights if weight.size >= 64]
    parts = [b"".join(sorted(hashlib.sha256(weight).digest() for weight in large))]
    for images in (profile_images, objective_images):
        parts += [images.x.tobytes(), images.y.tobytes()]
    parts += [tables.levels.tobytes(), tables.level_count.tobytes()]
    parts.append(f"{config.seed} {config.batch_size}".encode())
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


def _fingerprints(images: Calibration) -> set[bytes]:
    return {hashlib.sha256(image.tobytes()).digest() for image in images.x}


def _save_rows(path: Path, rows: Sequence[Evaluation]) -> None:
    write_npz(
        path,
        {
            "scalars": np.array([[row.loss, row.loss_se, row.accuracy] for row in rows]),
            "folds": np.array([row.fold_losses for row in rows]),
        },
    )


def _load_rows(path: Path) -> list[Evaluation]:
    if not path.exists():
        return []
    data = read_npz(path)
    return [
        Evaluation(float(loss), float(loss_se), float(accuracy), folds)
        for (loss, loss_se, accuracy), folds in zip(data["scalars"], data["folds"], strict=True)
    ]
