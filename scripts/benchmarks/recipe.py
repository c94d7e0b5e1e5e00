"""What wins most back after pruning: learning rate, distillation and averaged weights compared.

    scripts/bench recipe [--work FOLDER] [--jobs N] [--quick] [--seed N] [--json FILE]

Two networks are planned at half of their MACs, cut, reconstructed, and trained for 15 epochs of
10,000 train images with every rate and weight of distillation (temperature 4, the unpruned network
teaches). Weights averaged along the way (exponentially, by 0.99 or 0.998 a step) are scored beside
the last ones. Told is the accuracy on `test_reward`, the mean over three seeds with its 90 %
interval; `test_report` is not read. A training is kept in the folder --work as soon as it is done,
and is not done again; so the trainings may be made on another machine, with a GPU:

    scripts/bench recipe --prepare          # here: data and pruned networks into the folder
    scripts/bench recipe --train --jobs 8   # there: needs torch, onnx and that folder

What is kept of the sweep was trained on one NVIDIA H200.

The best of it (rate 0.05, half of the loss from the unpruned network), for 60 epochs of all images,
is the end of `options`.

`--short` compares rates, batches, temperatures and augmentation where a network is trained for one
epoch only, and the best of them in float32 with the same in mixed precision: accuracy and time.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from benchmarks.harness import Bench, Row, mean_and_interval
from datasets import catalogue
from datasets.pack import CifarPack, shared_data
from rlprune.finetuning.augment import flipped_and_shifted
from rlprune.finetuning.loop import TrainConfig, fit
from rlprune.finetuning.memory import keep_freed_memory
from rlprune.finetuning.scoring import score
from rlprune.graph.from_torch import TorchTrace, trace_torch
from rlprune.sensitivity.calibration import CalibrationSet
from rlprune.surgery.torch import prune_torch
from rlprune.torch_state import tensors_of

NETS = ("cifar10_resnet20", "vgg")
RATES = (0.1, 0.05, 0.02, 0.01)
DISTILLED = (0.0, 0.5, 0.9)
AVERAGED = (0.99, 0.998)
SEEDS = 3
EPOCHS = 15
IMAGES = 10_000
BATCH = 128
SHORT = (
    (128, 0.05, 4.0, True),
    (128, 0.02, 4.0, True),
    (128, 0.02, 4.0, False),
    (64, 0.01, 4.0, True),
    (64, 0.01, 4.0, False),
    (64, 0.005, 4.0, False),
    (128, 0.01, 16.0, False),
    (128, 0.02, 16.0, False),
    (64, 0.01, 16.0, True),
    (64, 0.01, 16.0, False),
)
"""Of one epoch: batch, rate, temperature, and whether images are flipped and shifted."""
SHEET = (25, 40)
"""Rows and columns of the images that are kept in one file."""

Short = tuple[int, float, float, bool]
Training = tuple[str, float, float, int]
"""Network, rate, weight of distillation, seed."""


def prepare(work: Path, shared: str | None) -> None:
    """Writes the images and the pruned, reconstructed networks, where they are not there yet."""
    import rlprune
    from rlprune.finetuning.data import RECONSTRUCT_COUNT
    from rlprune.runtime import get_runtime
    from rlprune.sensitivity.torch_reconstruct import reconstruct_module

    work.mkdir(parents=True, exist_ok=True)
    pack = CifarPack(shared_data(shared))
    pixels, labels = pack.pixels("train")
    index = np.setdiff1d(np.arange(len(labels)), pack.splits["train_calib"])
    index = np.random.default_rng([0, 3]).permutation(index)[:IMAGES]
    if not (work / "train.npz").exists():
        tests, marks = pack.pixels("test")
        kept = np.sort(pack.splits["test_reward"])
        _write(work / "reward.npz", tests[kept], marks[kept])
        _write(work / "train.npz", pixels[index], labels[index])
    for name in NETS:
        if (work / f"{name}.json").exists():
            continue
        net = catalogue.load(name, pack=pack)
        trace = _trace(net)
        few = net.preprocess(pixels[index[:RECONSTRUCT_COUNT]])
        plan = rlprune.plan(
            trace, budget_ratio=0.5, device="macs", policy="knapsack", calibration=few[:512]
        )
        small = prune_torch(trace, plan.keeps)
        images = CalibrationSet.single(few, labels[index[:RECONSTRUCT_COUNT]].astype(np.int64))
        moved = reconstruct_module(small, trace, plan.keeps, images, get_runtime()).moved
        print(f"{name}: {plan.macs} MACs, {moved.text()}", flush=True)
        save_file(tensors_of(small), work / f"{name}.pruned.safetensors")
        save_file(tensors_of(net.module), work / f"{name}.safetensors")
        about = {"keeps": plan.keeps.tolist(), "preprocess": dict(net.card["preprocess"])}
        (work / f"{name}.json").write_text(json.dumps(about))


def train(training: Training, work: Path, epochs: int, again: bool = False) -> dict[str, Any]:
    """One training, kept in the folder; what it reached. `again`: although it is kept."""
    name, rate, distilled, seed = training
    file = work / "trained" / f"{name}.lr{rate:g}.d{distilled:g}.s{seed}.e{epochs}.json"
    if file.exists() and not again:
        found: dict[str, Any] = json.loads(file.read_text())
        return found
    device = "cuda" if torch.cuda.is_available() else "cpu"
    net, small, about = _pruned(name, work)
    teacher, small = net.module.to(device), small.to(device)
    images, held = _images(work, about)
    averages = {
        decay: AveragedModel(small, multi_avg_fn=_ema(decay), use_buffers=True)
        for decay in AVERAGED
    }

    def average(done: int, total: int) -> None:
        for one in averages.values():
            one.update_parameters(small)

    start = score(small, held).accuracy
    config = TrainConfig(
        epoch_count=epochs,
        batch_size=BATCH,
        learning_rate=rate,
        distill_weight=distilled,
        distill_temperature=4.0,
        seed=seed,
    )
    history = fit(
        small, images, config, augment=flipped_and_shifted, teacher=teacher, on_step=average
    )
    found = {
        "start": start,
        "last": score(small, held).accuracy,
        **{f"ema{decay:g}": score(one, held).accuracy for decay, one in averages.items()},
        "seconds": sum(record.seconds for record in history),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
    }
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(found))
    print(f"{file.stem}: {found}", flush=True)
    return found


def short_rows(name: str, settings: Short, work: Path) -> Iterator[Row]:
    """Accuracy after one epoch, over the seeds."""
    batch, rate, temperature, augmented = settings
    reached = [100 * train_short(name, settings, work, seed)[0] for seed in range(SEEDS)]
    mean, interval = mean_and_interval(reached)
    how = "augmented" if augmented else "plain"
    full = f"recipe.short.{name}.b{batch}.lr{rate:g}.t{temperature:g}.{how}"
    yield Row(full, mean, "%", None, "max", SEEDS, interval)


def mixed_rows(name: str, work: Path) -> Iterator[Row]:
    """What mixed precision costs in accuracy and wins in time; seed by seed, one after the other,
    so that both meet the same machine."""
    lost, shares = [], []
    for seed in range(SEEDS):
        (plain, plain_sec), (mixed, mixed_sec) = (
            train_short(name, SHORT[-1], work, seed, mixed=mixed) for mixed in (False, True)
        )
        lost.append(100 * (plain - mixed))
        shares.append(mixed_sec / plain_sec)
    for what, values, unit in (("lost", lost, "points"), ("time", shares, "of float32")):
        mean, interval = mean_and_interval(values)
        full = f"recipe.short.{name}.mixed.{what}"
        yield Row(full, mean, unit, None, "min", SEEDS, interval)


def train_short(
    name: str, settings: Short, work: Path, seed: int, *, mixed: bool = False
) -> tuple[float, float]:
    """Accuracy (0-1) after one epoch, and the CPU seconds that it took."""
    batch, rate, temperature, augmented = settings
    net, small, about = _pruned(name, work)
    images, held = _images(work, about)
    config = TrainConfig(
        epoch_count=1,
        batch_size=batch,
        learning_rate=rate,
        distill_weight=0.5,
        distill_temperature=temperature,
        mixed_precision=mixed,
        seed=seed,
    )
    augment = flipped_and_shifted if augmented else None
    began = time.process_time()
    fit(small, images, config, augment=augment, teacher=net.module)
    return score(small, held).accuracy, time.process_time() - began


def told(
    name: str, rate: float, distilled: float, work: Path, epochs: int, again: bool
) -> Iterator[Row]:
    """Accuracy of the last weights and of averaged ones, over the seeds."""
    each = [train((name, rate, distilled, seed), work, epochs, again) for seed in range(SEEDS)]
    for which in ("last", *(f"ema{decay:g}" for decay in AVERAGED)):
        mean, interval = mean_and_interval([100 * one[which] for one in each])
        full = f"recipe.{name}.lr{rate:g}.d{distilled:g}.{which}"
        yield Row(full, mean, "%", None, "max", SEEDS, interval)


def main() -> None:
    bench = Bench("recipe", __doc__)
    add = bench.parser.add_argument
    add("--work", type=Path, default=Path("build/recipe"), help="folder of what is kept")
    add("--jobs", type=int, default=1, help="trainings side by side")
    add("--prepare", action="store_true", help="only write data and pruned networks")
    add("--short", action="store_true", help="only trainings of one epoch")
    add("--train", action="store_true", help="only train, from what was prepared")
    options = bench.parse()
    keep_freed_memory()  # as the command line does
    epochs = 1 if options.quick else EPOCHS
    if not options.train:
        prepare(options.work, options.shared)
    if options.prepare:
        return
    if options.short:
        with bench.measuring():
            for name in NETS:
                for settings in SHORT[: 1 if options.quick else None]:
                    rows = partial(short_rows, name, settings, options.work)
                    bench.cell(f"{name}/short/{'/'.join(map(str, settings))}", rows)
                if not options.quick:
                    bench.cell(f"{name}/short/mixed", partial(mixed_rows, name, options.work))
        return
    grid = [
        (name, rate, distilled, seed)
        for seed in range(SEEDS)
        for name in NETS
        for rate in RATES
        for distilled in DISTILLED
    ]
    if options.jobs > 1 or options.train:
        with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
            list(pool.map(partial(train, work=options.work, epochs=epochs), grid))
    if options.train:
        return
    with bench.measuring():
        for name in NETS:
            for rate in RATES:
                for distilled in DISTILLED:
                    cell = f"{name}/lr{rate:g}/d{distilled:g}"
                    again = bench.is_again(cell)
                    how = (name, rate, distilled, options.work, epochs, again)
                    bench.cell(cell, partial(told, *how))


def _pruned(name: str, work: Path) -> tuple[catalogue.Loaded, nn.Module, dict[str, Any]]:
    """A network, and what `prepare` made of it."""
    about: dict[str, Any] = json.loads((work / f"{name}.json").read_text())
    net = catalogue.load(name)
    net.module.load_state_dict(load_file(work / f"{name}.safetensors"))
    small = prune_torch(_trace(net), np.array(about["keeps"]))
    small.load_state_dict(load_file(work / f"{name}.pruned.safetensors"))
    return net, small, about


def _images(work: Path, about: dict[str, Any]) -> tuple[CalibrationSet, CalibrationSet]:
    """What a network is trained and judged on."""
    train, held = (
        CalibrationSet.single(catalogue.preprocess(x, about["preprocess"]), y)
        for x, y in (_read(work / "train.npz"), _read(work / "reward.npz"))
    )
    return train, held


def _ema(decay: float) -> Any:
    return get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]


def _trace(net: catalogue.Loaded) -> TorchTrace:
    return trace_torch(net.module, torch.zeros(1, 3, 32, 32))


def _write(path: Path, pixels: NDArray[np.uint8], labels: NDArray[np.uint8]) -> None:
    """Images [N, 32, 32, 3], a thousand to a lossless sheet, and labels [N]."""
    rows, columns = SHEET
    sheets = pixels.reshape(-1, rows, columns, 32, 32, 3).transpose(0, 1, 3, 2, 4, 5)
    made: dict[str, Any] = {"labels": labels}
    for number, sheet in enumerate(sheets.reshape(len(sheets), rows * 32, columns * 32, 3)):
        file = io.BytesIO()
        Image.fromarray(sheet).save(file, "WEBP", lossless=True)
        made[f"sheet{number:02}"] = np.frombuffer(file.getvalue(), np.uint8)
    np.savez(path, **made)


def _read(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images [N, 32, 32, 3] and labels [N]."""
    rows, columns = SHEET
    with np.load(path) as kept:
        sheets = np.stack(
            [
                np.asarray(Image.open(io.BytesIO(kept[name].tobytes())))
                for name in sorted(kept.files)
                if name != "labels"
            ]
        )
        labels = kept["labels"].astype(np.int64)
    images = sheets.reshape(-1, rows, 32, columns, 32, 3).transpose(0, 1, 3, 2, 4, 5)
    return np.ascontiguousarray(images.reshape(-1, 32, 32, 3)), labels


if __name__ == "__main__":
    main()
