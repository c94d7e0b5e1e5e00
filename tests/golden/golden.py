"""Two hundred questions and the plans that the code of 0.7 answered them with.

    python tests/golden/golden.py            # which answers differ
    python tests/golden/golden.py --write    # keep today's answers: say why in the commit
    python tests/golden/golden.py --measure  # new latencies first, of this machine

Devices are this machine's runtimes under another name, measured once; `data/store.sql.xz` is that
store. What is compared is what users get: the option chosen at every site, whether it is feasible,
the candidate chosen (exact), and predicted figures (to 1e-9).
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import re
import sqlite3
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
if __name__ == "__main__":
    sys.path[:0] = [str(HERE), str(HERE.parent / "support")]

from golden_nets import MODULES, NETS, module  # noqa: E402

import rlprune  # noqa: E402
from rlprune.graph.from_onnx import OnnxTrace  # noqa: E402
from rlprune.graph.from_torch import TorchTrace  # noqa: E402

PLANS, STORE = HERE / "data" / "plans.json", HERE / "data" / "store.sql.xz"
DEVICES = {"ort": "ort-golden.t1.f32.b1", "openvino": "openvino-golden.t1.f32.b1"}
MEASURED = {
    "ort": (*NETS, *MODULES),
    "openvino": ("plain", "residual", "attention"),
}
"""By runtime, the nets that were measured on it."""
EXACT = ("keeps", "feasible", "policy", "candidate")
RELATIVE = 1e-9


@cache
def trace(net: str) -> OnnxTrace | TorchTrace:
    if net in MODULES:
        return rlprune.trace(*module(net))
    return rlprune.trace(NETS[net]().SerializeToString())


def questions() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Name, net and options of every question."""
    ort = DEVICES["ort"]
    for net in NETS:
        for device in ("macs", *(DEVICES[one] for one, nets in MEASURED.items() if net in nets)):
            for ratio in (0.9, 0.75, 0.5, 0.3):
                yield _question(net, device=device, budget_ratio=ratio)
            yield _question(net, device=device, budget_ratio=0.05)
            for policy in ("uniform", "global"):
                yield _question(net, device=device, budget_ratio=0.6, policy=policy)
            yield _question(net, device=device, budget_ratio=0.6, guard=False)
        for options in (
            {"round_to": 1},
            {"min_keep_ratio": 0.5},
            {"min_keep": 12},
            {"hold": "*0"},
            {"max_params": 0.5},
        ):
            for device in ("macs", ort):
                yield _question(net, device=device, budget_ratio=0.6, **options)
        yield _question(net, device="macs", budget_ratio=0.6, calibration=True)
        yield _question(net, device=ort, budget_ratio=0.6, calibration=True)
    for net in MODULES:
        for device in ("macs", ort):
            for ratio in (0.7, 0.4):
                yield _question(net, device=device, budget_ratio=ratio, at_init="synflow")


def _question(net: str, **options: Any) -> tuple[str, str, dict[str, Any]]:
    words = [f"{name}={value}" for name, value in options.items()]
    return " ".join([net, *words]), net, options


def answer(net: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """What a plan says to one question, as far as it is compared."""
    asked = {"schemes": "channels", "policy": "learned", **options}
    traced = trace(net)
    if asked.pop("calibration", False):
        shape = traced.graph.input_shapes[0]
        x = np.random.default_rng(7).standard_normal((48, *shape[1:])).astype(np.float32)
        asked["calibration"] = {"x": x}
    if "max_params" in asked:  # a share of the unpruned model's
        asked["max_params"] = int(asked["max_params"] * traced.graph.params(traced.graph.widths))
    plan = rlprune.plan(traced, **asked)
    chosen = [index for index, one in enumerate(plan.candidates) if one.chosen]
    return {
        "keeps": [int(keep) for keep in plan.keeps],
        "feasible": plan.feasible,
        "policy": plan.policy,
        "candidate": chosen,
        "base_latency_ms": plan.base_latency_ms,
        "least_latency_ms": plan.least_latency_ms,
        "predicted_latency_ms": plan.predicted_latency_ms,
        "predicted_interval_ms": list(plan.predicted_interval_ms),
        "macs": plan.macs,
        "params": plan.params,
    }


@contextmanager
def golden_store() -> Iterator[None]:
    """The store that the plans were made from, as this user's."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "rlprune").mkdir()
        raw = sqlite3.connect(Path(folder) / "rlprune" / "store.sqlite")
        raw.executescript(lzma.decompress(STORE.read_bytes()).decode())
        raw.close()
        before = os.environ.get("XDG_DATA_HOME")
        os.environ["XDG_DATA_HOME"] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ["XDG_DATA_HOME"]
            else:
                os.environ["XDG_DATA_HOME"] = before


def differences(kept: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """In words, what an answer has otherwise than the one that was kept."""
    said = []
    for name, value in kept.items():
        same = found[name] == value if name in EXACT else _near(found[name], value)
        if not same:
            said.append(f"{name} {found[name]}, was {value}")
    return said


def _near(found: Any, kept: Any) -> bool:
    return bool(np.allclose(found, kept, rtol=RELATIVE, atol=0.0))


def measure() -> None:
    """Writes the store: what plans of every net need, measured here under other names."""
    from rlprune.store import open_store

    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_DATA_HOME"] = folder
        for runtime, nets in MEASURED.items():
            for net in nets:
                print(net, runtime, flush=True)
                rlprune.plan(trace(net), device=runtime, budget_ratio=0.5)
        store, path = open_store(), Path(folder) / "golden.sqlite"
        kept = open_store(str(path))
        for device in store.devices():
            name = DEVICES[device.key.partition("-")[0]]
            own = store.measurements(device.key)
            kept.add_measurements([replace(one, device=name) for one in own])
        raw = sqlite3.connect(path)
        text = "\n".join(raw.iterdump())
        raw.close()
        # Four digits are more than latencies have, and a third of the size.
        text = re.sub(r"(?<![\w.])\d+\.\d{5,}", lambda found: f"{float(found[0]):.4g}", text)
        STORE.write_bytes(lzma.compress(text.encode()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="keep today's answers")
    parser.add_argument("--measure", action="store_true", help="measure the devices anew")
    options = parser.parse_args()
    if options.measure:
        measure()
    with golden_store():
        found = {name: answer(net, asked) for name, net, asked in questions()}
    if options.write or options.measure:
        lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(one)}" for name, one in found.items())
        PLANS.write_text("{\n" + lines + "\n}\n")
        print(f"{len(found)} plans kept")
        return
    kept = json.loads(PLANS.read_text())
    for name, one in found.items():
        for said in differences(kept[name], one) if name in kept else ["new"]:
            print(f"{name}: {said}")


if __name__ == "__main__":
    main()
