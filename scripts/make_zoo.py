"""Trains the zoo's CIFAR-10 networks from scratch, one after the other, on one thread.

    python scripts/make_zoo.py [--only NAME ...] [--list] [--json FILE] [--out DIR] [--work DIR]

Each net trains on 45,000 train images and is validated on the other 5,000 (`train_calib`);
`test_reward` is looked at once, after training, and chooses nothing; `test_report` is never read.
The last epoch's weights are what counts, in float16 as they are kept, and a net below 85 % on the
validation images is left out: its record is written, its weights are not. A run that was killed
goes on after its last whole epoch.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import hashlib
import json
import signal
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import zoo_nets
from cifar_pack import CifarPack, exported, shared_data
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from rlprune.errors import InputError
from rlprune.graph.from_onnx import trace_onnx
from rlprune.training.finetune import Images, flipped_and_shifted, score

SIZES = (16, 24, 32)
LEAST_ACCURACY = 0.85


@dataclass(frozen=True, slots=True)
class Recipe:
    """SGD with Nesterov momentum; the rate rises and falls linearly once (one cycle)."""

    batch_size: int = 128
    peak_rate: float = 0.15
    warmup_ratio: float = 0.2
    """Share (0-1) of the steps over which the rate rises."""
    momentum: float = 0.9
    weight_decay: float = 3e-4
    """Of convolutions and the classifier; vectors are spared."""
    label_smoothing: float = 0.05
    augment: str = "mirrored one time in two, moved by up to 4 pixels"
    seed: int = 0


class Data:
    """CIFAR-10 as uint8 [N, 32, 32, 3], in the parts that the zoo uses."""

    def __init__(self, pack: CifarPack) -> None:
        pixels, labels = pack.pixels("train")
        held = np.zeros(len(labels), bool)
        held[pack.splits["train_calib"]] = True
        self.train = (pixels[~held], labels[~held].astype(np.int64))
        self.validation = as_images(pixels[held], labels[held])
        pixels, labels = pack.pixels("test")
        reward = pack.splits["test_reward"]
        self.reward = as_images(pixels[reward], labels[reward])


class Clock:
    """How long the rest takes, from what was done since the start; an image's cost is its area."""

    def __init__(self, nets: Iterable[zoo_nets.ZooNet]) -> None:
        self.left = sum(area(size) for net in nets for size in sizes(net))
        self.done = 0.0
        self.started = time.monotonic()

    def skip(self, size: int) -> None:
        self.left -= area(size)

    def finish(self, size: int) -> float:
        """Counts an epoch; returns the minutes still to go."""
        self.left -= area(size)
        self.done += area(size)
        return (time.monotonic() - self.started) / self.done * self.left / 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", default=list(zoo_nets.NETS))
    parser.add_argument("--list", action="store_true", help="say what there is, and train nothing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all records to FILE")
    parser.add_argument("--out", type=Path, default=zoo_nets.WEIGHTS)
    parser.add_argument("--work", type=Path, default=Path("~/.cache/rlprune/zoo").expanduser())
    parser.add_argument("--shared")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.only) - set(zoo_nets.NETS))
    if unknown:
        raise SystemExit(f"no net {unknown[0]!r}; there are {', '.join(zoo_nets.NETS)}")
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell starts jobs with SIGINT ignored
        signal.signal(number, signal.default_int_handler)
    try:
        if not arguments.list:
            make(arguments)
    except KeyboardInterrupt:
        print("stopped; the same command goes on after the last whole epoch", file=sys.stderr)
        raise SystemExit(130) from None
    except InputError as error:
        raise SystemExit(str(error)) from error
    finally:
        records = [record for name in arguments.only if (record := read(arguments.out, name))]
        if arguments.json:
            arguments.json.write_text(json.dumps(records, indent=1) + "\n")
    if arguments.list:
        print_list(arguments)


def make(arguments: argparse.Namespace) -> None:
    """Trains every net asked for that has no record yet."""
    torch.set_num_threads(1)
    missing = [name for name in arguments.only if not read(arguments.out, name)]
    if not missing:
        return
    data = Data(CifarPack(shared_data(arguments.shared)))
    clock = Clock(zoo_nets.NETS[name] for name in missing)
    for name in missing:
        module, history = train(name, data, Recipe(), arguments.work, clock)
        keep(name, module, history, data, arguments.out)


