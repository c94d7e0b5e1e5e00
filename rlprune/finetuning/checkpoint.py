"""Where a training loop stands, in memory and on disk, so that a killed run goes on bit for bit.

One safetensors file with a JSON header, replaced whole; reading it runs no code. It names the run
it belongs to, and another run's is refused, not mixed in.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from rlprune.errors import InputError
from rlprune.files import write_atomic
from rlprune.torch_state import load_module, load_optimizer, pack, part, tensors_of, unpack

FORMAT = "rlprune.finetune/2"


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Loss and accuracy of a module in eval mode."""

    loss: float
    """Mean cross-entropy (nats), or mean of the user's own loss."""
    accuracy: float
    """Share (0-1) of samples whose most likely class is right. With a metric of the user's own its
    mean; with a loss of his own and no metric, minus the loss: more is always better."""

    def beats(self, other: Accuracy) -> bool:
        """More right, or as much at less loss."""
        return (self.accuracy, -self.loss) > (other.accuracy, -other.loss)


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """What one epoch of training saw; of augmented images, in train mode."""

    epoch: int
    """Counted from 1."""
    loss: float
    """What was minimised: smoothing and distillation are in it."""
    accuracy: float
    """Or what stands in its place, as in `Accuracy`."""
    validation: Accuracy | None = None
    """After the epoch, where there are validation data."""
    seen: int = 0
    """Samples."""
    seconds: float = field(default=0.0, compare=False)


class LoopState:
    """All that the next step depends on, but the data and the settings."""

    def __init__(
        self, module: nn.Module, optimizer: torch.optim.Optimizer, generator: torch.Generator
    ) -> None:
        self.module = module
        self.optimizer = optimizer
        self.generator = generator
        """Of the order and augmentation of images; torch's own draws are dropout's, and those of
        the user's loader."""
        self.step = 0
        """Steps done, of all epochs."""
        self.loss_sum = 0.0
        self.good = 0.0
        self.seen = 0
        """Of this epoch, as the two before."""
        self.seconds = 0.0
        """That this epoch took in processes before this one."""
        self.history: list[EpochRecord] = []
        self.best_score: Accuracy | None = None
        """None where nothing is chosen: the last weights stay."""
        self.best: dict[str, Tensor] = {}
        self._order: Tensor | None = None
        self._epoch_seed = generator.get_state()
        """The generator's state before it drew this epoch's order."""
        self.epoch_randomness = torch.get_rng_state()
        """Torch's own state when this epoch began."""

    def begin_epoch(self) -> None:
        """Draws a new order and counts from zero."""
        self.loss_sum, self.good, self.seen, self.seconds = 0.0, 0.0, 0, 0.0
        self._epoch_seed = self.generator.get_state()
        self.epoch_randomness = torch.get_rng_state()
        self._order = None

    def order(self, count: int) -> Tensor:
        """This epoch's order of `count` images [N]; the generator is past it afterwards."""
        if self._order is None:
            self._order = torch.randperm(count, generator=self.generator)
        return self._order

    def count(self, loss: float, good: float, seen: int) -> None:
        """One step more, of `seen` samples with that mean loss, and so much right among them."""
        self.loss_sum += loss * seen
        self.good += good
        self.seen += seen
        self.step += 1

    def end_epoch(self, validation: Accuracy | None, seconds: float) -> None:
        """Records the epoch, and keeps its weights where they score best so far."""
        loss, accuracy = self.loss_sum / self.seen, self.good / self.seen
        number = len(self.history) + 1
        self.history.append(EpochRecord(number, loss, accuracy, validation, self.seen, seconds))
        if validation is not None and (
            self.best_score is None or validation.beats(self.best_score)
        ):
            self.keep(validation)

    def keep(self, score: Accuracy) -> None:
        """The weights as they are now are the best."""
        self.best_score = score
        self.best = {name: tensor.clone() for name, tensor in tensors_of(self.module).items()}

    def take_best(self) -> None:
        """Puts the best weights, where any were kept, into the module."""
        if self.best:
            load_module(self.module, self.best)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A file that one run keeps its state in."""

    path: Path
    run: str
    """Digest of everything the run depends on."""
    every_sec: float = 60.0
    """How much work an interruption may cost; it is also written after each epoch."""

    def save(self, state: LoopState, seconds: float) -> None:
        """Replaces the file; `seconds` is what the epoch took so far."""
        tensors = {f"best.{name}": tensor for name, tensor in state.best.items()}
        tensors["random.epoch"] = state._epoch_seed
        tensors["random.epoch_torch"] = state.epoch_randomness
        tensors["random.now"] = state.generator.get_state()
        tensors["random.torch"] = torch.get_rng_state()
        header = {
            "format": FORMAT,
            "run": self.run,
            "step": state.step,
            "loss_sum": state.loss_sum,
            "good": state.good,
            "seen": state.seen,
            "seconds": seconds,
            "order_count": 0 if state._order is None else len(state._order),
            "history": [asdict(record) for record in state.history],
            "best_score": None if state.best_score is None else asdict(state.best_score),
        }
        write_atomic(self.path, pack(state.module, state.optimizer, header, tensors))

    def restore(self, state: LoopState) -> None:
        """Brings `state` to where the file says; where there is no file it stays as it is.

        Raises:
            InputError: the file is damaged, or of another run.
        """
        if not self.path.exists():
            return
        try:
            header, tensors = unpack(self.path.read_bytes())
            if header["format"] != FORMAT or header["run"] != self.run:
                raise InputError(
                    f"{self.path} is the checkpoint of another run (model, plan, data or settings "
                    "differ); delete it to start again, or write elsewhere"
                )
            load_module(state.module, part(tensors, "module."))
            load_optimizer(state.optimizer, tensors)
            state.best = part(tensors, "best.")
            state.best_score = None
            if header["best_score"] is not None:
                state.best_score = Accuracy(**header["best_score"])
            state.history = [
                EpochRecord(
                    **{
                        **one,
                        "epoch": index,  # 0.6 counted from 0
                        "validation": one["validation"] and Accuracy(**one["validation"]),
                    }
                )
                for index, one in enumerate(header["history"], start=1)
            ]
            state.step = int(header["step"])
            state.loss_sum = float(header["loss_sum"])
            state.good, state.seen = float(header["good"]), int(header["seen"])
            state.seconds = float(header["seconds"])
            state._epoch_seed = tensors["random.epoch"]
            state.epoch_randomness = tensors["random.epoch_torch"]
            state.generator.set_state(state._epoch_seed)
            state._order = None
            if header["order_count"]:
                state.order(int(header["order_count"]))
            state.generator.set_state(tensors["random.now"])
            torch.set_rng_state(tensors["random.torch"])
        except (OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                f"{self.path} is no checkpoint of this version, or damaged; delete it to start "
                f"again ({type(error).__name__})"
            ) from error
