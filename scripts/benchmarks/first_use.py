"""The README's commands on a newcomer's own model, without data and with 200 labelled images.

A ResNet-18 of narrow widths is trained on scikit-learn's digits, enlarged to 32 x 32 pixels of
three channels with noise, and written by both of torch's exporters: the default one with a fixed
batch, the older one with an open batch. Then, with nothing measured before:

    rlprune plan r.onnx --budget-ratio 0.5 -o p.json
    rlprune apply p.json r.onnx -o s.onnx
    rlprune measure r.onnx s.onnx

and again with `--calibration images.npz`. Their output is printed; accuracy is of 447 images that
neither training nor calibration saw. The network, the images and what is made up are the same for
one seed; the plan follows this machine's latencies. `--quick`: half of those widths and the default
exporter only.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from torch import nn

from benchmarks.harness import Bench, Row
from datasets import nets
from datasets.digits import digits
from datasets.pack import exported
from rlprune.finetuning.loop import TrainConfig, fit
from rlprune.sensitivity.calibration import CalibrationSet

SIDE, NOISE = 32, 0.3
CALIBRATION_COUNT = 200
WIDTH, QUICK_WIDTH = 32, 16
RECIPE = TrainConfig(epoch_count=5, batch_size=50, learning_rate=0.05, distill_weight=0.0)
BUDGET_RATIO = 0.5
TARGET = 0.9
"""Least share of the accuracy with real images that is left without any."""
MOST_OVER_BUDGET = 1.1
PROGRESS = re.compile(r"[a-z ]+: \d+ of \d+")


def main() -> None:
    bench = Bench("first_use", __doc__)
    options = bench.parse()
    torch.set_num_threads(1)
    with bench.measuring():
        for exporter in ("default",) if options.quick else ("default", "older_open_batch"):
            measure = partial(newcomer, exporter, options.quick, options.seed)
            bench.cell(exporter, measure)


def newcomer(exporter: str, quick: bool, seed: int) -> Iterator[Row]:
    """All that a newcomer types, and what comes of it."""
    splits = digits(seed=seed, side=SIDE, noise=NOISE)
    net = trained(QUICK_WIDTH if quick else WIDTH, splits.train, seed)
    judged = splits.report

    with tempfile.TemporaryDirectory(prefix="rlprune-first-use-") as name:
        folder = Path(name)
        export(net, folder / "r.onnx", dynamo=exporter == "default")
        few = splits.calibration.take(np.arange(CALIBRATION_COUNT))
        np.savez(folder / "images.npz", x=few.x, y=few.labels)
        kept = {"unpruned": accuracy(folder / "r.onnx", judged)}
        for data, option in (("no_data", ""), ("images", " --calibration images.npz")):
            typed(f"rlprune plan r.onnx --budget-ratio {BUDGET_RATIO}{option} -o p.json", folder)
            typed(f"rlprune apply p.json r.onnx{option} -o s.onnx", folder)
            ratio = measured_ratio(typed("rlprune measure r.onnx s.onnx", folder))
            kept[data] = accuracy(folder / "s.onnx", judged)
            label, over = f"{exporter}/{data}/over_budget", ratio / BUDGET_RATIO
            yield Row(label, over, "of budget", MOST_OVER_BUDGET, "min", 1, None)
    for data, share in kept.items():
        yield Row(f"{exporter}/{data}/accuracy", 100 * share, "%", None, "max", len(judged), None)
    over_real = kept["no_data"] / kept["images"]
    label = f"{exporter}/no_data_over_images"
    yield Row(label, over_real, "", TARGET, "max", len(judged), None)


def trained(width: int, images: CalibrationSet, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    blocks = [(1 if index % 2 else 2, width << index // 2) for index in range(8)]
    net = nets.resnet(width, nets.basic, *blocks)
    fit(net, images, RECIPE)
    return net.eval()


def export(net: nn.Module, path: Path, *, dynamo: bool) -> None:
    """By the default exporter as it comes, or by the older one with an open batch."""
    if not dynamo:
        path.write_bytes(exported(net, (1, 3, SIDE, SIDE)))
        return
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable()  # of what is not installed, and of the exporter's own steps
        torch.onnx.export(net, (torch.zeros(1, 3, SIDE, SIDE),), path, dynamo=True)


def accuracy(path: Path, images: CalibrationSet) -> float:
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


if __name__ == "__main__":
    main()
