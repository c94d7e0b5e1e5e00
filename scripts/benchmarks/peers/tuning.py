"""A plan fine-tuned: the module cut, reconstructed, trained on, and judged image by image.

What is trained for the benchmark is kept in its book; a training that was killed goes on from its
checkpoint.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.peers.figures import right
from benchmarks.peers.grid import Case
from datasets import catalogue
from datasets.pack import CifarPack
from rlprune.files import digest
from rlprune.finetuning.augment import flipped_and_shifted
from rlprune.finetuning.checkpoint import Checkpoint
from rlprune.finetuning.data import RECONSTRUCT_COUNT, REESTIMATE_COUNT
from rlprune.finetuning.loop import TrainConfig, fit
from rlprune.finetuning.scoring import reestimate
from rlprune.graph.from_torch import TorchTrace, trace_torch
from rlprune.runtime import get_runtime
from rlprune.sensitivity.calibration import CalibrationSet
from rlprune.sensitivity.torch_reconstruct import reconstruct_module
from rlprune.surgery.torch import prune_torch


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a pruned module is trained on; the same for all methods."""

    config: TrainConfig
    image_count: int
    """Train images, drawn by the seed from the 45,000 that the zoo is trained on."""


class Bfloat16(nn.Module):
    """A module that computes in bfloat16 in train mode, and as it is in eval mode."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.training):
            logits: Tensor = self.inner(x)
        return logits.float()


def train_images(net: catalogue.Loaded, pack: CifarPack, count: int, seed: int) -> CalibrationSet:
    """Train images as the network takes them, none of `train_calib`, which validates the zoo."""
    pixels, labels = pack.pixels("train")
    index = np.setdiff1d(np.arange(len(labels)), pack.splits["train_calib"])
    index = np.random.default_rng([seed, 3]).permutation(index)[:count]
    return CalibrationSet.single(net.preprocess(pixels[index]), labels[index].astype(np.int64))


class Tuner:
    """Trains plans of one case; for one thread."""

    def __init__(self, case: Case, pack: CifarPack, recipe: Recipe, work: Path) -> None:
        self._case, self._pack, self._recipe, self._work = case, pack, recipe, work
        self._trace: TorchTrace | None = None
        self._images: CalibrationSet | None = None

    def unpruned(self) -> NDArray[np.bool_]:
        """Whether the network as it is, without further training, is right on each image [N]."""
        return self._kept(None)

    def tuned(self, keeps: tuple[int, ...]) -> NDArray[np.bool_]:
        """Whether the plan, trained, is right on each image of the report [N]."""
        return self._kept(keeps)

    def _kept(self, keeps: tuple[int, ...] | None) -> NDArray[np.bool_]:
        case, recipe = self._case, self._recipe
        key = digest(
            "tuned" if keeps else "unpruned",
            case.trace.model.SerializeToString(deterministic=True),
            case.report.x.tobytes(),
            # The case's context, too: where evaluating changed, so may what training starts from.
            repr((keeps, case.seed, case.context, asdict(recipe)) if keeps else ()),
        )

        def made() -> dict[str, Any]:
            module = case.net.module if keeps is None else self._train(np.array(keeps), key)
            assert case.report.y is not None
            found = right(module, CalibrationSet.single(case.report.x, case.report.y))
            return {"right": np.packbits(found).tobytes().hex(), "count": len(found)}

        value = case.book.finding(key, made)
        bits = np.frombuffer(bytes.fromhex(value["right"]), np.uint8)
        return np.unpackbits(bits)[: value["count"]].astype(np.bool_)

    def _train(self, keeps: NDArray[np.int64], key: str) -> nn.Module:
        case, recipe = self._case, self._recipe
        if self._trace is None:
            self._trace = trace_torch(case.net.module, torch.zeros(1, 3, 32, 32))
            if self._trace.graph.fingerprint != case.trace.graph.fingerprint:
                raise AssertionError(f"{case.net.name} has another graph as a torch module")
        if self._images is None:
            self._images = train_images(case.net, self._pack, recipe.image_count, case.seed)
        module = prune_torch(self._trace, keeps)
        drawn = np.arange(len(self._images))[:REESTIMATE_COUNT]
        few = self._images.take(drawn[:RECONSTRUCT_COUNT])
        images = CalibrationSet.single(few.x, few.y)
        if not reconstruct_module(module, self._trace, keeps, images, get_runtime()).changes:
            reestimate(module, self._images.take(drawn))
        checkpoint = Checkpoint(self._work / f"tuning-{key}.safetensors", key)
        depthwise = any(op.kind == "depthwise_conv" for op in case.trace.graph.operators)
        fit(
            module if depthwise else Bfloat16(module),  # it slows depthwise layers
            self._images,
            replace(recipe.config, seed=case.seed),
            augment=flipped_and_shifted,
            checkpoint=checkpoint,
            on_epoch=lambda record: print(
                f"  {case.net.name} seed {case.seed} epoch {record.epoch} of "
                f"{recipe.config.epoch_count}: {record.accuracy:.2%} in training, "
                f"{record.seconds:.0f} s",
                flush=True,
            ),
        )
        checkpoint.path.unlink(missing_ok=True)
        return module.eval()
