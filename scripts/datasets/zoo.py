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
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from datasets import catalogue
from datasets.pack import CifarPack, exported, shared_data
from datasets.training import SIZES, Clock, Data, Recipe, train
from safetensors.torch import save_file
from torch import nn

from rlprune.errors import InputError
from rlprune.graph.from_onnx import trace_onnx
from rlprune.training.finetune import score

LEAST_ACCURACY = 0.85


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", default=list(catalogue.NETS))
    parser.add_argument("--list", action="store_true", help="say what there is, and train nothing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all records to FILE")
    parser.add_argument("--out", type=Path, default=catalogue.WEIGHTS)
    parser.add_argument("--work", type=Path, default=Path("~/.cache/rlprune/zoo").expanduser())
    parser.add_argument("--shared")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.only) - set(catalogue.NETS))
    if unknown:
        raise SystemExit(f"no net {unknown[0]!r}; there are {', '.join(catalogue.NETS)}")
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
    clock = Clock(catalogue.NETS[name].epochs for name in missing)
    for name in missing:
        module, history = train_net(name, data, Recipe(), arguments.work, clock)
        keep(name, module, history, data, arguments.out)


def train_net(
    name: str, data: Data, recipe: Recipe, work: Path, clock: Clock
) -> tuple[nn.Module, list[dict[str, Any]]]:
    """A trained net in eval mode, and what each epoch saw; saves its state after each epoch."""
    net = catalogue.NETS[name]
    torch.manual_seed(recipe.seed)
    module = net.make()

    history = train(
        module,
        data,
        recipe,
        work / f"{name}.pt",
        epochs=net.epochs,
        bfloat16=net.bfloat16,
        on_epoch=clock.teller(name, net.epochs),
    )
    return module, history


def keep(
    name: str, module: nn.Module, history: list[dict[str, Any]], data: Data, out: Path
) -> None:
    """Writes the net's record, and its weights if it is good enough.

    Matrices are kept in float16, vectors (they are few) as they are. All accuracies are of the
    weights as kept.
    """
    net, recipe = catalogue.NETS[name], Recipe()
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
        "held_out": net.family in catalogue.HELD_OUT,
        "included": included,
        "macs": int(graph.macs(graph.widths)),
        "params": sum(p.numel() for p in module.parameters()),
        "prunable_macs_ratio": round(graph.prunable_macs_ratio(), 4),
        "group_count": len(graph.groups),
        "preprocess": catalogue.PREPROCESS,
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


def read(out: Path, name: str) -> dict[str, Any] | None:
    path = out / f"{name}.json"
    record: dict[str, Any] | None = json.loads(path.read_text()) if path.is_file() else None
    return record


def print_list(arguments: argparse.Namespace) -> None:
    print(f"{'name':20}{'family':20}{'MMACs':>6}{'params':>9}  validation")
    for name in arguments.only:
        net, record = catalogue.NETS[name], read(arguments.out, name)
        family = net.family + (" *" if net.family in catalogue.HELD_OUT else "")
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
