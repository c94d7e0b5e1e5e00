"""Plans of `options`: every network, budget and arm, planned, made to use its budget, and kept.

A plan is certified: measured beside the unpruned network, and planned again where it misses its
budget or leaves much of it unused. All is kept in the work folder (measurements in `latency.db`,
profiles in `profiles`, a plan in `plans`), so that a plan is made once, and trained anywhere.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from datasets import catalogue
from datasets.pack import CifarPack, shared_data
from rlprune.errors import MissingExtraError
from rlprune.files import write_atomic
from rlprune.graph.from_onnx import OnnxTrace
from rlprune.graph.from_torch import TorchTrace, trace_torch
from rlprune.latency.types import F32, INT8, PRECISIONS, Measurement, ModelSubject
from rlprune.planning import LocalPlanner, PlanRequest, make_plans, which_device
from rlprune.planning.fresh import measure_fresh
from rlprune.plans import PruningPlan
from rlprune.sensitivity.calibration import CalibrationSet
from rlprune.sensitivity.sources import CalibrationSource
from rlprune.store import Store, open_store


@dataclass(frozen=True, slots=True)
class Net:
    """A network of the zoo, and which claims it is asked for."""

    zoo: str
    """Its name there."""
    of_blocks: bool = False
    """Whether claims on blocks are made of it: two families of residual networks are enough."""
    three_by_three: bool = True
    """Whether its cost is in 3x3 convolutions."""


NETS = {
    "resnet20": Net("cifar10_resnet20", of_blocks=True),
    "vgg": Net("vgg"),
    "mobilenetv2": Net("mobilenetv2", of_blocks=True, three_by_three=False),
    "resnet56": Net("cifar10_resnet56"),
}
"""By the name that rows have, in the order of planning and training."""
BUDGETS = (0.5, 0.35, 0.65)
"""Shares of the unpruned network's latency in the same precision."""
INT8_BUDGET = 0.75
"""At which what is planned in int8 should answer as plain int8 does."""
CALIBRATION = 512
"""Images of `train_calib` that profiles are measured on."""
OPENVINO = "openvino"
KEPT = Path(__file__).parents[1] / "results" / "options.plans.jsonl"
"""Plans that kept rows are of, a line each; work folders do not last."""


@dataclass(frozen=True, slots=True)
class Arm:
    """What a plan may use."""

    schemes: tuple[str, ...] = ("channel",)
    policy: str = "search"
    precision: str = F32
    runtime: str = "ort"
    of_f32: bool = False
    """Whether its budgets are shares of the unpruned latency in f32, whatever its own precision."""
    effort: str | None = None
    """How its plans are searched for; None for as planning does by itself."""


ALL = ("channel", "block", "shape")
ARMS = {
    "channels": Arm(),
    "all": Arm(ALL),
    "uniform": Arm(policy="uniform"),
    "all-int8": Arm(ALL, precision=INT8),
    "blocks": Arm(("channel", "block")),
    "all_but_blocks": Arm(("channel", "shape")),
    "searched-int8": Arm(ALL, precision=INT8, effort="thorough"),
    "end": Arm(ALL, precision=INT8, of_f32=True),
    "end-openvino": Arm(ALL, precision=INT8, of_f32=True, runtime=OPENVINO),
}
OF_BLOCKS = ("blocks", "all_but_blocks")
SEARCHED, SEARCHED_NETS = "searched-int8", ("resnet20", "vgg")
"""Two of those where plans made by sensitivity fall more than a point short of plain int8."""
ENDS = ("end", "end-openvino")
"""As small as may be: all that there is, for one network alone."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One network, budget and arm."""

    net: str
    budget: float
    arm: str

    @property
    def name(self) -> str:
        """As files and rows have it."""
        return f"{self.net}.b{self.budget:g}.{self.arm}"


@dataclass(frozen=True, slots=True)
class Run:
    """All that a worker process is told."""

    work: Path
    shared: str | None = None
    quick: bool = False

    @property
    def calibration(self) -> int:
        return 128 if self.quick else CALIBRATION


