"""What made-up inputs are worth, beside real ones, for reconstructing pruned CIFAR-10 networks.

Every network is planned without images (device `macs`), cut, and reconstructed by `rlprune.apply`
from 256 images of `test_reward`, from what `apply` makes up, and not at all; accuracy is of 2,000
other images of `test_reward` (`--final`: all of `test_report`, for the figure that is published).
The generator was chosen on ResNet-20 (both), the plain network and ResNet-8; ResNet-32 and -56 were
not looked at. `--quick`: ResNet-20 and the plain network. `--seed` draws the images.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

import rlprune
from benchmarks.harness import Bench, Row, log_final
from datasets.pack import CifarPack, shared_data
from rlprune.runtime import get_runtime
from rlprune.sensitivity.evaluate import Evaluator

NETWORKS = (
    "cifar10_resnet20",
    "cifar10_resnet20b_distiller",
    "cifar10_plain_ai85nascifarnet",
    "cifar10_resnet8_mlperf_tiny",
    "cifar10_resnet32",
    "cifar10_resnet56",
)
SHARES = (0.8, 0.6)
TARGET = 0.9
"""Of the accuracy that real images keep."""


def main() -> None:
    bench = Bench("made_up", __doc__)
    bench.parser.add_argument("--final", action="store_true", help="judge on test_report")
    options = bench.parse()
    if options.final:
        log_final(options, "made_up")
    pack = CifarPack(shared_data(options.shared))
    order = np.random.default_rng(options.seed).permutation(pack.splits["test_reward"])
    judged = pack.splits["test_report"] if options.final else order[256:2256]

    def measure(name: str, share: float) -> Iterator[Row]:
        trace = pack.traced(name)
        real = pack.images(name, order[:256], trace)
        report = pack.images(name, judged, trace)
        judge = Evaluator(trace, report, runtime=get_runtime(), reconstruct=False)
        kept = {"unpruned": judge.base.accuracy}
        plan = rlprune.plan(trace, device="macs", budget_ratio=share)
        for source, given in (("real", real.x), ("made_up", None), ("cut", "none")):
            pruned = rlprune.apply(plan, trace, calibration=given, on_result=lambda _: None)
            kept[source] = judge.evaluate_model(pruned).accuracy
        for what, value in kept.items():
            yield Row(f"{name}/m{share}/{what}", 100 * value, "%", None, "max", len(judged), None)
        ratio = kept["made_up"] / kept["real"]
        label = f"{name}/m{share}/made_up_over_real"
        yield Row(label, ratio, "", TARGET, "max", len(judged), None)

    with bench.measuring():
        for name in NETWORKS[:3:2] if options.quick else NETWORKS:
            for share in SHARES[1:] if options.quick else SHARES:
                bench.cell(f"{name}/m{share}", partial(measure, name, share))


if __name__ == "__main__":
    main()