def train(
    name: str, data: Data, recipe: Recipe, work: Path, clock: Clock
) -> tuple[nn.Module, list[dict[str, Any]]]:
    """A trained net in eval mode, and what each epoch saw; saves its state after each epoch."""
    net = zoo_nets.NETS[name]
    torch.manual_seed(recipe.seed)
    # In channels_last an epoch took 23-30 % less CPU (vgg, mobilenetv1; EPYC with AVX2).
    module = net.make().to(memory_format=torch.channels_last)
    parameters = list(module.parameters())
    optimizer = torch.optim.SGD(
        [
            {"params": [p for p in parameters if p.dim() > 1], "weight_decay": recipe.weight_decay},
            {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
        ],
        lr=recipe.peak_rate,
        momentum=recipe.momentum,
        nesterov=True,
    )
    checkpoint = work / f"{name}.pt"
    recipe_used = {**asdict(recipe), "epochs": list(net.epochs), "bfloat16": net.bfloat16}
    history: list[dict[str, Any]] = []
    if checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True)
        if state["recipe"] != recipe_used:
            raise InputError(f"{checkpoint} is of another recipe; remove it to train {name} again")
        module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        history = state["history"]
    plan = sizes(net)
    for size in plan[: len(history)]:
        clock.skip(size)
    for epoch in range(len(history), len(plan)):
        started = time.monotonic()
        loss, accuracy = train_epoch(
            module, optimizer, data, recipe, epoch, plan, net.bfloat16
        )
        row: dict[str, Any] = {
            "size": plan[epoch],
            "loss": round(loss, 4),
            "accuracy": round(accuracy, 4),
            "seconds": round(time.monotonic() - started, 1),
        }
        if plan[epoch] == SIZES[-1]:
            row["validation_accuracy"] = round(score(module, data.validation).accuracy, 4)
        history.append(row)
        work.mkdir(parents=True, exist_ok=True)
        partial = checkpoint.with_suffix(".partial")
        torch.save(
            {
                "module": module.state_dict(),
                "optimizer": optimizer.state_dict(),
                "history": history,
                "recipe": recipe_used,
            },
            partial,
        )
        partial.replace(checkpoint)
        left = clock.finish(plan[epoch])
        print(
            f"{time.strftime('%H:%M')} {name} epoch {epoch + 1}/{len(plan)} {json.dumps(row)}, "
            f"all done in about {left:.0f} min",
            flush=True,
        )
    return module.eval(), history


def train_epoch(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: Data,
    recipe: Recipe,
    epoch: int,
    plan: list[int],
    bfloat16: bool,
) -> tuple[float, float]:
    """Mean loss and accuracy over the epoch; its order and augmentation follow from its number."""
    generator = torch.Generator().manual_seed(1000 * recipe.seed + epoch)
    pixels, labels = data.train
    step_count = len(labels) // recipe.batch_size
    order = torch.randperm(len(labels), generator=generator)[: step_count * recipe.batch_size]
    loss_sum = right = 0.0
    module.train()
    for step, index in enumerate(order.split(recipe.batch_size)):
        x = torch.from_numpy(zoo_nets.preprocess(pixels[index.numpy()], zoo_nets.PREPROCESS))
        x = resized(flipped_and_shifted(x, generator), plan[epoch])
        y = torch.from_numpy(labels[index.numpy()])
        for group in optimizer.param_groups:
            group["lr"] = rate(recipe, (epoch * step_count + step) / (len(plan) * step_count))
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            logits = module(x.contiguous(memory_format=torch.channels_last)).float()
        loss = F.cross_entropy(logits, y, label_smoothing=recipe.label_smoothing)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        loss_sum += loss.item()
        right += (logits.argmax(1) == y).sum().item()
    return loss_sum / step_count, right / len(order)


