"""Records the networks that the default policy is trained on, from the measuring pack.

    python scripts/record_cifar.py [NAME ...] [--out DIR] [--evaluations N] [--shared DIR]

For each network a model directory with its profile and evaluated plans. Profiles are measured on
images of one half of `test_reward`, plans judged on images of the other half; `test_report` is
never read. ResNet-20 and ResNet-56 are not among them: they are what `bench_cifar` judges policies
on. A run that was killed goes on where it stopped.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import time
from pathlib import Path

import numpy as np
from cifar_pack import REPOSITORY, CifarPack, shared_data

from rlprune.training.record import RecordConfig, record_model

NETWORKS = (
    "cifar10_resnet8_mlperf_tiny",
    "cifar10_resnet20b_distiller",
    "cifar10_plain_ai85nascifarnet",
    "cifar10_resnet32",
)
UNSEEN = ("cifar10_resnet20", "cifar10_resnet56")
PASS = 75
"""Evaluations of each network in one round over all."""
RECORDED = REPOSITORY / "rlprune" / "policy" / "data" / "recorded"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("networks", nargs="*", default=NETWORKS, metavar="NAME")
    parser.add_argument("--out", type=Path, default=RECORDED)
    parser.add_argument("--evaluations", type=int, default=300)
    parser.add_argument("--images", type=int, default=1000, help="of each half")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shared")
    arguments = parser.parse_args()
    unseen = sorted(set(arguments.networks) & set(UNSEEN))
    if unseen:
        raise SystemExit(f"{unseen[0]} is what policies are judged on; it must stay unseen")
    pack = CifarPack(shared_data(arguments.shared))
    order = np.random.default_rng(arguments.seed).permutation(pack.splits["test_reward"])
    halves = [half[: arguments.images] for half in np.array_split(order, 2)]
    # All networks get some evaluations before one gets many: half a run is of use, too.
    for count in range(PASS, arguments.evaluations + PASS, PASS):
        for name in arguments.networks:
            record(pack, name, halves, min(count, arguments.evaluations), arguments)


def record(
    pack: CifarPack,
    name: str,
    halves: list[np.ndarray],
    count: int,
    arguments: argparse.Namespace,
) -> None:
    started = time.monotonic()
    trace = pack.traced(name)
    _, sidecar = pack.network(name)

    def progress(stage: str, done: int, total: int) -> None:
        if done == total or done % 15 == 0:
            print(f"{name} {stage} {done}/{total} {time.monotonic() - started:.0f} s", flush=True)

    model = record_model(
        arguments.out / name,
        trace,
        pack.images(name, halves[0], trace),
        pack.images(name, halves[1], trace),
        config=RecordConfig(
            evaluation_count=count,
            worker_count=arguments.workers,
            seed=arguments.seed,
        ),
        provenance={
            "name": name,
            "weights": f"{sidecar['source']['repo']} @ {sidecar['source']['commit']}",
            "weights_sha256": sidecar["safetensors_sha256"],
            "licence": sidecar["licence"],
            "images": f"CIFAR-10 test_reward, {arguments.images} of each half",
            "made_by": "scripts/record_cifar.py",
        },
        on_progress=progress,
    )
    evaluations = model.evaluations
    assert evaluations is not None
    useful = evaluations.loss < np.log(10)
    print(
        f"{name}: {len(evaluations.loss)} plans, base loss {evaluations.base_loss:.3f}, "
        f"{useful.mean():.0%} better than guessing, {time.monotonic() - started:.0f} s",
        flush=True,
    )


if __name__ == "__main__":
    main()
