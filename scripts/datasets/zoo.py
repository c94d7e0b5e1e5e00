"""Trains the zoo's CIFAR-10 networks from scratch, one after the other, on one thread.

    scripts/data zoo [--only NAME ...] [--out DIR] [--work DIR] [--shared DIR]

Each net trains on 45,000 train images and is validated on the other 5,000 (`train_calib`);
`test_reward` is looked at once, after training, and chooses nothing; `test_report` is never read.
The last epoch's weights are what counts, in float16 as they are kept, and a net below 85 % on the
validation images is left out: its record is written, its weights are not. A run that was killed
goes on after its last whole epoch.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from datasets.catalogue import HELD_OUT, NETS, PREPROCESS
from datasets.pack import CifarPack, exported, shared_data
from datasets.running import Clock, stoppable, zoo_folder
from datasets.training import SIZES, Data, Recipe, train, work
from rlprune.finetuning.scoring import score
from rlprune.graph.from_onnx import trace_onnx

LEAST_ACCURACY = 0.85


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", default=list(NETS), choices=NETS)
    parser.add_argument("--out", type=Path, help="the recordings' folder by default")
    parser.add_argument("--work", type=Path, default=Path("~/.cache/rlprune/zoo").expanduser())
    parser.add_argument("--shared")
    options = parser.parse_args()
    with stoppable():
        out = options.out or zoo_folder()
        missing = [name for name in options.only if not (out / f"{name}.json").is_file()]
        if missing:
            torch.set_num_threads(1)
            data = Data(CifarPack(shared_data(options.shared)))
            nets = [NETS[name] for name in missing]
            clock = Clock(left=sum(work(one.epochs) + work((0, 0, one.finish)) for one in nets))
            for name in missing:
                module, history = train_net(name, data, options.work, clock)
                keep(name, module, history, data, out)


def train_net(
    name: str, data: Data, work: Path, clock: Clock
) -> tuple[nn.Module, list[dict[str, Any]]]:
    """A trained net in eval mode, and what each epoch saw; saves its state after each epoch."""
    net = NETS[name]
    recipe = Recipe.of(net.optimizer)
    torch.manual_seed(recipe.seed)
    module, state = net.make(), work / f"{name}.pt"
    how: Any = {"bfloat16": net.bfloat16, "clock": clock}
    history = train(module, data, recipe, state, epochs=net.epochs, **how)
    if net.finish:
        lower = replace(recipe, peak_rate=recipe.peak_rate / 3, seed=recipe.seed + 1)
        state = state.with_suffix(".finish.pt")
        history += train(module, data, lower, state, epochs=(0, 0, net.finish), **how)
    return module, history


def keep(
    name: str, module: nn.Module, history: list[dict[str, Any]], data: Data, out: Path
) -> None:
    """Writes the net's record, and its weights if it is good enough.

    Matrices are kept in float16, vectors (they are few) as they are. All accuracies are of the
    weights as kept.
    """
    net = NETS[name]
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
    record = {
        "name": name,
        "family": net.family,
        "held_out": net.family in HELD_OUT,
        "included": included,
        "macs": int(graph.macs(graph.widths)),
        "params": sum(p.numel() for p in module.parameters()),
        "prunable_macs_ratio": round(graph.prunable_macs_ratio(), 4),
        "group_count": len(graph.groups),
        "preprocess": PREPROCESS,
        "measured": {
            "validation_accuracy": after.accuracy,
            "validation_loss": round(after.loss, 4),
            "validation_accuracy_float32": before.accuracy,
            "test_reward_accuracy": score(module, data.reward).accuracy,
            "with": f"torch {torch.__version__}, weights in float16, computed in float32",
        },
        "recipe": {
            **asdict(Recipe.of(net.optimizer)),
            "epochs": list(net.epochs),
            "finish": net.finish,
            "sizes": list(SIZES),
            "bfloat16": net.bfloat16,
        },
        "images": "45,000 CIFAR-10 train images; validated on train_calib (5,000)",
        "history": history,
        "licence": "Apache-2.0",
        "made_by": "scripts/data zoo",
    }
    if included:
        save_file(kept, path)
        path.chmod(0o644)  # safetensors makes it the user's own
        record["safetensors_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    # The record last: its presence says that the net is finished.
    (out / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    verdict = "" if included else f", left out (below {LEAST_ACCURACY:.0%})"
    print(f"{name} ({net.family}): {after.accuracy:.2%} on validation{verdict}", flush=True)


if __name__ == "__main__":
    main()