@dataclass(frozen=True, slots=True)
class Ratio:
    """A latency, as a share of the unpruned network's that ran in turns with it."""

    value: float
    interval: tuple[float, float]
    """Where another such measurement lies, 95 % on either side."""

    @staticmethod
    def of(found: Measurement) -> Ratio:
        return Ratio(found.control_ratio, found.ratio_interval)

    @staticmethod
    def read(told: Any) -> Ratio:
        low, high = told["interval"]
        return Ratio(float(told["value"]), (float(low), float(high)))


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan, and what it was measured at."""

    plan: PruningPlan
    within: bool
    ratio: Ratio
    seconds: float
    """Planning and certifying, what was measured for it among that."""
    openvino: Ratio | None
    """None where OpenVINO is not installed, or is not measured in this precision."""


def arms_of(net: str) -> list[str]:
    """The arms that tell something of a network: those of blocks where claims are made of it, int8
    where this version has it."""
    return [
        name
        for name, arm in ARMS.items()
        if arm.precision in PRECISIONS
        and name not in (*ENDS, SEARCHED)
        and (NETS[net].of_blocks or name not in OF_BLOCKS)
    ]


@lru_cache(maxsize=4)
def network(net: str, shared: str | None) -> tuple[catalogue.Loaded, TorchTrace]:
    """A trained network, and its trace."""
    in_pack = NETS[net].zoo in catalogue.PRETRAINED
    loaded = catalogue.load(NETS[net].zoo, pack=pack_of(shared) if in_pack else None)
    return loaded, trace_torch(loaded.module, torch.zeros(1, 3, 32, 32))


@lru_cache(maxsize=1)
def pack_of(shared: str | None) -> CifarPack:
    return CifarPack(shared_data(shared))


def planned(cell: Cell, run: Run) -> Planned:
    """The plan of a cell, kept or made now."""
    file = plan_file(cell, run)
    about = file.with_suffix(".measured.json")
    if not about.exists() and not run.quick:
        _take_kept(cell, file, about)
    if about.exists():
        told = json.loads(about.read_text())
        openvino = told["openvino"] and Ratio.read(told["openvino"])
        return Planned(
            PruningPlan.load(file),
            told["within"],
            Ratio.read(told["ratio"]),
            told["seconds"],
            openvino,
        )
    began = time.monotonic()
    plan = _make(cell, run, certify=True)
    seconds = time.monotonic() - began
    found = Planned(
        plan,
        within=plan.feasible,
        ratio=certified(plan),
        seconds=seconds,
        openvino=_on_openvino(cell, plan, run),
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    plan.save(file)
    told = {name: getattr(found, name) for name in ("within", "seconds")} | {
        "ratio": asdict(found.ratio),
        "openvino": found.openvino and asdict(found.openvino),
    }
    write_atomic(about, json.dumps(told).encode())
    print(f"{cell.name}: {found.ratio.value:.3f} in {seconds:.0f} s; {plan.note}", flush=True)
    return found


def keep_plans(run: Run) -> int:
    """Writes the plans of the work folder into `KEPT`, in place of those of the same cells, so that
    rows can be made again from the plans that they are of. Returns how many are kept."""
    kept = _kept_plans()
    for about in sorted((run.work / "plans").glob("*.measured.json")):
        name = about.name.removesuffix(".measured.json")
        plan = json.loads((about.parent / f"{name}.json").read_text())
        kept[name] = {"cell": name, "measured": json.loads(about.read_text()), "plan": plan}
    lines = [json.dumps(one, separators=(",", ":")) for _, one in sorted(kept.items())]
    write_atomic(KEPT, "".join(f"{line}\n" for line in lines).encode())
    return len(lines)


def _kept_plans() -> dict[str, Any]:
    lines = KEPT.read_text().splitlines() if KEPT.exists() else []
    return {one["cell"]: one for one in map(json.loads, lines)}


def _take_kept(cell: Cell, file: Path, about: Path) -> None:
    """Puts a cell's kept plan, where there is one, into the work folder."""
    one = _kept_plans().get(cell.name)
    if one is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, json.dumps(one["plan"]).encode())
        write_atomic(about, json.dumps(one["measured"]).encode())


def plan_file(cell: Cell, run: Run) -> Path:
    """Where the plan of a cell is kept."""
    return run.work / "plans" / f"{cell.name}.json"


def measured(cell: Cell, plan: PruningPlan, run: Run, runtime: str) -> Ratio:
    """A plan beside the unpruned network, measured now."""
    _, trace = network(cell.net, run.shared)
    device, found = which_device(runtime, trace.graph)
    if found is None:
        raise MissingExtraError("measuring", runtime)
    settings = tuple(int(value) for value in plan.keeps)
    subject = ModelSubject(
        trace.onnx.graph.fingerprint, settings, ARMS[cell.arm].schemes, plan.precision
    )
    return Ratio.of(measure_fresh(trace.onnx, subject, device=device, runtime=runtime))