def rate(recipe: Recipe, done: float) -> float:
    """The learning rate after a share (0-1) of the steps."""
    rise, fall = done / recipe.warmup_ratio, (1 - done) / (1 - recipe.warmup_ratio)
    return recipe.peak_rate * max(min(rise, fall), 1e-3)


def keep(
    name: str, module: nn.Module, history: list[dict[str, Any]], data: Data, out: Path
) -> None:
    """Writes the net's record, and its weights if it is good enough.

    Matrices are kept in float16, vectors (they are few) as they are. All accuracies are of the
    weights as kept.
    """
    net, recipe = zoo_nets.NETS[name], Recipe()
    kept = {
        key: (tensor.half() if tensor.dim() > 1 else tensor).contiguous()
        for key, tensor in module.state_dict().items()
    }
    before = score(module, data.validation)
    module.load_state_dict({key: tensor.float() for key, tensor in kept.items()})
    after = score(module, data.validation)
    graph = trace_onnx(exported(module)).graph
    included = after.accuracy >= LEAST_ACCURACY
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.safetensors"
    if included:
        save_file(kept, path)
        path.chmod(0o644)  # safetensors makes it the user's own
    record = {
        "name": name,
        "family": net.family,
        "held_out": net.family in zoo_nets.HELD_OUT,
        "included": included,
        "macs": int(graph.macs(graph.widths)),
        "params": sum(p.numel() for p in module.parameters()),
        "prunable_macs_ratio": round(graph.prunable_macs_ratio(), 4),
        "group_count": len(graph.groups),
        "preprocess": zoo_nets.PREPROCESS,
        "measured": {
            "validation_accuracy": after.accuracy,
            "validation_loss": round(after.loss, 4),
            "validation_accuracy_float32": before.accuracy,
            "test_reward_accuracy": score(module, data.reward).accuracy,
            "with": f"torch {torch.__version__}, weights in float16, computed in float32",
        },
        "recipe": {
            **asdict(recipe),
            "epochs": list(net.epochs),
            "sizes": list(SIZES),
            "bfloat16": net.bfloat16,
        },
        "images": "45,000 CIFAR-10 train images; validated on train_calib (5,000)",
        "history": history,
        "licence": "Apache-2.0",
        "made_by": "scripts/make_zoo.py",
    }
    if included:
        record["safetensors_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    # The record last: its presence says that the net is finished.
    (out / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    verdict = "" if included else f", left out (below {LEAST_ACCURACY:.0%})"
    print(f"{name} ({net.family}): {after.accuracy:.2%} on validation{verdict}", flush=True)


def as_images(pixels: NDArray[np.uint8], labels: NDArray[np.uint8]) -> Images:
    return Images(zoo_nets.preprocess(pixels, zoo_nets.PREPROCESS), labels.astype(np.int64))


def resized(x: Tensor, size: int) -> Tensor:
    if size == x.shape[-1]:
        return x
    return F.interpolate(x, size=(size, size), mode="bilinear", antialias=True)


def sizes(net: zoo_nets.ZooNet) -> list[int]:
    """Pixels of each epoch."""
    return [size for size, count in zip(SIZES, net.epochs, strict=True) for _ in range(count)]


def area(size: int) -> float:
    return (size / SIZES[-1]) ** 2


def read(out: Path, name: str) -> dict[str, Any] | None:
    path = out / f"{name}.json"
    record: dict[str, Any] | None = json.loads(path.read_text()) if path.is_file() else None
    return record


def print_list(arguments: argparse.Namespace) -> None:
    print(f"{'name':20}{'family':20}{'MMACs':>6}{'params':>9}  validation")
    for name in arguments.only:
        net, record = zoo_nets.NETS[name], read(arguments.out, name)
        family = net.family + (" *" if net.family in zoo_nets.HELD_OUT else "")
        if record is None:
            print(f"{name:20}{family:20}{'':15}  not trained")
            continue
        accuracy = record["measured"]["validation_accuracy"]
        left_out = "" if record["included"] else ", left out"
        print(
            f"{name:20}{family:20}{record['macs'] / 1e6:6.1f}{record['params']:9,}"
            f"  {accuracy:.2%}{left_out}"
        )
    print("* held out: no default policy is trained on these families")


if __name__ == "__main__":
    main()
