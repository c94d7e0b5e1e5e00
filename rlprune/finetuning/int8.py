"""The last part of fine-tuning a plan for int8: quantise, see what that lost, and win it back.

Ordinary quantisation comes first. Where it loses more than half a point the module is trained for a
few epochs more with int8's rounding in its forward pass (`fake_quantise`), and quantised in the
same way. Whichever file is better on the validation data is the result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import onnx
import torch
from torch import nn

from rlprune.errors import InputError
from rlprune.finetuning.batches import device_of
from rlprune.finetuning.checkpoint import Accuracy, Checkpoint, EpochRecord
from rlprune.finetuning.data import TuningData
from rlprune.finetuning.fake_quantise import fake_quantised
from rlprune.finetuning.int8_file import Files, Int8Writer, Judged
from rlprune.finetuning.loop import TrainConfig, fit
from rlprune.finetuning.objective import Objective
from rlprune.torch_state import load_module, tensors_of

MOST_LOST = 0.005
"""Of accuracy (0-1), or of the user's metric; of his loss this share."""
EPOCH_SHARE, RATE_SHARE = 0.2, 0.1
"""Of the epochs before, and of their learning rate: the weights have only to move by a rounding."""

Aware = Literal["auto", "never", "always"]


@dataclass(frozen=True)
class Quantisation:
    """What int8 cost and whether training with it helped; scores of ONNX files, in ONNX Runtime, on
    the data that chose the epoch."""

    in_float: Accuracy
    """Of the trained network's float file."""
    plain: Accuracy
    """Of the same network, quantised."""
    lost: float
    """By that, of accuracy (0-1) or what stands in its place."""
    lost_error: float
    """Standard error of `lost`, from the samples (or batches, with a metric of the user's own) on
    which both files differ."""
    aware: Accuracy | None
    """Of the network after quantisation-aware training, quantised; None where there was none."""
    aware_in_float: Accuracy | None
    """Of that network's float file."""
    written: Literal["plain", "aware"]
    """The better one."""
    epochs: tuple[EpochRecord, ...] = ()
    """Of quantisation-aware training; their validation scores are of the imitated rounding."""
    config: TrainConfig | None = None
    """Of quantisation-aware training."""

    @property
    def score(self) -> Accuracy:
        """Of the int8 file that was written."""
        return self.aware if self.written == "aware" and self.aware is not None else self.plain


def check_aware(asked: str, precision: str) -> Aware:
    """Refuses a word that is none, or training for int8 of a plan that is not.

    Raises:
        InputError: it says which.
    """
    if asked not in ("auto", "never", "always"):
        raise InputError(
            f"no quantisation_aware {asked!r}; give auto, never or always",
            field="quantisation_aware",
        )
    if asked == "always" and precision != "int8":
        raise InputError(
            f"quantisation_aware is always, but the plan is in {precision}; plan with precision "
            "int8, or leave it out",
            field="quantisation_aware",
        )
    return asked  # type: ignore[return-value]


def loses_much(plain: Judged, in_float: Judged, objective: Objective) -> bool:
    """Whether quantising lost more than half a point, and more than its own standard error: on a
    hundred images one is a whole point, and says nothing."""
    lost, error = plain.lost_to(in_float)
    scale = abs(in_float.score.loss) if objective.judged_by == "loss" else 1.0
    return lost > max(MOST_LOST * scale, error)


def aware_config(config: TrainConfig) -> TrainConfig:
    """A fifth of the epochs, at a tenth of the rate; in float32, for bfloat16 would round twice."""
    assert config.learning_rate is not None, "it was trained by one"
    return replace(
        config,
        epoch_count=max(1, round(EPOCH_SHARE * config.epoch_count)),
        learning_rate=RATE_SHARE * config.learning_rate,
        mixed_precision=False,
    )


@dataclass(frozen=True)
class Training:
    """What the module was trained by, and will be again."""

    given: TuningData
    config: TrainConfig
    objective: Objective
    functions: dict[str, Any]
    teacher: nn.Module | None
    checkpoint: Checkpoint
    """Of quantisation-aware training alone."""
    tell: Callable[[EpochRecord, int], None]
    """Told each epoch, and of how many."""
    on_step: Callable[[int, int], None] | None
    say: Callable[[str], None]
    told: Callable[[Accuracy], str]


def in_int8(
    module: nn.Module, writer: Int8Writer, by: Training, asked: Aware
) -> tuple[Quantisation, Files]:
    """Quantises a trained module, and trains it further where that is asked for or pays; leaves in
    it the float weights of the better file.

    Raises:
        InputError: training diverged, or the checkpoint is another run's.
    """
    files = writer.files(module)

    def judged(model: onnx.ModelProto) -> Judged:
        return writer.judge(model, by.given.judged(torch.device("cpu")), by.objective)

    in_float, plain = judged(files.in_float), judged(files.in_int8)
    lost, error = plain.lost_to(in_float)
    made = Quantisation(in_float.score, plain.score, lost, error, None, None, "plain")
    of = by.objective.judged_by
    shown = f"{lost:.4f} of {of} lost (standard error {error:.4f})"
    if of == "accuracy":
        shown = f"{100 * lost:.2f} points lost (standard error {100 * error:.2f})"
    by.say(f"in int8: {by.told(plain.score)}; {shown}")
    if asked == "never":
        return made, files
    if asked == "auto" and not loses_much(plain, in_float, by.objective):
        return made, files
    config = aware_config(by.config)
    before = {name: tensor.clone() for name, tensor in tensors_of(module).items()}
    samples = by.given.scaled(device_of(module))
    with fake_quantised(module, samples, keep_float=writer.layers):
        epochs = fit(
            module,
            by.given.train,
            config,
            augment=by.given.augment,
            validation=by.given.validation,
            teacher=by.teacher,
            **by.functions,
            checkpoint=by.checkpoint,
            on_epoch=lambda record: by.tell(record, config.epoch_count),
            on_step=by.on_step,
        )
    aware_files = writer.files(module)
    aware = judged(aware_files.in_int8)
    better = aware.score.beats(plain.score)
    if not better:
        load_module(module, before)
    by.say(f"trained for int8: {by.told(aware.score)}" + ("" if better else "; not kept"))
    made = replace(
        made,
        aware=aware.score,
        aware_in_float=judged(aware_files.in_float).score,
        written="aware" if better else "plain",
        epochs=tuple(epochs),
        config=config,
    )
    return made, aware_files if better else files