def made(
    trace: OnnxTrace | TorchTrace,
    request: PlanRequest,
    images: CalibrationSource | None,
    run: Run,
    name: str,
    *,
    profiles: Path | None = None,
    planner: Callable[[Store], LocalPlanner] = LocalPlanner,
) -> PruningPlan:
    """A plan made now, by what the work folder's store knows and what is measured.

    Args:
        profiles: where sensitivity profiles are kept; by default in the work folder.
    """
    run.work.mkdir(parents=True, exist_ok=True)
    store = open_store(f"sqlite:///{run.work.resolve() / 'latency.db'}")
    with _profiles_in(profiles or run.work / "profiles"):
        [plan] = make_plans(planner(store), trace, request, calibration=images, model_name=name)
    return plan


def certified(plan: PruningPlan) -> Ratio:
    """What a certified plan was measured at."""
    assert plan.certificate is not None
    low, high = (end / plan.base_latency_ms for end in plan.certificate.measured_interval_ms)
    return Ratio(plan.certificate.measured_latency_ms / plan.base_latency_ms, (low, high))


def planning_ratio(net: str, run: Run) -> float:
    """How much longer planning takes with all options than with channels alone, latency being
    measured already: CPU time, each in a process of its own, and the profile measured in it."""
    cells = [Cell(net, BUDGETS[0], arm) for arm in ("channels", "all")]
    for cell in cells:
        planned(cell, run)
    with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        channels, everything = pool.starmap(_cpu_seconds, [(one, run) for one in cells], 1)
    print(f"{net}: planning took {channels:.1f} s CPU, with all options {everything:.1f} s")
    return float(everything / channels)


def images(net: str, run: Run, split: str, index: NDArray[np.integer]) -> CalibrationSet:
    """Images of `train` or `test` as the network takes them, with their classes."""
    pixels, labels = pack_of(run.shared).pixels(split)
    loaded, _ = network(net, run.shared)
    return CalibrationSet.single(loaded.preprocess(pixels[index]), labels[index].astype(np.int64))


def calibration(net: str, run: Run) -> CalibrationSet:
    """What plans are made from; never images of the test set."""
    return images(net, run, "train", pack_of(run.shared).splits["train_calib"][: run.calibration])


def _make(cell: Cell, run: Run, *, certify: bool, profiles: Path | None = None) -> PruningPlan:
    """The plan of a cell, made now."""
    arm = ARMS[cell.arm]
    request = PlanRequest.of(
        device=arm.runtime,
        budget_ratio=cell.budget,
        policy=arm.policy,
        schemes=arm.schemes,
        precision=arm.precision,
        effort=arm.effort,
        certify=certify,
    )
    few, trace = calibration(cell.net, run), network(cell.net, run.shared)[1]
    if arm.of_f32:
        whole = replace(request, budgets=(1.0,), certify=False)
        share = own_over_f32(made(trace, whole, few, run, cell.net, profiles=profiles))
        request = replace(request, budgets=(cell.budget / share,))
    return made(trace, request, few, run, cell.net, profiles=profiles)


def own_over_f32(plan: PruningPlan) -> float:
    """Latency of the unpruned network in the plan's precision over that in f32."""
    unpruned = {one.precision: one.latency_ms for one in plan.unpruned}
    return unpruned[plan.precision] / unpruned[F32]


def _cpu_seconds(cell: Cell, run: Run) -> float:
    calibration(cell.net, run)  # reading the images and the network is no planning
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        _make(cell, run, certify=False, profiles=Path(folder))
        return time.process_time() - began


def _on_openvino(cell: Cell, plan: PruningPlan, run: Run) -> Ratio | None:
    try:
        return measured(cell, plan, run, OPENVINO)
    except MissingExtraError as error:
        print(f"{cell.name}: not measured on OpenVINO: {error}", flush=True)
        return None


@contextmanager
def _profiles_in(folder: Path) -> Iterator[None]:
    """Sensitivity profiles are kept there, and not with the user's."""
    before = os.environ.get("XDG_DATA_HOME")
    os.environ["XDG_DATA_HOME"] = str(folder.resolve())
    try:
        yield
    finally:
        if before is None:
            del os.environ["XDG_DATA_HOME"]
        else:
            os.environ["XDG_DATA_HOME"] = before
