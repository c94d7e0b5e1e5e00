"""Trainings of `options`: every plan cut, reconstructed, trained, scored, and kept when done.

The unpruned network teaches; images are 10,000 of `train` that no plan was made from, flipped and
shifted where they are seen more than once; seeds are of their order and augmentation. The full
recipe is of all 45,000. A training that takes more than an epoch keeps where it stands, and the
same command goes on there. What was trained for another plan than the one kept, or in another way,
is trained anew.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from safetensors.torch import save as save_tensors
from torch import nn

from benchmarks.parts.options_plans import (
    ARMS,
    BUDGETS,
    ENDS,
    INT8_BUDGET,
    NETS,
    OF_BLOCKS,
    SEARCHED,
    SEARCHED_NETS,
    Cell,
    Run,
    arms_of,
    images,
    network,
    pack_of,
    plan_file,
    planned,
)
from rlprune.files import digest, write_atomic
from rlprune.finetuning.augment import flipped_and_shifted
from rlprune.finetuning.checkpoint import Checkpoint
from rlprune.finetuning.loop import TrainConfig, fit
from rlprune.finetuning.scoring import score
from rlprune.graph.from_torch import trace_torch
from rlprune.latency.types import INT8
from rlprune.plans import PruningPlan
from rlprune.runtime import get_runtime
from rlprune.schemes import removal_of
from rlprune.sensitivity.calibration import CalibrationSet
from rlprune.sensitivity.evaluate import Evaluator
from rlprune.sensitivity.fit import fit_inputs
from rlprune.sensitivity.quantised import quantise
from rlprune.sensitivity.torch_reconstruct import reconstruct_module
from rlprune.surgery.torch import cut_torch
from rlprune.torch_state import tensors_of

SEEDS = 3
SHORT, LONG, FULL = 1, 15, 60
"""Epochs; one is 10,000 images, of the full recipe 45,000."""
OTHER_IMAGES = 3
"""Epochs of all 45,000: 13.5 times 10,000 images, of which none is seen more than three times."""
LONG_BUDGET = 0.5
LONG_ARMS = ("channels", "all", "all-int8", *OF_BLOCKS)
END_NET, END_BUDGETS = "resnet20", (0.25, 0.2)
EPOCH_IMAGES = 10_000
RECONSTRUCT = 1024
DISTILLED, BATCH = 0.5, 128
RATES = {SHORT: 0.01, OTHER_IMAGES: 0.05, LONG: 0.05, FULL: 0.05}
BATCHES = {SHORT: 64, OTHER_IMAGES: BATCH, LONG: BATCH, FULL: BATCH}
TEMPERATURE = 16.0
"""By epochs, for all arms; of 15 and more the best of `recipe`, of one and for the temperature the
best of `recipe --short`. One epoch takes images as they are."""
MIXED = ("resnet20", "resnet56", "vgg")
"""Networks that are trained in mixed precision for 15 epochs and more, all arms alike: it saves a
fifth of the time or more and costs nothing that shows (`recipe --short`); MobileNetV2 takes longer
so."""
REWARD, REPORT = "test_reward", "test_report"


@dataclass(frozen=True, slots=True)
class Training:
    """One plan, trained for so many epochs with one seed."""

    cell: Cell
    epochs: int
    seed: int

    @property
    def name(self) -> str:
        """As files have it."""
        return f"{self.cell.name}.e{self.epochs}.s{self.seed}"


def trainings(seeds: int = SEEDS) -> Iterator[Training]:
    """All, those that say most first: one epoch by network, what other images are worth, 15 epochs
    of all at one budget, then the full recipe."""
    for net in NETS:
        for seed in range(seeds):
            for cell in short_cells(net):
                yield Training(cell, SHORT, seed)
    for seed in range(seeds):
        for net in SEARCHED_NETS:
            yield Training(Cell(net, INT8_BUDGET, SEARCHED), OTHER_IMAGES, seed)
    for seed in range(seeds):
        for net in NETS:
            for cell in long_cells(net):
                yield Training(cell, LONG, seed)
    for cell in end_cells():
        yield Training(cell, FULL, 0)


def short_cells(net: str) -> list[Cell]:
    """What is trained for one epoch: all budgets, the arms of blocks at one alone."""
    return [
        Cell(net, budget, arm)
        for budget in BUDGETS
        for arm in arms_of(net)
        if budget == LONG_BUDGET or arm not in OF_BLOCKS
    ]


def long_cells(net: str) -> list[Cell]:
    """What is trained for 15 epochs: most arms at one budget, int8 at one more."""
    arms = arms_of(net)
    cells = [Cell(net, LONG_BUDGET, arm) for arm in arms if arm in LONG_ARMS]
    int8 = [arm for arm in arms if ARMS[arm].precision == INT8]
    if net in SEARCHED_NETS:
        int8.append(SEARCHED)
    return [*cells, *(Cell(net, INT8_BUDGET, arm) for arm in int8)]


def end_cells() -> list[Cell]:
    """What is trained by the full recipe, once."""
    return [Cell(END_NET, budget, arm) for budget in END_BUDGETS for arm in ENDS]


def trained_file(training: Training, run: Run) -> Path:
    """Where what a training came to is kept; its weights lie beside it."""
    return run.work / "trained" / f"{training.name}.json"


def is_known(training: Training, run: Run) -> bool:
    """Whether a training is kept, of the plan that is kept."""
    plan = plan_file(training.cell, run)
    return plan.exists() and _kept(training, run, PruningPlan.load(plan)) is not None


def trained(
    training: Training, run: Run, *, again: bool = False, config: TrainConfig | None = None
) -> dict[str, Any]:
    """What a training came to, kept or made now; `accuracy` is a share of `test_reward`.

    Args:
        again: trained now although it is kept, and that is left as it is.
        config: another one than the benchmark's; nothing is kept then.
    """
    cell = training.cell
    plan = planned(cell, run).plan
    known = _kept(training, run, plan)
    if known is not None and not again and config is None:
        return known
    small, before = cut(cell, run)
    learnt = config or config_of(training)
    file = trained_file(training, run)
    checkpoint = None
    if training.epochs > 1 and not again and config is None:
        file.parent.mkdir(parents=True, exist_ok=True)
        checkpoint = Checkpoint(
            file.with_suffix(".checkpoint"), digest(training.name, _digest(plan), repr(learnt))
        )
    torch.set_num_threads(1)
    began = time.process_time()
    fit(
        small,
        training_images(cell.net, run, whole=training.epochs in (OTHER_IMAGES, FULL)),
        learnt,
        augment=None if learnt.epoch_count == SHORT else flipped_and_shifted,
        teacher=network(cell.net, run.shared)[0].module,
        checkpoint=checkpoint,
    )
    spent = time.process_time() - began
    found = {
        "plan": _digest(plan),
        "config": repr(learnt),
        "before": before,
        "accuracy": accuracy(small, cell, run, REWARD),
        "cpu_seconds": spent,
    }
    print(f"{training.name}: {found}", flush=True)
    if not again and config is None:
        _save(small, file, found)
        if checkpoint is not None:
            checkpoint.path.unlink(missing_ok=True)
    return found


def config_of(training: Training) -> TrainConfig:
    return TrainConfig(
        epoch_count=training.epochs,
        batch_size=BATCHES[training.epochs],
        learning_rate=RATES[training.epochs],
        distill_weight=DISTILLED,
        distill_temperature=TEMPERATURE,
        mixed_precision=training.epochs != SHORT and training.cell.net in MIXED,
        seed=training.seed,
    )


def reported(training: Training, run: Run) -> float:
    """Accuracy of a trained network on `test_report`: read with `--final` only."""
    module, _ = cut(training.cell, run)
    module.load_state_dict(load_file(trained_file(training, run).with_suffix(".safetensors")))
    return accuracy(module, training.cell, run, REPORT)


def cut(cell: Cell, run: Run) -> tuple[nn.Module, float]:
    """The pruned, reconstructed module of a cell, not trained; its accuracy on `test_reward`."""
    _, trace = network(cell.net, run.shared)
    plan = planned(cell, run).plan
    small = cut_torch(trace, removal_of(trace.onnx, plan.keeps, plan.schemes))
    file = run.work / "cut" / f"{cell.name}.json"
    weights = file.with_suffix(".safetensors")
    known = json.loads(file.read_text()) if file.exists() else {}
    if known.get("plan") == _digest(plan):
        small.load_state_dict(load_file(weights))
        return small, float(known["before"])
    few, runtime = _few(cell.net, run), get_runtime()
    solved = reconstruct_module(small, trace, plan.keeps, few, runtime, plan.schemes)
    before = accuracy(small, cell, run, REWARD)
    print(f"{cell.name}: before training {before:.2%}; {solved.moved.text()}", flush=True)
    _save(small, file, {"plan": _digest(plan), "before": before})
    return small, before


def unpruned(net: str, run: Run, split: str) -> float:
    """Accuracy of the network that is pruned."""
    return score(network(net, run.shared)[0].module, test_images(net, run, split)).accuracy


def plain_int8(net: str, run: Run, split: str) -> float:
    """Accuracy of the unpruned network, quantised as it is."""
    return _in_int8(network(net, run.shared)[0].module, net, run, split)


def accuracy(module: nn.Module, cell: Cell, run: Run, split: str) -> float:
    """Share (0-1) of a split of `test` that a module of a cell is right on, in its precision: in
    int8 it is quantised after training, with scales from images that it was trained on."""
    if ARMS[cell.arm].precision == INT8:
        return _in_int8(module, cell.net, run, split)
    return score(module, test_images(cell.net, run, split)).accuracy


def _in_int8(module: nn.Module, net: str, run: Run, split: str) -> float:
    test = test_images(net, run, split)
    trace = trace_torch(module, torch.zeros(1, 3, 32, 32)).onnx
    scaled = fit_inputs({"x": _few(net, run).x}, None, trace)
    judged = fit_inputs({"x": test.x}, test.labels, trace)
    judge = Evaluator(trace, judged, runtime=get_runtime(), reconstruct=False)
    return judge.evaluate_model(quantise(trace, scaled).model).accuracy


def _kept(training: Training, run: Run, plan: PruningPlan) -> dict[str, Any] | None:
    file = trained_file(training, run)
    if not file.exists():
        return None
    found: dict[str, Any] = json.loads(file.read_text())
    wanted = {"plan": _digest(plan), "config": repr(config_of(training))}
    return found if all(found.get(name, value) == value for name, value in wanted.items()) else None


def _digest(plan: PruningPlan) -> str:
    """Of what is cut: the same settings may have been measured twice."""
    return digest(plan.fingerprint, repr(plan.schemes), repr(plan.keeps.tolist()))


def _save(module: nn.Module, file: Path, about: dict[str, Any]) -> None:
    """The weights first, so that what is told of is there."""
    file.parent.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.clone().contiguous() for name, tensor in tensors_of(module).items()}
    write_atomic(file.with_suffix(".safetensors"), save_tensors(state))
    write_atomic(file, json.dumps(about).encode())


def training_index(run: Run, *, whole: bool = False) -> NDArray[np.integer]:
    """The training images, the same for all: none that a plan was made from. `whole`: all such."""
    pack = pack_of(run.shared)
    _, labels = pack.pixels("train")
    apart = np.setdiff1d(np.arange(len(labels)), pack.splits["train_calib"])
    drawn = np.random.default_rng([0, 3]).permutation(apart)
    return drawn if whole else drawn[: 2_000 if run.quick else EPOCH_IMAGES]


def _few(net: str, run: Run) -> CalibrationSet:
    """Those of them that layers are reconstructed from, and scales taken."""
    return images(net, run, "train", training_index(run)[:RECONSTRUCT])


@lru_cache(maxsize=1)
def training_images(net: str, run: Run, *, whole: bool = False) -> CalibrationSet:
    return images(net, run, "train", training_index(run, whole=whole))


@lru_cache(maxsize=1)
def test_images(net: str, run: Run, split: str) -> CalibrationSet:
    return images(net, run, "test", pack_of(run.shared).splits[split])
