"""Where a model's milliseconds are: operator by operator, before a plan and under it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rlprune.constraints import Constraints, bind
from rlprune.graph.types import IntArray
from rlprune.latency.calibrate import OTHER, operator_keys
from rlprune.latency.device import preferred_multiple
from rlprune.latency.types import F32, INT8, MACS_DEVICE, ONE_SIDED_95, Arithmetic
from rlprune.latency.types import check_precision as check_name
from rlprune.planning.local import device_task, which_device
from rlprune.planning.profiles import OnProgress
from rlprune.planning.tables import latency_model, tables_for
from rlprune.plans import PruningPlan
from rlprune.runtime import check_precision
from rlprune.schemes import CHANNEL_ONLY, Space, scheme_named, space_of
from rlprune.sensitivity.energy import energy_profiles
from rlprune.solver.task import PruningTask

if TYPE_CHECKING:
    from rlprune.graph.from_onnx import OnnxTrace
    from rlprune.latency.model import LatencyModel
    from rlprune.store import Store


LEFT_OUT = "left out"
"""What is said of operators that a plan takes out of the network."""


@dataclass(frozen=True, slots=True)
class OperatorLatency:
    """One operator, unpruned and under the plan; pairs are (before, after)."""

    name: str
    kind: str
    """`other` where it could not be measured alone."""
    fusable: bool
    """A runtime may compute it within its producer; it is then charged what it adds there."""
    in_width: tuple[int, int]
    out_width: tuple[int, int]
    ms: tuple[float, float]
    site: str = ""
    """The site by which the plan changes its form or leaves it out; empty where none does."""
    option: str = ""
    """What is chosen there, e.g. `1x3 of 3x3` or `left out`."""

    @property
    def left_out(self) -> bool:
        """Whether the plan has it no more."""
        return self.option == LEFT_OUT


@dataclass(frozen=True, slots=True)
class WholeLatency:
    """A whole model, predicted and, where that was done, measured."""

    predicted_ms: float
    predicted_interval_ms: tuple[float, float]
    """90 %."""
    measured_ms: float | None = None
    """By its ratio to the unpruned model's, as a plan's certificate."""
    measured_interval_ms: tuple[float, float] | None = None
    """90 %: 5 % on either side."""


@dataclass(frozen=True, slots=True)
class NextStep:
    """The site that would save most for what it loses, by one option."""

    group: str
    """Its name."""
    keep: tuple[int, int]
    """(now, then)."""
    option: str
    """What it would be then, e.g. `48 of 64 channels`."""
    saved_ms: float


@dataclass(frozen=True, slots=True)
class LatencyBreakdown:
    """A model's latency on one device; `macs` counts millions of MACs instead."""

    device: str
    precision: str
    """`f32`, `bf16` or `int8`."""
    fingerprint: str
    operators: tuple[OperatorLatency, ...]
    """In the graph's order; what they and the overhead add up to is what is predicted."""
    overhead_ms: float
    """What every call costs besides its operators."""
    before: WholeLatency
    after: WholeLatency | None
    """Under the plan; None without one."""
    next_step: NextStep | None
    """None where nothing can shrink, or nothing would be saved."""


def explain_latency(
    trace: OnnxTrace,
    plan: PruningPlan | None = None,
    *,
    device: str | None = None,
    precision: str | None = None,
    store: Store | None = None,
    on_progress: OnProgress | None = None,
) -> LatencyBreakdown:
    """A traced model's latency, operator by operator, and what a plan makes of it.

    For the plan's device and precision where none is named. What the model needs is measured now
    where that is this machine and the store does not have it, as `LocalPlanner` does.

    Raises:
        PlanError: the plan is for another graph, or asks for what it cannot give.
        NotFoundError: another device that has not reported what this model needs.
        MissingExtraError: something must be measured, and no runtime is installed.
    """
    from rlprune.store import open_store

    graph = trace.graph
    if plan is not None:
        plan.check(graph)
    named = device if device is not None or plan is None else plan.device
    key, runtime = which_device(named, graph)
    if precision is None:
        precision = F32 if plan is None else plan.precision
    check_name(precision)
    kept = () if plan is None or precision != INT8 else plan.constraints.keep_float
    arithmetic = Arithmetic.of(precision, kept)
    if runtime is not None:
        check_precision(runtime, precision)
    bound = bind(
        graph,
        Constraints() if plan is None else plan.constraints,
        round_to=preferred_multiple(key, precision),
        device=key,
        precision=precision,
    )
    space = space_of(graph, bound, CHANNEL_ONLY if plan is None else plan.schemes)
    settings = space.settings_at(space.unpruned) if plan is None else plan.keeps
    space = space.with_settings(settings)
    profiles = energy_profiles(trace, space)
    store = open_store() if store is None else store
    device_task(
        trace,
        space,
        profiles,
        store,
        key,
        runtime,
        arithmetic=arithmetic,
        on_progress=on_progress,
    )
    # Of all options: a plan may have one that does not pay.
    task = PruningTask(space, tables_for(space, store, key, arithmetic), profiles)
    choice = space.choice_of(settings)
    model = None if key == MACS_DEVICE else latency_model(store, key, arithmetic)
    before = _whole(task, space.unpruned, model)
    after = None if plan is None else _whole(task, choice, model)
    same = plan is not None and plan.precision == precision
    if plan is not None and same and after is not None and after.measured_ms is None:
        after = _certified(after, plan, key)
    return LatencyBreakdown(
        device=key,
        precision=precision,
        fingerprint=graph.fingerprint,
        operators=_operators(task, choice, fusing=model is not None),
        overhead_ms=task.tables.overhead_ms,
        before=before,
        after=after,
        next_step=_next_step(task, choice, {group for pins in bound.pins for group in pins}),
    )


