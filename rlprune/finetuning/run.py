"""From a plan to the pruned module that a user wants: cut, reconstructed, tuned, written out.

Everything is checked before the first step. Until the end the output folder holds a checkpoint
only, from which the same call goes on after Ctrl+C or a kill; then, in its place, the weights, the
ONNX file and, last, the report. Of a plan for int8 the ONNX file is quantised (`int8`), and the
float file stands beside it.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlprune.errors import InputError, MissingExtraError
from rlprune.files import digest, write_atomic
from rlprune.plans import PruningPlan
from rlprune.progress import OnProgress

if TYPE_CHECKING:
    import onnx
    import torch
    from torch import nn

    from rlprune.finetuning.checkpoint import Accuracy, EpochRecord
    from rlprune.finetuning.data import TuningData
    from rlprune.finetuning.int8 import Quantisation
    from rlprune.finetuning.loop import TrainConfig
    from rlprune.finetuning.objective import DistillLoss, Loss, Metric

FORMAT = "rlprune.finetuned/1"
WEIGHTS_NAME = "weights.safetensors"
MODEL_NAME = "model.onnx"
FLOAT_MODEL_NAME = "model-float.onnx"
"""Beside a quantised one."""
REPORT_NAME = "report.json"
USUAL_DISTILL_WEIGHT = 0.5
CHECKPOINT_NAME = "checkpoint.safetensors"
AWARE_CHECKPOINT_NAME = "checkpoint-int8.safetensors"
"""Of quantisation-aware training; the other stays beside it, at the end of ordinary training."""


@dataclass(frozen=True)
class FinetuneReport:
    """What came of fine-tuning; the scores are of the validation data.

    Where there are none (a loader to train on alone) they are of the training data, and the last
    epoch's weights are written.
    """

    fingerprint: str
    """Of the graph the plan was for."""
    unpruned: Accuracy
    cut: Accuracy
    """Pruned and reconstructed (or, where no layer can be, BatchNorm re-estimated), before any
    training."""
    tuned: Accuracy
    """Of the weights that were written, in float. These data chose the epoch: judge on others."""
    chosen_epoch: int | None
    """Counted from 1; None where no epoch was better than no training, and that was written."""
    epochs: tuple[EpochRecord, ...]
    seconds: float
    """Of training, in all processes that had a part in it."""
    image_count: int
    """Samples to train on."""
    validation_count: int
    """Samples that chose the epoch; 0 where there are none."""
    config: TrainConfig
    augment: str
    macs: int
    params: int
    judged_by: str = "accuracy"
    """What `accuracy` is in all scores: `accuracy`, the user's `metric`, or minus his `loss`."""
    quantisation: Quantisation | None = None
    """Of a plan for int8 what that cost, and the score of the file that was written."""

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=2)


