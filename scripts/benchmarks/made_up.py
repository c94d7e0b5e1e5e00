"""What made-up inputs are worth, beside real ones, for reconstructing pruned CIFAR-10 networks.

    scripts/bench_made_up [--quick] [--seed N] [--json FILE] [--shared DIR] [--final]

Every network is planned without images (device `macs`), cut, and reconstructed by `rlprune.apply`
from 256 images of `test_reward`, from what `apply` makes up, and not at all; accuracy is of 2,000
other images of `test_reward` (`--final`: all of `test_report`, for the figure that is published).
The generator was chosen on ResNet-20 (both), the plain network and ResNet-8; ResNet-32 and -56 were
not looked at. `--quick`: ResNet-20 and the plain network. `--seed` draws the images.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
from benchmarks.harness import Row, write_rows
from datasets.pack import CifarPack, shared_data

import rlprune
from rlprune.profile.evaluate import evaluate_model
from rlprune.runtime import get_runtime

NETWORKS = (
    "cifar10_resnet20",
    "cifar10_resnet20b_distiller",
    "cifar10_plain_ai85nascifarnet",
    "cifar10_resnet8_mlperf_tiny",
    "cifar10_resnet32",
    "cifar10_resnet56",
)
QUICK = NETWORKS[:3:2]
SHARES = (0.8, 0.6)
TARGET = 0.9
"""Of the accuracy that real images keep."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two networks, one budget")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--shared", help="folder of the measuring pack")
    parser.add_argument("--final", action="store_true", help="judge on test_report")
    options = parser.parse_args()

    pack = CifarPack(shared_data(options.shared))
    runtime = get_runtime()
    order = np.random.default_rng(options.seed).permutation(pack.splits["test_reward"])
    judged = pack.splits["test_report"] if options.final else order[256:2256]
    rows = []
    for name in QUICK if options.quick else NETWORKS:
        trace = pack.traced(name)
        real = pack.images(name, order[:256], trace)
        report = pack.images(name, judged, trace)
        whole = evaluate_model(trace.model, report, runtime=runtime).accuracy
        for share in SHARES[1:] if options.quick else SHARES:
            plan = rlprune.plan(trace, device="macs", budget_ratio=share)
            kept = {}
            for source, given in (("real", real.x), ("made_up", None), ("cut", "none")):
                pruned = rlprune.apply(plan, trace, calibration=given, on_result=lambda _: None)
                kept[source] = evaluate_model(pruned, report, runtime=runtime).accuracy
            figures = [("unpruned", whole), *kept.items()]
            for what, value in figures:
                label = f"{name}/m{share}/{what}"
                rows.append(Row(label, 100 * value, "%", None, "max", len(judged), None))
            ratio = kept["made_up"] / kept["real"]
            label = f"{name}/m{share}/made_up_over_real"
            rows.append(Row(label, ratio, "", TARGET, "max", len(judged), None))
            shown = "   ".join(f"{what} {100 * value:.1f} %" for what, value in figures)
            print(f"{name:32} {share} of the MACs: {shown}   ratio {ratio:.3f}", flush=True)
    print(f"load average {os.getloadavg()[0]:.1f}; target: made-up at least {TARGET} of real")
    if options.json:
        write_rows(options.json, rows)


if __name__ == "__main__":
    main()
