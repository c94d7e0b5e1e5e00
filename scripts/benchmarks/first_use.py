"""The README's commands on a newcomer's own model, without data and with 200 labelled images.

    scripts/bench_first_use [--quick] [--seed N] [--json FILE]

A ResNet-18 of half the usual widths is trained on scikit-learn's digits, enlarged to 64 x
64 pixels of three channels with noise, and written by both of torch's exporters: the default one
with a fixed batch, the older one with an open batch. Then, with nothing measured before:

    rlprune plan r.onnx --budget-ratio 0.5 -o p.json
    rlprune apply p.json r.onnx -o s.onnx
    rlprune measure r.onnx s.onnx

and again with `--calibration images.npz`. Their output is printed; accuracy is of 597 images that
neither training nor calibration saw. The network, the images and what is made up are the same for
one seed; the plan follows this machine's latencies. `--quick`: half of those widths and the default
exporter only.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import re
import subprocess
import sys
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from benchmarks.harness import Row, write_rows
from torch import Tensor, nn
from torch.nn import functional

SIDE = 64
TRAINED_COUNT, CALIBRATION_COUNT = 1000, 200
EPOCHS = 5
WIDTH, QUICK_WIDTH = 32, 16
BUDGET_RATIO = 0.5
TARGET = 0.9
"""Least share of the accuracy with real images that is left without any."""
MOST_OVER_BUDGET = 1.1
PROGRESS = re.compile(r"[a-z ]+: \d+ of \d+")


class BasicBlock(nn.Module):
    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = nn.Sequential()
        if stride > 1 or channels != width:
            shortcut = nn.Conv2d(channels, width, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(y)) + self.downsample(x))


class ResNet18(nn.Module):
    """He et al., CVPR 2016, of `width`, 2 `width`, 4 `width` and 8 `width` channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        blocks, channels = [], width
        for stage in range(4):
            for block in range(2):
                stride = 2 if stage and not block else 1
                blocks.append(BasicBlock(channels, width << stage, stride))
                channels = width << stage
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(functional.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        return self.fc(self.blocks(x).mean((2, 3)))


@dataclass(frozen=True)
class Images:
    """x [N, 3, SIDE, SIDE] float32, as the network takes it; y [N] int64."""

    x: np.ndarray
    y: np.ndarray

    def part(self, start: int, stop: int | None) -> Images:
        return Images(self.x[start:stop], self.y[start:stop])


def digits(seed: int) -> Images:
    """Scikit-learn's 1,797 digits in random order, enlarged, with noise of deviation 0.3."""
    from sklearn.datasets import load_digits

    data = load_digits()
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(data.target))
    small = torch.from_numpy(data.images[order].astype(np.float32) / 8 - 1)[:, None]
    large = functional.interpolate(small, (SIDE, SIDE), mode="bilinear").numpy()
    noise = rng.standard_normal((len(order), 3, SIDE, SIDE)).astype(np.float32)
    return Images(large + np.float32(0.3) * noise, data.target[order].astype(np.int64))


