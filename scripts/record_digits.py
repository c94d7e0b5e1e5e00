"""Trains and records small nets on digits: the default policy's models beside the CIFAR ones.

    python scripts/record_digits.py [NAME ...] [--out DIR] [--evaluations N]

Digits come with scikit-learn, so anybody can make these again; half of the calibration images
measure the profile, the other half judge plans. The demo's held-out net is not among them. A run
that was killed goes on where it stopped.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import time
from pathlib import Path

import torch

from rlprune.graph.from_torch import trace_torch
from rlprune.policy import DATA
from rlprune.profile.calibration import Calibration
from rlprune.training.record import RecordConfig, record_model
from rlprune.training.zoo import NetSpec, digits, train_net

NETS = (
    NetSpec("residual", 16, 2),
    NetSpec("plain", 24, 2),
    NetSpec("squeeze", 16, 2),
    NetSpec("inverted", 16, 2),
    NetSpec("dense", 16, 3),
    NetSpec("residual", 32, 1),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--out", type=Path, default=DATA / "recorded")
    parser.add_argument("--evaluations", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for spec in NETS:
        if not options.names or spec.name in options.names:
            record(spec, options)


def record(spec: NetSpec, options: argparse.Namespace) -> None:
    started = time.monotonic()
    splits = digits(seed=options.seed)
    module = train_net(spec, splits, epoch_count=5, seed=options.seed)
    x, y = splits.calibration.x, splits.calibration.y
    half = len(x) // 2
    model = record_model(
        options.out / f"digits-{spec.name}",
        trace_torch(module, torch.zeros(splits.shape)).onnx,
        Calibration(x[:half], y[:half]),
        Calibration(x[half:], y[half:]),
        config=RecordConfig(evaluation_count=options.evaluations, seed=options.seed),
        provenance={
            "name": f"digits-{spec.name}",
            "images": f"scikit-learn digits, {half} of the calibration part for each purpose",
            "made_by": "scripts/record_digits.py",
        },
    )
    assert model.evaluations is not None
    print(
        f"{spec.name}: {len(model.evaluations.loss)} plans, base loss "
        f"{model.evaluations.base_loss:.3f}, {time.monotonic() - started:.0f} s",
        flush=True,
    )


if __name__ == "__main__":
    main()
