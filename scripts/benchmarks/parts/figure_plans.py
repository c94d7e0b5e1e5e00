"""Plans of `figure`, near the optimum of a network, and what each figure says of them; all kept.

The budget is half of the MACs, which are exact, with widths, blocks and kernel shapes to choose
from. Proposed are the knapsack's plan, its plans by curves that are wrong at random, and exchanges
of one or two options around the knapsack's plan and around the best so far; all use the budget, to
a fiftieth. Kept are those whose divergence, solved once, is near the best's (`figure_stats.near`).

Figures are of calibration images, of which one half is solved from and trained on, and the other
judged on.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from safetensors.torch import load_file
from safetensors.torch import save as save_tensors
from torch import nn

from benchmarks.parts.figure_local import divergence, train_blocks
from benchmarks.parts.figure_stats import near
from benchmarks.parts.options_plans import Run, calibration, network
from rlprune.constraints import Constraints, bind
from rlprune.files import write_atomic
from rlprune.finetuning.augment import flipped_and_shifted
from rlprune.finetuning.loop import TrainConfig, fit
from rlprune.graph.from_onnx import OnnxTrace
from rlprune.graph.types import FloatArray, IntArray
from rlprune.latency.macs import macs_tables
from rlprune.latency.types import MACS_DEVICE
from rlprune.runtime import get_runtime
from rlprune.schemes import cut_kernels, removal_of, space_of, without_effect
from rlprune.sensitivity.calibration import CalibrationSet
from rlprune.sensitivity.evaluate import Evaluator
from rlprune.sensitivity.measured import measure_profiles
from rlprune.sensitivity.reconstruct import Reconstruction, with_layers
from rlprune.sensitivity.refine import refine
from rlprune.sensitivity.torch_reconstruct import reconstruct_module
from rlprune.solver.knapsack import solve
from rlprune.solver.task import PruningTask
from rlprune.surgery.onnx import cut
from rlprune.surgery.torch import cut_torch
from rlprune.torch_state import tensors_of

NETS = ("resnet20", "vgg", "mobilenetv2")
SCHEMES = ("channel", "block", "shape")
BUDGET = 0.5
USED = 0.98
"""Of the budget, by every plan: what is left unused would explain a loss."""
STRENGTHS = (0.1, 0.2, 0.4, 0.8)
"""Standard deviations of the log of what a site's losses are multiplied with."""
DRAWN = 48
"""Plans by each strength, and twice as many around each of two plans."""
TRIED = 20_000
"""Pairs of moves that exchanges are drawn from."""
COUNT = 30
"""Plans kept of a network."""
FIGURES = ("summed", "solved", "again", "local", "brief")
TEMPERATURE = 4.0
"""Of all distillation here."""
BRIEF = TrainConfig(
    epoch_count=4, batch_size=64, learning_rate=0.02, distill_temperature=TEMPERATURE
)
"""Of the 256 images that are solved from: as many images seen as blocks are trained on."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """A plan near the optimum, by what it is told from others before it is carried out."""

    source: str
    """What it was proposed by."""
    settings: tuple[int, ...]
    share: float
    """Of the unpruned network's MACs."""
    summed: float
    """Losses of its options alone, added up, nats."""
    solved: float
    """Divergence of the whole plan, layers solved once, nats."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A plan that is trained, and all its figures."""

    proposal: Proposal
    again: float
    """Divergence of the network as it is carried out, layers solved again, nats."""
    local: float
    """The same after a brief training of its blocks, each for itself."""
    brief: float
    """... after as brief a training of the whole network, by labels and the unpruned network."""
    blocks: int
    """Blocks that were trained."""
    cpu_seconds: float
    """That the three took."""

    def figure(self, name: str) -> float:
        """One of `FIGURES`."""
        own = self.proposal if name in ("summed", "solved") else self
        return float(getattr(own, name))


class Halves(Evaluator):
    """Evaluates on one half of the calibration images, and solves from the other, always."""

    def __init__(self, trace: OnnxTrace, solving: CalibrationSet, judge: CalibrationSet) -> None:
        self._solving, self._ort = solving, get_runtime()
        self._solved = Reconstruction.of(trace, solving, self._ort, cut_kernels(trace, SCHEMES))
        super().__init__(
            trace, judge, runtime=self._ort, reconstruction=self._solved, schemes=SCHEMES
        )

    def corrected_model(
        self, settings: IntArray, schemes: Sequence[str] = SCHEMES, *, again: bool = False
    ) -> onnx.ModelProto:
        if not again:
            return super().corrected_model(settings, schemes)
        removal = removal_of(self.trace, settings, schemes)
        pruned = cut(self.trace, removal)
        changes = refine(self.trace, pruned, removal, self._solved, self._solving, self._ort)
        return with_layers(pruned, changes)


