"""From a plan to the pruned module that a user wants: cut, reconstructed, tuned, written out.

Everything is checked before the first step. Until the end the output folder holds a checkpoint
only, from which the same call goes on after Ctrl+C or a kill; then, in its place, the weights, the
ONNX file and, last, the report.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rlprune.errors import InputError, MissingExtraError
from rlprune.files import digest, write_atomic
from rlprune.plans import PruningPlan
from rlprune.progress import OnProgress
from rlprune.sensitivity.calibration import CalibrationSet
from rlprune.sensitivity.fit import check_images, fit_inputs, read_images

if TYPE_CHECKING:
    from torch import nn

    from rlprune.finetuning.checkpoint import Accuracy, EpochRecord
    from rlprune.finetuning.loop import TrainConfig

FORMAT = "rlprune.finetuned/1"
WEIGHTS_NAME = "weights.safetensors"
MODEL_NAME = "model.onnx"
REPORT_NAME = "report.json"
CHECKPOINT_NAME = "checkpoint.safetensors"

VALIDATION_RATIO = 0.1
"""Share of the training images set aside where no others are given to validate on."""
REESTIMATE_COUNT = 8192
"""Images that BatchNorm statistics are taken of before training, at most."""

RECONSTRUCT_COUNT = 1024
"""Images that layers are reconstructed on, at most."""


@dataclass(frozen=True)
class FinetuneReport:
    """What came of fine-tuning; the scores are of the validation images."""

    fingerprint: str
    """Of the graph the plan was for."""
    unpruned: Accuracy
    cut: Accuracy
    """Pruned and reconstructed (or, where no layer can be, BatchNorm re-estimated), before any
    training."""
    tuned: Accuracy
    """Of what was written. These images chose the epoch, so judge on others."""
    chosen_epoch: int | None
    """Counted from 1; None where no epoch was better than no training, and that was written."""
    epochs: tuple[EpochRecord, ...]
    seconds: float
    """Of training, in all processes that had a part in it."""
    image_count: int
    validation_count: int
    config: TrainConfig
    augment: str
    macs: int
    params: int

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=2)


def finetune(
    module: nn.Module,
    plan: PruningPlan,
    data: str | Path,
    *,
    out: str | Path,
    validation: str | Path | None = None,
    config: TrainConfig | None = None,
    augment: str = "none",
    checkpoint_sec: float = 60.0,
    on_progress: OnProgress | None = None,
    on_line: Callable[[str], None] | None = None,
) -> FinetuneReport:
    """Cuts `module` as `plan` says, trains it and writes weights, ONNX file and report into `out`.

    The module itself is not changed; with `config.distill_weight` it is the teacher. The same call
    after an interruption goes on from the checkpoint and ends, on as many threads, with the same
    weights bit for bit.

    Args:
        module: trained, as it was when planned.
        data: `.npz` with `x` [N, ...], preprocessed, and `y` [N] to train on.
        out: a folder, made where missing.
        validation: the same, chooses the epoch; a seeded tenth of `data` where left out.
        augment: none, flip, or crop-flip (moved by up to 4 pixels, mirrored or not).
        checkpoint_sec: how much work an interruption may cost.
        on_line: told each result in a line as soon as it is known.

    Raises:
        PlanMismatchError, PlanError: the plan is not this module's.
        InputError: data, settings or the folder's checkpoint are refused, or training diverged.
        MissingExtraError: without the extras "torch" and "device".
    """
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError("fine-tuning", "torch") from error
    from rlprune.finetuning.checkpoint import Checkpoint
    from rlprune.finetuning.loop import AUGMENTS, TrainConfig, fit, reestimate, score
    from rlprune.graph.from_torch import trace_torch
    from rlprune.runtime import get_runtime
    from rlprune.schemes import removal_of, whole_space
    from rlprune.sensitivity.torch_reconstruct import reconstruct_module
    from rlprune.surgery.torch import cut_torch
    from rlprune.torch_state import tensors_of

    config = TrainConfig() if config is None else config
    folder = Path(out)
    _check_folder(folder)
    say = on_line or (lambda line: None)
    if augment not in AUGMENTS:
        raise InputError(f"no augment {augment!r}; give {', '.join(AUGMENTS)}", field="augment")
    train, held = _images(data, validation, config.seed)
    if augment != "none" and train.x.ndim != 4:
        raise InputError(
            f"augment {augment!r} needs images [N, C, H, W], x is {list(train.x.shape)}",
            field="augment",
        )
    trace = trace_torch(module, torch.from_numpy(train.x[:1]))
    for images, what in ((train, "data"), (held, "validation")):
        fit_inputs({"x": images.x}, images.labels, trace.onnx, what=what, least=1)
    plan.check(trace.graph)
    teacher = trace.module.eval()
    small = cut_torch(trace, removal_of(trace.onnx, plan.keeps, plan.schemes))
    folder.mkdir(parents=True, exist_ok=True)

    unpruned = score(teacher, held)
    say(f"unpruned: accuracy {unpruned.accuracy:.2%}, loss {unpruned.loss:.4f} on {len(held)}")
    # Drawn, so that images sorted by class are mixed.
    drawn = np.random.default_rng(config.seed).permutation(len(train))[:REESTIMATE_COUNT]
    samples = train.take(drawn[:RECONSTRUCT_COUNT])
    solved = reconstruct_module(small, trace, plan.keeps, samples, get_runtime(), plan.schemes)
    if not solved.changes:
        reestimate(small, train.take(drawn))
    cut = score(small, held)
    say(f"pruned, not trained: accuracy {cut.accuracy:.2%}, loss {cut.loss:.4f}")

    run = json.dumps([asdict(config), augment, [int(keep) for keep in plan.keeps]])
    arrays = [tensor.detach().cpu().numpy() for tensor in tensors_of(module).values()]
    arrays += [train.x, train.labels, held.x, held.labels]
    parts = [digest(array.tobytes()) for array in arrays]  # one by one, each copied for a moment
    checkpoint = Checkpoint(
        folder / CHECKPOINT_NAME,
        digest(FORMAT, run, *parts),
        checkpoint_sec,
    )
    if checkpoint.path.exists():
        say(f"going on from {checkpoint.path}")

    def tell(record: EpochRecord) -> None:
        assert record.validation is not None
        say(
            f"epoch {record.epoch} of {config.epoch_count}: training loss {record.loss:.4f}, "
            f"validation accuracy {record.validation.accuracy:.2%}, "
            f"loss {record.validation.loss:.4f}, {record.seconds:.0f} s"
        )

    epochs = fit(
        small,
        train,
        config,
        augment=AUGMENTS[augment],
        validation=held,
        teacher=teacher if config.distill_weight else None,
        checkpoint=checkpoint,
        on_epoch=tell,
        on_step=None if on_progress is None else lambda done, of: on_progress("training", done, of),
    )
    best, chosen = cut, None
    for record in epochs:
        if record.validation is not None and record.validation.beats(best):
            best, chosen = record.validation, record.epoch
    space = whole_space(trace.graph, plan.schemes)
    choice = space.choice_of(plan.keeps)
    report = FinetuneReport(
        fingerprint=plan.fingerprint,
        unpruned=unpruned,
        cut=cut,
        tuned=best,
        chosen_epoch=chosen,
        epochs=tuple(epochs),
        seconds=sum(record.seconds for record in epochs),
        image_count=len(train),
        validation_count=len(held),
        config=config,
        augment=augment,
        macs=int(space.macs(choice)),
        params=int(space.params(choice)),
    )
    _write(folder, small, train.x[:1], report)
    checkpoint.path.unlink(missing_ok=True)
    return report


def _check_folder(folder: Path) -> None:
    """Refuses a folder that cannot be made, or holds what another run has made.

    Raises:
        InputError: it is a file, or holds a report, or weights or a model without a checkpoint.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; give a folder to write to", field="out")
    if (folder / REPORT_NAME).exists():
        raise InputError(
            f"{folder} holds a finished run; write to another folder or delete it", field="out"
        )
    made = [name for name in (WEIGHTS_NAME, MODEL_NAME) if (folder / name).exists()]
    if made and not (folder / CHECKPOINT_NAME).exists():
        raise InputError(
            f"{folder / made[0]} is there and would be written over; write to another folder",
            field="out",
        )


