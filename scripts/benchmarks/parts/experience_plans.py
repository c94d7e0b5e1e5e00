"""Plans of `experience`: every network, budget and method, as a user would make them, judged.

All is kept in the work folder: measurements in `latency.db`, a plan and what it loses in `plans`,
so that a cell is made once and an interrupted run goes on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
from onnx import ModelProto

import rlprune
from benchmarks.parts.experience_peers import PeerPlanner
from benchmarks.parts.options_plans import Run, made, pack_of
from datasets import catalogue
from rlprune.files import write_atomic
from rlprune.graph.from_onnx import OnnxTrace
from rlprune.planning import LocalPlanner, PlanRequest
from rlprune.planning.effort import EFFORTS, Effort
from rlprune.plans import PruningPlan
from rlprune.runtime import get_runtime
from rlprune.sensitivity.calibration import CalibrationSet
from rlprune.sensitivity.evaluate import Evaluator
from rlprune.sensitivity.fit import fit_inputs
from rlprune.sensitivity.sources import MADE_UP, CalibrationSource
from rlprune.store import Store

BUDGETS = (0.5, 0.35)
CALIBRATION = 1000
"""Images of `train_calib` that plans are made from."""
JUDGED = 1000
"""Images of `test_reward` that plans are judged on; with `--final` all of `test_report`."""
LONGER = {
    "race16": Effort(12, 8, 64, 64, 6, 192),
    "race40": Effort(12, 12, 112, 112, 8, 500),
}
"""Searches at the price of 16 and 40 evaluations, which users have no name for."""


@dataclass(frozen=True, slots=True)
class Method:
    """How a plan is made."""

    effort: str | None = None
    policy: str = "search"
    real: bool = True
    """Whether from real images; from made-up ones otherwise, or from none."""
    measured: bool = True
    """Whether anything is run to know what options lose."""
    peer: str = ""
    """Another search that takes it from there, by its name."""


PEER_COUNT = 400
"""Evaluations of a peer, of `CALIBRATION` images each."""

PEERS = ("evolution", "evopress", "random", "netadapt", "amc")
"""Other searches (`experience_peers`)."""

METHODS = {
    "profile": Method(policy="knapsack"),
    "instant": Method("instant"),
    "quick": Method("quick"),
    "race16": Method("race16"),
    "race40": Method("race40"),
    "thorough": Method("thorough"),
    "made_up.profile": Method(policy="knapsack", real=False),
    "made_up.instant": Method("instant", real=False),
    "made_up.quick": Method("quick", real=False),
    "uniform": Method(policy="uniform", measured=False),
    "global": Method(policy="global", measured=False),
    "energy": Method(policy="knapsack", measured=False),
    **{name: Method(policy="knapsack", peer=name) for name in PEERS},
}


@dataclass(frozen=True, slots=True)
class Cell:
    """One network, budget and method."""

    net: str
    budget: float
    method: str

    @property
    def name(self) -> str:
        """As rows and files have it."""
        return f"{self.net}.b{self.budget:g}.{self.method}"


@dataclass(frozen=True, slots=True)
class Judged:
    """What a plan loses on images that it was not made from, applied and not tuned."""

    divergence: float
    """Nats; applied on real images, whatever the plan was made from."""
    error: float
    """Its standard error."""
    kept: float
    """Accuracy over the unpruned network's; applied on what the plan was made from."""
    count: int
    """Images."""
    seconds: float
    """CPU time of planning; latency was known."""


Known = Mapping[Cell, Judged]
"""What is kept."""


def judged(cell: Cell, run: Run, *, final: bool = False) -> Judged:
    """What is kept of a cell, or comes out now."""
    file = run.work / "plans" / f"{cell.name}{'.final' if final else ''}.json"
    if file.exists():
        known: Mapping[str, Any] = json.loads(file.read_text())
        return Judged(**known)
    method, trace = METHODS[cell.method], network(cell.net, run.shared)[1]
    images: CalibrationSource = calibration(cell.net, run) if method.real else None
    if not method.real and method.effort is None:
        images = MADE_UP  # which is what a search takes that is given none
    EFFORTS.update(LONGER)
    request = PlanRequest.of(
        device="ort",
        budget_ratio=cell.budget,
        policy=method.policy,
        effort=method.effort,
    )
    began = time.process_time()
    given = images if method.measured else None
    planner: Callable[[Store], LocalPlanner] = LocalPlanner
    if method.peer:
        all_images = calibration(cell.net, run)
        planner = partial(
            PeerPlanner, method=method.peer, images=all_images, count=PEER_COUNT, seed=0
        )
    plan = made(trace, request, given, run, cell.net, planner=planner)
    seconds = time.process_time() - began
    judge, real = judge_of(cell.net, run, final), calibration(cell.net, run)
    found = judge.evaluate_model(applied(plan, trace, real))
    each = found.image_divergences
    kept = found if method.real else judge.evaluate_model(applied(plan, trace, None))
    own = Judged(
        divergence=found.divergence,
        error=float(each.std(ddof=1) / np.sqrt(len(each))),
        kept=kept.accuracy / judge.base.accuracy,
        count=len(each),
        seconds=seconds,
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    plan.save(file.with_suffix(".plan.json"))
    write_atomic(file, json.dumps(asdict(own)).encode())
    print(f"{cell.name}: {own}; {plan.note[:120]}", flush=True)
    return own


def applied(plan: PruningPlan, trace: OnnxTrace, images: CalibrationSet | None) -> ModelProto:
    """The pruned network, its layers solved on images, or on made-up ones."""
    return rlprune.apply(plan, trace, calibration=images, on_result=lambda _: None)


def is_known(cell: Cell, run: Run, *, final: bool = False) -> bool:
    """Whether a cell is kept in the work folder."""
    return (run.work / "plans" / f"{cell.name}{'.final' if final else ''}.json").exists()


@lru_cache(maxsize=2)
def network(net: str, shared: str | None) -> tuple[catalogue.Loaded, OnnxTrace]:
    """A trained network, and its trace."""
    loaded = catalogue.load(net, pack=pack_of(shared) if net in catalogue.PRETRAINED else None)
    return loaded, catalogue.traced(loaded)


def calibration(net: str, run: Run) -> CalibrationSet:
    """What plans are made from."""
    return _images(net, run, "train_calib", 128 if run.quick else CALIBRATION)


@lru_cache(maxsize=2)
def judge_of(net: str, run: Run, final: bool) -> Evaluator:
    """The unpruned network's answers on images that no plan was made from."""
    images = _images(net, run, "test_report" if final else "test_reward", None if final else JUDGED)
    trace = network(net, run.shared)[1]
    return Evaluator(trace, images, runtime=get_runtime(), reconstruct=False)


def _images(net: str, run: Run, split: str, count: int | None) -> CalibrationSet:
    """The first images of a split; all if `count` is None."""
    pack = pack_of(run.shared)
    loaded, trace = network(net, run.shared)
    index = pack.splits[split][:count]
    pixels, labels = pack.pixels("train" if split == "train_calib" else "test")
    x = loaded.preprocess(pixels[index])
    return fit_inputs({"x": x}, labels[index].astype(np.int64), trace)