def plan_count(run: Run) -> int:
    """Plans kept of a network."""
    return 8 if run.quick else COUNT


def proposals(net: str, run: Run) -> list[Proposal]:
    """The plans of a network that are near the optimum, kept or made now, best first."""
    file = run.work / "plans" / f"{net}.json"
    if not file.exists():
        began = time.process_time()
        found, reached, tried = _proposed(net, run)
        told = {
            "band": reached,
            "tried": tried,
            "cpu_seconds": time.process_time() - began,
            "plans": [asdict(one) for one in found],
        }
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, json.dumps(told).encode())
    return [
        Proposal(**{**one, "settings": tuple(one["settings"])})
        for one in json.loads(file.read_text())["plans"]
    ]


def about(net: str, run: Run) -> dict[str, Any]:
    """`band`: by what share the worst plan diverges more than the best; `tried`; `cpu_seconds`."""
    told: dict[str, Any] = json.loads((run.work / "plans" / f"{net}.json").read_text())
    del told["plans"]
    return told


def is_planned(net: str, run: Run) -> bool:
    """Whether all plans of a network, and their figures, are kept."""
    return (run.work / "plans" / f"{net}.json").exists() and all(
        figures_file(net, index, run).exists() for index in range(len(proposals(net, run)))
    )


def figures_file(net: str, index: int, run: Run) -> Path:
    """Where a plan's figures are kept; its network lies beside it."""
    return run.work / "plans" / f"{net}.{index:02}.json"


def kept(net: str, index: int, run: Run) -> Kept:
    """A plan with its figures, kept or found now."""
    proposal = proposals(net, run)[index]
    file = figures_file(net, index, run)
    if file.exists():
        told = json.loads(file.read_text())
        if tuple(told.pop("settings")) == proposal.settings:
            return Kept(proposal, **told)
    began = time.process_time()
    _, trace = network(net, run.shared)
    solving, judge = halves(net, run)
    settings = np.array(proposal.settings)
    small = _cut(net, proposal, run)
    solved = reconstruct_module(small, trace, settings, solving, get_runtime(), SCHEMES)
    state = {name: tensor.clone().contiguous() for name, tensor in tensors_of(small).items()}
    again = divergence(small, trace.module, judge)
    trained = copy.deepcopy(small)
    blocks = train_blocks(trained, trace, removal_of(trace.onnx, settings, SCHEMES), solving)
    local = divergence(trained, trace.module, judge)
    trained = copy.deepcopy(small)
    fit(trained, solving, BRIEF, augment=flipped_and_shifted, teacher=trace.module)
    brief = divergence(trained, trace.module, judge)
    found = Kept(proposal, again, local, brief, len(blocks), time.process_time() - began)
    write_atomic(file.with_suffix(".safetensors"), save_tensors(state))
    names = ("again", "local", "brief", "blocks", "cpu_seconds")
    told = {name: getattr(found, name) for name in names} | {"settings": list(proposal.settings)}
    write_atomic(file, json.dumps(told).encode())
    print(
        f"{net}.{index:02} {proposal.source}: summed {proposal.summed:.3f}, "
        f"solved {proposal.solved:.3f}, again {again:.3f}, local {local:.3f}, "
        f"brief {brief:.3f} "
        f"({len(blocks)} blocks, {found.cpu_seconds:.0f} CPU s; {solved.moved.text()})",
        flush=True,
    )
    return found


def reconstructed(net: str, index: int, run: Run) -> nn.Module:
    """The network of a plan as training finds it: cut and solved again, no block trained."""
    own = kept(net, index, run)
    small = _cut(net, own.proposal, run)
    small.load_state_dict(load_file(figures_file(net, index, run).with_suffix(".safetensors")))
    return small


def halves(net: str, run: Run) -> tuple[CalibrationSet, CalibrationSet]:
    """The calibration images that are solved from, and those that are judged on."""
    return calibration(net, run).halves()