def _write(folder: Path, module: nn.Module, example: Any, report: FinetuneReport) -> None:
    import torch
    from safetensors.torch import save as save_tensors

    from rlprune.graph.from_torch import trace_torch
    from rlprune.sensitivity.batching import open_batch
    from rlprune.surgery.encode import encode
    from rlprune.torch_state import tensors_of

    # Copies, for tied weights may not stand in a file twice.
    state = {name: tensor.clone().contiguous() for name, tensor in tensors_of(module).items()}
    model = open_batch(trace_torch(module, torch.from_numpy(example)).onnx.model)
    write_atomic(folder / WEIGHTS_NAME, save_tensors(state))
    write_atomic(folder / MODEL_NAME, encode(model))
    write_atomic(folder / REPORT_NAME, report.to_json().encode() + b"\n")


def _images(
    data: str | Path, validation: str | Path | None, seed: int
) -> tuple[CalibrationSet, CalibrationSet]:
    """What is trained on, and what chooses the epoch."""
    given = check_images(*read_images(data, what="data"), what="data")
    if validation is not None:
        return given, check_images(*read_images(validation, what="validation"), what="validation")
    order = np.random.default_rng(seed).permutation(len(given))
    count = max(1, round(VALIDATION_RATIO * len(given)))
    return given.take(order[count:]), given.take(order[:count])


def load_module(source: str, weights: str | Path | None = None, *, seed: int = 0) -> nn.Module:
    """The module that `package.module:factory` returns when called, with weights of a file.

    A module is code: this imports and runs the named code, found as by `python` started in this
    folder. The weights file is safetensors, which runs nothing. Weights that the factory draws from
    torch's generator are those of `seed`, so that an interrupted run finds them again.

    Raises:
        InputError: no such code, it fails, returns no module, or the weights are not its own.
    """
    try:
        import torch
        from safetensors import SafetensorError
        from safetensors.torch import load_model
        from torch import nn
    except ImportError as error:
        raise MissingExtraError("loading a torch module", "torch") from error
    name, _, factory = source.partition(":")
    if not name or not factory:
        raise InputError(f"module {source!r}: give package.module:factory", field="module")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        made_by = getattr(importlib.import_module(name), factory)
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            made = made_by()
    except (Exception, SystemExit) as error:
        # Whatever the user's code raises is what is wrong with it.
        raise InputError(f"module {source!r}: {type(error).__name__}: {error}") from error
    if not isinstance(made, nn.Module):
        raise InputError(f"module {source!r} returned a {type(made).__name__}, not a torch module")
    if weights is None:
        return made
    try:
        load_model(made, str(weights))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise InputError(
            f"weights {weights} are not a safetensors file of this module's tensors: "
            f"{' '.join(str(error).split())[:300]}; write one with "
            "safetensors.torch.save_model(module, path)",
            field="weights",
        ) from error
    return made