def train(width: int, images: Images, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    net = ResNet18(width)
    x, y = torch.from_numpy(images.x), torch.from_numpy(images.y)
    batches = [len(x) // 50] * EPOCHS
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=sum(batches))
    for count in batches:
        for batch in torch.randperm(len(x)).chunk(count):
            optimizer.zero_grad()
            functional.cross_entropy(net(x[batch]), y[batch]).backward()
            optimizer.step()
            if schedule.last_epoch < sum(batches):
                schedule.step()
    return net.eval()


def export(net: nn.Module, path: Path, *, dynamo: bool) -> None:
    """By the default exporter as it comes, or by the older one with an open batch."""
    options = (
        {}
        if dynamo
        else {
            "input_names": ["x"],
            "output_names": ["y"],
            "dynamic_axes": {"x": {0: "batch"}, "y": {0: "batch"}},
        }
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable()  # of what is not installed, and of the exporter's own steps
        sample = torch.zeros(1, 3, SIDE, SIDE)
        with contextlib.redirect_stdout(io.StringIO()):
            torch.onnx.export(net, (sample,), path, dynamo=dynamo, **options)


def accuracy(path: Path, images: Images) -> float:
    """Share (0-1) of labels that a file's answers meet, in the runtime itself, one by one."""
    session = ort.InferenceSession(path)
    name = session.get_inputs()[0].name
    answers = [session.run(None, {name: one[None]})[0][0] for one in images.x]
    return float((np.argmax(answers, axis=1) == images.y).mean())


def typed(command: str, folder: Path) -> str:
    """Runs a command of ours in `folder` as in a shell there, shows it, and returns its output."""
    print(f"\n$ {command}", flush=True)
    program = Path(sys.executable).with_name("rlprune")
    environment = {**os.environ, "XDG_DATA_HOME": str(folder / "data")}
    words = [str(program), *command.split()[1:]]
    done = subprocess.run(
        words, cwd=folder, env=environment, text=True, capture_output=True, check=False
    )
    told = "\n".join(line for line in done.stderr.splitlines() if not PROGRESS.fullmatch(line))
    print(done.stdout + told, flush=True)
    if done.returncode:
        raise SystemExit(f"{command!r} ended with exit code {done.returncode}: {done.stderr}")
    return done.stdout


def measured_ratio(shown: str) -> float:
    """The pruned model's latency over the unpruned one's, as `measure` printed it."""
    (row,) = (line.split() for line in shown.splitlines() if " s.onnx " in line)
    return float(row[-5])  # ratio, low, .., high, wall ms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smaller network, one exporter")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()

    torch.set_num_threads(1)
    images = digits(options.seed)
    width = QUICK_WIDTH if options.quick else WIDTH
    net = train(width, images.part(0, TRAINED_COUNT), options.seed)
    calibration = images.part(TRAINED_COUNT, TRAINED_COUNT + CALIBRATION_COUNT)
    judged = images.part(TRAINED_COUNT + CALIBRATION_COUNT, None)
    rows: list[Row] = []

    def add(label: str, value: float, unit: str, target: float | None, sense: str) -> None:
        rows.append(Row(label, value, unit, target, sense, len(judged.y), None))

    for exporter in ("default",) if options.quick else ("default", "older_open_batch"):
        with tempfile.TemporaryDirectory(prefix="rlprune-first-use-") as name:
            folder = Path(name)
            export(net, folder / "r.onnx", dynamo=exporter == "default")
            np.savez(folder / "images.npz", x=calibration.x, y=calibration.y)
            kept = {"unpruned": accuracy(folder / "r.onnx", judged)}
            for data, option in (("no_data", ""), ("images", " --calibration images.npz")):
                asked = f"--budget-ratio {BUDGET_RATIO}{option}"
                typed(f"rlprune plan r.onnx {asked} -o p.json", folder)
                typed(f"rlprune apply p.json r.onnx{option} -o s.onnx", folder)
                ratio = measured_ratio(typed("rlprune measure r.onnx s.onnx", folder))
                kept[data] = accuracy(folder / "s.onnx", judged)
                over = ratio / BUDGET_RATIO
                add(f"{exporter}/{data}/over_budget", over, "of budget", MOST_OVER_BUDGET, "min")
        for data, share in kept.items():
            add(f"{exporter}/{data}/accuracy", 100 * share, "%", None, "max")
        over_real = kept["no_data"] / kept["images"]
        add(f"{exporter}/no_data_over_images", over_real, "", TARGET, "max")
    print()
    for row in rows:
        target = "" if row.target is None else f"target {row.sense} {row.target}"
        print(f"{row.name:40} {row.value:8.3f} {row.unit:10} {target}")
    print(f"{len(judged.y)} images, seed {options.seed}, load average {os.getloadavg()[0]:.1f}")
    if options.json:
        write_rows(options.json, rows)


if __name__ == "__main__":
    main()