def _operators(task: PruningTask, choice: IntArray, *, fusing: bool) -> tuple[OperatorLatency, ...]:
    graph = task.graph
    choices = np.stack([task.space.unpruned, choice])  # [2, S]
    ms = task.tables.operator_ms(choices)  # [2, O]
    both = task.space.settings_at(choices)[:, : task.space.group_count]  # [2, G]
    named = _options(task.space, choice)
    return tuple(
        OperatorLatency(
            name=op.name,
            kind=OTHER if operator_class == OTHER else op.kind,
            fusable=fusing and operator_class.endswith("+"),
            in_width=_pair(op.in_width.at(both)),
            out_width=_pair(op.out_width.at(both)),
            ms=(float(ms[0, index]), float(ms[1, index])),
            site=named.get(index, ("", ""))[0],
            option=named.get(index, ("", ""))[1],
        )
        for index, (op, (operator_class, _)) in enumerate(
            zip(graph.operators, operator_keys(graph), strict=True)
        )
    )


def _options(space: Space, choice: IntArray) -> dict[int, tuple[str, str]]:
    """Of every operator whose form a choice [S] changes the site and what is chosen there; a block
    that is left out counts before what lies in it."""
    found: dict[int, tuple[str, str]] = {}
    for site, option in zip(space.sites, choice.tolist(), strict=True):
        if option < len(site.values) - 1:
            scheme = scheme_named(site.scheme)
            words = scheme.describe(site, site.values[option])
            for index in site.operators:
                gone = scheme.form(space.graph.operators[index], site.values[option]).absent
                if gone or index not in found:
                    found[index] = site.name, LEFT_OUT if gone else words
    return found


def _pair(widths: IntArray) -> tuple[int, int]:
    return int(widths[0]), int(widths[1])


def _whole(task: PruningTask, choice: IntArray, model: LatencyModel | None) -> WholeLatency:
    predicted = float(task.tables.latency_ms(choice[None])[0])
    low, high = task.tables.interval_ms(choice[None])
    whole = WholeLatency(predicted, (float(low[0]), float(high[0])))
    for rows in () if model is None else model.rows:
        if rows.graph.fingerprint != task.graph.fingerprint:
            continue
        for row in rows.of(task.space.settings_at(choice), task.space.schemes):
            ms, spread = float(rows.ms[row]), float(np.exp(ONE_SIDED_95 * rows.log_sd[row]))
            return WholeLatency(
                predicted, whole.predicted_interval_ms, ms, (ms / spread, ms * spread)
            )
    return whole


def _certified(whole: WholeLatency, plan: PruningPlan, device: str) -> WholeLatency:
    """With what the plan's certificate says, where that is of this device."""
    found = plan.certificate
    if found is None or plan.device != device:
        return whole
    return WholeLatency(
        whole.predicted_ms,
        whole.predicted_interval_ms,
        found.measured_latency_ms,
        found.measured_interval_ms,
    )


def _next_step(task: PruningTask, choice: IntArray, pinned: set[int]) -> NextStep | None:
    """By saved latency over added loss as the weights tell it; pinned groups never move alone."""
    free = np.array([s for s in np.flatnonzero(choice > 0) if s not in pinned], dtype=np.int64)
    if not len(free):
        return None
    narrower = np.tile(choice, (len(free), 1))  # [F, S]: row f has its site one option narrower
    narrower[np.arange(len(free)), free] -= 1
    saved = task.tables.latency_ms(choice[None])[0] - task.tables.latency_ms(narrower)  # [F]
    loss = task.curve
    added = loss[free, choice[free] - 1] - loss[free, choice[free]]
    best = int(np.argmax(saved / np.maximum(added, 1e-9)))
    if saved[best] <= 0:
        return None
    site = task.space.sites[int(free[best])]
    now = int(choice[free[best]])
    return NextStep(
        group=site.name,
        keep=(site.values[now], site.values[now - 1]),
        option=scheme_named(site.scheme).describe(site, site.values[now - 1]),
        saved_ms=float(saved[best]),
    )
