"""Many small, briefly trained networks, recorded for the default policy to learn from.

    scripts/data nursery [--count N] [--part K/N] [--evaluations N] [--out DIR] [--work DIR]
                         [--shared DIR]

What a policy should know of networks it has not seen, it cannot learn from the zoo's few. Here
architectures are drawn by number: block type in turn, depths and widths at random, at most
14 MMACs. Each trains for five epochs (65-75 % validation accuracy), is recorded as `record`
does, and is thrown away: profile and evaluations are what stays. None is of a held-out family.
`--part 1/2` and `--part 2/2` share the work between two processes; a run that was killed goes on.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from datasets import nets
from datasets.pack import CifarPack, exported, shared_data
from datasets.running import recorded_folder, stoppable
from datasets.training import Data, Recipe, train
from rlprune.finetuning.scoring import score
from rlprune.graph.from_onnx import trace_onnx
from rlprune.recording.model_dir import load_model_dir
from rlprune.recording.record import RecordConfig, record_model

EPOCHS = (2, 2, 1)
"""At each of `training.SIZES`."""
IMAGES = 1000
"""To profile on, and as many others to judge plans on, out of `train_calib`."""
PREFIX = "nursery-"

Rng = np.random.Generator


def plain(rng: Rng) -> nn.Module:
    width = int(rng.choice([16, 24, 32]))
    stages = []
    for stage in range(3):
        own = width * 2**stage
        stages.append(tuple(_near(own, rng) for _ in range(int(rng.integers(1, 4)))))
    return nets.vgg(*stages)


def residual(rng: Rng) -> nn.Module:
    stem = int(rng.choice([16, 24]))
    return nets.resnet(stem, nets.basic, *_stages(rng, stem, most=3))


def bottleneck(rng: Rng) -> nn.Module:
    stem = int(rng.choice([16, 24, 32]))
    return nets.resnet(stem, nets.bottleneck, *_stages(rng, 2 * stem, most=4, by=16))


def inverted_residual(rng: Rng) -> nn.Module:
    blocks = [
        (int(rng.integers(2, 5)), stride, cout) for stride, cout in _stages(rng, 16, most=4, grow=4)
    ]
    return nets.inverted(16, *blocks, last=int(rng.choice([96, 128, 160, 192])))


def separable(rng: Rng) -> nn.Module:
    stem = int(rng.choice([16, 24, 32]))
    return nets.mobilenet_v1(stem, *_stages(rng, 2 * stem, most=4))


def inception(rng: Rng) -> nn.Module:
    modules = []
    for index in range(int(rng.integers(2, 6))):
        pool = 2 if index == 0 or rng.random() < 0.4 else 1
        one, three, five, pooled = (
            8 * int(rng.integers(1 + index // 2, 5 + index)) for _ in "1234"
        )
        modules.append((pool, one, 2 * three, 2 * five, pooled))
    return nets.inception(int(rng.choice([16, 24, 32])), *modules)


def _near(width: int, rng: Rng, by: int = 8) -> int:
    """A multiple of `by` from 2/3 to 3/2 of the width."""
    return by * max(1, round(width * float(rng.uniform(2 / 3, 3 / 2)) / by))


def _stages(
    rng: Rng, first: int, *, most: int, by: int = 8, grow: int = 2
) -> list[tuple[int, int]]:
    """Blocks (stride, channels out) of two to four stages of at most `most` blocks."""
    blocks = []
    width = first
    for stage in range(int(rng.integers(2, 5))):
        cout = _near(width, rng, by)
        stride = 2 if stage or rng.random() < 0.4 else 1
        blocks += [(stride if i == 0 else 1, cout) for i in range(int(rng.integers(1, most + 1)))]
        width = int(cout * rng.uniform(1.3, grow))
    return blocks


@dataclass(frozen=True, slots=True)
class Kind:
    """A block type."""

    make: Callable[[Rng], nn.Module]
    depthwise: bool = False
    """Then a MAC takes about three times as long, and bfloat16 makes it slower still."""

    @property
    def mmacs(self) -> tuple[float, float]:
        """Networks outside are drawn again."""
        return (1.5, 5.0) if self.depthwise else (3.0, 14.0)


KINDS = {
    "residual": Kind(residual),
    "inverted_residual": Kind(inverted_residual, depthwise=True),
    "inception": Kind(inception),
    "separable": Kind(separable, depthwise=True),
    "bottleneck": Kind(bottleneck),
    "plain": Kind(plain),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=36)
    every = "every Nth from the Kth on"
    parser.add_argument("--part", type=part, default=(1, 1), metavar="K/N", help=every)
    parser.add_argument("--evaluations", type=int, default=200, help="of each network")
    parser.add_argument("--out", type=Path, help="the recordings by default")
    parser.add_argument("--work", type=Path, default=Path("~/.cache/rlprune/nursery").expanduser())
    parser.add_argument("--shared")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with stoppable():
        options.out = options.out or recorded_folder()
        data = Data(CifarPack(shared_data(options.shared)))
        for number in range(options.part[0] - 1, options.count, options.part[1]):
            raise_one(number, data, options)


def part(text: str) -> tuple[int, int]:
    """(K, N) of `K/N`."""
    number, count = map(int, text.split("/"))
    return number, count


def raise_one(number: int, data: Data, options: argparse.Namespace) -> None:
    """Trains and records one network; what is already there is not made again."""
    name = f"{PREFIX}{number:02d}"
    folder = options.out / name
    if (folder / "graph.json").exists():
        found = load_model_dir(folder).evaluations
        if found is not None and len(found.keeps) >= options.evaluations:
            return
    family, module = drawn(number)
    recipe, started = Recipe(seed=number), time.monotonic()
    state, bfloat16 = options.work / f"{name}.pt", not KINDS[family].depthwise
    train(module, data, recipe, state, epochs=EPOCHS, bfloat16=bfloat16)
    accuracy = score(module, data.validation).accuracy
    trace = trace_onnx(exported(module))
    # Validation images did not train the network: some to profile on, others to judge plans on.
    order = np.random.default_rng(number).permutation(len(data.validation))
    profile, objective = (
        data.validation.take(index) for index in (order[:IMAGES], order[IMAGES : 2 * IMAGES])
    )
    about = {
        "name": name,
        "family": family,
        "weights": f"scripts/data nursery, number {number}, {asdict(recipe)}, {EPOCHS}",
        "licence": "Apache-2.0",
        "accuracy": f"{accuracy:.4f} on train_calib",
        "images": f"CIFAR-10 train_calib, {IMAGES} for each purpose",
        "made_by": "scripts/data nursery",
    }
    config = RecordConfig(evaluation_count=options.evaluations, seed=number)
    record_model(folder, trace, profile, objective, config=config, provenance=about)
    now, macs = time.strftime("%H:%M"), trace.graph.macs(trace.graph.widths) / 1e6
    took = f"{time.monotonic() - started:.0f} s"
    print(f"{now} {name} {family}: {macs:.1f} MMACs, {accuracy:.1%}, {took}", flush=True)


def drawn(number: int) -> tuple[str, nn.Module]:
    """The family and the untrained network of a number."""
    family = list(KINDS)[number % len(KINDS)]
    rng = np.random.default_rng([number, 5])
    while True:
        torch.manual_seed(number)
        module = KINDS[family].make(rng)
        graph = trace_onnx(exported(module.eval())).graph
        least, most = KINDS[family].mmacs
        if least <= graph.macs(graph.widths) / 1e6 <= most:
            return family, module


if __name__ == "__main__":
    main()