def exchanges(
    task: PruningTask, choice: IntArray, budget: float, count: int, rng: np.random.Generator
) -> IntArray:
    """Choices [N, S], at most `count`, with one or two options other than `choice` has them, that
    use the budget."""
    moved = np.repeat(choice[None], TRIED, axis=0)
    row = np.arange(TRIED)
    for _ in range(2):
        site = rng.integers(0, task.site_count, TRIED)
        moved[row, site] = rng.integers(0, task.option_count[site])
    cost = task.tables.upper_ms(moved)
    fits = (cost <= budget) & (cost >= USED * budget)
    loss = task.curve[np.arange(task.site_count), moved].sum(1)
    # Only the nearer half of what fits: most exchanges at random are far off.
    near_by = fits & (loss <= np.median(loss[fits])) if fits.any() else fits
    found = np.unique(moved[near_by], axis=0)
    return found[rng.permutation(len(found))[:count]]


def _cut(net: str, proposal: Proposal, run: Run) -> nn.Module:
    _, trace = network(net, run.shared)
    return cut_torch(trace, removal_of(trace.onnx, np.array(proposal.settings), SCHEMES))


def _proposed(net: str, run: Run) -> tuple[list[Proposal], float, int]:
    """The plans kept, the band that they fill, and how many were tried."""
    torch.set_num_threads(1)
    judge, task = _task(net, run)
    budget = BUDGET * task.base_ms
    rng = np.random.default_rng(0)
    drawn = DRAWN // 8 if run.quick else DRAWN
    found: dict[tuple[int, ...], Proposal] = {}

    def evaluate(source: str, choice: IntArray) -> None:
        settings = _plain(task, choice)
        cost = float(task.tables.upper_ms(choice[None])[0])
        if settings in found or not USED * budget <= cost <= budget:
            return
        found[settings] = Proposal(
            source,
            settings,
            cost / task.base_ms,
            float(task.curve[np.arange(task.site_count), choice].sum()),
            judge.evaluate(np.array(settings), SCHEMES).divergence,
        )

    for source, choice in _by_curves(task, budget, drawn, rng):
        evaluate(source, choice)
    for source in ("knapsack", "best"):
        base = min(
            (one for one in found.values() if source == "best" or one.source == source),
            key=lambda one: one.solved,
        )
        around = task.space.choice_of(np.array(base.settings))
        for choice in exchanges(task, around, budget, 2 * drawn, rng):
            evaluate(f"exchange around {source}", choice)
    every = list(found.values())
    [first] = [index for index, one in enumerate(every) if one.source == "knapsack"]
    taken, reached = near(np.array([one.solved for one in every]), plan_count(run), first=first)
    plans = [every[index] for index in taken]
    print(
        f"{net}: {len(plans)} of {len(every)} plans, within {reached:.1%} of the best "
        f"({plans[0].solved:.3f} nats, {plans[0].source}); the knapsack's {every[first].solved:.3f}"
        f"{'' if first in taken else ', not among them'}",
        flush=True,
    )
    return plans, reached, len(every)


def _by_curves(
    task: PruningTask, budget: float, count: int, rng: np.random.Generator
) -> Iterator[tuple[str, IntArray]]:
    """The knapsack's plan, by its curves as they are and by wrong ones."""
    yield "knapsack", solve(task, np.array([budget]))[0]
    for strength in STRENGTHS:
        wrong: FloatArray = np.exp(strength * rng.standard_normal((count, task.site_count, 1)))
        for choice in solve(task, np.full(count, budget), loss=task.curve * wrong):
            yield f"noise {strength:g}", choice


@lru_cache(maxsize=1)
def _task(net: str, run: Run) -> tuple[Halves, PruningTask]:
    """The network's judge, and what can be decided about it."""
    _, traced = network(net, run.shared)
    trace = traced.onnx
    bound = bind(trace.graph, Constraints(), round_to=1, device=MACS_DEVICE)
    space = space_of(trace.graph, bound, SCHEMES)
    judge = Halves(trace, *halves(net, run))
    return judge, PruningTask(space, macs_tables(space), measure_profiles(judge, space))


def _plain(task: PruningTask, choice: IntArray) -> tuple[int, ...]:
    """The settings of a choice, those that do not matter as they were before."""
    settings = task.space.settings_at(choice)
    whole = task.space.settings_at(task.space.unpruned)
    idle = without_effect(task.graph, settings, SCHEMES)
    return tuple(int(whole[site] if site in idle else value) for site, value in enumerate(settings))
