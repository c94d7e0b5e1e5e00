"""Where a training loop stands, in memory and on disk, so that a killed run goes on bit for bit.

One safetensors file with a JSON header, replaced whole; reading it runs no code. It names the run
it belongs to, and another run's is refused, not mixed in.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from rlprune.errors import InputError
from rlprune.files import write_atomic

FORMAT = "rlprune.finetune/1"


@dataclass(frozen=True, slots=True)
class Score:
    """Of a module in eval mode."""

    loss: float
    """Mean cross-entropy (nats)."""
    accuracy: float
    """Share (0-1) of images whose most likely class is right."""

    def beats(self, other: Score) -> bool:
        """More images right, or as many at less loss."""
        return (self.accuracy, -self.loss) > (other.accuracy, -other.loss)


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """What one epoch of training saw; of augmented images, in train mode."""

    epoch: int
    """Counted from 1."""
    loss: float
    """What was minimised: smoothing and distillation are in it."""
    accuracy: float
    validation: Score | None = None
    """After the epoch, where there are validation images."""
    seconds: float = field(default=0.0, compare=False)


class LoopState:
    """All that the next step depends on, but the data and the settings."""

    def __init__(
        self, module: nn.Module, optimizer: torch.optim.Optimizer, generator: torch.Generator
    ) -> None:
        self.module = module
        self.optimizer = optimizer
        self.generator = generator
        """Of the data's order and augmentation; torch's own draws are dropout's."""
        self.step = 0
        """Steps done, of all epochs."""
        self.loss_sum = 0.0
        self.right = 0
        self.seen = 0
        """Of this epoch, as the two before."""
        self.seconds = 0.0
        """That this epoch took in processes before this one."""
        self.history: list[EpochRecord] = []
        self.best_score: Score | None = None
        """None where nothing is chosen: the last weights stay."""
        self.best: dict[str, Tensor] = {}
        self._order: Tensor | None = None
        self._epoch_seed = generator.get_state()
        """The generator's state before it drew this epoch's order."""

    def begin_epoch(self) -> None:
        """Draws a new order and counts from zero."""
        self.loss_sum, self.right, self.seen, self.seconds = 0.0, 0, 0, 0.0
        self._epoch_seed = self.generator.get_state()
        self._order = None

    def order(self, count: int) -> Tensor:
        """This epoch's order of `count` images [N]; the generator is past it afterwards."""
        if self._order is None:
            self._order = torch.randperm(count, generator=self.generator)
        return self._order

    def count(self, loss: float, right: float, seen: int) -> None:
        """One step more, of `seen` images with that mean loss."""
        self.loss_sum += loss * seen
        self.right += int(right)
        self.seen += seen
        self.step += 1

    def end_epoch(self, validation: Score | None, seconds: float) -> None:
        """Records the epoch, and keeps its weights where they score best so far."""
        loss, accuracy = self.loss_sum / self.seen, self.right / self.seen
        self.history.append(EpochRecord(len(self.history) + 1, loss, accuracy, validation, seconds))
        if validation is not None and (
            self.best_score is None or validation.beats(self.best_score)
        ):
            self.keep(validation)

    def keep(self, score: Score) -> None:
        """The weights as they are now are the best."""
        self.best_score = score
        self.best = {name: tensor.clone() for name, tensor in tensors_of(self.module).items()}

    def take_best(self) -> None:
        """Puts the best weights, where any were kept, into the module."""
        if self.best:
            _load_state(self.module, self.best)


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
        tensors = {f"module.{name}": tensor for name, tensor in tensors_of(state.module).items()}
        tensors |= {f"best.{name}": tensor for name, tensor in state.best.items()}
        for index, slots in state.optimizer.state_dict()["state"].items():
            for name, value in slots.items():
                if value is not None:
                    tensors[f"optimizer.{index}.{name}"] = torch.as_tensor(value)
        tensors["random.epoch"] = state._epoch_seed
        tensors["random.now"] = state.generator.get_state()
        tensors["random.torch"] = torch.get_rng_state()
        header = {
            "format": FORMAT,
            "run": self.run,
            "step": state.step,
            "loss_sum": state.loss_sum,
            "right": state.right,
            "seen": state.seen,
            "seconds": seconds,
            "order_count": 0 if state._order is None else len(state._order),
            "history": [asdict(record) for record in state.history],
            "best_score": None if state.best_score is None else asdict(state.best_score),
        }
        # Copies, for tied weights may not stand in a file twice.
        tensors = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
        write_atomic(self.path, save_tensors(tensors, metadata={"rlprune": json.dumps(header)}))

    def restore(self, state: LoopState) -> None:
        """Brings `state` to where the file says; where there is no file it stays as it is.

        Raises:
            InputError: the file is damaged, or of another run.
        """
        if not self.path.exists():
            return
        try:
            with safe_open(self.path, "pt") as file:
                header = json.loads(file.metadata()["rlprune"])
                names = list(file.keys())
                tensors = {name: file.get_tensor(name) for name in names}
            if header["format"] != FORMAT or header["run"] != self.run:
                raise InputError(
                    f"{self.path} is the checkpoint of another run (model, plan, data or settings "
                    "differ); delete it to start again, or write elsewhere"
                )
            _load_state(state.module, _part(tensors, "module."))
            slots: dict[int, dict[str, Tensor]] = {}
            for name, tensor in _part(tensors, "optimizer.").items():
                index, slot = name.split(".")
                slots.setdefault(int(index), {})[slot] = tensor
            groups = state.optimizer.state_dict()["param_groups"]
            state.optimizer.load_state_dict({"state": slots, "param_groups": groups})
            state.best = _part(tensors, "best.")
            state.best_score = None
            if header["best_score"] is not None:
                state.best_score = Score(**header["best_score"])
            state.history = [
                EpochRecord(
                    **{
                        **one,
                        "epoch": index,  # 0.6 counted from 0
                        "validation": one["validation"] and Score(**one["validation"]),
                    }
                )
                for index, one in enumerate(header["history"], start=1)
            ]
            state.step = int(header["step"])
            state.loss_sum = float(header["loss_sum"])
            state.right, state.seen = int(header["right"]), int(header["seen"])
            state.seconds = float(header["seconds"])
            state._epoch_seed = tensors["random.epoch"]
            state.generator.set_state(state._epoch_seed)
            state._order = None
            if header["order_count"]:
                state.order(int(header["order_count"]))
            state.generator.set_state(tensors["random.now"])
            torch.set_rng_state(tensors["random.torch"])
        except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
            raise InputError(
                f"{self.path} is no checkpoint of this version, or damaged; delete it to start "
                f"again ({type(error).__name__})"
            ) from error


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """What of a module's state are tensors, by name; not copied."""
    return {n: t for n, t in module.state_dict().items() if isinstance(t, Tensor)}


def _load_state(module: nn.Module, tensors: Mapping[str, Any]) -> None:
    own = tensors_of(module)
    if set(own) != set(tensors):
        raise ValueError("other tensors than the module's")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