def finetune(
    module: nn.Module,
    plan: PruningPlan,
    data: str | Path | Iterable[Any],
    *,
    out: str | Path,
    validation: str | Path | Iterable[Any] | None = None,
    config: TrainConfig | None = None,
    augment: str = "none",
    loss: Loss | None = None,
    metric: Metric | None = None,
    distill_loss: DistillLoss | None = None,
    torch_device: str = "auto",
    quantisation_aware: str = "auto",
    checkpoint_sec: float = 60.0,
    on_progress: OnProgress | None = None,
    on_line: Callable[[str], None] | None = None,
) -> FinetuneReport:
    """Cuts `module` as `plan` says, trains it and writes weights, ONNX file and report into `out`.

    The module itself is not changed; with `config.distill_weight` it is the teacher. The same call
    after an interruption goes on from the checkpoint. On the CPU, on as many threads, it ends with
    the same weights bit for bit; so it does with a loader whose only randomness is torch's own
    generator (a DataLoader with `shuffle=True`). Otherwise it goes on with other batches.

    Args:
        module: trained, as it was when planned.
        data: `.npz` with `x` [N, ...], preprocessed, and `y` [N] to train on; or a DataLoader, or
            another iterable, of (inputs, targets): inputs are a tensor, a sequence of positional or
            a mapping of keyword arguments, samples first, and targets whatever the loss takes. Its
            batches are its own, not `config.batch_size`.
        out: a folder, made where missing.
        validation: the same, chooses the epoch. Where left out a seeded tenth of a file, and of a
            loader nothing: the last epoch is written.
        config: by default `TrainConfig()`; without distillation where the plan is for an untrained
            network, or there is a loss of one's own and no `distill_loss`.
        augment: none, flip, or crop-flip (moved by up to 4 pixels, mirrored or not); of files.
        loss: of the module's outputs and the targets, to a scalar tensor; cross-entropy where left
            out.
        metric: of the same, to the mean over a batch, higher is better; accuracy where left out,
            with a loss of one's own minus that loss.
        distill_loss: of the module's and the teacher's outputs, to a scalar tensor; or "logits".
            Beside `loss` there is no distillation without it.
        torch_device: where to train: cpu, cuda, cuda:1, or auto (CUDA where there is one). What is
            written is the same, and a checkpoint goes on elsewhere.
        quantisation_aware: of a plan for int8, whether training with int8's rounding follows:
            auto (where quantising loses more than half a point), never or always.
        checkpoint_sec: how much work an interruption may cost.
        on_line: told each result in a line as soon as it is known.

    Raises:
        PlanMismatchError, PlanError: the plan is not this module's.
        ModelError: the pruned module cannot be quantised as the plan wants.
        InputError: data, settings, the device or the folder's checkpoint are refused, or training
            diverged.
        MissingExtraError: without the extras "torch" and "device".
    """
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("fine-tuning", "torch") from error
    from rlprune.finetuning.checkpoint import Checkpoint
    from rlprune.finetuning.data import tuning_data
    from rlprune.finetuning.int8 import Training, check_aware, in_int8
    from rlprune.finetuning.int8_file import Int8Writer
    from rlprune.finetuning.loop import TrainConfig, fit, objective_of
    from rlprune.graph.from_torch import trace_torch
    from rlprune.latency.types import INT8
    from rlprune.runtime import get_runtime
    from rlprune.schemes import removal_of, whole_space
    from rlprune.sensitivity.batching import open_batch
    from rlprune.sensitivity.torch_reconstruct import reconstruct_module
    from rlprune.surgery.pads import with_pads_moved
    from rlprune.surgery.torch import cut_torch
    from rlprune.torch_state import tensors_of

    if config is None:
        weight = usual_distill_weight(plan, own_loss=loss is not None and distill_loss is None)
        config = TrainConfig(distill_weight=weight)
    folder = Path(out)
    _check_folder(folder)
    say = on_line or (lambda line: None)
    device = training_device(torch_device)
    aware = check_aware(quantisation_aware, plan.precision)
    functions: dict[str, Any] = {"loss": loss, "metric": metric, "distill_loss": distill_loss}
    objective = objective_of(config, **functions, taught=config.distill_weight > 0)
    given = tuning_data(data, validation, augment, config.seed)
    config = _with_rate(config, plan, given)
    trace = trace_torch(module, given.example)
    given.check(trace)
    plan.check(trace.graph)
    teacher = copy.deepcopy(trace.module).eval().to(device)  # the trace's stays where it was made
    small = cut_torch(trace, removal_of(trace.onnx, plan.keeps, plan.schemes))
    samples = given.samples(trace)
    writer = None
    if plan.precision == INT8:
        kept = plan.constraints.keep_float
        writer = Int8Writer(small, given.example, trace, samples, kept)
    folder.mkdir(parents=True, exist_ok=True)

    def told(score: Accuracy) -> str:
        return score_text(score, objective.judged_by)

    unpruned = given.score(teacher, objective)
    train_count, held_count = given.counts(0)
    say(f"unpruned: {told(unpruned)} on {held_count or 'the training data'}")
    solved = reconstruct_module(small, trace, plan.keeps, samples, get_runtime(), plan.schemes)
    if not solved.changes:
        given.reestimate(small)
    small.to(device)
    cut = given.score(small, objective)
    say(f"pruned, not trained: {told(cut)}")

    keeps = [int(keep) for keep in plan.keeps]
    run = json.dumps([asdict(config), augment, keeps, plan.schemes])
    named = [f"{name}={_name_of(one)}" for name, one in functions.items()]
    arrays = [tensor.detach().cpu().numpy() for tensor in tensors_of(module).values()]
    parts = [digest(array.tobytes()) for array in arrays]  # one by one, each copied for a moment
    whole = digest(FORMAT, run, *named, *parts, *given.digests)
    checkpoint = Checkpoint(folder / CHECKPOINT_NAME, whole, checkpoint_sec)
    rounding = digest(whole, "int8", *plan.constraints.keep_float)
    aware_checkpoint = Checkpoint(folder / AWARE_CHECKPOINT_NAME, rounding, checkpoint_sec)
    if checkpoint.path.exists():
        say(f"going on from {checkpoint.path}")

    def tell(record: EpochRecord, of: int) -> None:
        held = "" if record.validation is None else f", validation {told(record.validation)}"
        say(
            f"epoch {record.epoch} of {of}: training loss {record.loss:.4f}"
            f"{held}, {record.seconds:.0f} s"
        )

    def steps(what: str) -> Callable[[int, int], None] | None:
        return None if on_progress is None else lambda done, of: on_progress(what, done, of)

    epochs = fit(
        small,
        given.train,
        config,
        augment=given.augment,
        validation=given.validation,
        teacher=teacher if config.distill_weight else None,
        **functions,
        checkpoint=checkpoint,
        on_epoch=lambda record: tell(record, config.epoch_count),
        on_step=steps("training"),
    )
    best, chosen = cut, None
    for record in epochs:
        if record.validation is not None and record.validation.beats(best):
            best, chosen = record.validation, record.epoch
    if given.validation is None:
        best, chosen = given.score(small, objective), len(epochs)
    quantisation, files = None, None
    if writer is not None:
        training = Training(
            given,
            config,
            objective,
            functions,
            teacher if config.distill_weight else None,
            aware_checkpoint,
            tell,
            steps("training for int8"),
            say,
            told,
        )
        quantisation, files = in_int8(small, writer, training, aware)
        if quantisation.written == "aware":
            best = given.score(small, objective)
    train_count, held_count = given.counts(epochs[-1].seen)
    aware_epochs = () if quantisation is None else quantisation.epochs
    space = whole_space(trace.graph, plan.schemes)
    choice = space.choice_of(plan.keeps)
    report = FinetuneReport(
        fingerprint=plan.fingerprint,
        unpruned=unpruned,
        cut=cut,
        tuned=best,
        chosen_epoch=chosen,
        epochs=tuple(epochs),
        seconds=sum(record.seconds for record in (*epochs, *aware_epochs)),
        image_count=train_count,
        validation_count=held_count,
        config=config,
        augment=augment,
        macs=int(space.macs(choice)),
        params=int(space.params(choice)),
        judged_by=objective.judged_by,
        quantisation=quantisation,
    )
    small.cpu()
    if files is None:
        exported = with_pads_moved(trace_torch(small, given.example).onnx.model)
        models = {MODEL_NAME: open_batch(exported)}
    else:
        models = {FLOAT_MODEL_NAME: files.in_float, MODEL_NAME: files.in_int8}
    _write(folder, small, models, report)
    aware_checkpoint.path.unlink(missing_ok=True)
    checkpoint.path.unlink(missing_ok=True)
    return report


