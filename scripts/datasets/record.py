"""Records what plans of the zoo's networks lose: what the default policy is trained on.

    scripts/data record [NAME ...] [--evaluations N] [--workers N] [--held-out] [--out DIR]

Every network gets some evaluations before one gets many, so that a run that is stopped early leaves
variety; the same command goes on. The profile is measured on 1,000 images and plans are judged on
1,000 others, none of which trained the network: of `test_reward` for the pretrained networks, which
saw all train images, and of `train_calib` for those of `scripts/data zoo`, which leaves that out.
`test_report` is never read.

Networks of the held-out families, ResNet-20 and ResNet-56 never enter the training folder; with
--held-out they alone are recorded, into a folder of their own, to judge policies by.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from datasets import catalogue
from datasets.pack import CifarPack, shared_data
from datasets.running import listen, recorded_folder, stoppable
from rlprune.cluster import ray_session
from rlprune.errors import InputError, NotFoundError, RlpruneError
from rlprune.graph.from_onnx import OnnxTrace
from rlprune.latency.tables import LatencyTables
from rlprune.policy import get_policy
from rlprune.recording.model_dir import EVALUATIONS
from rlprune.recording.record import RecordConfig, proposal_tables, record_model
from rlprune.sensitivity.calibration import CalibrationSet
from rlprune.sensitivity.fit import fit_inputs
from rlprune.store import Store, open_store

FIRST_PASS = 75
"""Evaluations of each network in the first round over all; every further round doubles them."""
LOG_EVERY = 25
HELD_OUT = Path("~/.cache/rlprune/recorded_held_out").expanduser()


@dataclass
class Zoo:
    """The networks to record, traced once."""

    pack: CifarPack
    image_count: int
    seed: int
    known: dict[str, tuple[catalogue.Loaded, OnnxTrace]] = field(default_factory=dict)

    def network(self, name: str) -> tuple[catalogue.Loaded, OnnxTrace]:
        if name not in self.known:
            net = catalogue.load(name, pack=self.pack)
            self.known[name] = (net, catalogue.traced(net))
        return self.known[name]

    def images(self, name: str) -> tuple[CalibrationSet, CalibrationSet]:
        """To profile on, and to judge plans on."""
        net, trace = self.network(name)
        pixels, labels = self.pack.pixels("test" if name in catalogue.PRETRAINED else "train")
        order = np.random.default_rng(self.seed).permutation(self.pack.splits[split_of(name)])
        count = self.image_count
        profile, objective = (
            fit_inputs({"x": net.preprocess(pixels[index])}, labels[index].astype(np.int64), trace)
            for index in (order[:count], order[count : 2 * count])
        )
        return profile, objective


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("networks", nargs="*", metavar="NAME", help="all of them if left out")
    parser.add_argument("--held-out", action="store_true", help="those that policies are judged on")
    parser.add_argument("--out", type=Path, help=f"default: the recordings, or {HELD_OUT}")
    parser.add_argument("--evaluations", type=int, default=600, help="of each network")
    parser.add_argument("--images", type=int, default=1000, help="of each of the two sets")
    parser.add_argument("--workers", type=int, default=0, help="processes of Ray")
    parser.add_argument("--policy", default="learned", help="proposes plans, too")
    parser.add_argument("--device", action="append", default=[], help="beside macs; repeat")
    parser.add_argument("--store", help="URL of the store with the devices' measurements")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shared")
    options = parser.parse_args()
    with stoppable():
        out = options.out or (HELD_OUT if options.held_out else recorded_folder())
        names = chosen(options.networks, options.held_out, out)
        zoo = Zoo(CifarPack(shared_data(options.shared)), options.images, options.seed)
        return record(names, zoo, out, options)


def chosen(given: list[str], held_out: bool, out: Path) -> list[str]:
    """The networks to record into `out`.

    Raises:
        InputError: one is unknown, or is for judging and would be trained on, or the other way
            round; or `out` holds such a one.
    """
    for name in given:
        if catalogue.held_out(name) and not held_out:
            raise InputError(
                f"{name} is held out: policies are judged on it, so it must not be trained on; "
                "record it with --held-out"
            )
        if held_out and not catalogue.held_out(name):
            raise InputError(f"{name} is not held out; record it without --held-out")
    names = given or [name for name in catalogue.names() if catalogue.held_out(name) == held_out]
    known = {*catalogue.PRETRAINED, *catalogue.NETS}
    there = {path.parent.name for path in out.glob(f"*/{EVALUATIONS}")} & known
    others = sorted(name for name in there if catalogue.held_out(name) != held_out)
    if others:
        raise InputError(
            f"{out} holds {others[0]}, which is {'not ' if held_out else ''}held out; what is "
            "trained on and what is judged on need folders apart"
        )
    return names


def record(names: list[str], zoo: Zoo, out: Path, options: argparse.Namespace) -> int:
    """All networks in rounds; 1 where one could not be recorded."""
    failed: set[str] = set()
    count = 0
    ray = ray_session(None) if options.workers else nullcontext()
    with closing(open_store(options.store)) as store, ray:
        listen()  # Ray has its own idea of SIGTERM
        for device in options.device:
            store.device(device)  # refuses one that nobody knows
        while count < options.evaluations:
            count = min(max(FIRST_PASS, 2 * count), options.evaluations)
            for name in names:
                if name in failed:
                    continue
                try:
                    record_one(name, zoo, out / name, count, store, options)
                except RlpruneError as error:  # the others go on
                    print(f"{name}: {error}", file=sys.stderr, flush=True)
                    failed.add(name)
    return 1 if failed else 0


def record_one(
    name: str, zoo: Zoo, folder: Path, count: int, store: Store, options: argparse.Namespace
) -> None:
    net, trace = zoo.network(name)
    started, own = time.monotonic(), 0

    def progress(stage: str, done: int, total: int) -> None:
        nonlocal own
        own += 1
        if done == total or done % LOG_EVERY == 0:
            rate, now = own / (time.monotonic() - started), time.strftime("%H:%M")
            print(f"{now} {name} {stage} {done}/{total}, {rate:.2f} evaluations/s", flush=True)

    profile_images, objective_images = zoo.images(name)
    workers = options.workers
    model = record_model(
        folder,
        trace,
        profile_images,
        objective_images,
        config=RecordConfig(evaluation_count=count, worker_count=workers, seed=options.seed),
        tables=tables_of(name, trace, store, options.device),
        policy=get_policy(options.policy),
        provenance={
            "name": name,
            "family": net.family,
            **origin(net.card),
            "images": f"CIFAR-10 {split_of(name)}, {zoo.image_count} for each purpose",
            "made_by": "scripts/data record",
        },
        on_progress=progress,
    )
    found = model.evaluations
    assert found is not None
    if own:
        print(f"{name}: {len(found.loss)} plans, base loss {found.base_loss:.3f}", flush=True)


def tables_of(name: str, trace: OnnxTrace, store: Store, devices: list[str]) -> list[LatencyTables]:
    """Of every device that has measured the network; says which has not."""
    able = []
    for device in devices:
        try:
            proposal_tables(trace, [device], store=store)
            able.append(device)
        except NotFoundError:
            print(f"{name}: {device} has not measured it, so no plan is proposed for it")
    return proposal_tables(trace, able, store=store)


def split_of(name: str) -> str:
    return "test_reward" if name in catalogue.PRETRAINED else "train_calib"


def origin(card: Mapping[str, Any]) -> dict[str, str]:
    """Where the weights are from."""
    if "source" in card:
        weights = f"{card['source']['repo']} @ {card['source']['commit']}"
    else:
        weights = f"{card['made_by']}, seed {card['recipe']['seed']}"
    sha256 = card["safetensors_sha256"]
    return {"weights": weights, "weights_sha256": sha256, "licence": card["licence"]}


if __name__ == "__main__":
    raise SystemExit(main())