def score_text(score: Accuracy, judged_by: str) -> str:
    """A score as it is told to the user."""
    if judged_by == "loss":
        return f"loss {score.loss:.4f}"
    shown = f"{score.accuracy:.2%}" if judged_by == "accuracy" else f"{score.accuracy:.4f}"
    return f"{judged_by} {shown}, loss {score.loss:.4f}"


def training_device(asked: str) -> torch.device:
    """Where to train: `auto` is the CUDA device where there is one.

    Raises:
        InputError: another word, or no such device here.
    """
    import torch

    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", asked):
        raise InputError(
            f"no device {asked!r} to train on; give auto, cpu, cuda or cuda:NUMBER",
            field="torch_device",
        )
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if asked == "auto":
        return torch.device("cuda" if count else "cpu")
    if asked.startswith("cuda"):
        if not count:
            raise InputError("no CUDA device here; give cpu", field="torch_device")
        if int(asked.partition(":")[2] or 0) >= count:
            raise InputError(
                f"no {asked} here, there are {count}: give cuda:0 to cuda:{count - 1}",
                field="torch_device",
            )
    return torch.device(asked)


def usual_distill_weight(plan: PruningPlan, *, own_loss: bool) -> float:
    """Share (0-1) of the loss that the unpruned network teaches where nobody says.

    Args:
        own_loss: whether there is a loss of the user's own and nothing that compares answers.
    """
    # An untrained network has nothing to teach.
    return 0.0 if _untrained(plan) or own_loss else USUAL_DISTILL_WEIGHT


def _untrained(plan: PruningPlan) -> bool:
    return "for an untrained network" in plan.note


def _with_rate(config: TrainConfig, plan: PruningPlan, given: TuningData) -> TrainConfig:
    """With the usual learning rate, where none is said; an untrained network takes the highest."""
    import torch

    from rlprune.finetuning.batches import batches_of
    from rlprune.finetuning.loop import USUAL_STEPS, usual_rate

    if config.learning_rate is not None:
        return config
    steps = USUAL_STEPS[1]
    if not _untrained(plan):
        batches = batches_of(given.train, torch.device("cpu"), batch_size=config.batch_size)
        steps = batches.step_count * config.epoch_count
    return replace(config, learning_rate=usual_rate(steps, config))


def _name_of(function: Any) -> str:
    """By which a checkpoint knows a loss or metric again; its code is not compared."""
    if function is None or isinstance(function, str):
        return str(function)
    return str(getattr(function, "__qualname__", type(function).__qualname__))


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
    names = (WEIGHTS_NAME, MODEL_NAME, FLOAT_MODEL_NAME)
    made = [name for name in names if (folder / name).exists()]
    if made and not (folder / CHECKPOINT_NAME).exists():
        raise InputError(
            f"{folder / made[0]} is there and would be written over; write to another folder",
            field="out",
        )


def _write(
    folder: Path, module: nn.Module, models: dict[str, onnx.ModelProto], report: FinetuneReport
) -> None:
    from safetensors.torch import save as save_tensors

    from rlprune.surgery.encode import encode
    from rlprune.torch_state import tensors_of

    # Copies, for tied weights may not stand in a file twice.
    state = {name: tensor.clone().contiguous() for name, tensor in tensors_of(module).items()}
    write_atomic(folder / WEIGHTS_NAME, save_tensors(state))
    for name, model in models.items():
        write_atomic(folder / name, encode(model))
    write_atomic(folder / REPORT_NAME, report.to_json().encode() + b"\n")
